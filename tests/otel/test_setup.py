"""Whose provider is used, what is built, what is imported, and how long the end may take."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider

from agentguard.core.call import HTTPCall, Usage
from agentguard.events import Attempt
from agentguard.otel.setup import set_up
from agentguard.testing.server import Recorder

from .conftest import BOT, OPENAI, START


def run(program, **variables):
    """Run a program in a process of its own: OpenTelemetry's globals are set once in a process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_an_endpoint_neither_sdk_nor_exporter_is_imported():
    out = run(
        """
        import sys
        from agentguard.otel.setup import set_up
        set_up(service_name="bot")
        dear = ("opentelemetry.sdk", "opentelemetry.exporter", "requests", "grpc")
        print(sorted(name for name in sys.modules if name.startswith(dear)))
        """
    )

    assert out.strip() == "[]"


def test_importing_agentguard_imports_no_opentelemetry():
    out = run("import sys, agentguard; print([name for name in sys.modules if name.startswith('opentelemetry')])")

    assert out.strip() == "[]"


def test_a_provider_that_is_set_later_gets_the_spans():
    out = run(
        """
        from agentguard.otel.setup import set_up
        telemetry = set_up()
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        from agentguard.core.caller import Caller
        print(telemetry.spans.begin("invoke_agent", "bot", None, Caller(("bot",))).span.is_recording())
        """
    )

    assert out.strip() == "True"


def test_the_programs_provider_is_used_and_nothing_is_added_to_it():
    out = run(
        """
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
        theirs = TracerProvider()
        trace.set_tracer_provider(theirs)
        from agentguard.otel.setup import set_up
        from agentguard.core.caller import Caller
        telemetry = set_up(service_name="bot")
        span = telemetry.spans.begin("invoke_agent", "bot", None, Caller(("bot",))).span
        print(trace.get_tracer_provider() is theirs, span.is_recording(), len(theirs._active_span_processor._span_processors))
        print(type(metrics.get_meter_provider()).__name__)
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )

    assert out.split() == ["True", "True", "0", "_ProxyMeterProvider"]


SERVICE = """
from opentelemetry import trace
from agentguard.otel.setup import set_up
set_up(service_name="bot")
print(trace.get_tracer_provider().resource.attributes["service.name"])
"""


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "bot"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=store,a=b"}, "store"),
    ],
)
def test_the_service_is_named_by_the_variables_or_is_the_agent(variables, name):
    assert run(SERVICE, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **variables).strip() == name


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
    ],
)
def test_no_provider_is_built_unless_otlp_is_asked_for(variables):
    out = run(
        """
        from opentelemetry import metrics, trace
        from agentguard.otel.setup import set_up
        set_up(service_name="bot")
        print(type(trace.get_tracer_provider()).__name__, type(metrics.get_meter_provider()).__name__)
        """,
        **variables,
    )

    assert out.split() == ["ProxyTracerProvider", "_ProxyMeterProvider"]


def test_setting_up_again_finds_the_provider_that_was_built():
    out = run(
        """
        from opentelemetry import trace
        from agentguard.otel.setup import set_up
        first = set_up(service_name="bot", endpoint="http://127.0.0.1:1")
        built = trace.get_tracer_provider()
        first.close(0.1)
        again = set_up(service_name="bot")
        from agentguard.core.caller import Caller
        span = again.spans.begin("invoke_agent", "bot", None, Caller()).span
        print(trace.get_tracer_provider() is built, span.is_recording(), len(built._active_span_processor._span_processors))
        """
    )

    assert out.split() == ["True", "True", "1"]


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_does_not_answer_holds_up_the_end_for_two_seconds_at_most(protocol):
    program = """
        import time
        from agentguard.core.caller import Caller
        from agentguard.events import ScopeEnded
        from agentguard.otel.setup import set_up
        telemetry = set_up(service_name="bot", endpoint="{endpoint}")
        span = telemetry.spans.begin("invoke_agent", "bot", None, Caller(("bot",)))
        telemetry.spans(ScopeEnded(time.time(), "invoke_agent", "bot", Caller(("bot",)), time.time(), "", span))
        print(time.time())
        """

    with Recorder(delay=30) as silent:
        ended = float(run(program.format(endpoint=silent.base_url), OTEL_EXPORTER_OTLP_PROTOCOL=protocol))
        took = time.time() - ended

    assert took < 15  # of the 30 that the collector takes: on a busy machine the end of the interpreter is slow too


def test_an_endpoint_beside_the_programs_provider_gets_our_spans_only():
    theirs = TracerProvider(shutdown_on_exit=False)

    with Recorder(body=b"") as backend:
        telemetry = set_up(tracer_provider=theirs, endpoint=backend.base_url)
        theirs.get_tracer("app").start_span("private").end()
        telemetry.spans.begin("invoke_agent", "ours", None, BOT).span.end()
        telemetry.close()
        theirs.get_tracer("agentguard").start_span("after close").end()
        theirs.force_flush()

    sent = [request.body for request in backend.requests if request == "/v1/traces"]
    assert len(sent) == 1
    assert b"invoke_agent ours" in sent[0]
    assert b"private" not in sent[0]


def test_a_provider_that_takes_no_processor_is_left_alone(caplog):
    class Foreign:
        def get_tracer(self, *_):
            return TracerProvider(shutdown_on_exit=False).get_tracer("x")

    set_up(tracer_provider=Foreign(), endpoint="http://127.0.0.1:1")

    assert "takes no span processor" in caplog.text


def test_our_exporters_are_exempt_from_our_seams_and_nothing_else_is():
    from agentguard.context import OWN_TRAFFIC
    from agentguard.otel import exporters

    seen = []

    class Exporter:
        def export(self, batch, timeout_millis=0):
            seen.append(OWN_TRAFFIC.get())
            raise OSError("down")

    exempt = exporters._exempt(Exporter)()

    with pytest.raises(OSError, match="down"):
        exempt.export([])
    assert seen == [True]
    assert not OWN_TRAFFIC.get()
    assert isinstance(exempt, Exporter)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("", "operation"), ("legacy", "operation"), ("NEW", "inference"), ("both", "operation")],
)
def test_a_variable_chooses_the_names_of_metrics(monkeypatch, measured, settled, word, expected):
    monkeypatch.setenv("AGENTGUARD_METRIC_NAMES", word)

    set_up(meter_provider=measured.provider).metrics(settled())

    assert f"gen_ai.client.{expected}.duration" in measured()


def test_a_variable_leaves_http_to_others(monkeypatch, written, settled):
    monkeypatch.setenv("AGENTGUARD_HTTP_SPANS", "false")
    call = HTTPCall("GET", OPENAI)
    sent = (Attempt("GET", OPENAI, START, START + 1, 200),)

    set_up(tracer_provider=written.provider).spans(settled(call=call, usage=Usage(), attempts=sent))

    assert written.spans == ()


def test_instrument_reports_what_the_budgets_of_the_policy_have_left(tmp_path):
    (tmp_path / "agentguard.yaml").write_text(
        """
        version: 1
        agents:
          - {name: bot, budgets: [{limit: 3 calls, every: day}], external_calls: {allowed_domains: [127.0.0.1]}}
        """
    )
    out = run(
        f"""
        import http.client
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider([reader]))
        import agentguard
        from agentguard.testing.server import Recorder
        agentguard.instrument({str(tmp_path / "agentguard.yaml")!r})
        with Recorder() as server:
            asked = http.client.HTTPConnection("127.0.0.1", server.port)
            asked.request("GET", "/")
            asked.getresponse().read()
        for resource in reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == "agentguard.budget.remaining":
                        print([(point.value, dict(point.attributes)) for point in metric.data.data_points])
        agentguard.uninstrument()
        """,
        AGENTGUARD_STATE_DIR=str(tmp_path / "state"),
    )

    limit = {"agentguard.limit.subject": "agent:bot", "agentguard.limit.unit": "calls", "agentguard.limit.window": "day"}
    assert out.strip() == str([(2, limit)])

"""Providers in memory, records by hand, and a guard with spans over the loopback provider."""

from __future__ import annotations

import gzip
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import rotel
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentguard.core.call import LLMCall, Target, Usage
from agentguard.core.caller import Caller
from agentguard.core.decision import Decision, Effect, Facts, Reason
from agentguard.events import CallDenied, CallSettled
from agentguard.guard import Guard
from agentguard.otel.metrics import Metrics
from agentguard.otel.spans import Spans
from agentguard.policy import Policy
from agentguard.testing.provider import Provider
from agentguard.testing.server import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from agentguard.testing.records import RecordedRequest

START = 1_790_000_000.0
OPENAI = Target("https", "api.openai.com", 443, "/v1/chat/completions")
CHAT = LLMCall("chat", "openai", "gpt-4o-mini", OPENAI, input_bytes=40)
BOT = Caller(("bot",))
OVER = Decision(
    Effect.DENY,
    Reason.BUDGET,
    "agents[bot].budgets[0]",
    "agents.yaml:7",
    "agent 'bot' asked for too much",
    facts=Facts(1000, 900, 50, 200, resets_at=START + 60),
)


@contextmanager
def current(spans: Spans, span: Any) -> Iterator[None]:
    """Make what `begin` returned current for a block, as the guard does."""
    entered = None if span is None else spans.enter(span)
    yield
    if entered is not None:
        spans.leave(entered)


class Collector:
    """A real collector, rotel, with the loopback backend that it forwards to."""

    def __init__(self, grpc: int, http: int, backend: Recorder) -> None:
        self.grpc = f"http://127.0.0.1:{grpc}"
        self.http = f"http://127.0.0.1:{http}"
        self._backend = backend

    @property
    def bodies(self) -> list[bytes]:
        """Every byte that came out of it."""
        return [_plain(request) for request in self._backend.requests]

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Spans, each with its resource's attributes."""
        found = []
        for request in self._backend.requests:
            if request == "/v1/traces":
                for group in ExportTraceServiceRequest.FromString(_plain(request)).resource_spans:
                    resource = attributes(group.resource)
                    found += [(resource, span) for scope in group.scope_spans for span in scope.spans]
        return found

    def metrics(self) -> set[str]:
        """Names of metrics."""
        return {
            metric.name
            for request in self._backend.requests
            if request == "/v1/metrics"
            for group in ExportMetricsServiceRequest.FromString(_plain(request)).resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        }

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until what was sent has come through."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, [request.path for request in self._backend.requests]
            time.sleep(0.05)


def _plain(request: RecordedRequest) -> bytes:
    return gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body


def attributes(holder: Any) -> dict[str, Any]:
    """Attributes of OTLP, as Python has them."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes}


@pytest.fixture(scope="session")
def rotel_agent() -> str:
    return str(Path(rotel.__file__).with_name("rotel-agent"))


@pytest.fixture
def collector(rotel_agent: str) -> Iterator[Collector]:
    grpc, http = _free_port(), _free_port()
    with Recorder(body=b"", headers={"content-type": "application/x-protobuf"}) as backend:
        running = subprocess.Popen(
            [
                *(rotel_agent, "start", "--batch-timeout", "50ms"),
                *("--otlp-grpc-endpoint", f"127.0.0.1:{grpc}", "--otlp-http-endpoint", f"127.0.0.1:{http}"),
                *("--exporter", "otlp", "--otlp-exporter-protocol", "http", "--otlp-exporter-endpoint", backend.base_url),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(grpc)
            _wait_for_port(http)
            yield Collector(grpc, http, backend)
        finally:
            running.kill()
            running.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.05)
        else:
            return


class Looking(SpanProcessor):
    """Is told of the start of spans, so that the SDK has to start them. By itself a start tells it nothing."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """See it."""


class Written:
    """What has been written so far."""

    def __init__(self, *looking: SpanProcessor) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        for processor in looking:
            self.provider.add_span_processor(processor)
        self.processor = SimpleSpanProcessor(self._exporter)
        self.provider.add_span_processor(self.processor)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def with_usage(self) -> list[ReadableSpan]:
        return [span for span in self.spans if any(key.startswith("gen_ai.usage.") for key in span.attributes or {})]


class Measured:
    """What has been measured so far."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader], shutdown_on_exit=False)

    def __call__(self) -> dict[str, list[Any]]:
        found = self._reader.get_metrics_data()
        if found is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in found.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture(params=["of finished spans", "of started spans"])
def written(request: pytest.FixtureRequest) -> Written:
    return Written() if request.param == "of finished spans" else Written(Looking())


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def spans(written: Written) -> Spans:
    return Spans(written.provider)


@pytest.fixture
def metrics(measured: Measured) -> Metrics:
    return Metrics(measured.provider)


@pytest.fixture
def settled() -> Callable[..., CallSettled]:
    """A settled chat call of two seconds; fields by name."""

    def make(**fields: Any) -> CallSettled:
        known = {
            "at": START + 2,
            "id": "call-1",
            "call": CHAT,
            "caller": BOT,
            "started": START,
            "usage": Usage(10, 5),
            "nanos": 4_500,
            "outcome": "complete",
        }
        return CallSettled(**{**known, **fields})

    return make


@pytest.fixture
def denied() -> Callable[..., CallDenied]:
    """A chat call denied by a budget; fields by name."""

    def make(**fields: Any) -> CallDenied:
        known = {"at": START, "id": "call-1", "call": CHAT, "caller": BOT, "decision": OVER, "enforced": True}
        return CallDenied(**{**known, **fields})

    return make


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def guarded(written: Written, measured: Measured, provider: Provider) -> Iterator[Callable[..., Any]]:
    """`with guarded(budget="1000 tokens"):` guards this process's SDKs by the loopback provider's own policy."""
    from agentguard.integrations._seam import Seams
    from agentguard.integrations.registry import integrations

    @contextmanager
    def guard(budget: str = "1000000 tokens", mode: str = "enforce") -> Iterator[Guard]:
        host = f"{provider.host}:{provider.port}"
        policy = Policy.from_mapping(
            {
                "version": 1,
                "mode": mode,
                "agents": [
                    {
                        "name": "bot",
                        "llm": {"providers": ["openai", "anthropic"]},
                        "external_calls": {"allowed_domains": [host], "allow_private": True},
                        "budgets": [{"limit": budget}],
                    }
                ],
            }
        )
        one = Guard(policy, observers=[Spans(written.provider), Metrics(measured.provider)])
        seams = Seams(integrations(lambda _module: None), lambda: one, lambda *_: None)
        seams.install()
        try:
            yield one
        finally:
            one.flush()
            seams.remove()
            one.close()

    return guard

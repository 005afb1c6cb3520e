"""What is measured, under which names, and never twice."""

from __future__ import annotations

import contextlib

import pytest
from opentelemetry import context, trace

from agentguard.core.call import HTTPCall, Target, Usage
from agentguard.errors import StoreUnavailable
from agentguard.events import Attempt, CallAdmitted, ScopeEnded
from agentguard.guard import Guard
from agentguard.otel import semconv as names
from agentguard.otel.metrics import Metrics
from agentguard.otel.spans import Spans
from agentguard.policy import Policy
from agentguard.stores.memory import MemoryStore
from agentguard.wire.answer import Answer

from .conftest import BOT, CHAT, OPENAI, OVER, START

LEGACY = {"gen_ai.client.operation.duration", "gen_ai.client.token.usage"}
NEW = {
    "gen_ai.client.inference.duration",
    "gen_ai.client.inference.operation.input_tokens",
    "gen_ai.client.inference.operation.output_tokens",
    "gen_ai.client.inference.usage.input_tokens",
    "gen_ai.client.inference.usage.output_tokens",
}


def test_the_names_of_today_are_the_default(metrics, measured, settled):
    metrics(settled(answer=Answer(response_model="gpt-4o-mini-2")))

    found = measured()
    assert {name for name in found if name.startswith("gen_ai.")} == LEGACY
    (duration,) = found["gen_ai.client.operation.duration"]
    assert duration.sum == 2
    assert duration.explicit_bounds == (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
    assert dict(duration.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.response.model": "gpt-4o-mini-2",
        "server.address": "api.openai.com",
        "server.port": 443,
    }
    tokens = {point.attributes["gen_ai.token.type"]: point for point in found["gen_ai.client.token.usage"]}
    assert (tokens["input"].sum, tokens["output"].sum) == (10, 5)
    assert tokens["input"].explicit_bounds == tuple(4**power for power in range(14))


@pytest.mark.parametrize(("chosen", "expected"), [("legacy", LEGACY), ("new", NEW), ("dup", LEGACY | NEW)])
def test_other_names_are_a_choice(measured, settled, chosen, expected):
    Metrics(measured.provider, metric_names=chosen)(settled())

    assert {name for name in measured() if name.startswith("gen_ai.")} == expected


def test_an_unknown_choice_is_refused(measured):
    with pytest.raises(ValueError, match="is not a valid MetricNames"):
        Metrics(measured.provider, metric_names="both")


def test_new_counters_say_zero_for_a_call_without_usage_and_parts_where_there_are_any(measured, settled):
    metrics = Metrics(measured.provider, metric_names="new")

    metrics(settled(usage=Usage(), outcome="error", error="APITimeoutError"))
    metrics(settled(usage=Usage(100, 50, 40, 3, 20), first_chunk_at=START + 0.5))

    found = measured()
    (given,) = found["gen_ai.client.inference.usage.input_tokens"]
    assert (given.value, given.attributes["gen_ai.token.modality"]) == (100, "unknown")
    for name, value in (("cache_read.input", 40), ("cache_write.input", 3), ("reasoning.output", 20)):
        assert [point.value for point in found[f"gen_ai.client.inference.usage.{name}_tokens"]] == [value]
    assert [point.count for point in found["gen_ai.client.inference.operation.input_tokens"]] == [1]
    assert [point.sum for point in found["gen_ai.client.inference.time_to_first_chunk"]] == [0.5]


def test_embeddings_are_measured_apart_from_inference(measured, settled):
    call = CHAT._replace(operation="embeddings")

    Metrics(measured.provider, metric_names="new")(settled(call=call, usage=Usage(10)))

    assert {name for name in measured() if name.startswith("gen_ai.")} == {
        "gen_ai.client.embeddings.duration",
        "gen_ai.client.embeddings.operation.input_tokens",
    }


def test_a_failure_is_timed_with_its_error(metrics, measured, settled):
    metrics(settled(usage=Usage(), outcome="error", error="RateLimitError"))

    (duration,) = measured()["gen_ai.client.operation.duration"]
    assert duration.attributes["error.type"] == "RateLimitError"
    assert "gen_ai.client.token.usage" not in measured()


def test_an_estimated_usage_can_be_told_apart(metrics, measured, settled):
    metrics(settled(usage=Usage(10, 5, estimated=True)))

    assert all(point.attributes[names.USAGE_ESTIMATED] for point in measured()["gen_ai.client.token.usage"])


def test_cost_is_counted_by_agent_and_model(metrics, measured, settled):
    metrics(settled(nanos=1_500_000_000))
    metrics(settled(nanos=500_000_000))

    (cost,) = measured()["agentguard.cost"]
    assert cost.value == 2
    assert dict(cost.attributes) == {names.PROVIDER_NAME: "openai", names.REQUEST_MODEL: "gpt-4o-mini", names.AGENT_NAME: "bot"}


def test_decisions_are_counted(metrics, measured, denied):
    metrics(CallAdmitted(START, "call-0", CHAT, BOT, 10, 0))
    metrics(denied())
    metrics(denied(enforced=False))

    counted = {point.attributes[names.DECISION]: point for point in measured()["agentguard.policy.decisions"]}
    assert {decision: point.value for decision, point in counted.items()} == {"allow": 1, "deny": 1, "would_deny": 1}
    assert counted["deny"].attributes[names.REASON] == "budget"


def test_every_request_is_timed_and_no_url_is_a_dimension(metrics, measured, settled):
    target = Target("https", "docs.example.com", 443, "/customers/4711")
    call = HTTPCall("GET", target)
    tried = (
        Attempt("GET", target, START, START + 0.5, 503),
        Attempt("", OPENAI, START, START, None, "EgressDenied", was_sent=False),
    )

    metrics(settled(call=call, usage=Usage(), nanos=None, attempts=tried))

    (duration,) = measured()["http.client.request.duration"]
    assert duration.sum == 0.5
    assert duration.explicit_bounds[:3] == (0.005, 0.01, 0.025)
    assert dict(duration.attributes) == {
        "http.request.method": "GET",
        "http.response.status_code": 503,
        "error.type": "503",
        "server.address": "docs.example.com",
        "server.port": 443,
        "url.scheme": "https",
    }


def test_tools_and_agents_are_timed(metrics, measured):
    metrics(ScopeEnded(START + 1, "execute_tool", "search", BOT, START, "KeyError"))
    metrics(ScopeEnded(START + 3, "invoke_agent", "bot", BOT, START))

    found = measured()
    (tool,) = found["gen_ai.execute_tool.duration"]
    (agent,) = found["gen_ai.invoke_agent.duration"]
    assert (tool.sum, tool.attributes["error.type"], tool.attributes["gen_ai.tool.name"]) == (1, "KeyError", "search")
    assert (agent.sum, dict(agent.attributes)) == (3, {"gen_ai.agent.name": "bot"})


def test_dropped_events_are_reported_as_they_stand(metrics, measured):
    dropped = [0]
    metrics.watch_dropped(lambda: dropped[0])

    dropped[0] = 7

    (point,) = measured()["agentguard.events.dropped"]
    assert point.value == 7


def test_how_long_calls_waited_for_room_is_measured_by_how_it_ended(metrics, measured, denied):
    metrics(CallAdmitted(START, "call-0", CHAT, BOT, 10, 0))
    metrics(CallAdmitted(START, "call-1", CHAT, BOT, 10, 0, waited=2.5))
    metrics(CallAdmitted(START, "call-2", CHAT, BOT, 10, 0, waited=0.5))
    metrics(denied(decision=OVER._replace(facts=OVER.facts._replace(waited=9.0))))
    metrics(denied())

    found = {point.attributes["agentguard.decision"]: point for point in measured()["agentguard.ratelimit.wait"]}
    assert {decision: (point.count, point.sum) for decision, point in found.items()} == {"allow": (2, 3.0), "deny": (1, 9.0)}
    assert found["deny"].attributes["gen_ai.agent.name"] == "bot"


def budgets_of(store=None, **limits):
    agent = {
        "name": "bot",
        "external_calls": {"allowed_domains": ["api.openai.com"]},
        "budgets": [
            {"limit": "1000 tokens", "every": "day"},
            {"limit": "$2.00"},
            {"limit": "500 tokens", "per": "session"},
            {"limit": "10_requests_per_minute"},
        ],
        "llm": {"prices": {"gpt-4o-mini": {"input": "$1.00", "output": "$1.00"}}},
    }
    return Guard(Policy.from_mapping({"agents": [agent]}), store=store)


def test_what_limits_have_left_is_reported_as_it_stands_without_those_of_single_sessions(metrics, measured):
    with contextlib.closing(budgets_of()) as guard:
        metrics.watch_budgets(guard.ledger.lasting)
        assert "agentguard.budget.remaining" not in measured()
        with guard.admit(CHAT._replace(max_output_tokens=100)) as admitted:
            held = {point.attributes["agentguard.limit.unit"]: point.value for point in measured()["agentguard.budget.remaining"]}
            admitted.settle(Usage(100, 50))

        found = {point.attributes["agentguard.limit.unit"]: point for point in measured()["agentguard.budget.remaining"]}

    assert held["tokens"] <= 1000 - 100
    assert held["calls"] == 9
    assert {unit: point.value for unit, point in found.items()} == {"tokens": 850, "usd": 1.99985, "calls": 9}
    assert dict(found["tokens"].attributes) == {
        "agentguard.limit.subject": "agent:bot",
        "agentguard.limit.unit": "tokens",
        "agentguard.limit.window": "day",
    }


def test_a_store_that_gives_no_answer_has_nothing_reported(metrics, measured):
    class Gone(MemoryStore):
        is_gone = False

        def read(self, keys):
            if self.is_gone:
                raise StoreUnavailable("gone")
            return super().read(keys)

    store = Gone()
    with contextlib.closing(budgets_of(store)) as guard:
        metrics.watch_budgets(guard.ledger.lasting)
        with guard.admit(CHAT._replace(max_output_tokens=100)):
            store.is_gone = True
            found = measured()

    assert "agentguard.budget.remaining" not in found


def test_what_an_official_instrumentation_measures_is_not_measured_again(written, metrics, measured, settled):
    theirs = written.provider.get_tracer("opentelemetry.instrumentation.genai.openai")
    token = context.attach(
        trace.set_span_in_context(theirs.start_span("chat gpt-4o-mini", attributes={names.OPERATION_NAME: "chat"}))
    )
    began = Spans(written.provider).begin("call", CHAT.name, CHAT, BOT)
    context.detach(token)

    metrics(settled(span=began))

    assert set(measured()) == {"agentguard.cost"}

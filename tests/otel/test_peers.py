"""Usage stands on exactly one span, whoever else instruments the same call."""

from __future__ import annotations

import anthropic
import openai
import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

from agentguard.integrations.anthropic_tracing import quieten
from agentguard.otel import semconv as names

from .conftest import BOT, CHAT, current

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def official(written, measured):
    """The official instrumentation of openai, writing to the same provider."""
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=written.provider, meter_provider=measured.provider)
    yield
    instrumentor.uninstrument()


@pytest.fixture
def client(provider):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", max_retries=0) as one:
        yield one


@pytest.fixture
def claude(provider, written):
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test", max_retries=0) as one:
        yield one


def say_hello(claude):
    return claude.messages.create(model="claude-test", max_tokens=32, messages=HELLO)


# --- the guard alone ----------------------------------------------------------------------------------------------------


def test_a_guarded_call_is_one_inference_span_with_one_http_span(guarded, client, written):
    with guarded():
        completion = client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)

    (inference,) = written.with_usage()
    (http,) = written.named("POST")
    assert inference.name == "chat gpt-4o-mini"
    assert inference.attributes[names.USAGE_INPUT] == completion.usage.prompt_tokens
    assert inference.attributes[names.RESPONSE_ID] == completion.id
    assert http.parent.span_id == inference.context.span_id
    assert http.attributes[names.HTTP_STATUS_CODE] == 200
    assert len(written.spans) == 2


def test_a_denied_call_has_one_span_and_reaches_nobody(guarded, client, written, provider):
    from agentguard.errors import BudgetExceeded

    with guarded(budget="10 tokens"), pytest.raises(BudgetExceeded):
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_completion_tokens=500)

    assert written.only.attributes[names.ERROR_TYPE] == "agentguard.BudgetExceeded"
    assert provider.calls == 0


def test_in_report_mode_the_call_goes_and_its_span_says_what_would_have_been(guarded, client, written, provider):
    with guarded(budget="10 tokens", mode="report"):
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, max_completion_tokens=500)

    (inference,) = written.named("chat gpt-4o-mini")
    assert inference.attributes[names.DECISION] == "would_deny"
    assert provider.calls == 1


# --- the official instrumentation ---------------------------------------------------------------------------------------


def test_beside_the_official_instrumentation_usage_and_metrics_are_its_own(guarded, client, written, measured, official):
    with guarded():
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)

    (theirs,) = written.with_usage()
    (ours,) = [span for span in written.named("chat gpt-4o-mini") if span is not theirs]
    assert theirs.instrumentation_scope.name.startswith("opentelemetry.")
    assert ours.parent.span_id == theirs.context.span_id
    assert ours.attributes[names.DECISION] == "allow"
    assert ours.attributes[names.AGENT_NAME] == "bot"
    assert names.OPERATION_NAME not in ours.attributes
    assert [point.count for point in measured()["gen_ai.client.operation.duration"]] == [1]


def test_inside_our_span_the_official_instrumentation_is_silent(spans, client, written, measured, official, settled):
    began = spans.begin("call", CHAT.name, CHAT, BOT)
    spans.silence(began, CHAT)

    with current(spans, began):
        client.chat.completions.create(model="gpt-4o-mini", messages=HELLO)
    spans(settled(span=began))

    assert written.only.instrumentation_scope.name == names.SCOPE
    assert "gen_ai.client.operation.duration" not in measured()


@pytest.mark.parametrize(
    ("scope", "known"),
    [
        ("opentelemetry.instrumentation.openai", {"llm.request.type": "chat"}),
        ("openinference.instrumentation.openai", {"openinference.span.kind": "LLM"}),
        ("logfire.openai", {"gen_ai.operation.name": "chat"}),
    ],
)
def test_others_are_known_by_their_spans(spans, written, settled, scope, known):
    theirs = written.provider.get_tracer(scope).start_span("theirs", attributes=known)
    token = context.attach(trace.set_span_in_context(theirs))
    began = spans.begin("call", CHAT.name, CHAT, BOT)
    context.detach(token)

    spans(settled(span=began))

    assert written.with_usage() == []


def test_an_agent_framework_around_us_leaves_usage_to_us(spans, written, settled):
    theirs = written.provider.get_tracer("agents").start_span("invoke_agent x", attributes={names.OPERATION_NAME: "invoke_agent"})
    token = context.attach(trace.set_span_in_context(theirs))
    began = spans.begin("call", CHAT.name, CHAT, BOT)
    context.detach(token)

    spans(settled(span=began))

    assert [span.name for span in written.with_usage()] == ["chat gpt-4o-mini"]


# --- anthropic's own tracing --------------------------------------------------------------------------------------------


@pytest.fixture
def traced_claude(provider, written):
    with anthropic.Anthropic(
        base_url=provider.base_url,
        api_key="sk-test",
        open_telemetry={"tracer_provider": written.provider},
    ) as one:
        yield one


def test_a_client_does_not_trace_itself_and_tells_the_provider_nothing(guarded, claude, written, provider):
    with guarded():
        say_hello(claude)

    assert [span.name for span in written.with_usage()] == ["chat claude-test"]
    assert "traceparent" not in provider.requests[0].headers


def test_a_copy_of_a_client_does_not_trace_itself(guarded, claude, provider):
    with guarded():
        say_hello(claude.with_options(timeout=5))

    assert "traceparent" not in provider.requests[0].headers


def test_a_client_whose_user_wants_its_spans_keeps_them(traced_claude, written):
    assert quieten(traced_claude)

    say_hello(traced_claude)

    assert len(written.with_usage()) == 1


def test_the_variable_keeps_them_too(monkeypatch, claude):
    monkeypatch.setenv("ANTHROPIC_OPEN_TELEMETRY", "true")

    assert quieten(claude)
    assert claude.open_telemetry["traces"]["enabled"]


def test_usage_is_left_to_a_client_that_keeps_its_spans(spans, traced_claude, written, settled):
    began = spans.begin("call", CHAT.name, CHAT, BOT)
    if quieten(traced_claude):
        spans.leave_usage(began)

    with current(spans, began):
        say_hello(traced_claude)
    spans(settled(span=began))

    (theirs,) = written.with_usage()
    (ours,) = written.named("chat gpt-4o-mini")
    assert theirs.parent.span_id == ours.context.span_id


def test_a_client_without_such_tracing_is_left_alone():
    assert not quieten(object())


def test_a_client_that_cannot_be_quietened_keeps_its_usage():
    class Odd:
        def __init__(self):
            self._open_telemetry = {"traces": {"enabled": True, "content_mode": "metadata_only"}}

    assert quieten(Odd())

"""One span for each thing that happened, from the event's own times."""

from __future__ import annotations

from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from agentguard.core.call import HTTPCall, Target, ToolCall, Usage
from agentguard.core.caller import Caller
from agentguard.core.decision import Decision, Effect, Reason
from agentguard.events import Attempt, CallAdmitted, EstimateBreached, PolicyLoaded, ScopeEnded, ToolProposed
from agentguard.otel import semconv as names
from agentguard.otel.spans import Spans
from agentguard.wire.answer import Answer

from .conftest import BOT, CHAT, OPENAI, OVER, START, current

NANOS = 1_000_000_000
BEYOND = Decision(Effect.DENY, Reason.EGRESS, "external_calls.allowed_domains", "agents.yaml:3", "no")
FETCH = HTTPCall("GET", Target("https", "docs.example.com", 443, "/page"))


def attempt(started=0.0, ended=1.0, status=200, error="", method="POST", target=OPENAI, was_sent=True):
    return Attempt(method, target, START + started, START + ended, status, error, was_sent)


def begin(spans, call=CHAT):
    return spans.begin("call", call.name, call, BOT)


# --- inference ----------------------------------------------------------------------------------------------------------


def test_an_inference_span_has_what_a_sampler_judges_by_from_the_beginning(written, spans):
    seen = {}

    class Watching(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
            seen.update(attributes, name=name, kind=kind)
            return ALWAYS_OFF.should_sample(parent_context, trace_id, name, kind, attributes, links)

        def get_description(self):
            return "watching"

    begin(Spans(TracerProvider(sampler=Watching(), shutdown_on_exit=False)))

    assert seen == {
        "name": "chat gpt-4o-mini",
        "kind": SpanKind.CLIENT,
        names.OPERATION_NAME: "chat",
        names.PROVIDER_NAME: "openai",
        names.REQUEST_MODEL: "gpt-4o-mini",
        names.SERVER_ADDRESS: "api.openai.com",
        names.SERVER_PORT: 443,
        names.AGENT_NAME: "bot",
    }


def test_a_settled_call_ends_its_span_when_the_call_ended(written, spans, settled):
    spans(settled(span=begin(spans), at=START + 2))

    assert abs(written.only.start_time - START * NANOS) < 1_000_000
    assert abs(written.only.end_time - written.only.start_time - 2 * NANOS) < 1_000_000
    assert written.only.status.status_code is StatusCode.UNSET


def test_usage_and_answer_and_parameters_stand_on_the_inference_span(written, spans, settled):
    call = CHAT._replace(request={"temperature": 0.5}, stream=True)
    answer = Answer(response_id="r-1", response_model="gpt-4o-mini-2", finish_reasons=("stop",), system_fingerprint="fp")
    usage = Usage(100, 50, cache_read_tokens=40, cache_write_tokens=3, reasoning_tokens=20)

    spans(settled(span=begin(spans, call), call=call, answer=answer, usage=usage, first_chunk_at=START + 0.25))

    found = written.only.attributes
    assert found[names.USAGE_INPUT] == 100
    assert found[names.USAGE_OUTPUT] == 50
    assert found[names.USAGE_CACHE_READ] == 40
    assert found[names.USAGE_CACHE_WRITE] == 3
    assert found[names.USAGE_REASONING] == 20
    assert found[names.RESPONSE_ID] == "r-1"
    assert found[names.RESPONSE_MODEL] == "gpt-4o-mini-2"
    assert found[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert found[names.OPENAI_RESPONSE_SYSTEM_FINGERPRINT] == "fp"
    assert found[names.REQUEST_TEMPERATURE] == 0.5
    assert found[names.REQUEST_STREAM] is True
    assert found[names.RESPONSE_TIME_TO_FIRST_CHUNK] == 0.25
    assert found[names.STREAM_OUTCOME] == "complete"
    assert found[names.COST_USD] == 4.5e-06
    assert found[names.DECISION] == "allow"


def test_what_is_not_known_is_not_said(written, spans, settled):
    spans(settled(span=begin(spans), usage=Usage(), nanos=None))

    unknown = {
        names.USAGE_INPUT,
        names.COST_USD,
        names.CONVERSATION_ID,
        names.RESPONSE_ID,
        names.STREAM_OUTCOME,
        names.REQUEST_STREAM,
    }
    assert unknown.isdisjoint(written.only.attributes)


def test_embeddings_have_no_output_tokens(written, spans, settled):
    call = CHAT._replace(operation="embeddings", model="text-embedding-3-small")

    spans(settled(span=begin(spans, call), call=call, usage=Usage(10)))

    assert written.only.attributes[names.USAGE_INPUT] == 10
    assert names.USAGE_OUTPUT not in written.only.attributes


def test_a_session_is_the_conversation(written, spans, settled):
    caller = BOT._replace(session="conv-1")

    spans(settled(span=spans.begin("call", CHAT.name, CHAT, caller), caller=caller))

    assert written.only.attributes[names.CONVERSATION_ID] == "conv-1"


def test_a_written_output_bound_is_the_requests_and_is_said(written, spans, settled):
    spans(settled(span=begin(spans), written_bound=512))

    assert written.only.attributes[names.REQUEST_MAX_TOKENS] == 512
    assert written.only.attributes[names.OUTPUT_BOUND_WRITTEN] == 512


def test_an_estimated_usage_says_so(written, spans, settled):
    spans(settled(span=begin(spans), usage=Usage(10, 5, estimated=True)))

    assert written.only.attributes[names.USAGE_ESTIMATED] is True


def test_a_failed_call_has_an_error_type_and_no_message(written, spans, settled):
    spans(settled(span=begin(spans), outcome="error", error="RateLimitError"))

    assert written.only.attributes[names.ERROR_TYPE] == "RateLimitError"
    assert (written.only.status.status_code, written.only.status.description) == (StatusCode.ERROR, None)


def test_an_error_without_a_name_is_other(written, spans, settled):
    spans(settled(span=begin(spans), outcome="error"))

    assert written.only.attributes[names.ERROR_TYPE] == "_OTHER"


def test_an_abandoned_stream_is_no_error(written, spans, settled):
    call = CHAT._replace(stream=True)

    spans(settled(span=begin(spans, call), call=call, outcome="abandoned"))

    assert written.only.status.status_code is StatusCode.UNSET
    assert written.only.attributes[names.STREAM_OUTCOME] == "abandoned"


def test_a_stream_that_was_cut_is_a_denial(written, spans, settled):
    call = CHAT._replace(stream=True)

    spans(settled(span=begin(spans, call), call=call, outcome="cut", error="BudgetExceeded", decision=OVER))

    assert written.only.attributes[names.DECISION] == "deny"
    assert written.only.attributes[names.ERROR_TYPE] == "agentguard.BudgetExceeded"
    assert written.only.attributes[names.STREAM_OUTCOME] == "cut"
    assert written.only.status.status_code is StatusCode.ERROR


def test_what_was_told_before_the_end_stands_on_the_span(written, spans, settled):
    began = begin(spans)

    spans(EstimateBreached(START, "call-1", CHAT, BOT, 10, 20))
    spans(ToolProposed(START, "call-1", CHAT, BOT, "shell", BEYOND))
    spans(settled(span=began))

    assert written.only.attributes[names.ESTIMATE_BREACHED] is True
    assert written.only.attributes[names.TOOLS_REFUSED] == ("shell",)


def test_a_call_that_has_waited_for_room_says_how_long(written, spans, settled, denied):
    began = begin(spans)

    spans(CallAdmitted(START, "call-1", CHAT, BOT, 10, 0, waited=2.5))
    spans(settled(span=began))
    spans(denied(decision=OVER._replace(facts=OVER.facts._replace(waited=9.0)), span=spans.around()))

    assert [one.attributes[names.LIMIT_WAITED] for one in written.spans] == [2.5, 9.0]


def test_the_policy_in_force_is_named(written, spans, settled):
    spans(PolicyLoaded(START, "agents.yaml", "3f2a", "enforce", ("bot",)))
    spans(PolicyLoaded(START, "agents.yaml", "broken", "enforce", ("bot",), problem="line 3"))
    spans(settled(span=begin(spans)))

    assert written.only.attributes[names.POLICY_ID] == "3f2a"


def test_a_clock_that_was_set_back_makes_no_negative_span(written, spans, settled):
    spans(settled(span=begin(spans), at=1.0))

    assert written.only.end_time == written.only.start_time


# --- HTTP ---------------------------------------------------------------------------------------------------------------


def test_every_attempt_is_an_http_span_below_the_inference_span(written, spans, settled):
    attempts = (attempt(0, 0.5, status=500), attempt(0.6, 1.5))

    spans(settled(span=begin(spans), attempts=attempts))

    first, second = written.named("POST")
    (inference,) = written.named("chat gpt-4o-mini")
    assert {first.parent.span_id, second.parent.span_id} == {inference.context.span_id}
    assert (first.start_time, first.end_time) == (int(START * NANOS), int((START + 0.5) * NANOS))
    assert first.kind is SpanKind.CLIENT
    assert (first.attributes[names.HTTP_STATUS_CODE], first.attributes[names.ERROR_TYPE]) == (500, "500")
    assert first.status.status_code is StatusCode.ERROR
    assert (second.attributes[names.HTTP_STATUS_CODE], second.attributes[names.HTTP_RESEND_COUNT]) == (200, 1)
    assert second.status.status_code is StatusCode.UNSET
    assert names.HTTP_RESEND_COUNT not in first.attributes
    assert second.attributes[names.URL_FULL] == "https://api.openai.com/v1/chat/completions"
    assert second.attributes[names.AGENT_NAME] == "bot"
    assert [span.name for span in written.with_usage()] == ["chat gpt-4o-mini"]


def test_a_request_that_never_left_is_an_http_span_with_its_error(written, spans, settled):
    attempts = (attempt(status=None, error="ConnectError", was_sent=False),)

    spans(settled(span=begin(spans), attempts=attempts, outcome="error", error="APIConnectionError"))

    (http,) = written.named("POST")
    assert http.attributes[names.ERROR_TYPE] == "ConnectError"


def test_a_refused_hop_has_no_http_span(written, spans, settled):
    sent = attempt(status=307)
    refused = attempt(1, 1, status=None, error="EgressDenied", method="", target=FETCH.target, was_sent=False)

    spans(
        settled(
            span=begin(spans),
            attempts=(sent, refused),
            outcome="denied",
            decision=BEYOND,
        )
    )

    (inference,) = written.named("chat gpt-4o-mini")
    assert len(written.spans) == 2
    assert inference.attributes[names.ERROR_TYPE] == "agentguard.EgressDenied"


def test_an_http_call_is_written_below_the_span_that_was_current_when_it_began(written, spans, settled):
    parent = written.provider.get_tracer("app").start_span("work")
    token = context.attach(trace.set_span_in_context(parent))
    began = spans.begin("http", FETCH.name, FETCH, BOT)
    context.detach(token)

    spans(settled(call=FETCH, span=began, usage=Usage(), nanos=None, attempts=(attempt(method="GET", target=FETCH.target),)))

    assert written.only.name == "GET"
    assert written.only.parent.span_id == parent.get_span_context().span_id
    assert written.only.attributes[names.DECISION] == "allow"


def test_an_http_call_whose_redirect_was_refused_shows_both(written, spans, settled):
    call = {"call": FETCH, "span": spans.begin("http", FETCH.name, FETCH, BOT), "usage": Usage(), "nanos": None}
    away = Target("https", "evil.example", 443, "/steal")
    hops = (attempt(method="GET", target=FETCH.target, status=302), attempt(1, 1, None, "EgressDenied", "", away, was_sent=False))

    spans(settled(**call, attempts=hops, outcome="denied", error="EgressDenied", decision=BEYOND))

    sent, refused = written.named("GET")
    assert (sent.attributes[names.DECISION], sent.status.status_code) == ("allow", StatusCode.UNSET)
    assert refused.attributes[names.DECISION] == "deny"
    assert refused.attributes[names.SERVER_ADDRESS] == "evil.example"
    assert refused.attributes[names.RULE] == "external_calls.allowed_domains"


def test_an_unknown_method_is_not_a_name(written, spans, settled):
    call = FETCH._replace(method="BREW")

    spans(
        settled(
            call=call,
            span=spans.begin("http", "x", call, BOT),
            usage=Usage(),
            attempts=(attempt(method="BREW", target=call.target),),
        )
    )

    assert written.only.name == "HTTP"
    assert written.only.attributes[names.HTTP_METHOD] == "_OTHER"
    assert written.only.attributes[names.HTTP_METHOD_ORIGINAL] == "BREW"


def test_http_spans_can_be_left_to_others_but_denials_cannot(written, settled, denied):
    spans = Spans(written.provider, http_spans=False)

    spans(
        settled(
            call=FETCH,
            span=spans.begin("http", "x", FETCH, BOT),
            usage=Usage(),
            attempts=(attempt(method="GET", target=FETCH.target),),
        )
    )
    spans(denied(call=FETCH, decision=BEYOND, span=spans.around()))

    assert written.only.attributes[names.DECISION] == "deny"


# --- denials ------------------------------------------------------------------------------------------------------------


def test_a_denied_call_is_a_short_span_of_the_name_it_would_have_had(written, spans, denied):
    parent = written.provider.get_tracer("app").start_span("work")
    token = context.attach(trace.set_span_in_context(parent))
    around = spans.around()
    context.detach(token)

    spans(denied(span=around))

    span = written.only
    assert (span.name, span.kind) == ("chat gpt-4o-mini", SpanKind.CLIENT)
    assert span.parent.span_id == parent.get_span_context().span_id
    assert span.start_time == span.end_time == int(START * NANOS)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.attributes[names.ERROR_TYPE] == "agentguard.BudgetExceeded"
    assert span.attributes[names.DECISION] == "deny"
    assert span.attributes[names.RULE] == "agents[bot].budgets[0]"
    assert span.attributes[names.RULE_PLACE] == "agents.yaml:7"
    assert span.attributes[names.REASON] == "budget"
    assert span.attributes[names.AGENT_NAME] == "bot"
    limits = (names.LIMIT, names.LIMIT_SPENT, names.LIMIT_HELD, names.LIMIT_REQUESTED, names.LIMIT_RESETS_AT)
    assert [span.attributes[name] for name in limits] == [1000, 900, 50, 200, START + 60]


def test_a_denied_tool_and_a_denied_request_are_named_as_such(written, spans, denied):
    spans(denied(call=ToolCall("shell"), span=spans.around()))
    spans(denied(call=FETCH, decision=BEYOND, span=spans.around()))

    tool, http = written.spans
    assert (tool.name, tool.kind, tool.attributes[names.TOOL_NAME]) == ("execute_tool shell", SpanKind.INTERNAL, "shell")
    assert (http.name, http.kind, http.attributes[names.URL_FULL]) == ("GET", SpanKind.CLIENT, "https://docs.example.com/page")


def test_in_report_mode_the_call_itself_says_that_it_would_have_been_denied(written, spans, settled, denied):
    spans(denied(enforced=False, span=spans.around()))
    spans(settled(span=begin(spans)))

    assert written.only.attributes[names.DECISION] == "would_deny"
    assert written.only.attributes[names.RULE] == "agents[bot].budgets[0]"
    assert names.ERROR_TYPE not in written.only.attributes
    assert written.only.status.status_code is StatusCode.UNSET


def test_in_report_mode_a_tool_gets_a_short_span_without_an_error(written, spans, denied):
    spans(denied(call=ToolCall("shell"), enforced=False, span=spans.around()))

    assert written.only.attributes[names.DECISION] == "would_deny"
    assert written.only.status.status_code is StatusCode.UNSET


def test_a_hop_that_would_be_denied_stands_on_the_calls_span(written, spans, settled, denied):
    began = begin(spans)

    spans(denied(decision=BEYOND, enforced=False, span=began))
    spans(settled(span=began))

    assert written.only.attributes[names.DECISION] == "would_deny"
    assert written.only.attributes[names.REASON] == "egress"


def test_notes_of_calls_that_are_never_settled_do_not_pile_up(spans, denied):
    for number in range(5000):
        spans(denied(id=f"call-{number}", enforced=False, span=spans.around()))

    assert len(spans._notes) <= 4096


def test_a_decision_is_an_event_in_the_log(written, denied):
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter = InMemoryLogRecordExporter()
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    spans = Spans(written.provider, logs)

    spans(denied(span=spans.around()))

    (told,) = exporter.get_finished_logs()
    assert told.log_record.event_name == "agentguard.policy.decision"
    assert told.log_record.attributes[names.RULE] == "agents[bot].budgets[0]"
    assert told.log_record.body is None


# --- scopes -------------------------------------------------------------------------------------------------------------


def test_an_agents_invocation_and_a_tools_run_are_internal_spans(written, spans):
    agent = spans.begin("invoke_agent", "bot", None, BOT)
    with current(spans, agent):
        tool = spans.begin("execute_tool", "search", ToolCall("search"), BOT._replace(session="s-1"))

    spans(ScopeEnded(agent.span.start_time / NANOS + 2, "execute_tool", "search", BOT, START, "KeyError", tool))
    spans(ScopeEnded(agent.span.start_time / NANOS + 3, "invoke_agent", "bot", BOT, START, "", agent))

    inner, outer = written.spans
    assert (inner.name, inner.kind, inner.parent.span_id) == ("execute_tool search", SpanKind.INTERNAL, outer.context.span_id)
    assert dict(inner.attributes) == {
        names.OPERATION_NAME: "execute_tool",
        names.TOOL_NAME: "search",
        names.TOOL_TYPE: "function",
        names.AGENT_NAME: "bot",
        names.CONVERSATION_ID: "s-1",
        names.ERROR_TYPE: "KeyError",
    }
    assert inner.status.status_code is StatusCode.ERROR
    assert (outer.name, outer.kind) == ("invoke_agent bot", SpanKind.INTERNAL)
    assert dict(outer.attributes) == {names.OPERATION_NAME: "invoke_agent", names.AGENT_NAME: "bot"}
    assert outer.status.status_code is StatusCode.UNSET


# --- the current span ---------------------------------------------------------------------------------------------------


def test_a_span_is_current_inside_the_block_and_not_after_it(spans):
    began = begin(spans)

    with current(spans, began):
        inside = trace.get_current_span()

    assert inside is began.span
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_block_that_is_left_in_another_context_says_nothing_and_changes_nothing(spans, caplog):
    import contextvars

    entered = contextvars.copy_context().run(spans.enter, begin(spans))

    spans.leave(entered)

    assert caplog.records == []
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_what_is_no_span_leaves_the_current_one_alone(spans):
    for nothing in (None, spans.around(), spans.begin("http", "x", FETCH, BOT)):
        with current(spans, nothing):
            assert trace.get_current_span() is trace.INVALID_SPAN


def test_an_unsampled_call_writes_nothing_and_stays_unsampled_below(written, settled):
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(written.processor)
    spans = Spans(provider)
    began = begin(spans)

    with current(spans, began):
        below = provider.get_tracer("app").start_span("below")
    spans(settled(span=began, attempts=(attempt(),)))

    assert not below.get_span_context().trace_flags.sampled
    assert written.spans == ()


def test_without_any_provider_nothing_happens(settled, denied):
    spans = Spans()
    began = begin(spans)

    with current(spans, began):
        pass
    spans(settled(span=began, attempts=(attempt(),)))
    spans(denied(span=spans.around()))


def test_a_faulty_processor_does_not_fail_the_call(caplog, settled):
    from opentelemetry.sdk.trace import SpanProcessor

    class Faulty(SpanProcessor):
        def on_start(self, span, parent_context=None):
            raise RuntimeError("mine")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Faulty())
    spans = Spans(provider)

    began = [spans.begin("invoke_agent", "bot", None, BOT) for _ in range(3)]

    assert began == [None, None, None]
    assert spans.failed == 3
    assert len([record for record in caplog.records if record.name == "agentguard"]) == 1
    with current(spans, None):
        spans(settled(span=None))


def test_a_caller_without_an_agent_has_no_agent_name(written, spans, settled):
    spans(settled(span=spans.begin("call", CHAT.name, CHAT, Caller()), caller=Caller()))

    assert names.AGENT_NAME not in written.only.attributes


def test_what_is_remembered_of_callers_is_bounded(spans):
    for number in range(5000):
        spans.begin("call", "x", CHAT._replace(model=f"m-{number}"), BOT)

    assert len(spans._known) <= 2048

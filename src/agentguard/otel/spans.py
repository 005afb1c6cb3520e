"""One span for each call, tool run and agent invocation; one for each HTTP request; one for each denial.

Only the start of a span happens on the calling thread, because it is the parent of what happens inside the call. The
rest is done on the guard's worker, from the times that the events carry.
"""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider, SpanKind

from agentguard.core.call import HTTPCall, LLMCall, ToolCall
from agentguard.events import CallAdmitted, CallDenied, CallSettled, EstimateBreached, PolicyLoaded, ScopeEnded, ToolProposed
from agentguard.otel import facts
from agentguard.otel import semconv as names
from agentguard.otel.finished import FAILED
from agentguard.otel.late import LateSpan, LateTracer
from agentguard.otel.peers import Elsewhere, reported_around, silenced

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextvars import Token

    from opentelemetry._logs import Logger, LoggerProvider
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.events import Attempt, Event
    from agentguard.otel.content import Content

logger: logging.Logger = logging.getLogger("agentguard")

_MAX_KNOWN = 2048
_MAX_NOTES = 4096
_BACKGROUND = contexts.Context()


class Around:
    """The context of a call that has no span: where its denial, or its HTTP requests, belong."""

    __slots__ = ("context",)

    def __init__(self, context: Context) -> None:
        self.context: Context = context


class Begun(Around):
    """An HTTP call that has begun. Its spans are written when it is over.

    Attributes:
        denied: What was decided about one of its hops, and whether that was enforced.
    """

    __slots__ = ("denied",)

    def __init__(self, context: Context) -> None:
        self.context = context
        self.denied: tuple[Decision, bool] | None = None


class Opened(Begun):
    """A span in progress.

    Attributes:
        span: The span.
        context: The context in which it is current.
        elsewhere: What another instrumentation reports of the same call.
    """

    __slots__ = ("elsewhere", "span")

    def __init__(self, span: Span, context: Context, elsewhere: Elsewhere) -> None:
        self.span: Span = span
        self.context = context
        self.elsewhere: Elsewhere = elsewhere
        self.denied: tuple[Decision, bool] | None = None


class _Notes:
    """What was said of a call before it was settled."""

    __slots__ = ("breached", "denied", "tools", "waited")

    def __init__(self) -> None:
        self.denied: tuple[Decision, bool] | None = None
        self.tools: list[str] = []
        self.breached = False
        self.waited = 0.0


class Spans:
    """Writes spans. An observer that is there when calls begin.

    Args:
        tracer_provider: Where spans go. None: the global provider, also one that is set later.
        logger_provider: Where the events `agentguard.policy.decision` go. None: the global one.
        content: What is captured of prompts. None: nothing.
        http_spans: Whether HTTP requests get spans. Off where the HTTP libraries are instrumented by others.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        *,
        content: Content | None = None,
        http_spans: bool = True,
    ) -> None:
        self._provider: TracerProvider | None = tracer_provider
        self._tracer: Tracer | None = None
        self._late: LateTracer | None = None
        self._logger_provider = logger_provider
        self._logger: Logger | None = None
        self._content = content
        self._http_spans = http_spans
        self._known: dict[tuple[object, ...], Mapping[str, Any]] = {}
        self._notes: dict[str, _Notes] = {}
        self._policy = ""
        self.failed: int = 0

    # --- on the calling thread ------------------------------------------------------------------------------------------

    def begin(self, kind: str, name: str, call: Call | None, caller: Caller) -> Begun | None:
        """Start a span. `kind` is `call`, `invoke_agent`, `execute_tool`, or `http` for a call whose spans come later."""
        try:
            if isinstance(call, LLMCall):
                return self._begin_inference(call, caller)
            if kind == "http" or isinstance(call, HTTPCall):
                return Begun(contexts.get_current())
            return self._begin_scope(kind, name, caller)
        except Exception as fault:  # noqa: BLE001 - a sampler's or a processor's fault: the call goes on without a span
            self._count(fault)
            return None

    def around(self) -> Around:
        """The context that is current now."""
        return Around(contexts.get_current())

    def enter(self, span: object) -> Token[Context] | None:
        """Make what `begin` returned current."""
        return contexts.attach(span.context) if type(span) is Opened else None

    def leave(self, entered: Token[Context]) -> None:
        """Make current again what was before."""
        try:
            entered.var.reset(entered)
        except ValueError:
            pass  # a generator closed from another task or thread, whose context was never changed; `detach` would log it
        except AttributeError:  # OTEL_PYTHON_CONTEXT names a context that is none of contextvars
            contexts.detach(entered)

    def silence(self, span: object, call: Call) -> None:
        """Have the official instrumentations stay silent where this span is current: it reports the call."""
        if isinstance(span, Opened) and span.elsewhere is Elsewhere.NOTHING and isinstance(call, LLMCall):
            span.context = silenced(span.context, call)

    def leave_usage(self, span: object) -> None:
        """Leave usage to another span of the same call: an SDK that traces natively, and is to go on doing so."""
        if isinstance(span, Opened) and span.elsewhere is Elsewhere.NOTHING:
            span.elsewhere = Elsewhere.USAGE

    def _begin_inference(self, call: LLMCall, caller: Caller) -> Opened:
        agent = caller.agents[-1] if caller.agents else None
        around = contexts.get_current()
        elsewhere = reported_around(around) if around else Elsewhere.NOTHING
        if elsewhere is not Elsewhere.NOTHING:
            # Without gen_ai.operation.name, and not CLIENT: whoever counts inference spans counts the other one alone.
            attributes = None if agent is None else {names.AGENT_NAME: agent}
            span = self.tracer.start_span(call.name, around, SpanKind.INTERNAL, attributes)
            return Opened(span, trace.set_span_in_context(span, around), elsewhere)
        tracer = self._tracer or self.tracer
        if self._late is not None:
            span = self._late.begin(around)
        else:
            span = tracer.start_span(call.name, around, SpanKind.CLIENT, self._facts_of(call, agent))
        return Opened(span, trace.set_span_in_context(span, around), elsewhere)

    @property
    def tracer(self) -> Tracer:
        """Who makes the spans: the provider's tracer; until the process has a provider, one that makes none."""
        if self._tracer is not None:
            return self._tracer
        provider = self._provider or trace.get_tracer_provider()
        tracer = provider.get_tracer(names.SCOPE)
        if not isinstance(provider, ProxyTracerProvider):  # the global one is set once
            self._tracer = tracer
            self._late = LateTracer.of(tracer)
        return tracer

    def _facts_of(self, call: LLMCall, agent: str | None) -> Mapping[str, Any]:
        target = call.target
        key = (call.operation, call.provider, call.model, target.host, target.port, agent)
        return self._known.get(key) or self._remember(key, facts.of_call(call, agent))

    def _begin_scope(self, kind: str, name: str, caller: Caller) -> Opened:
        agent = caller.agents[-1] if caller.agents else None
        key = (kind, name, agent, caller.session)
        known = self._known.get(key)
        if known is None:
            attributes = facts.of_scope(kind, name)
            if agent is not None:
                attributes.setdefault(names.AGENT_NAME, agent)
            if caller.session is not None:
                attributes[names.CONVERSATION_ID] = caller.session
            known = self._remember(key, attributes)
        around = contexts.get_current()
        span = self.tracer.start_span(f"{kind} {name}", around, SpanKind.INTERNAL, known)
        return Opened(span, trace.set_span_in_context(span, around), Elsewhere.NOTHING)

    def _remember(self, key: tuple[object, ...], attributes: dict[str, Any]) -> Mapping[str, Any]:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        known = self._known[key] = MappingProxyType(attributes)  # shared by all spans: a sampler must not write into it
        return known

    def _count(self, fault: Exception) -> None:
        self.failed += 1
        if self.failed == 1:
            logger.error("agentguard: a span could not be started; further failures are counted, not logged", exc_info=fault)

    # --- on the worker --------------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """Write what an event says."""
        if isinstance(event, CallSettled):
            self._settled(event)
        elif isinstance(event, CallDenied):
            self._denied(event)
        elif isinstance(event, ScopeEnded):
            self._scope_ended(event)
        elif isinstance(event, ToolProposed):
            self._note(event.id).tools.append(event.tool)
        elif isinstance(event, EstimateBreached):
            self._note(event.id).breached = True
        elif isinstance(event, CallAdmitted):
            if event.waited:
                self._note(event.id).waited = event.waited
        elif isinstance(event, PolicyLoaded) and not event.problem:
            self._policy = event.digest

    def _settled(self, event: CallSettled) -> None:
        notes = self._notes.pop(event.id, None)
        if isinstance(event.call, LLMCall):
            if isinstance(event.span, Opened) and event.span.span.is_recording():
                self._end_inference(event, event.call, event.span, notes)
        elif isinstance(event.call, HTTPCall):
            self._write_http_call(event, event.call, notes)

    def _end_inference(self, event: CallSettled, call: LLMCall, opened: Opened, notes: _Notes | None) -> None:
        self._write_attempts(event.attempts, opened.context, event.caller.agent, {})
        attributes = self._guarded(event, opened.denied, notes)
        if opened.elsewhere is Elsewhere.NOTHING:
            attributes |= facts.of_usage(event.usage, call.operation)
            attributes |= self._asked_and_answered(event, call)
        span = opened.span
        if isinstance(span, LateSpan) and self._late is not None:
            attributes = {**self._facts_of(call, event.caller.agent), **attributes}
            _write_late(self._late, span, call.name, SpanKind.CLIENT, attributes, event.started, event.at)
        else:
            _end(span, event.at, attributes)

    def _asked_and_answered(self, event: CallSettled, call: LLMCall) -> dict[str, Any]:
        attributes = facts.of_request(call.request, call.provider)
        if event.written_bound is not None:
            attributes[names.REQUEST_MAX_TOKENS] = event.written_bound
        if call.stream:
            attributes[names.REQUEST_STREAM] = True
        if event.first_chunk_at is not None:
            attributes[names.RESPONSE_TIME_TO_FIRST_CHUNK] = max(event.first_chunk_at - event.started, 0.0)
        if event.answer is not None:
            attributes |= facts.of_answer(event.answer, call.provider)
        if self._content is not None:
            attributes |= self._content.of_span(call)
        return attributes

    def _guarded(self, event: CallSettled, denied: tuple[Decision, bool] | None, notes: _Notes | None) -> dict[str, Any]:
        """Our own attributes of a call that was admitted, and its error if it has one."""
        attributes: dict[str, Any] = {names.DECISION: names.ALLOW, **self._whose(event.caller)}
        if event.decision is not None:
            denied = event.decision, True
        elif denied is None and notes is not None:
            denied = notes.denied
        if denied is not None:
            attributes |= facts.of_decision(denied[0], enforced=denied[1])
        if isinstance(event.call, LLMCall):
            attributes |= _metered(event, event.call)
        if notes is not None and notes.tools:
            attributes[names.TOOLS_REFUSED] = tuple(notes.tools)
        if notes is not None and notes.breached:
            attributes[names.ESTIMATE_BREACHED] = True
        if notes is not None and notes.waited:
            attributes[names.LIMIT_WAITED] = notes.waited
        if (error := facts.error_of_settled(event)) is not None:
            attributes[names.ERROR_TYPE] = error
        return attributes

    def _whose(self, caller: Caller) -> dict[str, Any]:
        """The conversation, if there is one, and the policy that was in force."""
        attributes = {} if caller.session is None else {names.CONVERSATION_ID: caller.session}
        if self._policy:
            attributes[names.POLICY_ID] = self._policy
        return attributes

    def _write_http_call(self, event: CallSettled, call: HTTPCall, notes: _Notes | None) -> None:
        begun = event.span
        context = begun.context if isinstance(begun, Around) else _BACKGROUND
        agent = event.caller.agent
        guarded = self._guarded(event, begun.denied if isinstance(begun, Begun) else None, notes)
        is_refused = event.decision is not None and event.outcome in facts.REFUSED_OUTCOMES
        error = guarded.pop(names.ERROR_TYPE, None)
        self._write_attempts(event.attempts, context, agent, {names.DECISION: names.ALLOW} if is_refused else guarded)
        was_tried = any(attempt.method for attempt in event.attempts)
        if error is not None and (is_refused or not was_tried):
            last = event.attempts[-1] if event.attempts else None
            target, started = (call.target, event.started) if last is None else (last.target, last.started)
            attributes = {**facts.of_target(call.method, target), **guarded, names.ERROR_TYPE: error}
            self._write(_http_name(call.method), context, agent, attributes, started, event.at)

    def _write_attempts(self, attempts: tuple[Attempt, ...], context: Context, agent: str | None, extra: dict[str, Any]) -> None:
        if not self._http_spans:
            return
        for resend, attempt in enumerate(attempts):
            if attempt.method:  # a hop that was refused has none: nothing was sent
                attributes = {**facts.of_attempt(attempt, resend), **extra}
                self._write(_http_name(attempt.method), context, agent, attributes, attempt.started, attempt.ended)

    def _denied(self, event: CallDenied) -> None:
        denied = (event.decision, event.enforced)
        self._tell_decision(event)
        if isinstance(event.span, Begun):
            event.span.denied = denied
            return
        if not event.enforced and not isinstance(event.call, ToolCall):
            self._note(event.id).denied = denied  # the call goes on, and its own span tells
            return
        name = event.call.name if not isinstance(event.call, HTTPCall) else _http_name(event.call.method)
        context = event.span.context if isinstance(event.span, Around) else _BACKGROUND
        attributes = facts.of_call(event.call, None) | facts.of_decision(event.decision, enforced=event.enforced)
        if event.enforced:
            attributes[names.ERROR_TYPE] = facts.error_of(event.decision)
        attributes |= self._whose(event.caller)
        kind = SpanKind.INTERNAL if isinstance(event.call, ToolCall) else SpanKind.CLIENT
        self._write(name, context, event.caller.agent, attributes, event.at, event.at, kind)

    def _tell_decision(self, event: CallDenied) -> None:
        from opentelemetry._logs import LogRecord, SeverityNumber, get_logger  # denials are rare

        if self._logger is None:
            provider = self._logger_provider
            self._logger = get_logger(names.SCOPE) if provider is None else provider.get_logger(names.SCOPE)
        attributes = facts.of_call(event.call, event.caller.agent) | facts.of_decision(event.decision, enforced=event.enforced)
        self._logger.emit(
            LogRecord(
                timestamp=facts.unix_nanos(event.at),
                context=event.span.context if isinstance(event.span, Around) else None,
                severity_number=SeverityNumber.WARN if event.enforced else SeverityNumber.INFO,
                attributes=attributes,
                event_name=names.POLICY_DECISION,
            )
        )

    def _scope_ended(self, event: ScopeEnded) -> None:
        if isinstance(event.span, Opened) and event.span.span.is_recording():
            _end(event.span.span, event.at, {names.ERROR_TYPE: facts.error_type(event.error)} if event.error else {})

    def _write(
        self,
        name: str,
        context: Context,
        agent: str | None,
        attributes: dict[str, Any],
        started: float,
        ended: float,
        kind: SpanKind = SpanKind.CLIENT,
    ) -> None:
        if agent is not None:
            attributes[names.AGENT_NAME] = agent
        tracer = self.tracer
        if self._late is None:
            span = tracer.start_span(name, context, kind, attributes, start_time=facts.unix_nanos(started))
            _end(span, ended, {names.ERROR_TYPE: attributes[names.ERROR_TYPE]} if names.ERROR_TYPE in attributes else {})
        elif isinstance(late := self._late.begin(context), LateSpan):
            _write_late(self._late, late, name, kind, attributes, started, ended)

    def _note(self, id: str) -> _Notes:
        notes = self._notes.get(id)
        if notes is None:
            if len(self._notes) >= _MAX_NOTES:
                del self._notes[next(iter(self._notes))]
            notes = self._notes[id] = _Notes()
        return notes


def _metered(event: CallSettled, call: LLMCall) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if event.nanos is not None:
        attributes[names.COST_USD] = facts.dollars(event.nanos)
    if call.stream:
        attributes[names.STREAM_OUTCOME] = event.outcome
    if event.written_bound is not None:
        attributes[names.OUTPUT_BOUND_WRITTEN] = event.written_bound
    if event.usage.estimated and event.usage.total_tokens:
        attributes[names.USAGE_ESTIMATED] = True
    return attributes


def _write_late(
    tracer: LateTracer, span: LateSpan, name: str, kind: SpanKind, attributes: dict[str, Any], started: float, ended: float
) -> None:
    start = facts.unix_nanos(started)
    end = max(facts.unix_nanos(ended), start)  # a clock that was set back makes no negative span
    tracer.write(span, name, kind, attributes, start, end, failed=names.ERROR_TYPE in attributes)


def _end(span: Any, at: float, attributes: dict[str, Any]) -> None:
    span.set_attributes(attributes)
    if names.ERROR_TYPE in attributes:
        span.set_status(FAILED)
    # A clock that was set back makes no negative span.
    span.end(max(facts.unix_nanos(at), getattr(span, "start_time", None) or 0))


def _http_name(method: str) -> str:
    return method if method in names.HTTP_METHODS else "HTTP"

"""Histograms and counters, recorded on the guard's worker from the events' own times."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from agentguard.core.call import LLMCall
from agentguard.events import CallAdmitted, CallDenied, CallSettled, ScopeEnded
from agentguard.otel import facts
from agentguard.otel import semconv as names
from agentguard.otel.peers import Elsewhere
from agentguard.otel.spans import Opened
from agentguard.policy.model import Over, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider

    from agentguard.core.call import Usage
    from agentguard.core.limits import LimitRow
    from agentguard.events import Attempt, Event
    from agentguard.stores.base import Balance

    Attributes = dict[str, Any]
    ReadBudgets = Callable[[], Sequence[tuple[LimitRow, Balance]]]


class MetricNames(StrEnum):
    """Which names the metrics of LLM calls have, while the specification renames them."""

    LEGACY = "legacy"
    NEW = "new"
    DUP = "dup"


class Metrics:
    """Records metrics.

    Args:
        meter_provider: Where metrics go. None: the global provider, also one that is set later.
        metric_names: `legacy` (what the official packages emit), `new` (the specification's main branch), or `dup` for both.
        http_metrics: Whether HTTP requests are measured. Off where the HTTP libraries are instrumented by others.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        metric_names: str = "legacy",
        http_metrics: bool = True,
    ) -> None:
        wanted = MetricNames(metric_names)
        meter = metrics.get_meter(names.SCOPE) if meter_provider is None else meter_provider.get_meter(names.SCOPE)
        self._legacy = None if wanted is MetricNames.NEW else _legacy(meter)
        self._new = None if wanted is MetricNames.LEGACY else _new(meter)
        self._tool_seconds = _seconds(meter, names.EXECUTE_TOOL_DURATION, "Duration of a tool's run.")
        self._agent_seconds = _seconds(meter, names.INVOKE_AGENT_DURATION, "Duration of invocations.", names.AGENT_SECONDS)
        self._http_seconds = _seconds(meter, names.HTTP_REQUEST_DURATION, "Duration of HTTP client requests.", names.HTTP_SECONDS)
        self._wait_seconds = _seconds(meter, names.RATELIMIT_WAIT, "For how long calls waited for room.", names.WAIT_SECONDS)
        self._decisions: dict[tuple[str, str, str], int] = {}
        self._nanos: dict[tuple[str, str, str], int] = {}
        self._dropped: list[Callable[[], int]] = []
        self._budgets: list[ReadBudgets] = []
        # Read when metrics are collected: an addition to a dict costs a tenth of one to a counter of the SDK.
        meter.create_observable_counter(names.POLICY_DECISIONS, [self._count_decisions], "{decision}", "Decisions of the policy.")
        meter.create_observable_counter(names.COST, [self._count_cost], "USD", "What LLM calls have cost.")
        meter.create_observable_counter(names.EVENTS_DROPPED, [self._count_dropped], "{event}", "Events that were lost.")
        meter.create_observable_gauge(names.BUDGET_REMAINING, [self._read_budgets], "1", "What limits have left, in their unit.")
        self._http_metrics = http_metrics

    def watch_dropped(self, count: Callable[[], int]) -> None:
        """Report a count of dropped events, asked whenever metrics are collected."""
        self._dropped.append(count)

    def watch_budgets(self, read: ReadBudgets) -> None:
        """Report what limits have left, read whenever metrics are collected."""
        self._budgets.append(read)

    def _read_budgets(self, _: CallbackOptions) -> Iterable[Observation]:
        return [_remaining(row, balance) for read in self._budgets for row, balance in read()]

    def _count_dropped(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sum(count() for count in self._dropped))] if self._dropped else []

    def _count_decisions(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, _without_blanks({names.DECISION: decision, names.REASON: reason, names.AGENT_NAME: agent}))
            for (decision, reason, agent), count in list(self._decisions.items())
        ]

    def _count_cost(self, _: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(
                facts.dollars(nanos),
                _without_blanks({names.PROVIDER_NAME: provider, names.REQUEST_MODEL: model, names.AGENT_NAME: agent}),
            )
            for (provider, model, agent), nanos in list(self._nanos.items())
        ]

    def __call__(self, event: Event) -> None:
        """Record an event."""
        if isinstance(event, CallSettled):
            if isinstance(event.call, LLMCall):
                self._inference(event, event.call)
            if self._http_metrics:
                for attempt in event.attempts:
                    self._attempt(attempt)
        elif isinstance(event, CallAdmitted):
            self._decided(names.ALLOW, "", event.caller.agent)
            self._waited(event.waited, names.ALLOW, event.caller.agent)
        elif isinstance(event, CallDenied):
            reason = "" if event.decision.reason is None else event.decision.reason.value
            decision = names.DENY if event.enforced else names.WOULD_DENY
            self._decided(decision, reason, event.caller.agent)
            self._waited(event.decision.facts.waited, decision, event.caller.agent)
        elif isinstance(event, ScopeEnded):
            self._scope(event)

    def _inference(self, event: CallSettled, call: LLMCall) -> None:
        if event.nanos:
            whose = call.provider, call.model, event.caller.agent or ""
            self._nanos[whose] = self._nanos.get(whose, 0) + event.nanos
        if isinstance(event.span, Opened) and event.span.elsewhere is Elsewhere.USAGE_AND_METRICS:
            return  # the instrumentation around us measures the same call under the same names
        attributes = facts.of_call(call, None)
        if event.answer is not None and event.answer.response_model:
            attributes[names.RESPONSE_MODEL] = event.answer.response_model
        seconds = max(event.at - event.started, 0.0)
        error = facts.error_of_settled(event)
        timed = attributes if error is None else {**attributes, names.ERROR_TYPE: error}
        if self._legacy is not None:
            self._legacy.seconds.record(seconds, timed)
            _record_tokens(self._legacy.tokens, event.usage, call.operation, attributes)
        if self._new is not None:
            self._new.record(event, call, seconds, timed, attributes)

    def _attempt(self, attempt: Attempt) -> None:
        if not attempt.method:
            return
        attributes = facts.of_attempt(attempt, 0)
        attributes[names.URL_SCHEME] = attempt.target.scheme
        for unbounded in (names.URL_FULL, names.HTTP_METHOD_ORIGINAL):
            attributes.pop(unbounded, None)
        self._http_seconds.record(max(attempt.ended - attempt.started, 0.0), attributes)

    def _decided(self, decision: str, reason: str, agent: str | None) -> None:
        key = decision, reason, agent or ""
        self._decisions[key] = self._decisions.get(key, 0) + 1

    def _waited(self, seconds: float, decision: str, agent: str | None) -> None:
        if seconds:
            self._wait_seconds.record(seconds, _without_blanks({names.DECISION: decision, names.AGENT_NAME: agent}))

    def _scope(self, event: ScopeEnded) -> None:
        attributes = facts.of_scope(event.kind, event.name)
        del attributes[names.OPERATION_NAME]
        if event.caller.agent is not None:
            attributes.setdefault(names.AGENT_NAME, event.caller.agent)
        if event.error:
            attributes[names.ERROR_TYPE] = facts.error_type(event.error)
        histogram = self._tool_seconds if event.kind == names.EXECUTE_TOOL else self._agent_seconds
        histogram.record(max(event.at - event.started, 0.0), attributes)


def _without_blanks(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value}


def _remaining(row: LimitRow, balance: Balance) -> Observation:
    left = balance.amount - balance.spent - balance.held
    unit = row.limit.unit
    attributes = {
        names.LIMIT_SUBJECT: row.subject,
        names.LIMIT_UNIT: unit.value,
        names.LIMIT_WINDOW: str(row.limit.window),
        names.LIMIT_OVER: None if row.limit.over is Over.ALL else row.limit.over.value,
    }
    return Observation(facts.dollars(left) if unit is Unit.USD else left, _without_blanks(attributes))


class _Legacy(NamedTuple):
    seconds: Histogram
    tokens: Histogram


def _legacy(meter: Meter) -> _Legacy:
    return _Legacy(
        _seconds(meter, names.OPERATION_DURATION, "Duration of GenAI client operations."),
        _tokens(meter, names.TOKEN_USAGE, "Number of input and output tokens used by GenAI clients."),
    )


def _record_tokens(histogram: Histogram, usage: Usage, operation: str, attributes: Attributes) -> None:
    if not usage.total_tokens:
        return
    known = {**attributes, names.USAGE_ESTIMATED: True} if usage.estimated else attributes
    histogram.record(usage.input_tokens, {**known, names.TOKEN_TYPE: "input"})
    if operation != names.EMBEDDINGS:
        histogram.record(usage.output_tokens, {**known, names.TOKEN_TYPE: "output"})


class _New(NamedTuple):
    seconds: Histogram
    first_chunk_seconds: Histogram
    input_tokens: Histogram
    output_tokens: Histogram
    usage: tuple[Counter, Counter, Counter, Counter, Counter]
    embeddings_seconds: Histogram
    embeddings_input_tokens: Histogram

    def record(self, event: CallSettled, call: LLMCall, seconds: float, timed: Attributes, attributes: Attributes) -> None:
        usage = event.usage
        known = {**attributes, names.USAGE_ESTIMATED: True} if usage.estimated else attributes
        if call.operation == names.EMBEDDINGS:
            self.embeddings_seconds.record(seconds, timed)
            if usage.total_tokens:
                self.embeddings_input_tokens.record(usage.input_tokens, known)
            return
        self.seconds.record(seconds, timed)
        if event.first_chunk_at is not None:
            self.first_chunk_seconds.record(max(event.first_chunk_at - event.started, 0.0), timed)
        if usage.total_tokens:
            self.input_tokens.record(usage.input_tokens, known)
            self.output_tokens.record(usage.output_tokens, known)
        # Providers do not break usage down by modality, and calls without usage count as 0: both are `unknown`.
        counted = {**known, names.TOKEN_MODALITY: names.UNKNOWN_MODALITY}
        self.usage[0].add(usage.input_tokens, counted)
        self.usage[1].add(usage.output_tokens, counted)
        parts = usage.cache_read_tokens, usage.cache_write_tokens, usage.reasoning_tokens
        for counter, tokens in zip(self.usage[2:], parts, strict=True):
            if tokens:
                counter.add(tokens, counted)


def _new(meter: Meter) -> _New:
    def counter(name: str, what: str) -> Counter:
        return meter.create_counter(name, "{token}", f"Number of {what} tokens used.")

    return _New(
        _seconds(meter, names.INFERENCE_DURATION, "Duration of GenAI client inference."),
        _seconds(meter, names.INFERENCE_TIME_TO_FIRST_CHUNK, "Time until the first chunk of a stream."),
        _tokens(meter, names.INFERENCE_INPUT_TOKENS, "Input tokens of an inference."),
        _tokens(meter, names.INFERENCE_OUTPUT_TOKENS, "Output tokens of an inference."),
        (
            counter(names.INFERENCE_USAGE_INPUT, "input"),
            counter(names.INFERENCE_USAGE_OUTPUT, "output"),
            counter(names.INFERENCE_USAGE_CACHE_READ, "cached input"),
            counter(names.INFERENCE_USAGE_CACHE_WRITE, "newly cached input"),
            counter(names.INFERENCE_USAGE_REASONING, "reasoning"),
        ),
        _seconds(meter, names.EMBEDDINGS_DURATION, "Duration of GenAI client embeddings."),
        _tokens(meter, names.EMBEDDINGS_INPUT_TOKENS, "Input tokens of an embeddings call."),
    )


def _seconds(meter: Meter, name: str, description: str, boundaries: tuple[float, ...] = names.CLIENT_SECONDS) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=boundaries)


def _tokens(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "{token}", description, explicit_bucket_boundaries_advisory=names.TOKENS)

"""Attributes, read from records: pure functions. What is read from a request is its parameters, never its content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentguard import errors
from agentguard.core.call import HTTPCall, LLMCall
from agentguard.guard import denial
from agentguard.otel import semconv as names
from agentguard.policy.hosts import in_url

if TYPE_CHECKING:
    from agentguard.core.call import Call, Target, Usage
    from agentguard.core.decision import Decision
    from agentguard.events import Attempt, CallSettled
    from agentguard.wire.answer import Answer

    Attributes = dict[str, Any]

REDACTED = "REDACTED"

_NANOS = 1e9
_MAX_STRING = 256
_MAX_INTEGER = 2**63 - 1  # of an attribute, in OTLP
_MAX_STRINGS = 16
_STANDARD_PORTS = {"http": 80, "https": 443}


def of_call(call: Call, agent: str | None) -> Attributes:
    """What a span has from its creation on: the facts that a sampler may judge by."""
    if isinstance(call, LLMCall):
        attributes: Attributes = {
            names.OPERATION_NAME: call.operation,
            names.PROVIDER_NAME: call.provider,
            names.REQUEST_MODEL: call.model,
            names.SERVER_ADDRESS: call.target.host,
            names.SERVER_PORT: call.target.port,
        }
    elif isinstance(call, HTTPCall):
        attributes = of_target(call.method, call.target)
    else:
        attributes = of_scope(names.EXECUTE_TOOL, call.tool)
    if agent is not None:
        attributes[names.AGENT_NAME] = agent
    return attributes


def of_scope(kind: str, name: str) -> Attributes:
    """A tool's run or an agent's invocation."""
    if kind == names.EXECUTE_TOOL:
        return {names.OPERATION_NAME: kind, names.TOOL_NAME: name, names.TOOL_TYPE: names.FUNCTION}
    return {names.OPERATION_NAME: kind, names.AGENT_NAME: name}


def of_target(method: str, target: Target) -> Attributes:
    """An HTTP request, before it has an answer."""
    return dict(_of_target(method, target))


@lru_cache(maxsize=1024)
def _of_target(method: str, target: Target) -> Attributes:
    known = method if method in names.HTTP_METHODS else names.OTHER
    attributes: Attributes = {
        names.HTTP_METHOD: known,
        names.URL_FULL: url_of(target),
        names.SERVER_ADDRESS: _host(target),
        names.SERVER_PORT: target.port,
    }
    if known is names.OTHER and method:
        attributes[names.HTTP_METHOD_ORIGINAL] = method[:_MAX_STRING]
    return attributes


def of_attempt(attempt: Attempt, resend: int) -> Attributes:
    """An HTTP request with its answer. `resend` counts the requests of the same call that went before it."""
    attributes = of_target(attempt.method, attempt.target)
    if attempt.status is not None:
        attributes[names.HTTP_STATUS_CODE] = attempt.status
    if resend:
        attributes[names.HTTP_RESEND_COUNT] = resend
    if error := attempt_error(attempt):
        attributes[names.ERROR_TYPE] = error
    return attributes


def attempt_error(attempt: Attempt) -> str | None:
    """The `error.type` of a request: its status when that is an error, else the exception; None for a success."""
    if attempt.status is not None and attempt.status >= 400:
        return str(attempt.status)
    return error_type(attempt.error) if attempt.error else None


def url_of(target: Target) -> str:
    """A URL that can be shown: no user information, and no value of the query."""
    port = "" if target.port in {0, _STANDARD_PORTS.get(target.scheme)} else f":{target.port}"
    path, _, query = target.path.partition("?")
    return f"{target.scheme}://{in_url(_host(target))}{port}{path.partition('#')[0]}{_without_values(query)}"


def _host(target: Target) -> str:
    return target.host.rpartition("@")[2].strip("[]")


def _without_values(query: str) -> str:
    """The names of a query. What has no `=` is a value as well: `?SECRET`."""
    pairs = [pair.partition("=") for pair in query.partition("#")[0].split("&") if pair]
    shown = [f"{name}={REDACTED}" if equals else REDACTED for name, equals, _ in pairs]
    return f"?{'&'.join(shown)}" if shown else ""


def of_request(request: object, provider: str = "") -> Attributes:
    """The parameters of a request body, whichever API it is for. Whatever is not of the expected type is left out."""
    if not isinstance(request, Mapping):
        return {}
    found: Attributes = {}
    for key, value in request.items():
        if (known := _PARAMETERS.get(key)) is not None and (said := known[1](value)) is not None:
            found[known[0]] = said
    if found.get(names.REQUEST_CHOICE_COUNT) == 1:
        del found[names.REQUEST_CHOICE_COUNT]
    if provider != "openai" or found.get(names.OPENAI_REQUEST_SERVICE_TIER) == "auto":
        found.pop(names.OPENAI_REQUEST_SERVICE_TIER, None)
    return found


def _number(value: object) -> float | None:
    return value if isinstance(value, float) else _integer(value)


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER else None


def _string(value: object) -> str | None:
    return value[:_MAX_STRING] if isinstance(value, str) else None


def _strings(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value[:_MAX_STRING],)
    if not isinstance(value, list | tuple):
        return None
    return tuple(one[:_MAX_STRING] for one in value[:_MAX_STRINGS] if isinstance(one, str)) or None


def _effort(value: object) -> str | None:
    return _string(_inner(value, "effort"))


def _output_type(value: object) -> str | None:
    kind = _string(_inner(value, "type"))
    return "json" if kind in {"json_object", "json_schema"} else kind


def _text_format(value: object) -> str | None:
    return _output_type(_inner(value, "format"))


def _inner(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, Mapping) else None


_PARAMETERS: dict[object, tuple[str, Callable[[object], Any]]] = {
    "temperature": (names.REQUEST_TEMPERATURE, _number),
    "top_p": (names.REQUEST_TOP_P, _number),
    "top_k": (names.REQUEST_TOP_K, _integer),
    "frequency_penalty": (names.REQUEST_FREQUENCY_PENALTY, _number),
    "presence_penalty": (names.REQUEST_PRESENCE_PENALTY, _number),
    "max_tokens": (names.REQUEST_MAX_TOKENS, _integer),
    "max_completion_tokens": (names.REQUEST_MAX_TOKENS, _integer),
    "max_output_tokens": (names.REQUEST_MAX_TOKENS, _integer),
    "seed": (names.REQUEST_SEED, _integer),
    "n": (names.REQUEST_CHOICE_COUNT, _integer),
    "dimensions": (names.EMBEDDINGS_DIMENSION_COUNT, _integer),
    "encoding_format": (names.REQUEST_ENCODING_FORMATS, _strings),
    "stop": (names.REQUEST_STOP_SEQUENCES, _strings),
    "stop_sequences": (names.REQUEST_STOP_SEQUENCES, _strings),
    "reasoning": (names.REQUEST_REASONING_LEVEL, _effort),
    "reasoning_effort": (names.REQUEST_REASONING_LEVEL, _string),
    "previous_response_id": (names.REQUEST_PREVIOUS_RESPONSE_ID, _string),
    "response_format": (names.OUTPUT_TYPE, _output_type),
    "text": (names.OUTPUT_TYPE, _text_format),
    "service_tier": (names.OPENAI_REQUEST_SERVICE_TIER, _string),
}
"""The parameters of a body: their attribute, and how they are read."""


def of_answer(answer: Answer, provider: str) -> Attributes:
    """What a response says of itself, usage apart."""
    found: Attributes = {}
    if answer.response_id:
        found[names.RESPONSE_ID] = answer.response_id
    if answer.response_model:
        found[names.RESPONSE_MODEL] = answer.response_model
    if answer.finish_reasons:
        found[names.RESPONSE_FINISH_REASONS] = answer.finish_reasons
    if provider == "openai":
        if answer.service_tier:
            found[names.OPENAI_RESPONSE_SERVICE_TIER] = answer.service_tier
        if answer.system_fingerprint:
            found[names.OPENAI_RESPONSE_SYSTEM_FINGERPRINT] = answer.system_fingerprint
    return found


def of_usage(usage: Usage, operation: str) -> Attributes:
    """Usage, where there was some. The parts of input and output are named only when there are any."""
    if not usage.total_tokens:
        return {}
    found: Attributes = {names.USAGE_INPUT: usage.input_tokens}
    if operation != names.EMBEDDINGS:
        found[names.USAGE_OUTPUT] = usage.output_tokens
    for name, tokens in (
        (names.USAGE_CACHE_READ, usage.cache_read_tokens),
        (names.USAGE_CACHE_WRITE, usage.cache_write_tokens),
        (names.USAGE_REASONING, usage.reasoning_tokens),
    ):
        if tokens:
            found[name] = tokens
    return found


def of_decision(decision: Decision, *, enforced: bool) -> Attributes:
    """A refusal: by which rule, why, and the numbers of the limit if it was one."""
    found: Attributes = {names.DECISION: names.DENY if enforced else names.WOULD_DENY, names.RULE: decision.rule}
    if decision.place:
        found[names.RULE_PLACE] = decision.place
    if decision.reason is not None:
        found[names.REASON] = decision.reason.value
    facts = decision.facts
    if facts.limit:
        found[names.LIMIT] = min(facts.limit, _MAX_INTEGER)
        found[names.LIMIT_SPENT] = facts.spent
        found[names.LIMIT_HELD] = facts.held
        found[names.LIMIT_REQUESTED] = min(facts.requested, _MAX_INTEGER)
    if facts.resets_at is not None:
        found[names.LIMIT_RESETS_AT] = facts.resets_at
    if facts.retry_after is not None:
        found[names.LIMIT_RETRY_AFTER] = facts.retry_after
    if facts.waited:
        found[names.LIMIT_WAITED] = facts.waited
    return found


def error_of(decision: Decision) -> str:
    """The `error.type` of a refusal: the exception that is raised for it."""
    return f"{names.DENIAL}{type(denial(decision, None)).__name__}"


def error_type(name: str) -> str:
    """The `error.type` of an exception's class name: ours are told apart by their prefix."""
    return f"{names.DENIAL}{name}" if name in _OURS else name or names.OTHER


def error_of_settled(event: CallSettled) -> str | None:
    """The `error.type` of a call that is over; None for one that ended well, or was left by its consumer."""
    if event.decision is not None and event.outcome in REFUSED_OUTCOMES:
        return error_of(event.decision)
    return error_type(event.error) if event.error or event.outcome == "error" else None


REFUSED_OUTCOMES = frozenset({"cut", "denied"})
"""Outcomes of calls that were admitted and then stopped: a stream's end, a refused redirect."""

_OURS = frozenset(
    kind.__name__
    for kind in (
        errors.AgentIsolated,
        errors.BudgetExceeded,
        errors.EgressDenied,
        errors.KeyDenied,
        errors.ModelDenied,
        errors.RateLimited,
        errors.StoreUnavailable,
        errors.ToolDenied,
    )
)


def dollars(nanos: int) -> float:
    """Nano-USD as telemetry has it: a double, since attributes know no decimals."""
    return nanos / _NANOS


def unix_nanos(seconds: float) -> int:
    """OpenTelemetry's time of Unix seconds."""
    return int(seconds * _NANOS)

"""What all HTTP seams share: reading a request, admitting it if no seam above has, judging each hop, noting each attempt."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from agentguard.admission import CURRENT, outcome_of
from agentguard.context import OWN_TRAFFIC
from agentguard.core.call import HTTPCall, LLMCall, Target
from agentguard.events import Attempt
from agentguard.guard import denial
from agentguard.metering import Meter
from agentguard.policy.model import Mode
from agentguard.wire import could_be, provider_of, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token

    from agentguard.admission import Admission
    from agentguard.core.call import Call
    from agentguard.core.decision import Decision
    from agentguard.guard import Guard
    from agentguard.wire import Family

_SDK_ERRORS = (("openai", "OpenAIError"), ("anthropic", "AnthropicError"), ("groq", "GroqError"), ("together", "TogetherError"))

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError", "ProxyError"})
"""Exceptions of httpx, by name, that are raised before a request has left."""


def sdk_error_bases() -> tuple[type, ...]:
    """The base errors of the SDKs that are imported. A denial that is raised below one has them as bases, so that it passes
    through: anthropic 2.12 retries any foreign exception three times and shows it as a connection error."""  # noqa: D205, D209
    return tuple(getattr(module, name) for library, name in _SDK_ERRORS if (module := sys.modules.get(library)) and hasattr(module, name))


def refuse(decision: Decision, call: Call | None) -> Exception:
    """The exception for a denial below an SDK."""
    return denial(decision, call, sdk_error_bases())


class Reading(NamedTuple):
    """A request, understood: the call, and for an LLM call its wire format and body."""

    call: Call
    family: Family | None = None
    body: Mapping[str, Any] | None = None


def read_request(method: str, target: Target, body: Callable[[], bytes | None]) -> Reading:
    """Understand an HTTP request. The body is asked for only when the path could be an LLM call's."""
    if method == "POST" and could_be(target.path) and (raw := body()):
        try:
            parsed = json.loads(raw)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, dict) and (reading := read_body(target, parsed)):
            return reading
    return Reading(HTTPCall(method, target))


def read_body(target: Target, body: Mapping[str, Any]) -> Reading | None:
    """Understand a parsed body; None when it is no LLM call."""
    family = recognise(target.path, body)
    if family is None:
        return None
    asked = family.read(body, target.path)
    call = LLMCall(
        family.operation,
        provider_of(target.host, family),
        asked.model,
        target,
        asked.stream,
        asked.input_bytes,
        asked.dense_bytes,
        asked.opaque_parts,
        asked.input_visible,
        asked.max_output_tokens,
        asked.choices,
        body,
    )
    return Reading(call, family, body)


def rewritten(admitted: Admission, reading: Reading) -> dict[str, Any] | None:
    """The body to send instead: with the output bound that was reserved, and asked to report usage. None: send it as it is."""
    family, body, call = reading.family, reading.body, reading.call
    if family is None or body is None or not isinstance(call, LLMCall):
        return None
    admitted.family = family
    changed: dict[str, Any] | None = None
    if admitted.written_bound is not None and admitted.guard.policy.mode is Mode.ENFORCE:
        changed = family.with_output_bound(body, admitted.written_bound, call.target.host)
    if call.stream and admitted.rights.llm.include_usage:
        asking, admitted.hides_usage = family.with_usage(changed or body, call.target.host)
        if admitted.hides_usage or asking != (changed or body):
            changed = asking
    return changed


def is_own_traffic() -> bool:
    """Whether agentguard itself is talking to one of its configured endpoints."""
    return OWN_TRAFFIC.get()


class InProgress:
    """Makes an admitted call the current one, with its span, for one frame."""

    __slots__ = ("_admitted", "_span", "_token")

    def __init__(self, admitted: Admission) -> None:
        self._admitted = admitted

    def __enter__(self) -> Admission:
        admitted = self._admitted
        self._token: Token[Admission | None] = CURRENT.set(admitted)
        spans = admitted.guard.spans
        self._span = spans.current(admitted.span) if spans is not None and admitted.span is not None else None
        if self._span is not None:
            self._span.__enter__()
        return admitted

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
        CURRENT.reset(self._token)
        if error is not None:
            self._admitted.settle_later(outcome=outcome_of(error), error=type(error).__name__)


class Hop:
    """One HTTP request of a call: judged before it is sent, noted when it is over. A context manager around the sending."""

    __slots__ = ("_admitted", "_method", "_started", "_target", "status")

    def __init__(self, admitted: Admission, method: str, target: Target) -> None:
        self._admitted = admitted
        self._method = method
        self._target = target
        self.status: int | None = None

    def __enter__(self) -> Hop:
        admitted = self._admitted
        admitted.in_hop = True
        self._started = admitted.guard.clock.time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        admitted = self._admitted
        admitted.in_hop = False
        name = "" if error is None else type(error).__name__
        was_sent = name not in _NEVER_SENT
        admitted.attempts.append(Attempt(self._method, self._target, self._started, admitted.guard.clock.time(), self.status, name, was_sent))


def judge(admitted: Admission, target: Target, *others: Target) -> None:
    """Judge one hop, with everything else that it touches (a proxy, a Host header that names another host).

    Raises:
        Denied: One of them is refused. Nothing was sent.
    """
    for one in (target, *others):
        if decision := admitted.judge_hop(one):
            now = admitted.guard.clock.time()
            admitted.attempts.append(Attempt("", one, now, now, None, "EgressDenied", was_sent=False))
            raise refuse(decision, admitted.call)
    if not admitted.in_hop and (decision := admitted.prepare_attempt()):
        admitted.guard.tell_denied(admitted, decision)
        raise refuse(decision, admitted.call)


def read_answer(admitted: Admission, status: int, body: bytes) -> None:
    """Take note of a complete response: what it used, and which tools the model proposes.

    Raises:
        ToolDenied: The model proposes a tool that the agent may not use, and the policy refuses that.
    """
    if admitted.family is None or admitted.answer is not None or status >= 400:  # noqa: PLR2004 - HTTP's errors
        return
    answer = admitted.answer = admitted.family.read_response(body)
    admitted.output_bytes = answer.text_bytes
    if answer.tool_calls and (decision := admitted.guard.propose(admitted, answer.tool_calls)):
        admitted.settle(outcome="denied", decision=decision)
        raise refuse(decision, admitted.call)


def is_event_stream(content_type: str) -> bool:
    """Whether a response is a stream of server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def meter_for(admitted: Admission, content_type: str, decode: Callable[[bytes], bytes] | None) -> Meter | None:
    """The meter of a streamed response; None for a call that is not metered."""
    if admitted.family is None or not admitted.is_open:
        return None
    return Meter(
        admitted,
        admitted.family,
        is_events=is_event_stream(content_type),
        hides_usage=admitted.hides_usage,
        decode=decode,
        error_bases=sdk_error_bases(),
    )


def begin_or_none(guard: Guard) -> Admission | None:
    """The call in progress of this guard, which a lower seam adds to; None when there is none, or it is over."""
    current = CURRENT.get()
    return current if current is not None and current.guard is guard and current.is_open else None

"""What all HTTP seams share: reading a request, admitting it if no seam above has, judging each hop, noting each attempt."""

from __future__ import annotations

import json
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agentguard.admission import CURRENT, Admission
from agentguard.context import CALLER, OWN_TRAFFIC, reset
from agentguard.core.call import HTTPCall, LLMCall, Target, ToolCall
from agentguard.errors import Denied
from agentguard.events import Attempt, CallDenied
from agentguard.integrations._decoding import can_undo, decoder
from agentguard.metering import Meter
from agentguard.policy.model import Mode
from agentguard.refusing import refuse, sdk_error_bases
from agentguard.wire import could_be, provider_of, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agentguard.core.call import Call
    from agentguard.guard import Guard
    from agentguard.wire import Family

_NEVER_SENT = frozenset(
    {
        "ConnectError", "ConnectTimeout", "PoolTimeout", "UnsupportedProtocol", "LocalProtocolError", "ProxyError",
        "ClientConnectorCertificateError", "ClientConnectorDNSError", "ClientConnectorError", "ClientConnectorSSLError",
        "ClientHttpProxyError", "ClientProxyConnectionError", "ConnectionTimeoutError", "UnixClientConnectorError",
    }
)  # fmt: skip
"""Exceptions of httpx, and then of aiohttp, by name, that are raised before a request has left."""

_JUDGED: ContextVar[tuple[Admission | None, frozenset[Target]]] = ContextVar("agentguard_judged", default=(None, frozenset()))
"""The call whose request is being sent in this context, and which of its targets a seam above has judged."""


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
    bound = admitted.estimate.written_bound
    if bound is not None and admitted.guard.policy.mode is Mode.ENFORCE:
        changed = family.with_output_bound(body, bound, call.target.host)
    if call.stream and admitted.rights.llm.include_usage:
        asking, admitted.hides_usage = family.with_usage(changed or body, call.target.host)
        if admitted.hides_usage or asking != (changed or body):
            changed = asking
    return changed


def is_own_traffic() -> bool:
    """Whether agentguard itself is talking to one of its configured endpoints."""
    return OWN_TRAFFIC.get()


class Hop:
    """One HTTP request of a call: judged before it is sent, noted when it is over. A context manager around the sending."""

    __slots__ = ("_admitted", "_method", "_started", "_target", "status")

    def __init__(self, admitted: Admission, method: str, target: Target) -> None:
        self._admitted = admitted
        self._method = method
        self._target = target
        self.status: int | None = None

    def __enter__(self) -> Self:
        admitted = self._admitted
        admitted.in_hop = True
        self._started = admitted.guard.clock.time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        admitted = self._admitted
        admitted.in_hop = False
        name = "" if error is None else type(error).__name__
        was_sent = name not in _NEVER_SENT and not isinstance(error, Denied)  # a seam below has refused it
        admitted.attempts.append(
            Attempt(self._method, self._target, self._started, admitted.guard.clock.time(), self.status, name, was_sent)
        )


def judge(admitted: Admission, target: Target, others: Sequence[Target]) -> None:
    """Judge one hop, with everything else that it touches (a proxy, a Host header that names another host).

    Raises:
        Denied: One of them is refused. Nothing was sent.
    """
    call = admitted.call
    # The first attempt usually goes where the admission has just judged.
    is_judged = not admitted.attempts and not isinstance(call, ToolCall) and target == call.target
    for one in others if is_judged else (target, *others):
        if decision := admitted.judge_hop(one):
            now = admitted.guard.clock.time()
            admitted.attempts.append(Attempt("", one, now, now, None, "EgressDenied", was_sent=False))
            admitted.refused = decision
            raise refuse(decision, admitted.call)
    if admitted.attempts and not admitted.in_hop:
        prepare_attempt(admitted)


def read_answer(admitted: Admission, status: int, body: bytes) -> None:
    """Take note of a complete response: what it used, and which tools the model proposes.

    Raises:
        ToolDenied: The model proposes a tool that the agent may not use, and the policy refuses that.
    """
    if admitted.family is None or admitted.answer is not None or status >= 400:
        return
    if admitted.may_be_read_later(body):
        admitted.unread = body
        return
    answer = admitted.answer = admitted.family.read_response(body)
    admitted.output_bytes = answer.text_bytes
    if answer.tool_calls and (decision := admitted.guard.propose(admitted, answer.tool_calls)):
        admitted.settle(outcome="denied", decision=decision)
        admitted.refused = decision
        raise refuse(decision, admitted.call)


def is_event_stream(content_type: str) -> bool:
    """Whether a response is a stream of server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def meter_for(admitted: Admission, content_type: str, encoding: str = "", connection: object = None) -> Meter | None:
    """The meter of a response that is read piece by piece; None for a call that is not metered, or by somebody else.

    Args:
        admitted: The call.
        content_type: What the response says it is.
        encoding: Its content encoding, unless the library has undone it before we see the data.
        connection: The socket that it is read from, as far as it is known.

    Raises:
        AgentIsolated: The agent was isolated before the response came.
    """
    if admitted.family is None or admitted.is_streaming or not admitted.is_open:
        return None
    admitted.connection = getattr(connection, "_sock", connection)  # asyncio's sockets are wrapped
    is_events = is_event_stream(content_type)
    return Meter(
        admitted,
        admitted.family,
        is_events=is_events,
        is_countable=is_events and can_undo(encoding),
        decode=decoder(encoding),
        error_bases=sdk_error_bases(),
    )


def own_meter_for(admitted: Admission, content_type: str, encoding: str = "", connection: object = None) -> Meter | None:
    """`meter_for`, for a seam whose response a seam above it may be reading."""
    if admitted.response_taken or admitted.in_hop:
        return None
    return meter_for(admitted, content_type, encoding, connection)


def begin_or_none(guard: Guard) -> Admission | None:
    """The call in progress of this guard, which a lower seam adds to; None when there is none, or it is over.

    Raises:
        Denied: The call has been refused on its way, and somebody tries it again: openai 1.109 retries any exception.
    """
    current = CURRENT.get()
    while current is not None and current.guard is not guard:  # several guards may be on one call
        current = current.around
    if current is None:
        return None
    if current.refused is not None:
        raise refuse(current.refused, current.call)
    return current if current.is_open else None


def part_of(guard: Guard, method: str, target: Target, body: Callable[[], bytes | None]) -> Admission | Reading:
    """What a request belongs to: the call in progress, or else a call of its own.

    An LLM request inside of another call (a redirect that leads there, a hook) is a call of its own: nobody has paid for it.
    """
    current = begin_or_none(guard)
    if current is not None and (isinstance(current.call, LLMCall) or method != "POST" or not could_be(target.path)):
        return current
    reading = read_request(method, target, body)
    return reading if current is None or reading.family is not None else current


class Judging:
    """Judges where one request goes, once, however many seams it passes. A context manager around the sending.

    Raises:
        Denied: On entering: a target is refused, and nothing was sent.
    """

    __slots__ = ("_admitted", "_targets", "_token")

    def __init__(self, admitted: Admission, *targets: Target) -> None:
        self._admitted = admitted
        self._targets = targets

    def __enter__(self) -> None:
        admitted = self._admitted
        judged = _judged(admitted)
        first = None if isinstance(admitted.call, ToolCall) else admitted.call.target  # judged when the call was admitted
        for target in self._targets:
            if target not in judged and target != first and (decision := admitted.judge_hop(target)):
                now = admitted.guard.clock.time()
                admitted.attempts.append(Attempt("", target, now, now, None, "EgressDenied", was_sent=False))
                raise refuse(decision, admitted.call)
        self._token = _JUDGED.set((admitted, judged.union(self._targets)))

    def __exit__(self, *exc_info: object) -> None:
        reset(self._token)


def _judged(admitted: Admission) -> frozenset[Target]:
    for_call, judged = _JUDGED.get()
    return judged if for_call is admitted else frozenset()


def is_in_hand(admitted: Admission, target: Target) -> bool:
    """Whether a seam above has read this very request, and is sending it for this call."""
    return target in _judged(admitted)


def is_judged(admitted: Admission, target: Target) -> bool:
    """Whether a seam above has judged the host and port of a target, whatever the path."""
    return any((one.host, one.port) == (target.host, target.port) for one in _judged(admitted))


def judge_connection(guard: Guard, *targets: Target) -> None:
    """Judge a connection that is opened ahead of its request.

    Raises:
        Denied: One of the targets may not be reached.
    """
    caller = guard.identified(CALLER.get())
    rights = guard.rights(caller)
    for target in targets:
        if decision := rights.refuses_target(target, caller):
            call = HTTPCall("CONNECT", target)
            enforced = guard.policy.mode is Mode.ENFORCE
            guard.tell(CallDenied(guard.clock.time(), next(guard.ids), call, caller, decision, enforced))
            if enforced:
                raise refuse(decision, call)


def prepare_attempt(admitted: Admission) -> None:
    """Ask for one more HTTP request of a call, where no seam above is sending it.

    Raises:
        Denied: There is no budget for another one.
    """
    if decision := admitted.prepare_attempt():
        admitted.guard.tell_denied(admitted, decision)
        admitted.refused = decision
        raise refuse(decision, admitted.call)


def other_hosts(target: Target, host_header: str | None, server_name: object = None) -> Iterator[Target]:
    """The hosts that a Host header or a TLS server name gives, when they are not the target's."""
    own = target.host.lower().rstrip(".")
    named = (host_header or "").strip()
    host = named[1 : named.index("]")] if named.startswith("[") and "]" in named else named.partition(":")[0]
    for other in (host, server_name):
        if isinstance(other, str) and other and other.lower().rstrip(".") != own:
            yield target._replace(host=other)


class Body:
    """A request body of any kind that a library takes, read only when it may be an LLM call's.

    Attributes:
        replacement: What to send instead of a source that reading has used up; None when it can be sent as it was.
        encoding: Its `content-encoding`.
    """

    __slots__ = ("_source", "encoding", "replacement")

    def __init__(self, source: Any, encoding: str | None = None) -> None:
        self._source = source
        self.encoding = encoding or ""
        self.replacement: bytes | None = None

    def read(self) -> bytes | None:
        """The whole body, with its encoding undone; None when there is none."""
        raw = self._read()
        decode = decoder(self.encoding) if raw and self.encoding else None
        if decode is None or not raw:
            return raw
        try:
            return decode(raw)
        except Exception:  # noqa: BLE001 - each codec raises its own: the server will say that the body is in another encoding
            return raw

    def _read(self) -> bytes | None:
        source = self._source
        if source is None or isinstance(source, bytes):
            return source
        if isinstance(source, str):
            return source.encode()
        if isinstance(source, bytearray | memoryview):
            return bytes(source)
        if hasattr(source, "read"):
            return self._read_file(source)
        if isinstance(source, dict) or not hasattr(source, "__iter__"):
            return None
        self.replacement = b"".join(map(as_bytes, source))
        return self.replacement

    def _read_file(self, source: Any) -> bytes:
        try:
            start = source.tell()
        except (AttributeError, OSError):
            start = None
        raw = as_bytes(source.read())
        try:
            if start is not None:
                source.seek(start)
                return raw
        except (AttributeError, OSError):
            pass
        self.replacement = raw
        return raw


def as_bytes(piece: Any) -> bytes:
    """A piece of a body, as it goes over the wire."""
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def to_json(body: Mapping[str, Any]) -> bytes:
    """A rewritten body, as it goes over the wire."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding"})
"""Headers that described how a body was to be sent, which is now sent as bytes."""

REWRITTEN_HEADERS = FRAMING_HEADERS | {"content-encoding"}
"""Headers that described a body which has been rewritten."""


class note_unseen:  # noqa: N801 - read as a verb: `with note_unseen(...)`
    """Notes a request that no seam below has seen. A context manager around the sending.

    Attributes:
        status: The status of the answer, set by whoever sends.
    """

    __slots__ = ("_admitted", "_before", "_method", "_started", "_target", "status")

    def __init__(self, admitted: Admission, method: str, target: Target) -> None:
        self._admitted = admitted
        self._method = method
        self._target = target
        self.status: int | None = None

    def __enter__(self) -> Self:
        self._before = len(self._admitted.attempts)
        self._started = self._admitted.guard.clock.time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        admitted = self._admitted
        if len(admitted.attempts) == self._before and not admitted.in_hop:
            name = "" if error is None else type(error).__name__
            now = admitted.guard.clock.time()
            admitted.attempts.append(
                Attempt(self._method, self._target, self._started, now, self.status, name, was_sent=error is None)
            )

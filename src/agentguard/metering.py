"""A response as it flows: scanned for usage, metered against its reservation, and cut when its budget ends."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from agentguard.core.call import LLMCall
from agentguard.errors import Denied
from agentguard.guard import denial
from agentguard.wire.stream import StreamScan

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.admission import Admission
    from agentguard.core.decision import Decision
    from agentguard.wire.family import Family

LEAST_EXTENSION_TOKENS = 64
"""How much is asked for at once when a stream outgrows its reservation; a twentieth of the reservation, if that is more."""

_MAX_BODY_BYTES = 32 * 1024 * 1024


def _nothing(chunk: bytes) -> bytes:  # noqa: ARG001 - stands for a decoder
    return b""


class Meter:
    """What stands in a response's byte stream, whatever the library.

    The owner of the stream calls `feed` with each chunk and hands on what it returns, `end` at the end of the data, and
    `abandon` from wherever else the stream may end. A chunk that cannot be paid for raises; the owner then closes
    the stream.

    Args:
        admitted: The call.
        family: Its wire format.
        is_events: Whether the response is a stream of server-sent events. Any other body was generated as a whole before its
            first byte, so that it is charged as a whole even when it is not read to its end.
        is_countable: Whether what flows can be counted: it is a stream of events, in an encoding that can be undone here.
        decode: What undoes its content encoding; None when there is nothing to undo.
        error_bases: Classes that a denial has to have as bases to pass through the SDK above.
    """

    __slots__ = ("_admitted", "_allowed", "_body", "_body_bytes", "_decode", "_family", "_hides", "_scan", "error_bases")

    def __init__(
        self,
        admitted: Admission,
        family: Family,
        *,
        is_events: bool,
        is_countable: bool,
        decode: Callable[[bytes], bytes] | None = None,
        error_bases: tuple[type, ...] = (),
    ) -> None:
        self._admitted = admitted
        self._family = family
        self._hides = admitted.hides_usage and is_countable
        self._scan = StreamScan(family, self._hides) if is_events else None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._decode = decode
        self.error_bases: tuple[type, ...] = error_bases
        self._allowed = self._allowance()
        admitted.is_streaming = True
        admitted.is_countable = is_countable
        if admitted.is_cut is not None:
            self._cut(admitted.is_cut)

    def feed(self, chunk: bytes) -> bytes:
        """Take note of a chunk, and return what the caller of the SDK gets of it.

        Raises:
            Denied: The agent was isolated, or the stream has outgrown its budget. The call is settled.
        """
        admitted = self._admitted
        if admitted.first_chunk_at is None:
            admitted.first_chunk_at = admitted.guard.clock.time()
        if admitted.is_cut is not None:
            self._cut(admitted.is_cut)
        scan = self._scan
        if scan is None:
            return self._collect(chunk)
        plain = chunk if self._decode is None else self._decoded(self._decode, chunk)
        handed_on = scan.feed(plain)
        if scan.output_bytes > self._allowed:
            self._grow()
        if scan.is_done:
            self._settle("error" if scan.failed else "complete")
        return handed_on if self._hides or self._decode is None else chunk

    def end(self) -> bytes:
        """The data is over: settle, and return what was withheld.

        Raises:
            AgentIsolated: It is over because the agent was isolated.
        """
        if self._admitted.is_cut is not None:  # it did not end: its connection was shut down
            self._cut(self._admitted.is_cut)
        rest = b"" if self._scan is None else self._scan.finish()
        self._settle("complete")
        return rest if self._hides else b""

    def fail(self, error: BaseException) -> None:
        """Reading failed, or was cancelled, in the frame that called.

        Raises:
            AgentIsolated: It failed because the agent was isolated, and the connection was shut down.
        """
        if self._admitted.is_cut is not None and isinstance(error, Exception) and not isinstance(error, Denied):
            self._cut(self._admitted.is_cut)
        self._note()
        outcome = "error" if isinstance(error, Exception) else "cancelled"
        self._admitted.settle_later(outcome=outcome, error=type(error).__name__)

    def abandon(self) -> None:
        """The stream was closed or freed before its end: charge what was delivered. May run in a finalizer."""
        if self._admitted.is_open:
            self._note()
            self._admitted.settle_later(outcome="abandoned")

    def _collect(self, chunk: bytes) -> bytes:
        if self._body_bytes < _MAX_BODY_BYTES:
            self._body_bytes += len(chunk)
            self._body.append(chunk if self._decode is None else self._decoded(self._decode, chunk))
        return chunk

    def _decoded(self, decode: Callable[[bytes], bytes], chunk: bytes) -> bytes:
        """What the caller will read of a chunk. Where it is handed on as it came, the library says what is wrong with it."""
        try:
            return decode(chunk)
        except Exception as error:  # each codec raises its own
            if self._hides:
                msg = f"the response is not in the encoding that it names: {error}"
                raise OSError(msg) from error  # as a connection that breaks: libraries expect it of what they read from
            self._decode = _nothing
            self._admitted.is_countable = False
            return b""

    def _note(self) -> None:
        admitted = self._admitted
        if self._scan is not None:
            admitted.answer = self._scan.answer
            admitted.output_bytes = self._scan.output_bytes
        elif self._body:
            admitted.answer = self._family.read_response(b"".join(self._body))
            admitted.output_bytes = admitted.answer.text_bytes

    def _settle(self, outcome: str) -> None:
        admitted = self._admitted
        if not admitted.is_open:
            return
        self._note()
        answer = admitted.answer
        if answer is not None and answer.tool_calls and (refusal := admitted.guard.propose(admitted, answer.tool_calls)):
            self._cut(refusal)
        admitted.finish(outcome)

    def _allowance(self) -> float:
        admitted = self._admitted
        if admitted.estimate.output_tokens is None or not isinstance(admitted.call, LLMCall):
            return inf
        return admitted.guard.estimator.output_bytes(admitted.call, admitted.reserved_output, admitted.rights.llm.bound)

    def _grow(self) -> None:
        """Reserve more; cut when nothing is left. What is left is taken to the last token before that."""
        admitted, scan = self._admitted, self._scan
        if scan is None or not isinstance(admitted.call, LLMCall):
            return
        estimator, bound = admitted.guard.estimator, admitted.rights.llm.bound
        while scan.output_bytes > self._allowed:
            missing = estimator.output_tokens(admitted.call, scan.output_bytes, bound) - admitted.reserved_output
            step = max(LEAST_EXTENSION_TOKENS, admitted.reserved_output // 20)
            if refusal := admitted.guard.ledger.extend(admitted, output_tokens=max(missing, 0) + step):
                self._cut(refusal)
            self._allowed = self._allowance()

    def _cut(self, decision: Decision) -> None:
        self._note()
        self._admitted.guard.tell_denied(self._admitted, decision)
        error = denial(decision, self._admitted.call, self.error_bases)
        self._admitted.settle_later(outcome="cut", error=type(error).__name__, decision=decision)
        raise error

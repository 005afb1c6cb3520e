"""One admitted call, from its reservation to its one settlement."""

from __future__ import annotations

import contextvars
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agentguard.context import reset
from agentguard.core.call import NO_USAGE, LLMCall, Usage
from agentguard.core.pricing import cost_nanos
from agentguard.errors import Denied
from agentguard.policy.model import Ambiguous
from agentguard.wire.glance import most_tokens
from agentguard.wire.recognition import could_be

if TYPE_CHECKING:
    from types import TracebackType

    from agentguard.core.call import Call, Target
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.engine import Estimate, Outcome
    from agentguard.core.limits import Charge, LimitRow
    from agentguard.core.rights import Rights
    from agentguard.events import Attempt
    from agentguard.guard import Guard
    from agentguard.wire.answer import Answer
    from agentguard.wire.family import Family

CURRENT: contextvars.ContextVar[Admission | None] = contextvars.ContextVar("agentguard_admission", default=None)
"""The call in progress: lower seams add hops to it instead of admitting it again."""

_AMBIGUOUS_STATUS = frozenset({408, 502, 504})
"""Timeouts, and gateways that lost their upstream: the request may have been served without our seeing it."""


class Owner(NamedTuple):
    """Where a call was made: it settles there, so nobody there can wait for it.

    Attributes:
        thread: Its thread.
        task: A weak reference to its task, the same one for every call of the task; None for a call that does not await. A
            strong one would close a cycle that Python 3.11 cannot collect: stream, call, task, its `CancelledError`, the
            traceback's frames, stream.
    """

    thread: int
    task: object | None


class Ending(NamedTuple):
    """How a call ended, before it is charged."""

    usage: Usage | None
    outcome: str
    error: str = ""
    decision: Decision | None = None
    at: float = 0.0


class Admission:
    """A call that may go, and what is held for it. Settles exactly once, whoever ends it first.

    Used as a context manager it settles at the end of the block, unless a stream has taken it over.

    Attributes:
        around: The call of another guard that it was admitted inside of: on the same request, perhaps.
        origin: The request object that the outermost seam saw, so that a second seam on the same call passes it through.
        family: The wire format of an LLM call.
        hides_usage: Whether the usage event was asked for by us, and is withheld from the caller.
        answer, output_bytes, first_chunk_at: What was seen of the response.
        unread: A whole response that is known to make room only, and is read when the call is settled.
        reserved_output: Output tokens held, with what was added to a stream on its way.
        extended: What was added to the charges, by whatever limit.
        unanswered: Attempts that may have been billed without an answer.
        attempts: The HTTP requests so far.
        in_hop: Whether an HTTP seam is sending one of them now: seams below it belong to the same attempt.
        sender: The HTTP client that sends it, and whose response is its answer; None when none has said that it does.
        response_taken: Whether a seam above the hop reads the response.
        is_streaming: Whether a stream has taken the call over, and settles it.
        is_countable: Whether the output of that stream is counted as it flows.
        refused: The refusal that has ended it on its way; a further attempt of it meets the same.
        is_open: Whether it has not been settled yet.
        is_cut: The refusal of its result, or of the rest of it, since it was isolated on its way; None while it may go on.
        connection: The socket that its stream is read from, to be shut down when it is cut; None when there is none.
    """

    __slots__ = (
        "_once",
        "answer",
        "around",
        "attempts",
        "call",
        "caller",
        "connection",
        "estimate",
        "extended",
        "family",
        "first_chunk_at",
        "guard",
        "hides_usage",
        "id",
        "in_hop",
        "is_countable",
        "is_cut",
        "is_open",
        "is_streaming",
        "origin",
        "outcome",
        "output_bytes",
        "owner",
        "refused",
        "reserved_output",
        "response_taken",
        "rights",
        "rows",
        "sender",
        "span",
        "started",
        "unanswered",
        "unread",
    )

    def __init__(self, guard: Guard, id: str, call: Call, caller: Caller, rights: Rights, outcome: Outcome, owner: Owner) -> None:
        self.guard: Guard = guard
        self.id: str = id
        self.call: Call = call
        self.caller: Caller = caller
        self.rights: Rights = rights
        self.outcome: Outcome = outcome
        self.owner: Owner = owner
        self.estimate: Estimate = outcome.estimate
        self.rows: tuple[LimitRow, ...] = outcome.rows
        self.reserved_output: int = outcome.estimate.output_tokens or 0
        self.extended: tuple[Charge, ...] = ()
        self.attempts: list[Attempt] = []
        self.unanswered: int = 0
        self.answer: Answer | None = None
        self.family: Family | None = None
        self.unread: bytes | None = None
        self.output_bytes: int = 0
        self.first_chunk_at: float | None = None
        self.refused: Decision | None = None
        self.is_streaming: bool = False
        self.is_countable: bool = False
        self.hides_usage: bool = False
        self.in_hop: bool = False
        self.sender: object = None
        self.response_taken: bool = False
        self.is_cut: Decision | None = None
        self.connection: Any = None
        current = CURRENT.get()
        self.around: Admission | None = current if current is None or current.guard is not guard else current.around
        self.origin: object = None
        self.span: Any = None
        self.started: float = guard.clock.time()
        self.is_open: bool = True
        self._once = [True]

    @property
    def decision(self) -> Decision:
        """Why it may go; in report mode, what would have refused it."""
        return self.outcome.decision

    @property
    def written_bound(self) -> int | None:
        """The output bound that the request must be given; None when it carries its own."""
        return self.estimate.written_bound

    def judge_hop(self, target: Target) -> Decision | None:
        """Judge one hop of the call: a redirect, a retry elsewhere, a proxy. None when it may go."""
        return self.guard.refuses_hop(self, target)

    def prepare_attempt(self) -> Decision | None:
        """Ask for one more HTTP request of the call. After an unanswered one its input, which may be billed twice, is held."""
        if self.rights.llm.ambiguous is Ambiguous.NOTHING or not isinstance(self.call, LLMCall):
            return None
        if not self.attempts or not _may_be_billed(self.attempts[-1]):
            return None
        refusal = self.guard.ledger.extend(self, input_tokens=self.estimate.input_tokens)
        if refusal is None:
            self.unanswered += 1
        return refusal

    def settle(
        self, usage: Usage | None = None, outcome: str = "complete", error: str = "", decision: Decision | None = None
    ) -> None:
        """Charge the call now. Only where no collector or signal handler can be running."""
        if self._end():
            self.guard.ledger.settle(self, Ending(usage, outcome, error, decision, self.guard.clock.time()))

    def may_be_read_later(self, body: bytes) -> bool:
        """Whether a whole response can wait for the worker: it used no more than is held, and no rule asks what it proposes."""
        if self.rights.judges_tools or self.unanswered:
            return False
        most = most_tokens(body)
        return most is not None and most <= self.estimate.input_tokens + self.reserved_output

    def finish(self, outcome: str = "complete") -> None:
        """Charge the call: soon when it only makes room and nobody waits for that, or an event loop would wait; otherwise now.

        Raises:
            AgentIsolated: It was isolated on its way: what it has brought is withheld.
        """
        guard = self.guard
        if self.is_cut is not None:
            guard.withhold(self)
        if (self.unread is not None and not guard.changes.waiting) or (self.owner.task is not None and guard.store.may_block):
            self.settle_later(outcome=outcome)
        else:
            self.settle(outcome=outcome)

    def settle_later(
        self, usage: Usage | None = None, outcome: str = "abandoned", error: str = "", decision: Decision | None = None
    ) -> None:
        """Charge the call soon, from the worker or before the next reservation. Takes no lock, so a finalizer may call it."""
        if self._end():
            guard = self.guard
            guard.ledger.settle_later(self, Ending(usage, outcome, error, decision, guard.clock.time()))

    def hang_up(self) -> None:
        """Shut down the connection of a stream. Whoever is blocked in reading it meets its end."""
        connection = self.connection
        if connection is not None:
            _shut_down(connection)

    def _end(self) -> bool:
        try:
            self._once.pop()
        except IndexError:
            return False
        self.is_open = False
        self.connection = None
        return True

    def read(self) -> None:
        """Read the response that was left unread."""
        body, self.unread = self.unread, None
        if body is not None and self.family is not None:
            self.answer = self.family.read_response(body)
            self.output_bytes = self.answer.text_bytes

    def used(self, ending: Ending) -> Usage:
        """What to charge: what the provider reported, else what was seen, else what the policy says of unanswered calls."""
        call = self.call
        if not isinstance(call, LLMCall):
            return NO_USAGE
        usage = ending.usage or (self.answer.usage if self.answer is not None else None)
        if usage is None:
            usage = self._unreported(call, ending)
        if self.unanswered:
            again = self.unanswered * self.estimate.input_tokens
            usage = usage._replace(input_tokens=usage.input_tokens + again, estimated=True)
        return usage

    def _unreported(self, call: LLMCall, ending: Ending) -> Usage:
        last = self.attempts[-1] if self.attempts else None
        if ending.outcome == "denied" or last is None or not last.was_sent:
            return NO_USAGE
        if last.status is not None and last.status < 400:
            output = self.guard.estimator.output_tokens(call, self.output_bytes, self.rights.llm.bound)
            if not self.is_countable and not self.output_bytes:
                output = self.reserved_output  # an answer that cannot be read: nothing was counted, so the bound stands
            told = self.answer.input_usage if self.answer is not None else None
            if told is not None:
                return told._replace(output_tokens=output, estimated=True)
            return Usage(self.estimate.input_tokens, output, estimated=True)
        if last.status is not None and not _is_ambiguous(last):
            return NO_USAGE
        match self.rights.llm.ambiguous:
            case Ambiguous.NOTHING:
                return NO_USAGE
            case Ambiguous.INPUT:
                return Usage(self.estimate.input_tokens, 0, estimated=True)
            case Ambiguous.ESTIMATE:
                return Usage(self.estimate.input_tokens, self.reserved_output, estimated=True)

    def cost(self, usage: Usage) -> int | None:
        """What a usage costs, in nano-USD; None when nobody prices the model."""
        return cost_nanos(self.estimate.price, usage) if self.estimate.price else getattr(self.call, "cost_nanos", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None:
            if not self.is_streaming:
                self.finish()
        else:
            self.settle(outcome=outcome_of(error), error=type(error).__name__)


class InProgress:
    """Makes an admitted call the current one, with its span, for one frame. What escapes from the frame ends the call."""

    __slots__ = ("_admitted", "_entered", "_token")

    def __init__(self, admitted: Admission) -> None:
        self._admitted = admitted
        self._entered: object = None

    def __enter__(self) -> Admission:
        admitted = self._admitted
        self._token: contextvars.Token[Admission | None] = CURRENT.set(admitted)
        spans = admitted.guard.spans
        if spans is not None and admitted.span is not None:
            self._entered = spans.enter(admitted.span)
        return admitted

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        spans = self._admitted.guard.spans
        if spans is not None and self._entered is not None:
            spans.leave(self._entered)
        reset(self._token)
        if error is not None:
            self._admitted.settle_later(outcome=outcome_of(error), error=type(error).__name__)


def outcome_of(error: BaseException) -> str:
    """The outcome word of an exception: `denied` for our own, `cancelled` for those that are no fault of the call."""
    if isinstance(error, Denied):
        return "denied"
    return "error" if isinstance(error, Exception) else "cancelled"


def _shut_down(connection: Any) -> None:
    """End a connection under whoever reads it, in whatever thread or event loop. It may be closed already."""
    import socket

    with suppress(OSError, ValueError):
        if isinstance(connection, socket.SocketType):
            # Not by the method of a TLS socket, which would take its TLS state from under the reader.
            socket.SocketType.shutdown(connection, socket.SHUT_RDWR)
        else:  # uvloop's stand-in has a number only
            with socket.socket(fileno=os.dup(connection.fileno())) as same:
                same.shutdown(socket.SHUT_RDWR)


def _may_be_billed(attempt: Attempt) -> bool:
    """Whether a request that is made again may have been billed: its answer was lost, or broke off while it was read."""
    has_begun = attempt.status is not None and 200 <= attempt.status < 300 and could_be(attempt.target.path)
    return has_begun or _is_ambiguous(attempt)


def _is_ambiguous(attempt: Attempt) -> bool:
    """Whether a request may have been served, and billed, without our seeing an answer."""
    return attempt.was_sent and (attempt.status is None or attempt.status in _AMBIGUOUS_STATUS)

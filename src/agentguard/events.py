"""What happened: records in the past tense, told to observers. Times are Unix seconds; durations are differences of them.

No event carries content (prompts, answers, tool arguments) or a secret. `LLMCall.request` refers to the request for
telemetry that the user has asked to capture content; nothing else may read more than its parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from agentguard.core.call import Call, Target, Usage
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.limits import Crossed


class Attempt(NamedTuple):
    """One HTTP request of a call: retries and redirects are further attempts.

    Attributes:
        method: The HTTP method.
        target: Where it went.
        started, ended: Unix seconds.
        status: The response's status; None when there was none.
        error: The class name of the exception that ended it; empty when none did.
        was_sent: False for a hop that was refused before anything left.
    """

    method: str
    target: Target
    started: float
    ended: float
    status: int | None = None
    error: str = ""
    was_sent: bool = True


class CallDenied(NamedTuple):
    """A call was refused; or would have been, when `enforced` is False (report mode)."""

    at: float
    id: str
    call: Call
    caller: Caller
    decision: Decision
    enforced: bool
    span: Any = None


class CallAdmitted(NamedTuple):
    """A call may go. Amounts are what was reserved: tokens, and nano-USD; `waited` is for how many seconds there was no room."""

    at: float
    id: str
    call: Call
    caller: Caller
    tokens: int
    nanos: int
    waited: float = 0.0


class CallSettled(NamedTuple):
    """A call is over, and was charged.

    Attributes:
        at: When it ended.
        id: The id of its admission.
        call, caller: What and who.
        started: When it was admitted.
        usage: What it used; zero for calls that use no tokens.
        nanos: What it cost, in nano-USD; None when nobody prices the model.
        outcome: `complete`, `error`, `abandoned`, `cancelled`, `cut` or `denied`.
        error: The class name of the exception that ended it; empty when none did.
        answer: What the response said of itself (`agentguard.wire.family.Answer`); None when there was none.
        attempts: The HTTP requests of the call.
        first_chunk_at: When the first chunk of a stream arrived.
        reserved_tokens: What had been reserved.
        written_bound: The output bound that was written into the request; None when it carried its own.
        decision: The refusal that ended it (a cut stream, a refused redirect); None otherwise.
        span: What the observer's `begin` returned.
    """

    at: float
    id: str
    call: Call
    caller: Caller
    started: float
    usage: Usage
    nanos: int | None
    outcome: str
    error: str = ""
    answer: Any = None
    attempts: tuple[Attempt, ...] = ()
    first_chunk_at: float | None = None
    reserved_tokens: int = 0
    written_bound: int | None = None
    decision: Decision | None = None
    span: Any = None


class EstimateBreached(NamedTuple):
    """A provider reported more than was reserved. The difference was charged, and the estimate has learned."""

    at: float
    id: str
    call: Call
    caller: Caller
    reserved_tokens: int
    used_tokens: int


class ToolProposed(NamedTuple):
    """A model proposed a tool that the agent may not use."""

    at: float
    id: str
    call: Call
    caller: Caller
    tool: str
    decision: Decision


class BudgetThresholdCrossed(NamedTuple):
    """A soft step of a limit was passed."""

    at: float
    crossed: Crossed


class ScopeEnded(NamedTuple):
    """An agent's invocation or a tool's run is over. `kind` is `invoke_agent` or `execute_tool`."""

    at: float
    kind: str
    name: str
    caller: Caller
    started: float
    error: str = ""
    span: Any = None


class PolicyLoaded(NamedTuple):
    """A policy is in force, or was refused (`problem` says why, and the old one stays)."""

    at: float
    path: str
    digest: str
    mode: str
    agents: tuple[str, ...]
    problem: str = ""


class SeamChanged(NamedTuple):
    """A seam was `installed`, `removed`, `missing`, or `lost`: taken away by somebody else."""

    at: float
    library: str
    seam: str
    state: str


class SubjectIsolated(NamedTuple):
    """A subject was isolated, or restored (`on` False): on probation until then (Unix time), if `probation_until` is not 0."""

    at: float
    subject: str
    on: bool
    by: str
    why: str
    epoch: int
    mode: str = "block-all"
    probation_until: float = 0.0


class BudgetAdjusted(NamedTuple):
    """An operator has corrected what a limit has counted as spent, by an amount in its unit."""

    at: float
    row: str
    amount: int
    spent: int
    by: str
    why: str


class ChildStarted(NamedTuple):
    """A program was started that in-process enforcement does not hold to the policy. Told once for each program."""

    at: float
    program: str
    caller: Caller
    remedy: str


class GuardDisabled(NamedTuple):
    """`AGENTGUARD_DISABLED` is set: nothing is guarded."""

    at: float
    reason: str


Event = (
    CallDenied
    | CallAdmitted
    | CallSettled
    | EstimateBreached
    | ToolProposed
    | BudgetThresholdCrossed
    | ScopeEnded
    | PolicyLoaded
    | SeamChanged
    | SubjectIsolated
    | BudgetAdjusted
    | ChildStarted
    | GuardDisabled
)


class Observer(Protocol):
    """Somebody who is told, on the guard's worker thread, in the order of events. What it raises is counted and logged once."""

    def __call__(self, event: Event, /) -> None:
        """Take note of an event."""


class SpanObserver(Observer, Protocol):
    """An observer that has to be there when a call starts, because the call's span is the parent of others."""

    def begin(self, kind: str, name: str, call: Call | None, caller: Caller, /) -> Any:
        """Start a span on the calling thread, named by what is called or run; a call knows its own name.

        What is returned rides on the call's later events as `span`.
        """

    def around(self) -> Any:
        """What stands for the span that is current now: the parent of a denial that has none of its own."""

    def enter(self, span: Any, /) -> object:
        """Make the span current in this context. Returns what `leave` takes, None when there is nothing to leave."""

    def leave(self, entered: Any, /) -> None:
        """Make current again what was before `enter`."""

    def silence(self, span: Any, call: Call, /) -> None:
        """Have instrumentations of LLM clients that stand inside of the span stay silent: it reports the call."""

    def leave_usage(self, span: Any, /) -> None:
        """Leave usage to another span of the same call: that of an SDK that traces natively."""

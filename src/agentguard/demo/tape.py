"""The observer: it turns the guard's events into lines and keeps them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.call import HTTPCall, LLMCall, ToolCall
from agentguard.core.decision import Reason
from agentguard.events import BudgetThresholdCrossed, CallAdmitted, CallDenied, CallSettled, ScopeEnded, ToolProposed

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.events import Event


class Line(NamedTuple):
    """One line of the screen: who did what to whom, what was decided, and what it cost.

    Attributes:
        at: Unix seconds.
        agent, verb, target: Who, what, whom.
        decision: `allow`, `deny`, `cut`, `left` (a stream that its reader left), `warn`; in the control `arrived` or `leaked`.
        detail: Tokens, a status, or the reason of a refusal.
        note: What is worth saying where there is room: the rule, and where it stands.
        nanos: What it cost, in nano-USD; None when it costs nothing.
        message: The denial in full.
    """

    at: float
    agent: str
    verb: str
    target: str
    decision: str
    detail: str = ""
    note: str = ""
    nanos: int | None = None
    message: str = ""


class Tape:
    """An observer, as `instrument(observers=[...])` takes it. It is told on the guard's worker thread.

    Args:
        show: Called with each line.
    """

    def __init__(self, show: Callable[[Line], None]) -> None:
        self.show: Callable[[Line], None] = show
        self._lock = threading.Lock()
        self._settled: list[CallSettled] = []
        self._under_way: dict[str, CallDenied | None] = {}

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case CallAdmitted(id=id):
                self._under_way[id] = None
            case CallDenied(id=id) if id in self._under_way:
                self._under_way[id] = event  # a redirect, or the rest of a stream: the call's own line tells it
            case CallSettled(id=id):
                with self._lock:
                    self._settled.append(event)
                self.show(line_of_call(event, self._under_way.pop(id, None)))
            case _:
                if line := line_of(event):
                    self.show(line)

    @property
    def llm_calls(self) -> list[CallSettled]:
        """The LLM calls that have ended."""
        with self._lock:
            return [event for event in self._settled if isinstance(event.call, LLMCall)]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._settled.clear()


def line_of(event: Event) -> Line | None:
    """The line of an event that is no call's end; None for those that say nothing to a spectator."""
    match event:
        case CallDenied(at=at, call=call, caller=caller, decision=decision):
            line = Line(at, _who(caller), *_what(call), "deny")
            if decision.reason is Reason.EGRESS and not isinstance(call, ToolCall):
                line = line._replace(target=call.target.host)  # whom it may not reach says more than the model's name
            return _refused(line, decision)
        case ScopeEnded(at=at, kind="execute_tool", name=name, caller=caller, error=error):
            return Line(at, _who(caller), "tool", name, "allow", error and f"raised {error}")
        case ToolProposed(at=at, caller=caller, tool=tool, decision=decision):
            return _refused(Line(at, _who(caller), "proposes", tool, "warn"), decision)
        case BudgetThresholdCrossed(at=at, crossed=crossed):
            agent = crossed.row.partition("|")[0].rpartition("@")[2].removeprefix("agent:")
            return Line(at, agent, "budget", f"{crossed.percent} % spent", "warn")
        case _:
            return None


def line_of_call(event: CallSettled, refusal: CallDenied | None) -> Line:
    """The line of a call that has ended. `refusal` ended it on its way."""
    is_llm = isinstance(event.call, LLMCall)
    line = Line(event.at, _who(event.caller), *_what(event.call), _DECISIONS.get(event.outcome, "allow"))
    if refusal is not None and event.outcome != "cut":
        last = event.attempts[-1].target.host if event.attempts else line.target
        return _refused(line._replace(target=last, decision="deny"), refusal.decision)
    if is_llm:
        is_stream = isinstance(event.call, LLMCall) and event.call.stream
        line = line._replace(
            detail=f"{event.usage.total_tokens:,} tokens", note="streamed" if is_stream else "", nanos=event.nanos
        )
    else:
        line = line._replace(detail=str((event.attempts and event.attempts[-1].status) or event.error))
    return line if refusal is None else line._replace(note=refusal.decision.rule, message=refusal.decision.message)


_DECISIONS = {"cut": "cut", "abandoned": "left", "cancelled": "left"}


def _refused(line: Line, decision: Decision) -> Line:
    reason = decision.reason.value if decision.reason else "refused"
    return line._replace(detail=f"{reason} {decision.place}".rstrip(), note=decision.rule, message=decision.message)


def _who(caller: Caller) -> str:
    return caller.agent or "(no agent)"


def _what(call: Call) -> tuple[str, str]:
    if isinstance(call, LLMCall):
        return call.operation, call.model
    if isinstance(call, HTTPCall):
        return call.method, call.target.host
    return "tool", call.tool

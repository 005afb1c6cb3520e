"""What a policy would have said of calls that are over: each judged at its own time, against counters that fill as they did.

Nothing is called and nothing is stored: the counters are in memory, on the recorded clock. A call reserves what it is known
to have used, so near a limit the guard itself, which has to estimate, may refuse a little earlier. Of a call that was refused
then, nobody knows what it would have used: it is judged, and uses nothing up. A call that the policy has wait for a window
(`limits.wait`) is judged again when that is over; what the program did after it keeps its time. `with budget()` blocks and the
costs of tools are the program's, not the policy's, and are not in the record.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, NamedTuple, cast

from agentguard.asking import WAIT_SLICE_SECONDS
from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.engine import AwaitChange, Outcome, ReserveRows, admission
from agentguard.core.estimate import Estimator
from agentguard.core.limits import Amounts, RefusalKind, Refused
from agentguard.core.pricing import cost_nanos
from agentguard.in_force import InForce
from agentguard.prices import BundledPrices
from agentguard.stores.base import Reserve
from agentguard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agentguard.audit.past import PastCall, Refusal
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.engine import Admission
    from agentguard.core.limits import Charge
    from agentguard.core.pricing import PriceSource
    from agentguard.policy.model import Bound, Policy
    from agentguard.stores.base import Store

_NOT_A_POLICYS = frozenset({"isolated", "store"})
_BLOCK = "agentguard.budget"
_LOOKUP = "dns"


class Judged(NamedTuple):
    """One call, what was said of it then, and what the policy says of it. None: nothing stood against it."""

    call: PastCall
    then: Refusal | None
    now: Decision | None
    waits: bool


class Group(NamedTuple):
    """Calls of one agent that one rule refuses, or refused.

    Attributes:
        agent: The innermost agent; empty for calls of none.
        reason, rule, place: Why, by which rule, and where that stands.
        calls: How many.
        first, last: Unix seconds.
        what: What was called, and how often; most often first.
        example: The message of the first; empty for what was refused then, whose message is not recorded.
    """

    agent: str
    reason: str
    rule: str
    place: str
    calls: int
    first: float
    last: float
    what: tuple[tuple[str, int], ...]
    example: str


class Replay(NamedTuple):
    """What a policy would have said, beside what was said.

    Attributes:
        calls: How many were judged.
        refused: Would have been refused, and were allowed.
        allowed: Would have been allowed, and were refused, or reported as to be refused.
        still_refused: Refused both ways, by the rules that would refuse now.
        waited: How many would have waited: for calls in flight to end, or for a window to be over.
    """

    calls: int
    refused: tuple[Group, ...]
    allowed: tuple[Group, ...]
    still_refused: tuple[Group, ...]
    waited: int


def replay(policy: Policy, calls: Iterable[PastCall], prices: PriceSource | None = None) -> Replay:
    """Judge past calls, in the order in which they began, as if the policy had been in force and enforced.

    Args:
        policy: The policy. Its mode does not matter.
        calls: As `audit.history` gives them.
        prices: The price list; None: the bundled one, as of the time of each call.
    """
    judged = list(_Past(policy, prices).judge(calls))
    return Replay(
        len(judged),
        _grouped(one for one in judged if one.now is not None and one.then is None),
        _grouped(one for one in judged if one.now is None and one.then is not None),
        _grouped(one for one in judged if one.now is not None and one.then is not None),
        sum(one.waits for one in judged),
    )


class _Clock:
    """The time of the call that is judged."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Known(Estimator):
    """No estimate: what the call used is known."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def input_tokens(self, call: LLMCall, bound: Bound | None = None) -> int:
        return self.tokens


class _Saying(NamedTuple):
    """What is said of a call at one moment: the refusal, or that it waits; `again_at` is when it would ask once more."""

    refusal: Decision | None = None
    waits: bool = False
    again_at: float | None = None


class _Past:
    """Counters of the past, filling up."""

    def __init__(self, policy: Policy, prices: PriceSource | None) -> None:
        self._clock = _Clock()
        self._prices = prices or BundledPrices(self._clock.time)
        self._in_force = InForce(policy, None, "-")
        self._store: Store = MemoryStore(self._clock)
        self._known = _Known()
        self._open: list[tuple[float, str, Amounts]] = []
        self._waiting: list[tuple[float, int, PastCall]] = []
        self._patience = policy.limits.wait_seconds

    def judge(self, calls: Iterable[PastCall]) -> Iterator[Judged]:
        for number, past in enumerate(calls):
            if any(target.scheme == _LOOKUP for target, _ in past.hops):
                continue  # for which port is not known; a connection that follows is judged itself
            yield from self._judge_waiting(past.started)
            yield from self._judge_at(past.started, number, past)
        yield from self._judge_waiting(inf)

    def _judge_waiting(self, until: float) -> Iterator[Judged]:
        while self._waiting and self._waiting[0][0] <= until:
            yield from self._judge_at(*heapq.heappop(self._waiting))

    def _judge_at(self, moment: float, number: int, past: PastCall) -> Iterator[Judged]:
        """Judge a call at a moment; one that waits is judged then."""
        self._settle_until(moment)
        caller = past.caller if past.caller.agents else past.caller._replace(agents=self._in_force.home)
        said = self._decide(past, caller, str(number))
        if said.again_at is not None:
            heapq.heappush(self._waiting, (max(said.again_at, moment + WAIT_SLICE_SECONDS), number, past))
        else:
            has_waited = said.refusal is None and moment > past.started
            yield Judged(past, _said_then(past), said.refusal, said.waits or has_waited)

    def _settle_until(self, moment: float) -> None:
        while self._open and self._open[0][0] <= moment:
            self._clock.now, ended, used = heapq.heappop(self._open)
            self._store.settle(ended, used)
        self._clock.now = moment

    def _decide(self, past: PastCall, caller: Caller, id: str) -> _Saying:
        rights = self._in_force.rights(caller.agents)
        refusal = rights.refuses(past.call, caller)
        if refusal is not None or isinstance(past.call, ToolCall):
            return _Saying(refusal)
        call = past.call
        for target, _ in past.hops:
            if refusal := rights.refuses_target(target, caller, is_llm=isinstance(call, LLMCall)):
                return _Saying(refusal)
        if isinstance(call, LLMCall):
            call = call._replace(max_output_tokens=past.usage.output_tokens)
        self._known.tokens = past.usage.input_tokens
        flow = admission(call, caller, rights, self._known, self._prices)
        outcome, said = self._admit(flow, id, past)
        if outcome is None or not past.went or said.refusal is not None:
            return said
        price = outcome.estimate.price
        nanos = cost_nanos(price, past.usage) if price else past.nanos or 0
        ended = max(past.ended, past.started) + self._clock.now - past.started
        heapq.heappush(self._open, (ended, id, Amounts(past.usage.total_tokens, nanos)))
        return said

    def _admit(self, flow: Admission, id: str, past: PastCall) -> tuple[Outcome | None, _Saying]:
        waits = False
        reply: Refused | None = None
        while True:
            try:
                ask = flow.send(reply)
            except StopIteration as end:
                outcome = cast("Outcome", end.value)
                allowed = outcome.decision.allowed
                return outcome, _Saying(None if allowed else outcome.decision, waits and allowed and past.went)
            if isinstance(ask, AwaitChange):
                again_at = ask.refused.retry_at
                if self._patience and again_at is not None and again_at <= past.started + self._patience:
                    return None, _Saying(again_at=again_at)
                reply = ask.refused
                continue
            assert isinstance(ask, ReserveRows)  # noqa: S101 - the call's bounds are known, so nothing else is asked
            self._in_force.register(ask.rows, self._store)
            reply = self._refused(ask.charges)
            if reply is not None and reply.kind is RefusalKind.CONTENDED:
                waits = True  # until calls in flight have ended; then it goes
                reply = None
            if reply is not None and self._patience:
                # When a rolling window has room again only the row itself knows. It refuses by what has been found above.
                reply = cast("Refused", self._store.reserve(Reserve(id, ask.charges)))
            if reply is None and past.went:
                self._store.reserve(Reserve(id, ask.charges, force=waits))

    def _refused(self, charges: Sequence[Charge]) -> Refused | None:
        """What the counters say against charges, without taking them."""
        first: dict[RefusalKind, Refused] = {}
        balances = self._store.read([charge.row for charge in charges])
        for (row, asked), (_, amount, spent, held, resets_at) in zip(charges, balances, strict=True):
            if spent + held + asked > amount:
                kind = RefusalKind.EXHAUSTED if spent + asked > amount else RefusalKind.CONTENDED
                first.setdefault(kind, Refused(kind, row, amount, spent, held, asked, resets_at))
        return first.get(RefusalKind.EXHAUSTED) or first.get(RefusalKind.CONTENDED)


def _said_then(past: PastCall) -> Refusal | None:
    """What a policy said against a call: not an operator's isolation, nor the program's own budget block."""
    return next((one for one in past.refusals if one.reason not in _NOT_A_POLICYS and one.rule != _BLOCK), None)


def _grouped(judged: Iterable[Judged]) -> tuple[Group, ...]:
    found: dict[tuple[str, str, str, str], list[Judged]] = {}
    for one in judged:
        by = one.now or one.then
        if by is not None:
            found.setdefault((one.call.caller.agent or "", str(by.reason), by.rule, by.place), []).append(one)
    groups = (_group(key, listed) for key, listed in found.items())
    return tuple(sorted(groups, key=lambda group: (-group.calls, group.agent, group.rule)))


def _group(key: tuple[str, str, str, str], judged: list[Judged]) -> Group:
    times = [one.call.started for one in judged]
    what = Counter(_what(one.call) for one in judged).most_common()
    first = judged[0].now
    return Group(*key, len(judged), min(times), max(times), tuple(what), first.message if first is not None else "")


def _what(past: PastCall) -> str:
    call = past.call
    if isinstance(call, ToolCall):
        return f"tool {call.tool}"
    where = call.target.host if not past.hops else past.hops[-1].target.host
    return f"{call.name} at {where}" if isinstance(call, LLMCall) else f"{call.method} {where}"

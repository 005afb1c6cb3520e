"""What a guard's calls hold and have used: they reserve before they are made, and settle when they have ended."""

from __future__ import annotations

import asyncio
import logging
import queue
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.engine import over_call_limit, refusal_of
from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.core.pricing import bound_nanos
from agentguard.errors import StoreUnavailable
from agentguard.events import BudgetThresholdCrossed, CallSettled, EstimateBreached
from agentguard.lefts import OLD_SECONDS, Lefts, left_of
from agentguard.policy.model import OnStoreDown, Unit
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.deciding import Deciding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from agentguard.admission import Admission, Ending
    from agentguard.core.call import Usage
    from agentguard.core.decision import Decision
    from agentguard.core.engine import Left, ReserveRows
    from agentguard.core.limits import LimitRow
    from agentguard.guard import Guard
    from agentguard.stores.base import Balance, Settled

    AwaitStore = Callable[[Reserve], Awaitable[Granted | Refused]]

logger: logging.Logger = logging.getLogger("agentguard")

_NOTHING = Amounts()
_MOST_IN_DOUBT = 4096
"""Calls that were refused because the store gave no answer, and may be held all the same. The oldest are left to be swept."""


class Ledger:
    """A guard's way to its store.

    A call that has ended is settled at once, or queued and settled by the worker; at the latest before a decision that would
    refuse for want of what it holds.

    Args:
        guard: Whose calls are counted, under the policy that it has in force then.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._store = guard.store
        self._await_store: AwaitStore | None = getattr(guard.store, "areserve", None)
        self._lefts = Lefts(self.lefts, guard.clock.monotonic, OLD_SECONDS if guard.store.may_block else 0.0)
        self._has_missed = False
        self.restart()

    def restart(self) -> None:
        """Begin anew in a forked child: what has ended here is the parent's to settle."""
        self._ended: queue.SimpleQueue[tuple[Admission, Ending]] = queue.SimpleQueue()
        self._roomy: queue.SimpleQueue[tuple[Admission, Ending]] = queue.SimpleQueue()
        self._unsettled: list[tuple[Admission, Ending]] = []
        self._in_doubt: deque[str] = deque(maxlen=_MOST_IN_DOUBT)

    # --- before a call ----------------------------------------------------------------------------------------------

    def reserve(self, request: Reserve, ask: ReserveRows) -> Refused | None:
        """Hold what a call may use at most: None. Otherwise what refuses it.

        Raises:
            StoreUnavailable: It gave no answer in time, and a limit of the call is `on_store_down: closed`.
        """
        try:
            answer = self._decide(request)
        except StoreUnavailable as error:
            self._go_uncounted(request, ask, error)
            return None
        return None if answer is GRANTED else self._granted(answer)

    async def areserve(self, request: Reserve, ask: ReserveRows) -> Refused | None:
        """Like `reserve`, without blocking the event loop."""
        if not self._store.may_block:
            return self.reserve(request, ask)
        await self._asettle_due()
        try:
            answer = await self._adecide(request)
        except StoreUnavailable as error:
            self._go_uncounted(request, ask, error)
            return None
        except asyncio.CancelledError:
            self._in_doubt.append(request.id)
            raise
        return self._granted(answer)

    def _decide(self, request: Reserve) -> Granted | Refused:
        if self._guard.in_force.reports or not self._ended.empty():
            self._settle_due()
        self._guard.in_force.register(request.rows, self._store)
        return self._store.reserve(request)

    async def _adecide(self, request: Reserve) -> Granted | Refused:
        """Decide inline while the store is free; wait for it as it knows how to, else in a thread."""
        if self._await_store is not None:
            self._guard.in_force.register(request.rows, self._store)
            return await self._await_store(request)
        answer = None
        with suppress(StoreUnavailable):  # the thread asks again, and says so
            self._guard.in_force.register(request.rows, self._store)
            answer = self._store.try_reserve(request)
        if answer is None or (isinstance(answer, Refused) and answer.kind is RefusalKind.UNREGISTERED):
            answer = await Deciding(self._decide, self._store.settle, request).in_thread()
        return answer

    def _granted(self, answer: Granted | Refused) -> Refused | None:
        if isinstance(answer, Refused):
            if answer.kind is RefusalKind.UNREGISTERED:
                # The store has lost what it was told. An unknown balance is not an empty one, so this call is refused.
                self._guard.in_force.forget_registrations()
            if answer.kind is RefusalKind.EXHAUSTED and not self._roomy.empty():
                return answer._replace(kind=RefusalKind.CONTENDED)  # calls that have ended are yet to make room, and to teach
            return answer
        for crossed in answer.crossed:
            self._guard.tell(BudgetThresholdCrossed(self._guard.clock.time(), crossed))
        return answer.refused

    def _go_uncounted(self, request: Reserve, ask: ReserveRows, error: StoreUnavailable) -> None:
        """Let a call be made though the store gives no answer: if each of its limits says `on_store_down: open`.

        A call without limits is not made: its agent may be isolated. In report mode all are, since nothing is refused there.

        Raises:
            StoreUnavailable: `error`. The store may have admitted the call all the same.
        """
        if self._guard.in_force.reports:
            if not self._has_missed:
                self._has_missed = True
                logger.warning("agentguard: calls go on uncounted in report mode while the store does not answer: %s", error)
            return
        charged = {charge.row for charge in ask.charges}
        if not charged or any(row.limit.on_store_down is not OnStoreDown.OPEN for row in ask.rows if row.key in charged):
            self._in_doubt.append(request.id)
            raise error

    # --- on its way -------------------------------------------------------------------------------------------------

    def extend(self, admitted: Admission, *, input_tokens: int = 0, output_tokens: int = 0) -> Decision | None:
        """Hold more tokens for an open call: of output as many as are left, so that nothing strands; of input all.

        Returns:
            None when at least one token was granted (`Admission.reserved_output` has grown by what was); otherwise the
            refusal, and nothing was taken. In report mode everything is granted.
        """
        estimate = admitted.estimate
        tokens = input_tokens + output_tokens
        nanos = bound_nanos(estimate.price, input_tokens, output_tokens) if estimate.price else 0
        by_unit = {Unit.TOKENS: tokens, Unit.USD: nanos}
        charges = tuple(Charge(row.key, amount) for row in admitted.rows if (amount := by_unit.get(row.limit.unit, 0)))
        granted = output_tokens
        refusal = _over_call_limits(admitted, 1 if output_tokens else 0)
        if refusal is None and charges:
            answer = self._store.extend(admitted.id, charges)
            if isinstance(answer, Granted) and answer.charges:
                admitted.extended += answer.charges
                granted = max(output_tokens * answer.charges[0].amount // charges[0].amount, 1)
                if input_tokens:  # an attempt is sent whole or not at all; what was taken is given back when the call settles
                    answer = self._store.extend(admitted.id, charges)
            elif isinstance(answer, Granted):
                admitted.extended += charges
            if isinstance(answer, Refused):
                refusal = refusal_of(answer, admitted.call, admitted.caller, admitted.rows, is_cut=True)
        if refusal is not None and not self._guard.in_force.reports:
            return refusal
        admitted.reserved_output += granted if output_tokens else 0
        return None

    # --- after it ---------------------------------------------------------------------------------------------------

    def settle(self, admitted: Admission, ending: Ending) -> bool:
        """Charge a call that has ended, tell observers, and learn from what the provider reported.

        Returns:
            False when the store gave no answer: the call is charged when it does.
        """
        usage, nanos, actual = _used(admitted, ending)
        try:
            settled = self._store.settle(admitted.id, actual)
        except StoreUnavailable as error:
            # The call was made, and its answer is the caller's. What it holds stays held until the store is back.
            logger.warning("agentguard: a call could not be settled, its reservation stands until it can: %s", error)
            self._unsettled.append((admitted, ending))
            return False
        finally:
            self._guard.open_calls.remove(admitted)
        self._tell(admitted, ending, settled, usage, nanos)
        return True

    def _try_settle(self, admitted: Admission, ending: Ending) -> bool:
        """Charge a call if that takes no waiting. Returns whether it did."""
        usage, nanos, actual = _used(admitted, ending)
        settled = None
        with suppress(StoreUnavailable):  # whoever settles it in a thread says so
            settled = self._store.try_settle(admitted.id, actual)
        if settled is None:
            return False
        self._guard.open_calls.remove(admitted)
        self._tell(admitted, ending, settled, usage, nanos)
        return True

    def _tell(self, admitted: Admission, ending: Ending, settled: Settled, usage: Usage, nanos: int | None) -> None:
        guard = self._guard
        now = ending.at
        for crossed in settled.crossed:
            guard.tell(BudgetThresholdCrossed(now, crossed))
        call, estimate = admitted.call, admitted.estimate
        if isinstance(call, ToolCall):
            return
        reserved = estimate.input_tokens + admitted.reserved_output
        if isinstance(call, LLMCall) and not usage.estimated:
            guard.estimator.learn(call, usage, admitted.output_bytes)
            if usage.total_tokens > reserved and estimate.output_tokens is not None:
                guard.tell(EstimateBreached(now, admitted.id, call, admitted.caller, reserved, usage.total_tokens))
        guard.tell(
            CallSettled(
                now,
                admitted.id,
                call,
                admitted.caller,
                admitted.started,
                usage,
                nanos,
                ending.outcome,
                ending.error,
                admitted.answer,
                tuple(admitted.attempts),
                admitted.first_chunk_at,
                reserved,
                admitted.written_bound,
                ending.decision,
                admitted.span,
            )
        )

    def settle_later(self, admitted: Admission, ending: Ending) -> None:
        """Queue an ending. Safe in a finalizer: `SimpleQueue.put` is reentrant, and nothing here takes a lock.

        An ending that is known to make room only is not needed before a decision, unless that would be a refusal.
        """
        (self._ended if admitted.unread is None else self._roomy).put((admitted, ending))
        if not self._guard.worker.is_woken:
            self._guard.worker.wake()

    def settle_ended(self) -> None:
        """Charge all calls whose endings are queued."""
        self._settle_due()
        self.settle_roomy()

    def settle_roomy(self) -> bool:
        """Charge the calls that have ended and make room. Returns whether there were any."""
        return self._settle_from(self._roomy)

    def settle_again(self) -> None:
        """Queue once more the endings that the store gave no answer to, and give back what may be held for nobody."""
        unsettled, self._unsettled = self._unsettled, []
        for one in unsettled:
            self._ended.put(one)
        with suppress(StoreUnavailable):  # the rest stays in doubt
            while self._in_doubt:
                self._store.settle(self._in_doubt[0], _NOTHING)
                self._in_doubt.popleft()

    def _settle_due(self) -> None:
        """Charge the calls that a decision has to know of. In report mode, all: nothing is asked twice there."""
        self._settle_from(self._ended)
        if self._guard.in_force.reports:
            self._settle_from(self._roomy)

    async def _asettle_due(self) -> None:
        """The same without blocking the event loop: in a thread what the store would have it wait for."""
        for one in _queued(self._ended):
            if not self._try_settle(*one):
                self._ended.put(one)
                await asyncio.get_running_loop().run_in_executor(None, self._settle_due)
                return

    def _settle_from(self, endings: queue.SimpleQueue[tuple[Admission, Ending]]) -> bool:
        found = False
        for one in _queued(endings):
            found = True
            if not self.settle(*one):
                break  # nor would the others be: each would wait as long
        return found

    # --- what is counted --------------------------------------------------------------------------------------------

    def left(self, rows: Sequence[LimitRow], *, may_be_old: bool) -> Sequence[Left]:
        """What rows have left, or had a moment ago."""
        return self._lefts.of(rows, may_be_old=may_be_old)

    def lefts(self, rows: Sequence[LimitRow]) -> Sequence[Left]:
        """What rows have left now. In report mode a store that gives no answer has all of it."""
        in_force = self._guard.in_force
        try:
            in_force.register(rows, self._store)
            balances = {balance.row: balance for balance in self.read([row.key for row in rows])}
        except StoreUnavailable:
            if not in_force.reports:
                raise
            balances = {}
        return [left_of(row, balances.get(row.key)) for row in rows]

    def lasting(self) -> Sequence[tuple[LimitRow, Balance]]:
        """The rows that calls here have been charged to, with their balances: of agents, models, keys, teams and the fleet.

        Those of single users, sessions and the like are left out: there may be any number of them. While the store gives no
        answer there is nothing.
        """
        rows = dict(self._guard.in_force.lasting)
        try:
            return [(rows[balance.row], balance) for balance in self._store.read(list(rows))] if rows else []
        except StoreUnavailable:
            return []

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row with its balance."""
        self.settle_ended()
        return self._store.rows()

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows; unknown rows are left out."""
        self.settle_ended()
        return self._store.read(keys)

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known."""
        self._store.register(rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        self._store.forget(keys)


def _used(admitted: Admission, ending: Ending) -> tuple[Usage, int | None, Amounts]:
    """What a call that has ended has used, what that costs in nano-USD (None: nobody prices it), and both to be charged."""
    admitted.read()
    usage = admitted.used(ending)
    nanos = admitted.cost(usage)
    return usage, nanos, Amounts(usage.total_tokens, nanos or 0)


def _queued(endings: queue.SimpleQueue[tuple[Admission, Ending]]) -> Iterator[tuple[Admission, Ending]]:
    """The endings that are queued, until there are none."""
    with suppress(queue.Empty):
        while not endings.empty():
            yield endings.get_nowait()


def _over_call_limits(admitted: Admission, more_output: int) -> Decision | None:
    estimate = admitted.estimate
    output = admitted.reserved_output + more_output
    nanos = bound_nanos(estimate.price, estimate.input_tokens, output) if estimate.price else 0
    for limit in admitted.rights.call_limits:
        if decision := over_call_limit(limit, estimate.input_tokens + output, nanos, admitted.call, admitted.caller):
            return decision
    return None

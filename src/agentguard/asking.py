"""One call on its way through admission, in a thread or in an event loop."""

from __future__ import annotations

import gc
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from agentguard.context import CALLER, WAIT
from agentguard.core.engine import admission, isolation_of
from agentguard.core.limits import RefusalKind, Refused
from agentguard.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Generator

    from agentguard.admission import Owner
    from agentguard.changes import Changes
    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.engine import Ask, AwaitChange, Outcome, Reply, ReserveRows
    from agentguard.core.rights import Rights
    from agentguard.guard import Guard

WAIT_SLICE_SECONDS = 0.05
"""A waiting call looks by itself this often: a settlement that is still queued wakes nobody."""

_LOOK_SECONDS = 1.0
"""A call that waits for a window looks at the clock this often: somebody may have set it."""

_CLOSING_ROUNDS = 32
_CLOSING_PASSES = 3


class Pause(NamedTuple):
    """Wait until changes have another version than was seen, for so many seconds at most."""

    changes: Changes
    seen: int
    seconds: float


class Asking:
    """One call on its way through admission: the engine's generator, what it is answered, and how long it may wait."""

    __slots__ = (
        "_flow",
        "_guard",
        "_is_listening",
        "_seen",
        "_since",
        "_wait",
        "call",
        "caller",
        "id",
        "outcome",
        "owner",
        "reply",
        "reports",
        "rights",
        "watch",
    )

    def __init__(self, guard: Guard, call: Call, owner: Owner, wait: float | None = None) -> None:
        self.call: Call = call
        self.owner: Owner = owner
        in_force = guard.in_force
        caller = CALLER.get()
        self.caller: Caller = caller if caller.agents else in_force.identified(caller)
        self.rights: Rights = in_force.rights(self.caller.agents)
        self.id: str = next(guard.ids)
        self.reply: Reply = None
        self.outcome: Outcome
        self._guard = guard
        self._flow = admission(
            call,
            self.caller,
            self.rights,
            guard.estimator,
            guard.prices,
            guard.isolated,
            reports=in_force.reports,
        )
        self.reports: bool = in_force.reports
        self.watch: ExitStack | None = None
        self._wait = wait
        self._since: float | None = None
        self._is_listening = False
        self._seen = 0

    def next(self) -> Ask | None:
        """What the engine asks next; None when it has decided, and `outcome` stands."""
        try:
            return self._flow.send(self.reply)
        except StopIteration as end:
            self.outcome = end.value
            return None

    @property
    def waited(self) -> float:
        """Seconds since it began to wait."""
        return 0.0 if self._since is None else self._guard.clock.monotonic() - self._since

    def wait(self, ask: AwaitChange) -> Refused | None:
        """Block until it is time to ask again: None. When that is of no use, or has taken too long: the refusal that stands."""
        refused = ask.refused
        if refused.kind is RefusalKind.CONTENDED:
            if self._guard.ledger.settle_roomy():
                self._again()
                return None
            if self._is_ours(refused):
                self._guard.open_calls.collect_garbage(self.owner)
        pauses = self._pauses(ask)
        try:
            while True:
                changes, seen, seconds = next(pauses)
                changes.wait(seen, seconds)
        except StopIteration as end:
            stands: Refused | None = end.value
            return stands

    async def await_change(self, ask: AwaitChange) -> Refused | None:
        """Like `wait`, without blocking the event loop."""
        refused = ask.refused
        if refused.kind is RefusalKind.CONTENDED:
            if self._guard.ledger.settle_roomy():
                self._again()
                return None
            if self._is_ours(refused) and self._guard.open_calls.collect_garbage(self.owner):
                await self._let_generators_end(refused)
        pauses = self._pauses(ask)
        try:
            while True:
                changes, seen, seconds = next(pauses)
                await changes.await_change(seen, seconds)
        except StopIteration as end:
            stands: Refused | None = end.value
            return stands

    def _pauses(self, ask: AwaitChange) -> Generator[Pause, None, Refused | None]:
        """What to pause for, one after the other, and what to answer then."""
        if self._wait is None:
            self._wait = WAIT.get()
        refused, limits = ask.refused, self.rights.policy.limits
        # What this very thread or task holds cannot be given back while it waits. A window passes all the same.
        if refused.kind is RefusalKind.CONTENDED and not self._is_ours(refused):
            self._guard.open_calls.collect_garbage()
            patience = self._patience(limits.contention_wait_seconds)
            if patience > 0 and not self._is_listening:
                self._listen()
                self._again()
                return None  # only now the store is watched
            if patience > 0:
                yield Pause(self._guard.changes, self._seen, min(patience, WAIT_SLICE_SECONDS))
                self._again()
                return None
        patience = self._patience(limits.wait_seconds)
        now = self._guard.clock.time()
        if refused.retry_at is None or patience <= 0 or now + patience < refused.retry_at:
            return refused
        if stands := self._outlasting(ask.request, now + patience):
            return stands
        return (yield from self._until(refused.retry_at))

    def _until(self, moment: float) -> Generator[Pause, None, Refused | None]:
        """Pauses until a moment (Unix time), or until an operator isolates the caller, or puts another policy in force."""
        guard = self._guard
        self._start_waiting()
        seen = guard.orders.version
        seconds = max(moment - guard.clock.time(), WAIT_SLICE_SECONDS)  # the clock of a store may be behind ours
        patience = self._patience(self.rights.policy.limits.wait_seconds)
        while seconds > 0 and patience > 0 and self.rights.policy is guard.policy:
            if stands := isolation_of(self.call, self.caller, self.rights, guard.isolated):
                return stands
            yield Pause(guard.orders, seen, min(seconds, patience, _LOOK_SECONDS))
            seen = guard.orders.version
            seconds = moment - guard.clock.time()
            patience = self._patience(self.rights.policy.limits.wait_seconds)
        self._again()
        return None

    def _patience(self, policy_seconds: float) -> float:
        """Seconds that are left to wait: of what the caller has said, else of what the policy says."""
        return (policy_seconds if self._wait is None else self._wait) - self.waited

    def _start_waiting(self) -> None:
        if self.watch is None:
            self._since = self._guard.clock.monotonic()
            self.watch = ExitStack()
            self.watch.enter_context(self._guard.orders.watched())
            self._guard.join()  # to hear of isolations

    def _listen(self) -> None:
        self._start_waiting()
        self._is_listening = True
        with suppress(StoreUnavailable):  # whoever asks again says so
            self._guard.store.sweep()  # what dead processes hold is charged now, not waited for
        if self.watch is not None:
            self.watch.enter_context(self._guard.changes.watched())

    def _outlasting(self, request: ReserveRows, moment: float) -> Refused | None:
        """The refusal by a limit that will have no room at a moment either. A rolling one is not foreseen."""
        asked = dict(request.charges)
        limits = {row.key: row.limit for row in request.rows}
        with suppress(StoreUnavailable):  # whoever asks again says so
            for key, amount, spent, held, resets_at in self._guard.store.read(list(asked)):
                is_full = spent + asked[key] > amount and not limits[key].window.is_rolling
                if is_full and (resets_at is None or resets_at > moment):
                    return Refused(RefusalKind.EXHAUSTED, key, amount, spent, held, asked[key], resets_at)
        return None

    async def _let_generators_end(self, refused: Refused) -> None:
        """The collector only hands async generators to the loop, which closes them in its next rounds.

        Closing one may leave the next in a cycle of its own (anthropic 0.125 nests three), hence a few collections.
        """
        import asyncio

        for _ in range(_CLOSING_PASSES):
            for _ in range(_CLOSING_ROUNDS):
                if not self._is_ours(refused):
                    return
                await asyncio.sleep(0)
            gc.collect()

    def _is_ours(self, refused: Refused) -> bool:
        """Whether the call would not fit even if everybody else gave back what they hold."""
        return refused.spent + self._guard.open_calls.held_by(self.owner, refused.row) + refused.requested > refused.amount

    def _again(self) -> None:
        """Make ready to ask again: the same, or anew under a policy that has been put in force meanwhile."""
        self._seen = self._guard.changes.version
        if self.rights.policy is not self._guard.policy:
            anew = Asking(self._guard, self.call, self.owner)
            self.caller, self.rights, self.reports, self._flow = anew.caller, anew.rights, anew.reports, anew._flow

    def close(self) -> None:
        """Stop watching the store."""
        if self.watch is not None:
            self.watch.close()
            self.watch = None

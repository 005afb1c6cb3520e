"""One call on its way through admission, in a thread or in an event loop."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from agentguard.context import CALLER
from agentguard.core.engine import admission

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from agentguard.admission import Owner
    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.engine import Ask, Outcome, Reply
    from agentguard.core.limits import Refused
    from agentguard.core.rights import Rights
    from agentguard.guard import Guard

_WAIT_SLICE_SECONDS = 0.05
"""A waiting call looks by itself this often: a settlement that is still queued wakes nobody."""

_CLOSING_ROUNDS = 32
_CLOSING_PASSES = 3


class Asking:
    """One call on its way through admission: the engine's generator, what it is answered, and how long it may wait."""

    __slots__ = (
        "_deadline",
        "_flow",
        "_guard",
        "_seen",
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

    def __init__(self, guard: Guard, call: Call, owner: Owner) -> None:
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
        self.watch: AbstractContextManager[None] | None = None
        self._deadline = 0.0
        self._seen = 0

    def next(self) -> Ask | None:
        """What the engine asks next; None when it has decided, and `outcome` stands."""
        try:
            return self._flow.send(self.reply)
        except StopIteration as end:
            self.outcome = end.value
            return None

    def wait(self, refused: Refused) -> bool:
        """Block until the store has changed. False when that is of no use, or has taken too long."""
        if self._guard.settle_roomy():
            return self._try_again(0.0)
        if self._is_ours(refused):
            self._guard.collect_garbage(self.owner)
        seconds = self._patience(refused)
        if seconds > 0:
            self._guard.changes.wait(self._seen, min(seconds, _WAIT_SLICE_SECONDS))
        return self._try_again(seconds)

    async def await_change(self, refused: Refused) -> bool:
        """Like `wait`, without blocking the event loop."""
        if self._guard.settle_roomy():
            return self._try_again(0.0)
        if self._is_ours(refused) and self._guard.collect_garbage(self.owner):
            await self._let_generators_end(refused)
        seconds = self._patience(refused)
        if seconds > 0:
            await self._guard.changes.await_change(self._seen, min(seconds, _WAIT_SLICE_SECONDS))
        return self._try_again(seconds)

    def _patience(self, refused: Refused) -> float:
        """Seconds that are left to wait; 0 to try again at once, since only now the store is watched; negative to give up."""
        guard = self._guard
        if self.reports or self._is_ours(refused):
            return -1.0  # what this very thread or task holds cannot be given back while it waits
        guard.collect_garbage()
        if self.watch is not None:
            return (self._deadline - guard.clock.monotonic()) or -1.0
        self._deadline = guard.clock.monotonic() + guard.policy.limits.contention_wait_seconds
        guard.store.sweep()  # what dead processes hold is charged now, not waited for
        self.watch = guard.changes.watched()
        self.watch.__enter__()
        return 0.0

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
        return refused.spent + self._guard.held_by(self.owner, refused.row) + refused.requested > refused.amount

    def _try_again(self, seconds: float) -> bool:
        self._seen = self._guard.changes.version
        return seconds >= 0

    def close(self) -> None:
        """Stop watching the store."""
        if self.watch is not None:
            self.watch.__exit__(None, None, None)
            self.watch = None

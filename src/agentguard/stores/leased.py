"""A store in front of another: calls are admitted from slices, so that most decisions ask nobody.

A process takes slices of the rows that its calls charge: holds of the store behind, sized by how fast they are used. The law
`spent + held <= limit` stays the store's, over all processes, since what lies in a slice is held. Near a limit the store grants
no slices and decides every call itself; a call that it would refuse is refused only after this process has given back what it
does not use, and others have been asked to (`recall`). So a refusal is never wrong, and nothing strands.

A process that dies takes its slices with it: they are holds, and charged as every dead holder's are. That is the price: at most
what a slice holds, which is what its process uses in one horizon, and a fraction of what was left.

A slice is good for one horizon from the last time that the store has heard of it. So a process that has lost the store goes on
with what is already its own for that long, while isolations stand as they were last known, and then asks for every call.

Concurrency limits are not leased, nor rates per second (`_chains.is_leasable`): calls that are under one are decided by the
store, each.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.stores._accounts import Accounts
from agentguard.stores._fork import survive_forks
from agentguard.stores._in_front import InFront
from agentguard.stores._leases import Leases, Wanted
from agentguard.stores._others import Others
from agentguard.stores._slices import NOTHING
from agentguard.stores._watchers import Together, Watchers
from agentguard.stores.base import GRANTED, NOT_SETTLED, SETTLED, Granted, Leasable, Reserve, Settled
from agentguard.stores.deciding import Deciding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores._leases import Grant
    from agentguard.stores._slices import Slice
    from agentguard.stores.base import Balance, Closeable, WallClock

HORIZON_SECONDS = 5.0
"""For how long a slice should last. Half as long lie amounts idle in it, or used without being told."""

_MOST_CALLS = 1024
_TRIES = 8

_MAY_HEAL = frozenset({RefusalKind.CONTENDED, RefusalKind.EXHAUSTED})
"""Refusals that may be none when what lies idle is given back."""


class LeasedStore(InFront[Leasable]):
    """A `Store` that admits calls from slices of another one.

    Args:
        store: Where the counters live. It is closed with this one.
        clock: Unix time. Windows end by it, so hosts should keep theirs.
        horizon_seconds: For how long a slice should last.
        most_calls: The most calls that a slice is taken for at once.
    """

    def __init__(
        self,
        store: Leasable,
        clock: WallClock = time,  # the module is a WallClock
        *,
        horizon_seconds: float = HORIZON_SECONDS,
        most_calls: int = _MOST_CALLS,
    ) -> None:
        super().__init__(store)
        self._leases = Leases(clock.time, horizon_seconds, most_calls)
        self._accounts = Accounts(store, self._leases, clock.time)
        self._others = Others(store, self._leases, self._accounts.give_back)
        self._watchers: Watchers[[]] = Watchers()
        self._await_store: Callable[[Reserve], Awaitable[Granted | Refused]] | None = getattr(store, "areserve", None)
        survive_forks(self)

    # --- the way of most calls --------------------------------------------------------------------------------------

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none: from a slice, or from the store."""
        if self._leases.take_again(request):
            return GRANTED
        answer = self._leases.take(request)
        if isinstance(answer, Wanted):
            answer = GRANTED if self._lease(request, answer) else None
        return answer or self._reserve_exactly(request)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        slice_ = self._leases.settle(id, actual)
        if slice_ is None:
            return self._store.settle(id, actual)
        if self._watchers.callbacks:
            self._watchers.announce()
        return self._settled(slice_) if slice_.until < 0 or self._leases.crossed else SETTLED

    def _settled(self, slice_: Slice) -> Settled:
        """The answer to a settlement after which something is to be told, or which was the last of a slice."""
        if slice_.is_lost:
            return NOT_SETTLED
        crossed, is_last = self._leases.news(slice_)
        if is_last:
            self._accounts.give_last(slice_)
        return Settled(True, crossed) if crossed else SETTLED

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says when the call is a slice's, or the store is free; None otherwise."""
        grant = self._leases.grant(id)
        if grant is not None:
            return None if grant[0].until < 0 else self.settle(id, actual)  # a slice that is given up gives account
        settled = self._store.try_settle(id, actual)
        if settled is not None:
            self._leases.forget(id)
        return settled

    # --- the way of the others --------------------------------------------------------------------------------------

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says when a slice has room, or the store is free; None otherwise."""
        if not self._store.may_block:
            return self.reserve(request)
        answer = self._leases.take(request)
        if answer is None:
            return self._unless_it_may_heal(request, self._store.try_reserve(request))
        return None if isinstance(answer, Wanted) else answer

    async def areserve(self, request: Reserve) -> Granted | Refused:
        """Like `reserve`, without blocking the event loop. What the store decides travels together, where it can do so.

        When the task is cancelled meanwhile, whatever is granted is given back.
        """
        if not self._store.may_block:
            return self.reserve(request)
        answer = self._leases.take(request)
        if answer is None and not request.force:
            asked = self._store.try_reserve(request) if self._await_store is None else await self._await_store(request)
            answer = self._unless_it_may_heal(request, asked)
        if answer is None or isinstance(answer, Wanted):
            return await Deciding(self.reserve, self.settle, request).in_thread()
        return answer

    def _unless_it_may_heal(self, request: Reserve, answer: Granted | Refused | None) -> Granted | Refused | None:
        """What the store said to somebody who cannot wait: no refusal, if there may be something to give back first."""
        if isinstance(answer, Granted):
            self._leases.know(request.id)
            return answer
        return None if answer is None or answer.kind in _MAY_HEAL else answer

    def _lease(self, request: Reserve, wanted: Wanted) -> bool:
        """Let the chain's slice grow, and take the call from it. False when the store should rather decide."""
        chain, ask = wanted
        self._others.listen()
        slice_ = self._leases.slice_of(chain, request.subjects)
        if slice_ is None:
            return False
        with slice_.turn:
            calls = self._leases.next_size(slice_, request.id, ask)
            if not calls:  # another thread has let it grow
                return True
            if slice_ is chain.slice and self._accounts.give(slice_, keeps_left=True, ask=ask, calls=calls):
                return self._leases.take_for(request.id, request.subjects, wanted)
            self._leases.be_exact(chain)
            return False

    def _reserve_exactly(self, request: Reserve) -> Granted | Refused:
        """Ask the store. What this process has lying idle in the way of the call is given back first."""
        if request.force:
            self._accounts.give_back([key for key, _ in request.charges])
        answer = self._store.reserve(request)
        for _ in range(_TRIES):
            if isinstance(answer, Granted) or answer.kind not in _MAY_HEAL or not self._make_room(answer):
                break
            answer = self._store.reserve(request)
        if isinstance(answer, Granted):
            self._leases.know(request.id)
        return answer

    def _make_room(self, refused: Refused) -> bool:
        """Give back what lies idle here of the row that refuses, or ask others to, if it is only held. Whether to try again."""
        if self._accounts.give_back([refused.row]):
            return True
        return refused.kind is RefusalKind.CONTENDED and self._others.recall(refused.row)

    # --- on its way -------------------------------------------------------------------------------------------------

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        charges = tuple(charges)
        if self._leases.extend(id, charges):
            return Granted(charges)
        grant = self._leases.grant(id)
        if grant is not None:
            if grant[0].chain.more(charges) is not None:
                return self._extend_slice(id, grant[0], charges)
            self._make_own(id, grant)
        return self._extend_exactly(id, charges)

    def _extend_slice(self, id: str, slice_: Slice, charges: tuple[Charge, ...]) -> Granted | Refused:
        """Take more for an open call into the slice that it belongs to, when there is not enough left in it."""
        self._accounts.give_back([key for key, _ in charges])
        with slice_.turn:
            answer = self._store.extend(slice_.id, charges)
            if isinstance(answer, Refused):
                return answer._replace(row=id) if answer.row == slice_.id else answer
            self._leases.enlarge(id, slice_, slice_.chain.more(answer.charges or charges) or NOTHING)
        return answer

    def _extend_exactly(self, id: str, charges: tuple[Charge, ...]) -> Granted | Refused:
        """Ask the store, and again for the rest when this process had some of it lying idle."""
        answer = self._store.extend(id, charges)
        if isinstance(answer, Refused):
            is_worth_it = answer.kind is not RefusalKind.UNREGISTERED and self._accounts.give_back([key for key, _ in charges])
            return self._store.extend(id, charges) if is_worth_it else answer
        granted = answer.charges
        if granted == charges or not self._accounts.give_back([key for key, _ in charges]):
            return answer
        rest = tuple(Charge(key, asked - amount) for (key, asked), (_, amount) in zip(charges, granted, strict=True))
        more = self._store.extend(id, rest)
        if isinstance(more, Refused):
            return answer
        both = tuple(Charge(key, first + second) for (key, first), (_, second) in zip(granted, more.charges, strict=True))
        return Granted(both, (*answer.crossed, *more.crossed))

    def _make_own(self, id: str, grant: Grant) -> None:
        """Give an open call a hold of its own, for what a slice cannot do. For a moment it is held twice, never not at all."""
        slice_, tokens, nanos, _ = grant
        counted = {key: amount for key, amount in slice_.chain.charges(Amounts(tokens, nanos)) if amount}
        while isinstance(
            refused := self._store.reserve(Reserve(id, tuple(map(Charge._make, counted.items())), (), force=True)), Refused
        ):
            del counted[refused.row]  # it was forgotten: what calls held of it settles into nothing
        self._leases.know_instead(id, grant)
        with slice_.turn:
            self._accounts.give(slice_, keeps_left=False)

    # --- rows -------------------------------------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        rows = tuple(rows)
        self._drop(self._leases.register(rows))
        self._store.register(rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        self._leases.unregister(keys)
        self._drop(keys)
        self._store.forget(keys)

    def _drop(self, keys: Sequence[str]) -> None:
        """Take no more from the slices of rows that have changed."""
        if keys:
            self._accounts.give_back(keys)
            self._leases.drop(keys)

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows: what this process has used counts as spent, and what lies idle in its slices as not held."""
        return self._accounts.read(lambda: self._store.read(keys))

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        rows: Sequence[tuple[LimitRow, Balance]] = ()

        def read() -> list[Balance]:
            nonlocal rows
            rows = self._store.rows()
            return [balance for _, balance in rows]

        balances = self._accounts.read(read)
        return [(row, balance) for (row, _), balance in zip(rows, balances, strict=True)]

    # --- the rest ---------------------------------------------------------------------------------------------------

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        epoch = super().isolate(subject, on=on, by=by, why=why)
        self._others.look()
        return epoch

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations, here and wherever the store is used."""
        return Together(self._watchers.add(on_change), super().watch(on_change))

    def sweep(self) -> int:
        """Tell of slices that have told nothing for half a horizon, give back what lies idle in them, and sweep the store."""
        self._others.look_again()
        self._accounts.give_due()
        return self._store.sweep()

    def leave(self, name: str) -> None:
        """Strike a process from the list. What lies idle is given back: it ends, and would be charged what it holds."""
        self._accounts.give_back_all()
        super().leave(name)

    def close(self) -> None:
        """Give back what lies idle, and free the store. What open calls hold stays held."""
        self._accounts.give_back_all()
        self._others.close()
        super().close()

    # --- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait for the step that another thread is in."""
        self._leases.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._leases.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Go on as another process."""
        self._leases.after_fork_in_child()
        self._others.after_fork_in_child()
        self._watchers.lock = threading.Lock()

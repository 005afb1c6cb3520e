"""What happens while a store gives no answer, as each limit says.

`closed` (the default): the call is refused, since nobody knows what is left. `open`: it goes on uncounted.
`local`: it is counted in this process, against a part of the limit: of what was left when the store was last heard of, a
`LOCAL_SHARE`-th, divided by the number of processes then known. All together so take at most that part beyond the limit.
What was used meanwhile is charged to the store when it answers again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.limits import RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import OnStoreDown
from agentguard.stores.base import GRANTED, NOT_SETTLED, SETTLED, Balance, Granted, Reserve
from agentguard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Amounts, Charge, LimitRow
    from agentguard.stores.base import Closeable, Hold, Isolation, Member, Settled, Store, WallClock

LOCAL_SHARE = 10
_MOST_OWED = 10_000


class Owed(NamedTuple):
    """A call that was made without the store, and what it used."""

    request: Reserve
    actual: Amounts


class Standby:
    """A `Store` that goes on without another one, for limits that allow it."""

    def __init__(self, store: Store, clock: WallClock = time) -> None:  # the module is a WallClock
        self._store = store
        self._local = MemoryStore(clock)
        self._lock = threading.Lock()
        self._rows: dict[str, LimitRow] = {}
        self._unregistered: set[str] = set()
        self._left: dict[str, int] = {}
        self._processes = 1
        self._isolated: frozenset[str] = frozenset()
        self._open: dict[str, Reserve] = {}
        self._owed: list[Owed] = []

    @property
    def may_block(self) -> bool:
        """As of the store."""
        return self._store.may_block

    @property
    def me(self) -> str:
        """As of the store."""
        return self._store.me

    @property
    def store(self) -> Store:
        """The store that is gone on without."""
        return self._store

    # --- one call ---------------------------------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known. While the store is down, those that can do without it are registered when it is back."""
        rows = tuple(rows)
        with self._lock:
            self._rows.update((row.key, row) for row in rows)
        try:
            self._store.register(rows)
        except StoreUnavailable:
            if any(row.limit.on_store_down is OnStoreDown.CLOSED for row in rows):
                raise
            with self._lock:
                self._unregistered.update(row.key for row in rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        with self._lock:
            for key in keys:
                self._rows.pop(key, None)
                self._left.pop(key, None)
                self._unregistered.discard(key)
        self._local.forget(keys)
        self._store.forget(keys)

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none; while the store is down, as the limits say."""
        try:
            if self._unregistered:
                self._register_late(request.charges)
            return self._store.reserve(request)
        except StoreUnavailable as error:
            return self._reserve_without(request, error)

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says, without waiting."""
        try:
            return self._store.try_reserve(request)
        except StoreUnavailable as error:
            return self._reserve_without(request, error)

    async def areserve(self, request: Reserve) -> Granted | Refused:
        """Like `reserve`, without blocking the event loop, where the store can do so."""
        try:
            if self._unregistered:
                self._register_late(request.charges)
            answer: Granted | Refused = await self._store.areserve(request)  # type: ignore[attr-defined]  # of Redis, not of all
        except StoreUnavailable as error:
            return self._reserve_without(request, error)
        return answer

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        request = self._open.get(id)
        if request is None:
            return self._store.extend(id, charges)
        mine = self._local_charges(charges)
        if mine:
            answer = self._local.extend(id, mine)
            if isinstance(answer, Refused) or answer.charges != mine:
                return answer
        return Granted(tuple(charges))

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used. What was admitted without the store is owed to it."""
        if id not in self._open:
            return self._store.settle(id, actual)
        with self._lock:
            request = self._open.pop(id, None)
            if request is None:
                return NOT_SETTLED  # another thread was first
            self._owed.append(Owed(request, actual))
            del self._owed[:-_MOST_OWED]
        self._local.settle(id, actual)
        return SETTLED

    # --- what is known for the time without ----------------------------------------------------------------------------

    def sweep(self) -> int:
        """Charge what dead processes hold; then pay what is owed, and note what is left."""
        swept = self._store.sweep()
        self._pay()
        with self._lock:
            keys = [key for key, row in self._rows.items() if row.limit.on_store_down is OnStoreDown.LOCAL]
        if keys:
            balances = self._store.read(keys)
            self._left = {balance.row: max(balance.amount - balance.spent - balance.held, 0) for balance in balances}
            self._processes = max(len({member.holder for member in self._store.members()}), 1)
            self._local.forget(keys)  # the next outage begins with a part of what is left then
        return swept

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now; they stay so while the store is down."""
        return self.dated_isolations()[1]

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, which stay so while the store is down."""
        dated = self._store.dated_isolations()
        self._isolated = frozenset(isolation.subject for isolation in dated[1])
        return dated

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows. While the store is down, what is known here of those that can do without it."""
        try:
            return self._store.read(keys)
        except StoreUnavailable:
            rows = [self._rows.get(key) for key in keys]
            if any(row is None or row.limit.on_store_down is OnStoreDown.CLOSED for row in rows):
                raise
            self._know_locally(row for row in rows if row is not None and row.limit.on_store_down is OnStoreDown.LOCAL)
            local = {balance.row: balance for balance in self._local.read(keys)}
            return [local.get(row.key) or Balance(row.key, row.limit.amount, 0, 0) for row in rows if row is not None]

    # --- the rest is the store's ----------------------------------------------------------------------------------------

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        return self._store.rows()

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        return self._store.isolate(subject, on=on, by=by, why=why)

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        return self._store.epoch()

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations."""
        return self._store.watch(on_change)

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations."""
        return self._store.watch_isolations(on_change, on_isolated)

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself."""
        self._store.beat(member)

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        self._store.leave(name)

    def members(self) -> Sequence[Member]:
        """The processes that were heard of."""
        return self._store.members()

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold."""
        return self._store.holds()

    def renew(self) -> None:
        """Move on the deadlines of this process's open holds."""
        self._store.renew()

    def close(self) -> None:
        """Free what is held."""
        self._store.close()

    # --- without the store ----------------------------------------------------------------------------------------------

    def _reserve_without(self, request: Reserve, error: StoreUnavailable) -> Granted | Refused:
        rows = [self._rows.get(key) for key, _ in request.charges]
        if any(row is None or row.limit.on_store_down is OnStoreDown.CLOSED for row in rows):
            raise error
        if isolated := next(filter(self._isolated.__contains__, request.subjects), None):
            return Refused(RefusalKind.ISOLATED, isolated)
        local = [row for row in rows if row is not None and row.limit.on_store_down is OnStoreDown.LOCAL]
        answer: Granted | Refused = GRANTED
        if local:
            if spent := next((row for row in local if not self._part(row)), None):
                return Refused(RefusalKind.EXHAUSTED, spent.key, spent.limit.amount, spent.limit.amount)
            self._know_locally(local)
            answer = self._local.reserve(request._replace(charges=self._local_charges(request.charges), subjects=()))
        if isinstance(answer, Granted):
            with self._lock:
                self._open.setdefault(request.id, request)
        return answer

    def _local_charges(self, charges: Sequence[Charge]) -> tuple[Charge, ...]:
        return tuple(one for one in charges if self._rows[one.row].limit.on_store_down is OnStoreDown.LOCAL)

    def _know_locally(self, rows: Iterable[LimitRow]) -> None:
        known = {balance.row for balance in self._local.read(list(self._rows))}
        for row in rows:
            if row.key not in known:
                self._local.register([row._replace(limit=replace(row.limit, amount=max(self._part(row), 1)))])

    def _part(self, row: LimitRow) -> int:
        return self._left.get(row.key, row.limit.amount) // (LOCAL_SHARE * self._processes)

    def _register_late(self, charges: Sequence[Charge]) -> None:
        late = [self._rows[key] for key, _ in charges if key in self._unregistered]
        if late:
            self._store.register(late)
            with self._lock:
                self._unregistered.difference_update(row.key for row in late)

    def _pay(self) -> None:
        """Charge the store for what was used without it."""
        while self._owed:
            with self._lock:
                request, actual = self._owed[0]
            self._register_late(request.charges)
            answer = self._store.reserve(request._replace(subjects=(), force=True))
            if isinstance(answer, Refused):
                self._store.register([self._rows[key] for key, _ in request.charges if key in self._rows])
                return  # it has lost its rows, and is told anew; the next sweep pays
            self._store.settle(request.id, actual)
            with self._lock:
                self._owed.pop(0)

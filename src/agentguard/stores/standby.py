"""What happens while a store gives no answer, as each limit says.

`closed` (the default): the call is refused, since nobody knows what is left. `open`: it goes on uncounted.
`local`: it is counted in this process, against a part of the limit: of what was left when the store was last heard of, a
`LOCAL_SHARE`-th, divided by the number of processes then known. All together so take at most that part beyond the limit.
What was used meanwhile is charged to the store when it answers again. Calls that are still open then are handed over: the store
holds what they hold, and they go on like any other.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import OnStoreDown, Per
from agentguard.stores._fork import Rests, survive_forks
from agentguard.stores._idle import SHORT_LIVED
from agentguard.stores.base import GRANTED, SETTLED, Balance, Granted, Reserve
from agentguard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Closeable, Hold, Isolation, Member, Settled, Store, WallClock

LOCAL_SHARE = 10
_MOST_OWED = 10_000
_MOST_SHORT_LIVED = 4096
"""Rows of sessions and the like that are remembered. Each session has some of its own, and few are used for long."""

_MOST_READ = 256
"""Rows of a kind that are read in one sweep. The store is asked every second, however many there are."""

_MANY = (*SHORT_LIVED, Per.USER)
"""Kinds of subjects of which there may be any number."""


class Owed(NamedTuple):
    """A call that was made without the store, and what it used."""

    request: Reserve
    actual: Amounts


@dataclass(slots=True)
class KnownRow:
    """A row that can do without the store, and what was last read of it.

    Attributes:
        row: The row.
        used_in: The number of the sweep that has last seen it used; at first, of the one before it was registered.
        read_in: The number of the sweep that has last read it; 0: none has.
        left: What it had left then; None when the store did not know it.
    """

    row: LimitRow
    used_in: int
    read_in: int = 0
    left: int | None = None

    @property
    def down(self) -> OnStoreDown:
        """What it does while the store gives no answer."""
        return self.row.limit.on_store_down

    @property
    def is_short_lived(self) -> bool:
        """Whether it is of a subject that is soon over."""
        return self.row.limit.per in SHORT_LIVED


class Standby(Rests):
    """A `Store` that goes on without another one, for limits that allow it."""

    def __init__(self, store: Store, clock: WallClock = time) -> None:  # the module is a WallClock
        self._store = store
        self._local = MemoryStore(clock)
        self._lock = threading.Lock()
        self._catching_up = threading.Lock()
        self._rows: dict[str, KnownRow] = {}
        self._drop_at = _MOST_SHORT_LIVED
        self._unregistered: set[str] = set()
        self._sweeps = 0
        self._processes = 1
        self._isolated: frozenset[str] = frozenset()
        self._open: dict[str, Reserve] = {}
        self._held_twice: set[str] = set()
        self._owed: deque[Owed] = deque(maxlen=_MOST_OWED)
        self._taken: Owed | None = None
        survive_forks(self)

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
            self._remember(rows)
        try:
            self._store.register(rows)
        except StoreUnavailable:
            if any(row.limit.on_store_down is OnStoreDown.CLOSED for row in rows):
                raise
            with self._lock:
                self._unregistered.update(row.key for row in rows if row.key in self._rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        with self._lock:
            self._drop(keys)
            self._local.forget(keys)
        self._store.forget(keys)

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none; while the store is down, as the limits say."""
        try:
            if self._unregistered:
                self._register_late([key for key, _ in request.charges])
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
                self._register_late([key for key, _ in request.charges])
            answer: Granted | Refused = await self._store.areserve(request)  # type: ignore[attr-defined]  # of Redis, not of all
        except StoreUnavailable as error:
            return self._reserve_without(request, error)
        return answer

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left; while the store is down, as the limits say."""
        if id in self._open:
            with self._lock:
                if id in self._open:  # else it was handed over meanwhile
                    return self._extend_here(id, charges)
        try:
            return self._store.extend(id, charges)
        except StoreUnavailable as error:
            with self._lock:
                self._rows_without([key for key, _ in charges], error)
                if id not in self._open:
                    self._held_twice.add(id)
                return self._extend_here(id, charges)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used. What was admitted without the store is owed to it."""
        if id in self._open and self._owe(id, actual):
            return SETTLED
        return self._store.settle(id, actual)

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says, without waiting."""
        if id in self._open and self._owe(id, actual):
            return SETTLED
        return self._store.try_settle(id, actual)

    def _owe(self, id: str, actual: Amounts) -> bool:
        with self._lock:
            request = self._open.pop(id, None)
            if request is None:
                return False  # another thread was first, or has handed it over
            self._owed.append(Owed(request, actual))
        self._local.settle(id, actual)
        return True

    # --- what is known for the time without ----------------------------------------------------------------------------

    def sweep(self) -> int:
        """Charge what dead processes hold; then tell the store what it has missed, and note what is left.

        A worker and a waiting call may sweep at once: the second leaves the telling to the first.
        """
        swept = self._store.sweep()
        if self._catching_up.acquire(blocking=False):
            try:
                self._catch_up()
            finally:
                self._catching_up.release()
        return swept

    def _catch_up(self) -> None:
        self._register_late(self._unregistered)
        self._pay()
        self._hand_over()
        self._look()

    def _look(self) -> None:
        """Note what is left of rows. The next outage begins with a part of that, except for calls that are still open here."""
        self._sweeps += 1
        due = self._due()
        if due:
            balances = {balance.row: balance for balance in self._store.read([known.row.key for known in due])}
            self._processes = max(len({member.holder for member in self._store.members()}), 1)
            for known in due:
                balance = balances.get(known.row.key)
                left = None if balance is None else max(balance.amount - balance.spent - balance.held, 0)
                known.used_in = known.used_in if left == known.left else self._sweeps
                known.left, known.read_in = left, self._sweeps
        with self._lock:
            in_use = {key for request in self._open.values() for key, _ in request.charges}
            self._local.forget([row.key for row, _ in self._local.rows() if row.key not in in_use])
            while self._held_twice:
                self._local.settle(self._held_twice.pop(), Amounts())

    def _due(self) -> list[KnownRow]:
        """The local rows to read now: all while they are few, else those that were not read for longest.

        Those of sessions and users, of which there may be any number, do not keep the others from being read each time.
        """
        with self._lock:
            rows = list(self._rows.values())
        local = [known for known in rows if known.down is OnStoreDown.LOCAL]
        many = [known for known in local if known.row.limit.per in _MANY]
        few = [known for known in local if known.row.limit.per not in _MANY]
        return [known for kind in (few, many) for known in heapq.nsmallest(_MOST_READ, kind, key=lambda known: known.read_in)]

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
        except StoreUnavailable as error:
            with self._lock:
                rows = self._rows_without(keys, error)
                self._know_locally(rows)
                local = {balance.row: balance for balance in self._local.read(keys)}
            return [local.get(row.key) or Balance(row.key, row.limit.amount, 0, 0) for row in (known.row for known in rows)]

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
        with self._lock:  # so that no sweep drops the local rows half-way
            self._remember(
                [row for row in request.rows if row.limit.on_store_down is OnStoreDown.OPEN and row.limit.per in SHORT_LIVED]
            )  # they may have been dropped, and nothing more needs to be known of them
            rows = self._rows_without([key for key, _ in request.charges], error)
            if isolated := next(filter(self._isolated.__contains__, request.subjects), None):
                return Refused(RefusalKind.ISOLATED, isolated)
            local = [known for known in rows if known.down is OnStoreDown.LOCAL]
            answer: Granted | Refused = GRANTED
            if local:
                if spent := next((known.row for known in local if not self._part(known)), None):
                    return Refused(RefusalKind.EXHAUSTED, spent.key, spent.limit.amount, spent.limit.amount)
                self._know_locally(local)
                answer = self._local.reserve(request._replace(charges=self._local_charges(request.charges), subjects=()))
            if isinstance(answer, Granted):
                self._open.setdefault(request.id, request)
            return answer

    def _extend_here(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for a call. What it takes is charged with what it used when it ends, wherever it was admitted."""
        unknown = next((key for key, _ in charges if key not in self._rows), None)
        if unknown is not None:
            return Refused(RefusalKind.UNREGISTERED, unknown)  # it was forgotten
        mine = self._local_charges(charges)
        granted = tuple(charges)
        if mine:
            self._know_locally([self._rows[key] for key, _ in mine])
            self._local.reserve(Reserve(id, ()))  # one that the store has admitted holds nothing here yet
            answer = self._local.extend(id, mine)
            if isinstance(answer, Refused):
                return answer
            if answer.charges != mine:
                granted = _portion(charges, answer.charges[0].amount, mine[0].amount)
        if id in self._open:
            self._open[id] = self._open[id]._replace(charges=_together(self._open[id].charges, granted))
        return Granted(granted)

    def _rows_without(self, keys: Sequence[str], error: StoreUnavailable) -> list[KnownRow]:
        """The rows, if all of them can do without the store; raises `error` otherwise."""
        rows = [known for key in keys if (known := self._rows.get(key)) is not None and known.down is not OnStoreDown.CLOSED]
        if len(rows) < len(keys):
            raise error
        return rows

    def _local_charges(self, charges: Sequence[Charge]) -> tuple[Charge, ...]:
        return tuple(one for one in charges if self._rows[one.row].down is OnStoreDown.LOCAL)

    def _know_locally(self, rows: Sequence[KnownRow]) -> None:
        local = {known.row.key: known for known in rows if known.down is OnStoreDown.LOCAL}
        for balance in self._local.read(list(local)):
            del local[balance.row]
        for known in local.values():
            part = max(self._part(known), 1)
            self._local.register([known.row._replace(limit=replace(known.row.limit, amount=part))])

    def _part(self, known: KnownRow) -> int:
        left = known.row.limit.amount if known.left is None else known.left
        return left // (LOCAL_SHARE * self._processes)

    def _remember(self, rows: Iterable[LimitRow]) -> None:
        """Know rows for the time without. One that is `closed` is of no use then, unless something is owed to it."""
        for row in rows:
            known = self._rows.get(row.key)
            if known is not None:
                known.row = row
            elif row.limit.on_store_down is not OnStoreDown.CLOSED:
                self._rows[row.key] = KnownRow(row, self._sweeps)
        if len(self._rows) > self._drop_at:
            self._drop_short_lived()

    def _drop_short_lived(self) -> None:
        """Drop the rows of sessions and the like that were not used for longest, and that no call here refers to.

        Should such a session ask during an outage, its `local` limit refuses: nobody here knows what it has left.
        """
        short_lived = [known for known in self._rows.values() if known.is_short_lived]
        if len(short_lived) > _MOST_SHORT_LIVED:
            requests = (*self._open.values(), *(owed.request for owed in self._owed))
            in_use = {key for request in requests for key, _ in request.charges}
            free = sorted((known for known in short_lived if known.row.key not in in_use), key=lambda known: known.used_in)
            self._drop([known.row.key for known in free[: len(short_lived) - _MOST_SHORT_LIVED // 2]])
        self._drop_at = len(self._rows) + _MOST_SHORT_LIVED // 2  # to look for them seldom, however many others there are

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._rows.pop(key, None)
            self._unregistered.discard(key)

    # --- when it is back ------------------------------------------------------------------------------------------------

    def _register_late(self, keys: Iterable[str]) -> None:
        with self._lock:
            late = [self._rows[key].row for key in keys if key in self._unregistered]
        for start in range(0, len(late), _MOST_READ):
            batch = late[start : start + _MOST_READ]
            self._store.register(batch)
            with self._lock:
                self._unregistered.difference_update(row.key for row in batch)

    def _pay(self) -> None:
        """Charge the store for what was used without it."""
        while self._owed:
            with self._lock:
                owed = self._owed[0]
            if owed is not self._taken:
                if not self._take(owed.request):
                    with self._lock:
                        self._owed.rotate(-1)  # the next sweep begins with another one, should this be the only one to fail
                    return
                self._taken = owed  # if only the answer to the settlement is lost, it is not taken anew
            self._store.settle(owed.request.id, owed.actual)
            with self._lock:
                if self._owed[0] is owed:  # else so much is owed that it was dropped
                    self._owed.popleft()
            self._taken = None

    def _hand_over(self) -> None:
        """Have the store hold what calls hold that were admitted without it, and have not ended."""
        with self._lock:
            requests = list(self._open.values())
        for request in requests:
            if not self._take(request):
                return
            with self._lock:
                # One that has ended meanwhile is owed, and was taken under the same id. One that was extended meanwhile holds so
                # much less than it may use: that is charged all the same.
                if self._open.pop(request.id, None) is not None:
                    self._held_twice.add(request.id)

    def _take(self, request: Reserve) -> bool:
        """Have the store take a call that was admitted without it. False: it has lost what it was told, and is yet to learn.

        A row that was forgotten meanwhile is charged nothing.
        """
        for _ in range(2):
            with self._lock:
                rows = [self._rows[key].row for key, _ in request.charges if key in self._rows]
                charges = tuple(charge for charge in request.charges if charge.row in self._rows)
            if isinstance(self._store.reserve(Reserve(request.id, charges, force=True)), Granted):
                return True
            self._store.register(rows)
        return False

    # --- forks ----------------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Go on as another process: what is owed is the parent's to pay, and so are the calls in flight."""
        self._lock = threading.Lock()
        self._catching_up = threading.Lock()
        self._open.clear()
        self._held_twice.clear()
        self._owed.clear()
        self._taken = None


def _portion(charges: Sequence[Charge], granted: int, asked: int) -> tuple[Charge, ...]:
    return tuple(Charge(key, amount * granted // asked) for key, amount in charges)


def _together(charges: Sequence[Charge], more: Sequence[Charge]) -> tuple[Charge, ...]:
    amounts = dict(charges)
    for key, amount in more:
        amounts[key] = amounts.get(key, 0) + amount
    return tuple(Charge(key, amount) for key, amount in amounts.items())

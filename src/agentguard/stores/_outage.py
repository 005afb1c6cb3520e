"""What a process knows, counts and owes while a store gives no answer. Nothing here asks that store.

One lock guards all of it, and is never held while the store is asked. So every method is one step that nobody sees half of.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.policy.model import OnStoreDown
from agentguard.stores._fork import Rests
from agentguard.stores._idle import SHORT_LIVED
from agentguard.stores._remembered import Remembered, due
from agentguard.stores.base import GRANTED, Balance, Granted, Reserve
from agentguard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.errors import StoreUnavailable
    from agentguard.stores._remembered import KnownRow
    from agentguard.stores.base import WallClock

_MOST_OWED = 10_000


class Owed(NamedTuple):
    """A call that was made without the store, and what it used."""

    request: Reserve
    actual: Amounts


class Outage(Rests):
    """An outage of a store, to come, there or just over.

    Attributes:
        open: The calls that were admitted without the store, and have not ended. Whoever only looks whether there is one takes no
            lock.
        unregistered: The rows that the store is yet to be told of. The same.
    """

    def __init__(self, clock: WallClock) -> None:
        self._lock = threading.Lock()
        self._rows = Remembered()
        self._local = MemoryStore(clock)
        self._isolated: frozenset[str] = frozenset()
        self._held_twice: set[str] = set()
        self._owed: deque[Owed] = deque(maxlen=_MOST_OWED)
        self.open: dict[str, Reserve] = {}
        self.unregistered: set[str] = set()

    def after_fork_in_child(self) -> None:
        """Go on as another process: what is owed is the parent's to pay, and so are the calls in flight."""
        self._lock = threading.Lock()
        self.open.clear()
        self._held_twice.clear()
        self._owed.clear()

    # --- what is known for it -------------------------------------------------------------------------------------------

    def remember(self, rows: Iterable[LimitRow]) -> None:
        """Know rows for the time without."""
        with self._lock:
            self._remember(rows)

    def register_later(self, rows: Iterable[LimitRow]) -> None:
        """Note that the store is yet to be told of rows."""
        with self._lock:
            self.unregistered.update(row.key for row in rows if row.key in self._rows)

    def late(self, keys: Iterable[str]) -> list[LimitRow]:
        """Those of the rows that the store is yet to be told of."""
        with self._lock:
            return [self._rows[key].row for key in keys if key in self.unregistered]

    def registered(self, rows: Iterable[LimitRow]) -> None:
        """Note that the store was told of rows."""
        with self._lock:
            self.unregistered.difference_update(row.key for row in rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        with self._lock:
            self._drop(keys)
            self._local.forget(keys)

    def know_isolated(self, isolated: frozenset[str]) -> None:
        """Know who is isolated: they stay so."""
        self._isolated = isolated

    def due(self) -> list[KnownRow]:
        """The rows of which to note what is left."""
        with self._lock:
            rows = self._rows.begin_sweep()
        return due(rows)

    def note(self, rows: Sequence[KnownRow], balances: Iterable[Balance], processes: int) -> None:
        """Note what is left of them. The next outage begins with a part of that."""
        with self._lock:
            self._rows.note(rows, {balance.row: balance for balance in balances}, processes)

    def rows_of(self, charges: Iterable[Charge]) -> tuple[list[LimitRow], tuple[Charge, ...]]:
        """The rows of charges, and the charges, but for rows that were forgotten."""
        with self._lock:
            known = tuple(charge for charge in charges if charge.row in self._rows)
            return [self._rows[key].row for key, _ in known], known

    def _remember(self, rows: Iterable[LimitRow]) -> None:
        self._rows.remember(rows)
        if self._rows.are_too_many:
            requests = (*self.open.values(), *(owed.request for owed in self._owed))
            self._drop(self._rows.superfluous({key for request in requests for key, _ in request.charges}))

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._rows.drop(key)
            self.unregistered.discard(key)

    # --- while it lasts -------------------------------------------------------------------------------------------------

    def reserve(self, request: Reserve, error: StoreUnavailable) -> Granted | Refused:
        """Take a call as its limits say; raises `error` when one of them cannot do without the store."""
        with self._lock:  # so that no sweep drops the local rows half-way
            self._remember(
                [row for row in request.rows if row.limit.on_store_down is OnStoreDown.OPEN and row.limit.per in SHORT_LIVED]
            )  # they may have been dropped, and nothing more needs to be known of them
            rows = self._able([key for key, _ in request.charges], error)
            if isolated := next(filter(self._isolated.__contains__, request.subjects), None):
                return Refused(RefusalKind.ISOLATED, isolated)
            local = [known for known in rows if known.down is OnStoreDown.LOCAL]
            answer: Granted | Refused = GRANTED
            if local:
                if spent := next((known.row for known in local if not self._rows.part(known)), None):
                    return Refused(RefusalKind.EXHAUSTED, spent.key, spent.limit.amount, spent.limit.amount)
                self._know_locally(local)
                answer = self._local.reserve(request._replace(charges=self._local_charges(request.charges), subjects=()))
            if isinstance(answer, Granted):
                self.open.setdefault(request.id, request)
            return answer

    def extend_open(self, id: str, charges: Sequence[Charge]) -> Granted | Refused | None:
        """Take more for a call that was admitted without the store; None when it was not, or was handed over."""
        with self._lock:
            return self._extend(id, charges) if id in self.open else None

    def extend(self, id: str, charges: Sequence[Charge], error: StoreUnavailable) -> Granted | Refused:
        """Take more for any call; raises `error` when one of its limits cannot do without the store."""
        with self._lock:
            self._able([key for key, _ in charges], error)
            if id not in self.open:
                self._held_twice.add(id)
            return self._extend(id, charges)

    def owe(self, id: str, actual: Amounts) -> bool:
        """Note what a call has used that was admitted without the store. False: it was not, or was handed over or settled."""
        with self._lock:
            request = self.open.pop(id, None)
            if request is None:
                return False
            self._owed.append(Owed(request, actual))
        self._local.settle(id, actual)
        return True

    def read(self, keys: Sequence[str], error: StoreUnavailable) -> list[Balance]:
        """What is known here of rows; raises `error` when one of them cannot do without the store."""
        with self._lock:
            rows = self._able(keys, error)
            self._know_locally(rows)
            local = {balance.row: balance for balance in self._local.read(keys)}
        return [local.get(row.key) or Balance(row.key, row.limit.amount, 0, 0) for row in (known.row for known in rows)]

    def _extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
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
        if id in self.open:
            self.open[id] = self.open[id]._replace(charges=_together(self.open[id].charges, granted))
        return Granted(granted)

    def _able(self, keys: Sequence[str], error: StoreUnavailable) -> list[KnownRow]:
        """The rows, if all of them can do without the store; raises `error` otherwise."""
        rows = self._rows.able(keys)
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
            part = max(self._rows.part(known), 1)
            self._local.register([known.row._replace(limit=replace(known.row.limit, amount=part))])

    # --- when it is over ------------------------------------------------------------------------------------------------

    def first_owed(self) -> Owed | None:
        """The call to charge the store for next."""
        with self._lock:
            return self._owed[0] if self._owed else None

    def pay_last(self) -> None:
        """Charge the store for the first of them after all others."""
        with self._lock:
            self._owed.rotate(-1)

    def paid(self, owed: Owed) -> None:
        """Note that the store was charged for a call."""
        with self._lock:
            if self._owed and self._owed[0] is owed:  # else so much is owed that it was dropped
                self._owed.popleft()

    def in_flight(self) -> list[Reserve]:
        """The calls that were admitted without the store, and have not ended."""
        with self._lock:
            return list(self.open.values())

    def handed_over(self, id: str) -> None:
        """Note that the store holds what a call holds.

        One that has ended meanwhile is owed, and was taken under the same id. One that was extended meanwhile holds so much less
        than it may use: that is charged all the same.
        """
        with self._lock:
            if self.open.pop(id, None) is not None:
                self._held_twice.add(id)

    def end(self) -> None:
        """Forget what was counted here, except for calls that are still open here."""
        with self._lock:
            in_use = {key for request in self.open.values() for key, _ in request.charges}
            self._local.forget([row.key for row, _ in self._local.rows() if row.key not in in_use])
            while self._held_twice:
                self._local.settle(self._held_twice.pop(), Amounts())


def _portion(charges: Sequence[Charge], granted: int, asked: int) -> tuple[Charge, ...]:
    return tuple(Charge(key, amount * granted // asked) for key, amount in charges)


def _together(charges: Sequence[Charge], more: Sequence[Charge]) -> tuple[Charge, ...]:
    amounts = dict(charges)
    for key, amount in more:
        amounts[key] = amounts.get(key, 0) + amount
    return tuple(Charge(key, amount) for key, amount in amounts.items())

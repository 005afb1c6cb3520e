"""What happens while a store gives no answer, as each limit says.

`closed` (the default): the call is refused, since nobody knows what is left. `open`: it goes on uncounted.
`local`: it is counted in this process, against a part of the limit: of what was left when the store was last heard of, a
tenth (`LOCAL_SHARE`), divided by the number of processes then known. All together so take at most that part beyond the limit.
What was used meanwhile is charged to the store when it answers again. Calls that are still open then are handed over: the store
holds what they hold, and they go on like any other.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailable
from agentguard.policy.model import OnStoreDown
from agentguard.stores._fork import survive_forks
from agentguard.stores._in_front import InFront
from agentguard.stores._outage import Outage
from agentguard.stores._remembered import MOST_READ
from agentguard.stores.base import SETTLED, Granted, Reserve, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentguard.core.limits import Amounts, Charge, LimitRow, Refused
    from agentguard.stores._outage import Owed
    from agentguard.stores.base import Balance, Isolation, Settled, WallClock


class Standby(InFront[Store]):
    """A `Store` that goes on without another one, for limits that allow it."""

    def __init__(self, store: Store, clock: WallClock = time) -> None:  # the module is a WallClock
        super().__init__(store)
        self._outage = Outage(clock)
        self._catching_up = threading.Lock()
        self._taken: Owed | None = None
        survive_forks(self)

    # --- one call ---------------------------------------------------------------------------------------------------

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none; while the store is down, as the limits say."""
        try:
            if self._outage.unregistered:
                self._register_late([key for key, _ in request.charges])
            return self._store.reserve(request)
        except StoreUnavailable as error:
            return self._outage.reserve(request, error)

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says, without waiting."""
        try:
            return self._store.try_reserve(request)
        except StoreUnavailable as error:
            return self._outage.reserve(request, error)

    async def areserve(self, request: Reserve) -> Granted | Refused:
        """Like `reserve`, without blocking the event loop, where the store can do so."""
        try:
            if self._outage.unregistered:
                self._register_late([key for key, _ in request.charges])
            answer: Granted | Refused = await self._store.areserve(request)  # type: ignore[attr-defined]  # of Redis, not of all
        except StoreUnavailable as error:
            return self._outage.reserve(request, error)
        return answer

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left; while the store is down, as the limits say."""
        if id in self._outage.open:
            answer = self._outage.extend_open(id, charges)
            if answer is not None:
                return answer
        try:
            return self._store.extend(id, charges)
        except StoreUnavailable as error:
            return self._outage.extend(id, charges, error)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used. What was admitted without the store is owed to it."""
        if id in self._outage.open and self._outage.owe(id, actual):
            return SETTLED
        return self._store.settle(id, actual)

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says, without waiting."""
        if id in self._outage.open and self._outage.owe(id, actual):
            return SETTLED
        return self._store.try_settle(id, actual)

    # --- what is known for the time without -------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known. While the store is down, those that can do without it are registered when it is back."""
        rows = tuple(rows)
        self._outage.remember(rows)
        try:
            self._store.register(rows)
        except StoreUnavailable:
            if any(row.limit.on_store_down is OnStoreDown.CLOSED for row in rows):
                raise
            self._outage.register_later(rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        self._outage.forget(keys)
        self._store.forget(keys)

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows. While the store is down, what is known here of those that can do without it."""
        try:
            return self._store.read(keys)
        except StoreUnavailable as error:
            return self._outage.read(keys, error)

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now; they stay so while the store is down."""
        return self.dated_isolations()[1]

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, which stay so while the store is down."""
        dated = self._store.dated_isolations()
        self._outage.know_isolated(frozenset(isolation.subject for isolation in dated[1]))
        return dated

    # --- when it is back --------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Charge what dead processes hold; then tell the store what it has missed, and note what is left.

        A worker and a waiting call may sweep at once: the second leaves the telling to the first.
        """
        swept = self._store.sweep()
        if self._catching_up.acquire(blocking=False):
            try:
                self._register_late(self._outage.unregistered)
                self._pay()
                self._hand_over()
                self._look()
            finally:
                self._catching_up.release()
        return swept

    def _register_late(self, keys: Iterable[str]) -> None:
        late = self._outage.late(keys)
        for start in range(0, len(late), MOST_READ):
            batch = late[start : start + MOST_READ]
            self._store.register(batch)
            self._outage.registered(batch)

    def _pay(self) -> None:
        """Charge the store for what was used without it."""
        while (owed := self._outage.first_owed()) is not None:
            if owed is not self._taken:
                if not self._take(owed.request):
                    self._outage.pay_last()  # the next sweep begins with another one, should this be the only one to fail
                    return
                self._taken = owed  # if only the answer to the settlement is lost, it is not taken anew
            self._store.settle(owed.request.id, owed.actual)
            self._outage.paid(owed)
            self._taken = None

    def _hand_over(self) -> None:
        """Have the store hold what calls hold that were admitted without it, and have not ended."""
        for request in self._outage.in_flight():
            if not self._take(request):
                return
            self._outage.handed_over(request.id)

    def _take(self, request: Reserve) -> bool:
        """Have the store take a call that was admitted without it. False: it has lost what it was told, and is yet to learn.

        A row that was forgotten meanwhile is charged nothing.
        """
        for _ in range(2):
            rows, charges = self._outage.rows_of(request.charges)
            if isinstance(self._store.reserve(Reserve(request.id, charges, force=True)), Granted):
                return True
            self._store.register(rows)
        return False

    def _look(self) -> None:
        """Note what is left of rows, for the next outage."""
        due = self._outage.due()
        if due:
            balances = self._store.read([known.row.key for known in due])
            self._outage.note(due, balances, len({member.holder for member in self._store.members()}))
        self._outage.end()

    # --- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait for the step that another thread is in."""
        self._outage.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._outage.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Go on as another process."""
        self._outage.after_fork_in_child()
        self._catching_up = threading.Lock()
        self._taken = None

"""Counters in this process: one lock, for tests and for a single process that may forget."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agentguard.core.limits import Charge, RefusalKind, Refused, Row, charge, give
from agentguard.stores import _verbs
from agentguard.stores._fork import Rests, survive_forks
from agentguard.stores._recalls import Recalls
from agentguard.stores._watchers import Watchers
from agentguard.stores.base import (
    FORGET_MEMBER_SECONDS,
    GRANTED,
    NOT_SETTLED,
    SETTLED,
    Balance,
    Granted,
    Hold,
    Isolation,
    Settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Amounts, Crossed, Item, LimitRow
    from agentguard.stores.base import Account, Accounted, Closeable, Member, Reserve, WallClock


class MemoryStore(Rests):
    """A `Store` in this process. A forked child goes on with a copy of its own, in which the calls in flight are charged."""

    may_block = False

    def __init__(self, clock: WallClock = time) -> None:  # the module is a WallClock
        self._now = clock.time
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._registered: dict[str, LimitRow] = {}
        self._open: dict[str, tuple[Granted, list[Item]]] = {}
        self._isolated: dict[str, Isolation] = {}
        self._epoch = 0
        self._watchers: Watchers[[]] = Watchers()
        self._listeners: Watchers[[]] = Watchers()
        self._recalls = Recalls()
        self._members: dict[str, Member] = {}
        survive_forks(self)

    @property
    def me(self) -> str:
        """This process: the only one here."""
        return f"pid-{os.getpid()}"

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        with self._lock:
            for registered in rows:
                known = self._registered.get(registered.key)
                self._registered[registered.key] = registered
                if known is None:
                    self._rows[registered.key] = Row.of(registered.key, registered.limit)
                elif known.limit != registered.limit:
                    self._rows[registered.key].configure(registered.limit)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        with self._lock:
            for key in keys:
                if (registered := self._registered.pop(key, None)) is not None:
                    forgotten = self._rows.pop(key)
                    forgotten.configure(replace(registered.limit, warn_at=()))  # calls that still hold some of it tell no step

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none."""
        call, charges, subjects, force, _ = request
        with self._lock:
            if call in self._open:
                return self._open[call][0]
            if self._isolated and (subject := next(filter(self._isolated.__contains__, subjects), None)):
                return Refused(RefusalKind.ISOLATED, subject)
            answer, items = _verbs.reserve(self._rows, charges, self._now(), force)
            if isinstance(answer, Granted):
                self._open[call] = answer, items
            return answer

    try_reserve = reserve

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        with self._lock:
            if id not in self._open:
                return Refused(RefusalKind.UNREGISTERED, id)
            return _verbs.extend(self._rows, charges, self._open[id][1], self._now())

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        with self._lock:
            held = self._open.pop(id, None)
            if held is None:
                return NOT_SETTLED
            now = self._now()
            crossed: list[Crossed] = []
            give(held[1], actual, now, crossed)
        if self._watchers:
            self._watchers.announce()
        return Settled(True, tuple(crossed)) if crossed else SETTLED

    def try_settle(self, id: str, actual: Amounts) -> Settled:
        """What `settle` says: it never waits."""
        return self.settle(id, actual)

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        with self._lock:
            now = self._now()
            return [Balance.of(self._rows[key], now) for key in keys if key in self._rows]

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        with self._lock:
            now = self._now()
            return [(registered, Balance.of(self._rows[key], now)) for key, registered in self._registered.items()]

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        with self._lock:
            if on:
                self._isolated[subject] = Isolation(subject, by, why, self._now())
            else:
                self._isolated.pop(subject, None)
            self._epoch += 1
            epoch = self._epoch
        self._listeners.announce()
        self._watchers.announce()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""
        with self._lock:
            return sorted(self._isolated.values(), key=lambda isolation: (isolation.at, isolation.subject))

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`."""
        return self.epoch(), self.isolations()

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        return self._epoch

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations."""
        return self._watchers.add(on_change)

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations, in the thread that isolates."""
        return self._listeners.add(on_change)

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself."""
        with self._lock:
            self._members[member.name] = member._replace(at=self._now())

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        with self._lock:
            self._members.pop(name, None)

    def members(self) -> Sequence[Member]:
        """The guards of this process that were heard of."""
        with self._lock:
            since = self._now() - FORGET_MEMBER_SECONDS
            return sorted((one for one in self._members.values() if one.at >= since), key=lambda one: (one.started, one.name))

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold."""
        with self._lock:
            me = self.me
            return [
                Hold(call, me, tuple(Charge(row.key, held) for row, _, held, _ in items if self._rows.get(row.key) is row))
                for call, (_, items) in self._open.items()
            ]

    def lease(self, account: Account) -> Accounted | Refused:
        """Take the account of a slice, and let it grow."""
        with self._lock:
            _, items = self._open.get(account.id, (GRANTED, None))
            answer, items = _verbs.lease(self._rows, account, items, self._now())
            if isinstance(answer, Refused):
                return answer
            if account.keep or answer.calls:
                self._open[account.id] = GRANTED, items
            else:
                self._open.pop(account.id, None)
        if self._watchers:
            self._watchers.announce()
        return answer

    def recall(self, keys: Sequence[str]) -> None:
        """Ask whoever holds slices of rows to give them back: at once, in this thread."""
        self._recalls.announce(keys)

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` when slices are asked for, in the thread that asks."""
        return self._recalls.add(on_recall)

    def renew(self) -> None:
        """Holds of this process live as long as it does."""

    def sweep(self) -> int:
        """No other process can leave holds here."""
        return 0

    def close(self) -> None:
        """Nothing to free."""

    def after_fork_in_child(self) -> None:
        """Charge the calls in flight: they are the parent's, and nobody here will settle them."""
        self._lock = threading.Lock()
        self._watchers.lock = threading.Lock()
        self._listeners.lock = threading.Lock()
        self._recalls.lock = threading.Lock()
        self._members.clear()
        for _, items in self._open.values():
            charge(items)
        self._open.clear()

"""Counters in this process: one lock, for tests and for a single process that may forget."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from agentguard.core.limits import RefusalKind, Refused, Row, decide, enlarge, give, portion, take
from agentguard.stores.base import GRANTED, Balance, Granted, Isolation, Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Amounts, Charge, Item, LimitRow
    from agentguard.stores.base import Closeable, Reserve


class WallClock(Protocol):
    """A source of Unix time."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""


class MemoryStore:
    """A `Store` in this process. Fork-safe in that a child starts with a copy: what it counts is its own."""

    may_block = False

    def __init__(self, clock: WallClock = time) -> None:  # the module is a WallClock
        self._now = clock.time
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._registered: dict[str, LimitRow] = {}
        self._open: dict[str, tuple[Granted, list[Item]]] = {}
        self._isolated: dict[str, Isolation] = {}
        self._epoch = 0
        self._watchers: list[Callable[[], None]] = []

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        with self._lock:
            for registered in rows:
                known = self._registered.get(registered.key)
                self._registered[registered.key] = registered
                if known is None:
                    self._rows[registered.key] = Row(registered)
                elif known.limit != registered.limit:
                    self._rows[registered.key].configure(registered.limit)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        with self._lock:
            for key in keys:
                self._rows.pop(key, None)
                self._registered.pop(key, None)

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none."""
        id, charges, subjects, force = request
        with self._lock:
            if id in self._open:
                return self._open[id][0]
            if self._isolated and (subject := next(filter(self._isolated.__contains__, subjects), None)):
                return Refused(RefusalKind.ISOLATED, subject)
            known = self._rows
            try:
                rows = [known[key] for key, _ in charges]
            except KeyError as missing:
                return Refused(RefusalKind.UNREGISTERED, missing.args[0])
            refused = decide(rows, charges, self._now())
            if refused is not None and not force:
                return refused
            items: list[Item] = []
            crossed = take(rows, charges, items)
            granted = Granted((), tuple(crossed), refused) if crossed or refused else GRANTED
            self._open[id] = granted, items
            return granted

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        with self._lock:
            held = self._open.get(id)
            rows = [self._rows[charge.row] for charge in charges if charge.row in self._rows]
            if held is None or len(rows) < len(charges):
                return Refused(RefusalKind.UNREGISTERED, id)
            asked: Sequence[Charge] = charges
            refused = decide(rows, asked, self._now())
            if refused is not None and not (asked := portion(rows, charges)):
                return refused
            enlarge(rows, asked, held[1])
            return Granted(tuple(asked))

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        with self._lock:
            held = self._open.pop(id, None)
            if held is None:
                return Settled(first=False)
            now = self._now()
            for row, *_ in held[1]:
                if now >= row.ends:
                    row.advance(now)
            crossed = give(held[1], actual)
            watchers = self._watchers
        for on_change in watchers:
            on_change()
        return Settled(True, tuple(crossed))  # noqa: FBT003 - a NamedTuple, built positionally on the hot path

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        with self._lock:
            return [self._balance(self._rows[key]) for key in keys if key in self._rows]

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        with self._lock:
            return [(registered, self._balance(self._rows[key])) for key, registered in self._registered.items()]

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        with self._lock:
            if on:
                self._isolated[subject] = Isolation(subject, by, why, self._now())
            else:
                self._isolated.pop(subject, None)
            self._epoch += 1
            epoch, watchers = self._epoch, self._watchers
        for on_change in watchers:
            on_change()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now."""
        with self._lock:
            return list(self._isolated.values())

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations."""
        with self._lock:
            self._watchers = [*self._watchers, on_change]
        return _Watch(self, on_change)

    def renew(self) -> None:
        """Holds of this process live as long as it does."""

    def sweep(self) -> int:
        """No other process can leave holds here."""
        return 0

    def close(self) -> None:
        """Nothing to free."""

    def _balance(self, row: Row) -> Balance:
        row.advance(self._now())
        return Balance(row.key, row.amount, row.spent, row.held, row.ends if row.window.every else None)

    def _unwatch(self, on_change: Callable[[], None]) -> None:
        with self._lock:
            self._watchers = [watcher for watcher in self._watchers if watcher is not on_change]


class _Watch:
    def __init__(self, store: MemoryStore, on_change: Callable[[], None]) -> None:
        self._store = store
        self._on_change = on_change

    def close(self) -> None:
        self._store._unwatch(self._on_change)  # noqa: SLF001 - its own store

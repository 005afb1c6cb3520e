"""What this process has taken, so that a store that has lost its memory can be told again."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.limits import Charge, Row, charge, enlarge, give, spend, take

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentguard.core.limits import Amounts, Item, LimitRow
    from agentguard.stores.base import Account

_MOST_ROWS = 8192


class Taken(NamedTuple):
    """An open call of this process: what it holds, and the rows of it that this process did not register itself."""

    items: list[Item]
    others: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The rows that it holds some of."""
        return (*dict.fromkeys(row.key for row, *_ in self.items), *self.others)


class OwnCounts:
    """This process's own part of every row, by the same algebra as the server's and at the server's time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[LimitRow, Row]] = {}
        self._open: dict[str, Taken] = {}

    def know(self, rows: Iterable[LimitRow]) -> None:
        """Count these rows too."""
        with self._lock:
            if len(self._rows) > _MOST_ROWS:
                self._let_go()
            for row in rows:
                known = self._rows.get(row.key)
                if known is not None:
                    known[1].configure(row.limit)
                self._rows[row.key] = row, known[1] if known else Row.of(row.key, row.limit)

    def forget(self, keys: Iterable[str]) -> None:
        """Count these no more."""
        with self._lock:
            for key in keys:
                self._rows.pop(key, None)

    def registered(self, keys: Iterable[str]) -> list[LimitRow]:
        """Those of the rows that this process has registered."""
        with self._lock:
            return [self._rows[key][0] for key in keys if key in self._rows]

    def take(self, id: str, charges: Sequence[Charge], now: float) -> None:
        """Count what was granted to a call: at first, or more."""
        with self._lock:
            rows = [self._rows[key][1] for key, _ in charges if key in self._rows]
            mine = [one for one in charges if one.row in self._rows]
            for row in rows:
                row.advance(now)
            taken = self._open.get(id)
            if taken is None:
                others = () if len(mine) == len(charges) else tuple(key for key, _ in charges if key not in self._rows)
                self._open[id] = Taken(take(rows, mine, []), others)
                return
            enlarge(rows, mine, taken.items, [])
            more = tuple(key for key, _ in charges if key not in self._rows and key not in taken.others)
            self._open[id] = Taken(taken.items, taken.others + more)

    def lease(self, account: Account, calls: int, now: float) -> None:
        """Count the account of a slice that has grown by `calls`."""
        with self._lock:
            taken = self._open.pop(account.id, None) or Taken([], ())
            kept = spend(taken.items, account.used, dict(account.keep), [])
            mine = [Charge(key, amount * calls) for key, amount in account.call if key in self._rows]
            if calls:
                rows = [self._rows[key][1] for key, _ in mine]
                for row in rows:
                    row.advance(now)
                enlarge(rows, mine, kept, [], holds_calls=True)
            if account.keep or calls:
                self._open[account.id] = Taken(kept, taken.others)

    def is_open(self, id: str) -> bool:
        """Whether a call of this process is open."""
        return id in self._open

    def keys_of(self, id: str) -> tuple[str, ...] | None:
        """The rows that a call holds some of; None when it is not an open one of this process."""
        taken = self._open.get(id)
        return None if taken is None else taken.keys

    def settle(self, id: str, actual: Amounts, now: float) -> None:
        """Count what a call has used in place of what it held."""
        with self._lock:
            taken = self._open.pop(id, None)
            if taken is not None:
                give(taken.items, actual, now, [])

    def drop(self, id: str) -> None:
        """Count a call as it stands: somebody else has ended it, and charged what it held."""
        with self._lock:
            taken = self._open.pop(id, None)
            if taken is not None:
                charge(taken.items)

    def ids(self) -> list[str]:
        """The open calls of this process."""
        with self._lock:
            return list(self._open)

    def all(self) -> tuple[list[tuple[LimitRow, Row]], dict[str, list[Item]]]:
        """Everything: rows of which something was taken, with their limits, and what each open call holds."""
        with self._lock:
            held = {row.key for taken in self._open.values() for row, *_ in taken.items}
            rows = [(known, row) for known, row in self._rows.values() if row.taken or row.key in held]
            counted = {row.key: row for _, row in rows}
            return rows, {
                call: [item for item in taken.items if counted.get(item[0].key) is item[0]] for call, taken in self._open.items()
            }

    def clear(self) -> None:
        """Begin anew in a forked child: what was taken is the parent's."""
        self._lock = threading.Lock()
        self._open.clear()
        self._rows = {key: (known, Row.of(key, known.limit)) for key, (known, _) in self._rows.items()}

    def _let_go(self) -> None:
        """Sessions come and go, and each leaves a row: keep the latest, and whatever a call holds some of."""
        held = {row.key for taken in self._open.values() for row, *_ in taken.items}
        for key in list(self._rows)[: _MOST_ROWS // 2]:
            if key not in held and self._rows[key][0].limit.per in {"session", "interaction", "call"}:
                del self._rows[key]

"""The rows that can do without the store, and what was left of them when it was last heard of."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentguard.policy.model import OnStoreDown, Per
from agentguard.stores._idle import SHORT_LIVED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Balance

LOCAL_SHARE = 10
MOST_READ = 256
"""Rows of a kind that are read in one sweep. The store is asked every second, however many there are."""

_MOST_SHORT_LIVED = 4096
"""Rows of sessions and the like that are remembered. Each session has some of its own, and few are used for long."""

_MANY = (*SHORT_LIVED, Per.USER)
"""Kinds of subjects of which there may be any number."""


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


class Remembered:
    """Rows by their keys. Guarded by the lock of `Outage`."""

    def __init__(self) -> None:
        self._rows: dict[str, KnownRow] = {}
        self._drop_at = _MOST_SHORT_LIVED
        self._sweeps = 0
        self._processes = 1

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> KnownRow:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def remember(self, rows: Iterable[LimitRow]) -> None:
        """Know rows for the time without. One that is `closed` is of no use then, unless something is owed to it."""
        for row in rows:
            known = self._rows.get(row.key)
            if known is not None:
                known.row = row
            elif row.limit.on_store_down is not OnStoreDown.CLOSED:
                self._rows[row.key] = KnownRow(row, self._sweeps)

    def drop(self, key: str) -> None:
        """Know a row no more."""
        self._rows.pop(key, None)

    def able(self, keys: Iterable[str]) -> list[KnownRow]:
        """Those of the rows that can do without the store."""
        return [known for key in keys if (known := self._rows.get(key)) is not None and known.down is not OnStoreDown.CLOSED]

    def part(self, known: KnownRow) -> int:
        """What this process may use of a row by itself: a share of what was left, divided by the processes then known."""
        left = known.row.limit.amount if known.left is None else known.left
        return left // (LOCAL_SHARE * self._processes)

    # --- what is left ---------------------------------------------------------------------------------------------------

    def begin_sweep(self) -> list[KnownRow]:
        """Every row."""
        self._sweeps += 1
        return list(self._rows.values())

    def note(self, rows: Sequence[KnownRow], balances: Mapping[str, Balance], processes: int) -> None:
        """Note what was read of rows in this sweep, and how many processes share it."""
        self._processes = max(processes, 1)
        for known in rows:
            balance = balances.get(known.row.key)
            left = None if balance is None else max(balance.amount - balance.spent - balance.held, 0)
            known.used_in = known.used_in if left == known.left else self._sweeps
            known.left, known.read_in = left, self._sweeps

    # --- too many -------------------------------------------------------------------------------------------------------

    @property
    def are_too_many(self) -> bool:
        """Whether to look for rows that need not be known any more: seldom, however many others there are."""
        return len(self._rows) > self._drop_at

    def superfluous(self, in_use: AbstractSet[str]) -> list[str]:
        """The rows of sessions and the like that were not used for longest, and are not in use: half, if there are too many.

        Should such a session ask during an outage, its `local` limit refuses: nobody here knows what it has left.
        """
        short_lived = [known for known in self._rows.values() if known.is_short_lived]
        keys: list[str] = []
        if len(short_lived) > _MOST_SHORT_LIVED:
            free = sorted((known for known in short_lived if known.row.key not in in_use), key=lambda known: known.used_in)
            keys = [known.row.key for known in free[: len(short_lived) - _MOST_SHORT_LIVED // 2]]
        self._drop_at = len(self._rows) - len(keys) + _MOST_SHORT_LIVED // 2
        return keys


def due(rows: Sequence[KnownRow]) -> list[KnownRow]:
    """The local ones to read in a sweep: all while they are few, else those that were not read for longest.

    Those of sessions and users, of which there may be any number, do not keep the others from being read each time.
    """
    local = [known for known in rows if known.down is OnStoreDown.LOCAL]
    many = [known for known in local if known.row.limit.per in _MANY]
    few = [known for known in local if known.row.limit.per not in _MANY]
    return [known for kind in (few, many) for known in heapq.nsmallest(MOST_READ, kind, key=lambda known: known.read_in)]

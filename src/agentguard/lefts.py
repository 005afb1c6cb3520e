"""What limits have left, for calls that carry no bound on their output: it is written from that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.engine import Left

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Balance

OLD_SECONDS = 1.0
"""For how long what was left will do for bounds that are far from it. Whoever is refused with one has it read again."""

_MOST_REMEMBERED = 4096


class Known(NamedTuple):
    """What rows had left at a moment. The rows are held on to, so that their id stays their own."""

    rows: Sequence[LimitRow]
    at: float
    lefts: tuple[Left, ...]


class Lefts:
    """What rows have left, or had a moment ago, which saves most calls a trip to the store.

    Args:
        read: Reads it from the store.
        monotonic: Seconds that never go back.
        seconds: How old an answer may be; 0 where reading costs next to nothing.
    """

    def __init__(
        self, read: Callable[[Sequence[LimitRow]], Sequence[Left]], monotonic: Callable[[], float], seconds: float = OLD_SECONDS
    ) -> None:
        self._read = read
        self._monotonic = monotonic
        self._seconds = seconds
        self._known: dict[int, Known] = {}

    def of(self, rows: Sequence[LimitRow], *, may_be_old: bool) -> Sequence[Left]:
        """What rows have left, in their order. Raises as the store does."""
        if not self._seconds:
            return self._read(rows)
        now = self._monotonic()
        known = self._known.get(id(rows)) if may_be_old else None
        if known is not None and now - known.at < self._seconds:
            return known.lefts
        lefts = self._read(rows)
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[id(rows)] = Known(rows, now, tuple([left._replace(is_old=True) for left in lefts]))
        return lefts


def left_of(row: LimitRow, balance: Balance | None) -> Left:
    """What a row has left by its balance. A row without one has counted nothing yet; that of an ended budget block is gone."""
    if balance is None:
        return Left(0, 0) if row.subject.startswith("budget:") else Left(row.limit.amount, row.limit.amount)
    return Left(balance.amount - balance.spent - balance.held, balance.amount - balance.spent)

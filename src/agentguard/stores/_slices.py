"""Slices: what a process holds of the rows of a chain, to admit calls out of it by itself.

A chain is the set of rows that calls charge together. One slice of it is one hold of the store, so it is taken from all of
its rows or from none, as a call is, and what is used of it can be told in one number for each unit.
"""

from __future__ import annotations

import threading
from math import inf
from typing import TYPE_CHECKING

from agentguard.core.limits import BUCKETS, Amounts, Charge, Row
from agentguard.policy.model import Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.policy.model import Limit

_LEAST_BUCKET_SECONDS = 0.25
"""A slice of a rolling window lives no longer than the bucket it was taken in; in a shorter one it would not pay for itself."""

_PLENTY = 1 << 62
"""What is left of a unit that no row of the chain counts."""

_UNITS = (Unit.TOKENS, Unit.USD, Unit.CALLS)
_PLACES = {unit: place for place, unit in enumerate(_UNITS)}

NOTHING = Amounts()


def is_leasable(limit: Limit) -> bool:
    """Whether slices may be taken of a limit.

    A place among concurrent calls is not: it is free again the moment that a call ends, and lying in a slice it would be
    nobody's. A rolling window of seconds is not: in its buckets a slice would be over before it is used.
    """
    return limit.unit in _PLACES and (not limit.window.is_rolling or limit.window.seconds / BUCKETS >= _LEAST_BUCKET_SECONDS)


class Chain:
    """Rows that calls charge together, and how large a slice of them is worth taking.

    Attributes:
        keys: The rows.
        places: Where tokens, nano-USD and calls stand among its charges: their first, or any when none counts them.
        counts: Whether tokens, nano-USD and calls are among their units.
        slice: The one that calls are admitted from now.
        seen_at: When a call last asked the store about this chain, or for it.
        exact_until: Until when every call is decided by the store: others want what slices hold.
    """

    def __init__(self, limits: Sequence[tuple[str, Limit]]) -> None:
        self.keys: tuple[str, ...] = tuple(key for key, _ in limits)
        self._places = tuple(_PLACES[limit.unit] for _, limit in limits)
        self.keyset: frozenset[str] = frozenset(self.keys)
        self.counts: tuple[bool, ...] = tuple(place in self._places for place in range(len(_UNITS)))
        self.places: tuple[int, ...] = tuple(
            self._places.index(place) if place in self._places else 0 for place in range(len(_UNITS))
        )
        self._rows = [Row.of(key, limit) for key, limit in limits]
        self.slice: Slice | None = None
        self.seen_at: float = -inf
        self.exact_until: float = -inf
        self._calls = 2
        self._grown_at = -inf

    def amounts(self, charges: Sequence[Charge]) -> Amounts | None:
        """What is charged in each unit; None when rows of one unit are charged differently, which no slice can keep apart."""
        asked: list[int | None] = [None, None, None]
        for (_, amount), place in zip(charges, self._places, strict=True):
            if asked[place] not in {None, amount}:
                return None
            asked[place] = amount
        return Amounts(*(amount or 0 for amount in asked))

    def more(self, charges: Sequence[Charge]) -> Amounts | None:
        """The same for charges that leave out whole units; None as well when they leave out rows, or name others."""
        by_key = dict(charges)
        if not by_key.keys() <= set(self.keys):
            return None
        of_unit = [
            {by_key.get(key) for key, place in zip(self.keys, self._places, strict=True) if place == unit} for unit in range(3)
        ]
        if any(len(amounts) > 1 for amounts in of_unit) or of_unit[2] - {None}:
            return None  # calls are spent when they are made: a slice has no words for more of them
        return Amounts(*(next(iter(amounts), 0) or 0 for amounts in of_unit))

    def charges(self, amounts: Amounts) -> tuple[Charge, ...]:
        """Charges of these amounts to every row."""
        return tuple(Charge(key, amounts[place]) for key, place in zip(self.keys, self._places, strict=True))

    def of(self, key: str, amounts: Amounts) -> int:
        """The part of amounts that a row counts."""
        return amounts[self._places[self.keys.index(key)]]

    def ends(self, now: float) -> float:
        """When the first window of its rows is over, or the bucket of one that slides.

        A slice taken now admits no call after that, so that each call counts in the window in which it was made.
        """
        for row in self._rows:
            row.advance(now)
        return min(row.ends for row in self._rows)

    def next_size(self, now: float, horizon: float, most: int, is_used_up: bool) -> int:
        """For how many calls a slice should grow: twice as many as before if that was used up within half a horizon."""
        lasted = now - self._grown_at
        if is_used_up and lasted < horizon / 2:
            self._calls = min(self._calls * 2, most)
        elif lasted > horizon:
            self._calls = max(self._calls // 2, min(2, most))
        self._grown_at = now
        return self._calls

    def end(self, slice_: Slice) -> None:
        """Note that the window of a slice is over. If half of it was left, the next one is smaller."""
        if any(left * 2 > total for left, total in zip(slice_.left, slice_.total, strict=True)):
            self._calls = max(self._calls // 2, 1)


class Slice:
    """A hold of the store that the calls of a chain share. Guarded by the lock of the store that uses it.

    At every moment `total = used + held + left`: used by calls that are settled since the last account, held by those that
    are open, and left for others.

    Attributes:
        tokens, nanos, calls: What is left. Below nothing when calls have used more than they had reserved.
        total: What the store holds for it.
        ends: When the first window that it was taken in is over.
        until: When no further call is admitted from it: when it ends, or a while after the store last heard of it; `-inf` once
            it is given up.
        is_begun: The store knows it.
        is_lost: The store does not know it any more: it was swept, and charged.
        turn: Held while its account is on the way, so that the store gets one account after the other.
    """

    __slots__ = (
        "accounted_at",
        "calls",
        "chain",
        "ends",
        "id",
        "is_begun",
        "is_lost",
        "nanos",
        "tokens",
        "total",
        "turn",
        "until",
    )

    def __init__(self, id: str, chain: Chain, now: float) -> None:
        self.id: str = id
        self.chain: Chain = chain
        self.ends: float = chain.ends(now)
        self.until: float = self.ends
        self.total: Amounts = NOTHING
        self.is_begun = False
        self.is_lost = False
        self.accounted_at: float = now
        self.turn: threading.Lock = threading.Lock()
        self.tokens, self.nanos, self.calls = (0 if counts else _PLENTY for counts in chain.counts)

    @property
    def left(self) -> Amounts:
        """What is left, in the units that the chain counts."""
        return self._counted((self.tokens, self.nanos, self.calls))

    def used(self, held: Amounts) -> Amounts:
        """What settled calls have used since the last account, when open ones hold `held`. A call is used when it is made."""
        left = self.left
        return self._counted([total - rest - kept for total, rest, kept in zip(self.total, left, held, strict=True)])

    def begin_anew(self, held: Amounts, left: Amounts) -> None:
        """Go on with what is held and left, when the account of what was used is given."""
        self.total = add(held, left)
        self._leave(left)

    def grow(self, amounts: Amounts, calls: int) -> None:
        """Gain what so many calls charge."""
        gained = Amounts(*(amount * calls for amount in amounts))
        self.total = add(self.total, gained)
        self._leave(add(self.left, gained))

    def renew(self, until: float) -> None:
        """Go on until then, since the store has heard of it; not beyond its windows, and not once it is given up."""
        if self.until >= 0:
            self.until = min(self.ends, until)

    def _leave(self, left: Amounts) -> None:
        self.tokens, self.nanos, self.calls = (
            amount if counts else _PLENTY for amount, counts in zip(left, self.chain.counts, strict=True)
        )

    def _counted(self, amounts: Sequence[int]) -> Amounts:
        return Amounts(*(amount if counts else 0 for amount, counts in zip(amounts, self.chain.counts, strict=True)))


def add(some: Amounts, more: Amounts) -> Amounts:
    """The sum, unit by unit."""
    return Amounts(some[0] + more[0], some[1] + more[1], some[2] + more[2])


def at_least_nothing(amounts: Amounts) -> Amounts:
    """The amounts, without what is below nothing."""
    return Amounts(max(amounts[0], 0), max(amounts[1], 0), max(amounts[2], 0))

"""Chains: the sets of rows that calls charge together, and which of them can be leased."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from agentguard.core.limits import BUCKETS, Amounts, Charge, Row
from agentguard.policy.model import Unit
from agentguard.stores._idle import SHORT_LIVED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.policy.model import Limit
    from agentguard.stores._slices import Slice

MOST_CHAINS = 4096
_MOST_LIMITS = 65_536

_LEAST_BUCKET_SECONDS = 0.25
"""A slice of a rolling window lives no longer than the bucket it was taken in; in a shorter one it would not pay for itself."""

_UNITS = (Unit.TOKENS, Unit.USD, Unit.CALLS)
_PLACES = {unit: place for place, unit in enumerate(_UNITS)}


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


class Chains:
    """The chains that calls have charged, and the limits of their rows. Guarded by the lock of `Leases`."""

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}
        self._chains: dict[tuple[str, ...], Chain | None] = {}

    def of(self, charges: Sequence[Charge]) -> Chain | None:
        """The chain of charges; None when it cannot be leased."""
        keys = tuple([key for key, _ in charges])
        if keys in self._chains:
            return self._chains[keys]
        limits = [(key, self._limits[key]) for key in keys if key in self._limits]
        is_whole = 0 < len(limits) == len(keys) == len(set(keys))
        chain = Chain(limits) if is_whole and all(is_leasable(limit) for _, limit in limits) else None
        if is_whole:
            if len(self._chains) >= MOST_CHAINS:
                self._chains = {
                    keys: chain for keys, chain in self._chains.items() if chain is not None and chain.slice is not None
                }
            self._chains[keys] = chain
        return chain

    def register(self, rows: Iterable[LimitRow]) -> list[str]:
        """Know the limits of rows. Returns the rows whose limit has changed."""
        rows = tuple(rows)
        changed = [key for key, _, limit in rows if self._limits.get(key, limit) != limit]
        if len(self._limits) >= _MOST_LIMITS:
            self._limits = {key: limit for key, limit in self._limits.items() if limit.per not in SHORT_LIVED}
        self._limits.update((key, limit) for key, _, limit in rows)
        return changed

    def forget(self, keys: Iterable[str]) -> None:
        """Know the limits of rows no more."""
        for key in keys:
            self._limits.pop(key, None)

    def drop(self, keys: Iterable[str]) -> None:
        """Begin the chains of rows anew."""
        dropped = set(keys)
        self._chains = {known: chain for known, chain in self._chains.items() if dropped.isdisjoint(known)}

    def clear(self) -> None:
        """Begin all chains anew."""
        self._chains.clear()

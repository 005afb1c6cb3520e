"""The algebra of limits: rows that count, and the four verbs on them: decide, take, extend, give.

A row is what one limit has counted against one subject. Every store keeps rows, and every store decides with the
functions here: the memory store under its lock, SQLite inside its transaction. They read no clock and do no I/O,
so the same history gives the same answers everywhere.

The law: after any `take`, `spent + held <= amount` in every row. `decide` looks at all rows before anything is
taken, so a call is charged everywhere or nowhere.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.model import Limit, Unit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BUCKETS = 60
"""Sub-buckets of a rolling window. One more is counted, so a rate is late by at most 1/60 of its window and never early."""

_FIXED_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}
_NEVER = 1 << 62


class LimitRow(NamedTuple):
    """One limit of one subject: what a store registers.

    Attributes:
        key: Names the counter. It does not hold the amount, so a raised limit keeps what was counted.
        subject: What is counted against: `agent:researcher`, `session:42`, `fleet`.
        limit: The limit.
    """

    key: str
    subject: str
    limit: Limit

    @classmethod
    def of(cls, subject: str, limit: Limit) -> LimitRow:
        """The row of a limit for a subject."""
        return cls(f"{subject}|{limit.unit}|{limit.window}|{limit.over}", subject, limit)


class Charge(NamedTuple):
    """An amount asked of one row, in its limit's unit."""

    row: str
    amount: int


class Amounts(NamedTuple):
    """What a call uses of the units that are settled: tokens and nano-USD."""

    tokens: int = 0
    nanos: int = 0

    def of(self, unit: Unit) -> int:
        """The amount in a unit. Calls are spent when they are admitted and concurrency is given back, so neither settles."""
        if unit is Unit.TOKENS:
            return self.tokens
        return self.nanos if unit is Unit.USD else 0


class RefusalKind(StrEnum):
    """Why a store refused.

    EXHAUSTED: what is spent leaves no room, so waiting for others is of no use. CONTENDED: it would fit if the calls in
    flight used nothing. UNREGISTERED: the store has no such row, which is never read as "nothing spent".
    """

    EXHAUSTED = "exhausted"
    CONTENDED = "contended"
    UNREGISTERED = "unregistered"
    ISOLATED = "isolated"


class Refused(NamedTuple):
    """Nothing was taken. The first row that stands in the way, and its numbers.

    Attributes:
        kind: Why.
        row: The row's key; for an isolation, the isolated subject.
        amount: The limit, in its unit.
        spent: What is settled.
        held: What calls in flight have reserved.
        requested: What was asked for.
        retry_at: Unix time at which enough of the window is over; None when it never is.
    """

    kind: RefusalKind
    row: str
    amount: int = 0
    spent: int = 0
    held: int = 0
    requested: int = 0
    retry_at: float | None = None


class Crossed(NamedTuple):
    """A soft step was passed: `percent` of the limit of `row` is spent."""

    row: str
    percent: int
    spent: int
    amount: int


class Row:
    """What one limit has counted against one subject. Mutable, and guarded by the store that owns it.

    Attributes:
        spent, held: Settled, and reserved by calls in flight, in the current window.
        start: Names the current window: the Unix time of its beginning, or the number of the current bucket.
        ends: Unix time at which `advance` has to move the window on.
        previous: The window before, and what was spent in it (late settlements go there).
        buckets: `[number, spent, held]` of each bucket of a rolling window that still counts, oldest first.
        warned: The highest soft step that was told in this window, in percent.
    """

    __slots__ = (
        "amount",
        "buckets",
        "ends",
        "held",
        "is_rolling",
        "is_spent_at_once",
        "key",
        "previous",
        "spent",
        "start",
        "unit",
        "warn_at",
        "warn_next",
        "warned",
        "window",
    )

    def __init__(self, registered: LimitRow) -> None:
        self.key = registered.key
        self.spent = self.held = 0
        self.start = 0.0
        self.previous: tuple[float, int] = (0.0, 0)
        self.buckets: list[list[int]] = []
        self.warned = 0
        self.configure(registered.limit)
        self.ends = -inf if self.is_rolling or self.window.every else inf

    def configure(self, limit: Limit) -> None:
        """Adopt a limit's amount and soft steps; what was counted stays."""
        self.unit = limit.unit
        self.amount = limit.amount
        self.window = limit.window
        self.is_rolling = limit.window.is_rolling
        self.is_spent_at_once = limit.unit is Unit.CALLS
        self.warn_at = limit.warn_at
        self._set_next_warning()

    def advance(self, now: float) -> None:
        """Move the window on to `now`. It never moves back, whatever the clock does."""
        if now < self.ends:
            return
        if self.is_rolling:
            self._advance_buckets(now)
        else:
            self.previous = (self.start, self.spent)
            self.start, self.ends = _calendar_window(self.window.every or "", now)
            self.spent = self.held = 0
        self.warned = max((step for step in self.warn_at if step <= self.warned and self.spent * 100 >= step * self.amount), default=0)
        self._set_next_warning()

    def _advance_buckets(self, now: float) -> None:
        width = self.window.seconds / BUCKETS
        current = int(now // width)
        self.start = current
        self.ends = (current + 1) * width
        self.buckets = [bucket for bucket in self.buckets if bucket[0] >= current - BUCKETS]
        self.spent = sum(bucket[1] for bucket in self.buckets)
        self.held = sum(bucket[2] for bucket in self.buckets)

    def add(self, spent: int, held: int, start: float) -> None:
        """Count amounts in the window (or bucket) that `start` names; one that is over no longer counts."""
        if self.is_rolling:
            if not self._add_to_bucket(spent, held, int(start)):
                return
        elif start != self.start:
            if start == self.previous[0]:
                self.previous = (start, self.previous[1] + spent)
            return
        self.spent += spent
        self.held += held

    def _add_to_bucket(self, spent: int, held: int, number: int) -> bool:
        for bucket in reversed(self.buckets):
            if bucket[0] == number:
                bucket[1] += spent
                bucket[2] += held
                return True
        if number != self.start:
            return False
        self.buckets.append([number, spent, held])
        return True

    def retry_at(self, requested: int) -> float | None:
        """When enough of the window will be over for an amount to fit; None when it never will."""
        if requested > self.amount:
            return None
        if not self.is_rolling:
            return self.ends if self.ends != inf else None
        surplus = self.spent + self.held + requested - self.amount
        width = self.window.seconds / BUCKETS
        for number, spent, held in self.buckets:
            surplus -= spent + held
            if surplus <= 0:
                return (number + BUCKETS + 1) * width
        return self.ends

    def crossed(self) -> Crossed | None:
        """The soft step that `spent` has newly passed, told once a window."""
        if self.spent < self.warn_next:
            return None
        self.warned = max(step for step in self.warn_at if self.spent * 100 >= step * self.amount)
        self._set_next_warning()
        return Crossed(self.key, self.warned, self.spent, self.amount)

    def _set_next_warning(self) -> None:
        steps = [step for step in self.warn_at if step > self.warned]
        self.warn_next = -(-steps[0] * self.amount // 100) if steps else _NEVER


class Item(NamedTuple):
    """What a call holds of one row, in the window in which it was taken. `continued`: it holds more of the row in a later window."""

    row: Row
    start: float
    held: int
    continued: bool = False


def decide(rows: Sequence[Row], charges: Sequence[Charge], now: float) -> Refused | None:
    """Say whether every charge fits its row; None when all do. Takes nothing.

    An exhausted row outranks a contended one: a caller who cannot be served must not wait.
    """
    contended = None
    for row, (key, amount) in zip(rows, charges):  # noqa: B905 - one row a charge, built so by the caller; strict costs 0.2 us
        if now >= row.ends:
            row.advance(now)
        spent = row.spent
        if spent + row.held + amount <= row.amount:
            continue
        exhausted = spent + amount > row.amount
        if exhausted or contended is None:
            kind = RefusalKind.EXHAUSTED if exhausted else RefusalKind.CONTENDED
            refused = Refused(kind, key, row.amount, spent, row.held, amount, row.retry_at(amount))
            if exhausted:
                return refused
            contended = refused
    return contended


def take(rows: Sequence[Row], charges: Sequence[Charge], items: list[Item]) -> list[Crossed]:
    """Charge rows that `decide` has just let pass, note in `items` what is held, and return the soft steps passed.

    A call is spent at once: it was made, whatever comes of it. Tokens, money and concurrency are held until they settle.
    """
    crossed = []
    for row, (_, amount) in zip(rows, charges):  # noqa: B905 - as in `decide`
        if row.is_spent_at_once:
            if row.is_rolling:
                row.add(amount, 0, row.start)
            else:
                row.spent += amount
            if row.spent >= row.warn_next and (step := row.crossed()):
                crossed.append(step)
            continue
        if row.is_rolling:
            row.add(0, amount, row.start)
        else:
            row.held += amount
        items.append((row, row.start, amount, False))  # type: ignore[arg-type]  # a bare tuple is built four times as fast as an Item
    return crossed


def portion(rows: Sequence[Row], charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """The largest common share of the charges that fits every row, for rows that `decide` has just refused.

    All charges shrink in the same proportion, since they are one amount of output in several units.
    Empty when not even one unit fits.
    """
    left = [(row.amount - row.spent - row.held, charge.amount) for row, charge in zip(rows, charges, strict=True) if charge.amount]
    room, asked = min(left, key=lambda pair: pair[0] / pair[1], default=(0, 1))
    if room < 1:
        return ()
    return tuple(Charge(charge.row, charge.amount * min(room, asked) // asked) for charge in charges)


def enlarge(rows: Sequence[Row], charges: Sequence[Charge], items: list[Item]) -> None:
    """Add to what a call holds. An amount taken after the window has moved on is held in the new window."""
    for row, (_, amount) in zip(rows, charges, strict=True):
        row.add(0, amount, row.start)
        position = max((place for place, item in enumerate(items) if item[0] is row), default=-1)
        if position >= 0 and items[position][1] == row.start:
            items[position] = Item(row, row.start, items[position][2] + amount)
            continue
        if position >= 0:
            items[position] = Item(row, items[position][1], items[position][2], continued=True)
        items.append(Item(row, row.start, amount))


def give(items: Sequence[Item], actual: Amounts) -> list[Crossed]:
    """Replace what a call holds by what it used, each part in the window in which it was taken.

    Usage beyond the reservation is charged all the same; the next decision sees it.
    """
    unplaced: dict[str, int] = {}
    crossed = []
    for row, start, held, continued in items:
        used = actual.of(row.unit)
        if unplaced:
            used = unplaced.get(row.key, used)
        if continued:
            unplaced[row.key] = max(used - held, 0)
            used = min(used, held)
        if row.is_rolling or start != row.start:
            row.add(used, -held, start)
        else:
            row.spent += used
            row.held -= held
        if row.spent >= row.warn_next and (step := row.crossed()):
            crossed.append(step)
    return crossed


def charges_of(rows: Iterable[LimitRow], by_unit: Mapping[Unit, int]) -> tuple[Charge, ...]:
    """The charges of a call: for each of its rows, the amount that the call asks for in the row's unit."""
    return tuple(Charge(row.key, by_unit[row.limit.unit]) for row in rows if by_unit[row.limit.unit])


def _calendar_window(every: str, now: float) -> tuple[float, float]:
    if every in _FIXED_SECONDS:
        length = _FIXED_SECONDS[every]
        start = now // length * length
        return start, start + length
    moment = datetime.fromtimestamp(now, UTC)
    start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    following = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    return start.timestamp(), following.timestamp()

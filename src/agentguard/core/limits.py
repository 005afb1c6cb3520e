"""The algebra of limits: rows that count, and the verbs on them: decide, take, enlarge, give.

A row is what one limit has counted against one subject. Every store keeps rows, and every store decides with the
functions here: the memory store under its lock, SQLite inside its transaction. They read no clock and do no I/O,
so the same history gives the same answers everywhere.

The law: after any `take` that `decide` has let pass, `spent + held <= amount` in every row. `decide` looks at all rows
before anything is taken, so a call is charged everywhere or nowhere.
"""

from __future__ import annotations

from array import array
from copy import copy
from datetime import UTC, datetime
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentguard.policy.model import Limit, Unit, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BUCKETS = 60
"""Sub-buckets of a rolling window. One more is counted: what was spent comes back late by at most 1/60, never early."""

_FIXED_SECONDS = {"minute": 60, "hour": 3600, "day": 86400}
_NEVER = 1 << 62

AMOUNTS = frozenset({Unit.TOKENS, Unit.USD})
"""The units of which a call reserves more than it may use, and is charged what it did."""

_new = tuple.__new__


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


class Counted(Protocol):
    """What is counted in one row, in the unit of its limit."""

    @property
    def row(self) -> str:
        """The row's key."""

    @property
    def spent(self) -> int:
        """What settled calls have used."""

    @property
    def held(self) -> int:
        """What calls in flight hold."""


class Charge(NamedTuple):
    """An amount asked of one row, in its limit's unit."""

    row: str
    amount: int


class Amounts(NamedTuple):
    """What was used of the units that are settled: tokens and nano-USD; and calls, of a slice, which holds them for later.

    A call itself is spent when it is admitted, so its own settlement names none.
    """

    tokens: int = 0
    nanos: int = 0
    calls: int = 0

    def of(self, unit: Unit) -> int:
        """The amount in a unit. Concurrency is given back, so it never settles."""
        match unit:
            case Unit.TOKENS:
                return self.tokens
            case Unit.USD:
                return self.nanos
            case Unit.CALLS:
                return self.calls
            case _:
                return 0


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


_NOTHING = 3
_SETTLES_AS = {Unit.TOKENS: 0, Unit.USD: 1, Unit.CALLS: 2, Unit.CONCURRENT_CALLS: _NOTHING}
"""Where `give` finds what was used, in `(tokens, nanos, calls, 0)`: concurrency is given back."""


class State(NamedTuple):
    """What a row has counted, as a store writes it down: the fields of `Row`, `buckets` as the machine's 64-bit integers."""

    spent: int = 0
    held: int = 0
    start: float = 0.0
    ends: float = -inf
    warned: int = 0
    warned_in: float = 0.0
    buckets: bytes = b""


class Row:
    """What one limit has counted against one subject. Mutable, and guarded by the store that owns it.

    Attributes:
        key: Names the counter.
        id: The store's own name for it, which is not used again when the row is forgotten.
        spent: Settled, in the current window.
        taken: Spent and held, in the current window: what the law bounds by `amount`.
        start: Names the current window by the Unix time of its beginning.
        ends: Unix time at which `advance` has to move the window on.
        warned: The highest soft step that was told, in percent, and in `warned_in` the window in which it was.
        is_held: Amounts are held until they settle. Calls are not, except by a slice: a call was made, whatever comes of it.
        is_plain: Amounts are held, and in a window that does not slide: the case that is worth being fast.
    """

    __slots__ = (
        "amount",
        "ends",
        "id",
        "is_held",
        "is_plain",
        "key",
        "settles_as",
        "spent",
        "start",
        "taken",
        "warn_at",
        "warn_next",
        "warned",
        "warned_in",
        "window",
    )

    spent: int
    taken: int
    start: float
    warned_in: float
    warn_next: int

    def __init__(self, key: str, limit: Limit, id: int = 0) -> None:
        self.key: str = key
        self.id: int = id
        self.window: Window = _window_of(limit)
        self.is_held: bool = limit.unit is not Unit.CALLS
        self.is_plain: bool = self.is_held and not self.window.is_rolling
        self.settles_as: int = _SETTLES_AS[limit.unit]
        self.amount: int = limit.amount
        self.warn_at: tuple[int, ...] = limit.warn_at
        self.ends: float = 0.0
        self.warned: int = -1
        self.restore(State(ends=inf if self.window == Window.LIFE else -inf))

    @classmethod
    def of(cls, key: str, limit: Limit, id: int = 0) -> Row:
        """The row of a limit that has counted nothing."""
        return (RollingRow if _window_of(limit).is_rolling else Row)(key, limit, id)

    @property
    def held(self) -> int:
        """Reserved by calls in flight, in the current window."""
        return self.taken - self.spent

    def configure(self, limit: Limit) -> None:
        """Adopt a limit's amount and soft steps; what was counted stays. A step no longer passed can be told again."""
        self.amount = limit.amount
        self.warn_at = limit.warn_at
        self._forget_steps_not_passed()

    def advance(self, now: float) -> None:
        """Move the window on to `now`. It never moves back, whatever the clock does."""
        if now < self.ends:
            return
        self.start, self.ends = _calendar_window(self.window.every or "", now)
        self.spent = self.taken = 0
        self._forget_steps_not_passed()

    def at(self, now: float) -> Row:
        """The row as it stands at `now`: to be read, not written. Only what asks for amounts moves a row on."""
        if now < self.ends:
            return self
        twin = copy(self)
        twin.restore(self.state())
        twin.advance(now)
        return twin

    def add(self, spent: int, held: int, start: float) -> None:
        """Count amounts in the window that `start` names; one that is over no longer counts."""
        if start == self.start:
            self.spent += spent
            self.taken += spent + held

    def retry_at(self, requested: int) -> float | None:
        """When enough of the window will be over for an amount to fit; None when it never will."""
        return None if requested > self.amount or self.ends == inf else self.ends

    def crossed(self) -> Crossed | None:
        """The soft step that `spent` has newly passed, told once a window."""
        if self.spent < self.warn_next:
            return None
        self.warned = max(step for step in self.warn_at if self._is_passed(step))
        self.warned_in = self.start
        self._set_next_step()
        return Crossed(self.key, self.warned, self.spent, self.amount)

    def state(self) -> State:
        """What has been counted, to be written down."""
        return State(self.spent, self.taken - self.spent, self.start, self.ends, self.warned, self.warned_in)

    def restore(self, state: State) -> None:
        """Go on from what was written down."""
        self.spent, held, self.start, self.ends, warned, self.warned_in, _ = state
        self.taken = self.spent + held
        if warned != self.warned:
            self.warned = warned
            self._set_next_step()

    def _is_passed(self, step: int) -> bool:
        return self.spent * 100 >= step * self.amount

    def _forget_steps_not_passed(self) -> None:
        self.warned = max((step for step in self.warn_at if step <= self.warned and self._is_passed(step)), default=0)
        self._set_next_step()

    def _set_next_step(self) -> None:
        step = next((step for step in self.warn_at if step > self.warned), None)
        self.warn_next = _NEVER if step is None else -(-step * self.amount // 100)


class RollingRow(Row):
    """A row whose window slides. It is counted in buckets of 1/60 of its length; `start` is the number of the current one.

    A bucket counts until the whole window has passed since its *end*: what was taken in bucket b is given back when
    bucket b + 61 begins, more than 60 widths after the taking, and at most 61.

    Attributes:
        buckets: Number, spent and held of each bucket that was used and still counts, oldest first, one after the other.
        width: The length of a bucket in seconds.
    """

    __slots__ = ("buckets", "width")

    spent: int
    taken: int
    start: float
    ends: float
    buckets: array[int]
    width: float

    def advance(self, now: float) -> None:
        """Move the window on to `now`. It never moves back, whatever the clock does."""
        if now < self.ends:
            return
        current = int(now // self.width)
        self.start = float(current)
        self.ends = (current + 1) * self.width
        self._drop_buckets_before(current - BUCKETS)
        if self.warned and self.warned_in < current - BUCKETS:  # a step that comes and goes within a window is told once
            self._forget_steps_not_passed()

    def add(self, spent: int, held: int, start: float) -> None:
        """Count amounts in the bucket that `start` names; one that is over no longer counts."""
        buckets = self.buckets
        for place in range(len(buckets) - 3, -1, -3):
            if buckets[place] == start:
                break
        else:
            if start != self.start:
                return
            place = len(buckets)
            buckets.extend((int(start), 0, 0))
        buckets[place + 1] += spent
        buckets[place + 2] += held
        self.spent += spent
        self.taken += spent + held

    def retry_at(self, requested: int) -> float | None:
        """When enough of the window will be over for an amount to fit; None when it never will."""
        if requested > self.amount:
            return None
        surplus = self.taken + requested - self.amount
        buckets = self.buckets
        for place in range(0, len(buckets), 3):
            surplus -= buckets[place + 1] + buckets[place + 2]
            if surplus <= 0:
                return (buckets[place] + BUCKETS + 1) * self.width
        return self.ends

    def state(self) -> State:
        """What has been counted, to be written down."""
        return super().state()._replace(buckets=self.buckets.tobytes())

    def restore(self, state: State) -> None:
        """Go on from what was written down."""
        super().restore(state)
        self.width = self.window.seconds / BUCKETS
        self.buckets = array("q", state.buckets)

    def _drop_buckets_before(self, oldest: int) -> None:
        buckets = self.buckets
        over = 0
        while over < len(buckets) and buckets[over] < oldest:
            self.spent -= buckets[over + 1]
            self.taken -= buckets[over + 1] + buckets[over + 2]
            over += 3
        del buckets[:over]


class Item(NamedTuple):
    """What a call holds of one row, in the window in which it was taken. `continued`: it holds more, in a later window."""

    row: Row
    start: float
    held: int
    continued: bool = False


def decide(rows: Mapping[str, Row], charges: Sequence[Charge], now: float) -> dict[str, Row] | Refused:
    """Say whether every charge fits its row: the rows, in the order of the charges, when all do. Takes nothing.

    A row that is missing outranks all, since it is never read as "nothing spent"; an exhausted row outranks a contended
    one, since a caller who cannot be served must not wait.

    Raises:
        ValueError: A row is charged twice: each charge might fit where both do not.
    """
    fitting: dict[str, Row] = {}
    try:
        for key, amount in charges:
            fitting[key] = row = rows[key]
            if now >= row.ends:
                row.advance(now)
            if row.taken + amount > row.amount:
                return _refusal(rows, charges, now)
    except KeyError as missing:
        return Refused(RefusalKind.UNREGISTERED, missing.args[0])
    if len(fitting) < len(charges):
        raise ValueError(f"a request charges a row twice: {', '.join(charge.row for charge in charges)}")
    return fitting


def _refusal(rows: Mapping[str, Row], charges: Sequence[Charge], now: float) -> Refused:
    first: dict[RefusalKind, Refused] = {}
    for key, amount in charges:
        row = rows.get(key)
        if row is None:
            return Refused(RefusalKind.UNREGISTERED, key)
        row.advance(now)
        if row.taken + amount > row.amount:
            kind = RefusalKind.EXHAUSTED if row.spent + amount > row.amount else RefusalKind.CONTENDED
            first.setdefault(kind, Refused(kind, key, row.amount, row.spent, row.held, amount, row.retry_at(amount)))
    return first.get(RefusalKind.EXHAUSTED) or first[RefusalKind.CONTENDED]


def take(rows: Iterable[Row], charges: Sequence[Charge], crossed: list[Crossed], *, holds_calls: bool = False) -> list[Item]:
    """Charge the rows that `decide` has just named. Returns what is held; soft steps that were passed are added to `crossed`.

    Calls are spent at once, unless they are held for calls yet to be made (`holds_calls`).
    """
    items: list[Item] = []
    for row, (_, amount) in zip(rows, charges):  # noqa: B905 - `decide` gave a row for each charge; `strict` costs 0.2 us
        if row.is_plain:
            row.taken += amount
        elif row.is_held or holds_calls:
            row.add(0, amount, row.start)
        else:
            row.add(amount, 0, row.start)
            if row.spent >= row.warn_next:
                _tell(row, crossed)
            continue
        items.append((row, row.start, amount, False))  # type: ignore[arg-type]  # an Item costs four times as much
    return items


def portion(rows: Iterable[Row], charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """The largest common share of the charges that fits every row, for rows that `decide` has just refused.

    All charges shrink in the same proportion, since they are one amount of output in several units.
    Empty when the share of any of them is less than one unit.
    """
    room, asked = 1, 1
    for row, (_, amount) in zip(rows, charges, strict=True):
        left = row.amount - row.taken
        if left * asked < room * amount:  # left / amount < room / asked, without rounding
            room, asked = left, amount
    share = tuple(Charge(key, amount * room // asked) for key, amount in charges)
    return share if all(part.amount > 0 for part, charge in zip(share, charges, strict=True) if charge.amount) else ()


def enlarge(
    rows: Iterable[Row], charges: Sequence[Charge], items: list[Item], crossed: list[Crossed], *, holds_calls: bool = False
) -> None:
    """Add to what a call holds. An amount taken after the window has moved on is held in the new window."""
    for more in take(rows, charges, crossed, holds_calls=holds_calls):
        row, start, amount, _ = more
        place = max((place for place, item in enumerate(items) if item[0] is row), default=None)
        if place is None:
            items.append(more)
            continue
        _, held_since, held, _ = items[place]
        if held_since == start:
            items[place] = Item(row, start, held + amount)
        else:
            items[place] = Item(row, held_since, held, continued=True)
            items.append(more)


def give(items: Iterable[Item], actual: Amounts, now: float, crossed: list[Crossed]) -> None:
    """Replace what a call holds by what it used, each part in the window in which it was taken.

    Usage beyond the reservation is charged all the same; the next decision sees it.
    """
    used_in = (*actual, 0)
    placed: dict[Row, int] = {}
    for row, start, held, continued in items:
        if now >= row.ends:
            row.advance(now)
        used = used_in[row.settles_as]
        if placed:
            used = max(used - placed.get(row, 0), 0)
        if continued:
            used = min(used, held)
            placed[row] = placed.get(row, 0) + used
        row.add(used, -held, start)
        if row.spent >= row.warn_next:
            _tell(row, crossed)


def charge(items: Iterable[Item]) -> None:
    """Settle a call that nobody will settle: tokens and money that it held are spent, its place among calls at once is free."""
    for row, start, held, _ in items:
        row.add(0 if row.settles_as == _NOTHING else held, -held, start)


def calls_that_fit(rows: Iterable[Row], charges: Sequence[Charge], calls: int, share: int) -> int:
    """How many calls like this one a slice may hold: at most `calls`, and no more of any row than one `share`-th of what is left.

    So each slice leaves most to others, however many there are, and slices shrink as the limit comes near.
    """
    for row, (_, amount) in zip(rows, charges, strict=True):
        if amount:
            calls = min(calls, max(row.amount - row.taken, 0) // (share * amount))
    return calls


def spend(items: Iterable[Item], used: Amounts, keep: Mapping[str, int], crossed: list[Crossed]) -> list[Item]:
    """Spend what was used of a slice, and go on holding of each row what is kept, each part in the window in which it was taken.

    Returns what is held now. What was taken first is used first, and kept last. No row moves on: nothing is asked of any.
    """
    used_in = (*used, 0)
    unspent: dict[Row, int] = {}
    unkept = dict(keep)
    items = list(items)
    for row, _, _, _ in items:
        unspent[row] = used_in[row.settles_as]
    kept: list[Item] = []
    for row, start, held, continued in items:
        spent = min(unspent[row], held) if continued else unspent[row]
        rest = unkept.get(row.key, 0)
        if continued:
            rest = min(rest, held - spent)
        unspent[row] -= spent
        unkept[row.key] = unkept.get(row.key, 0) - rest
        row.add(spent, rest - held, start)
        kept.append(Item(row, start, rest, continued))
        if row.spent >= row.warn_next:
            _tell(row, crossed)
    return kept


def _tell(row: Row, crossed: list[Crossed]) -> None:
    if step := row.crossed():
        crossed.append(step)


def _window_of(limit: Limit) -> Window:
    return Window.LIFE if limit.unit is Unit.CONCURRENT_CALLS else limit.window  # a call in flight is no less so at midnight


def charges_of(charged: Iterable[tuple[str, int]], asked: Sequence[int]) -> tuple[Charge, ...]:
    """The charges of a call: for the key of each of its rows, what stands in its place in `asked`, if that is not nothing."""
    # A NamedTuple made by its own name costs a call of Python, and there are as many of these as a call has limits.
    return tuple([_new(Charge, (key, amount)) for key, place in charged if (amount := asked[place])])


def _calendar_window(every: str, now: float) -> tuple[float, float]:
    if every in _FIXED_SECONDS:
        length = _FIXED_SECONDS[every]
        start = now // length * length
        return start, start + length
    if every != "month":
        raise ValueError(f"{every!r} is no window: expected minute, hour, day or month")
    moment = datetime.fromtimestamp(now, UTC)
    first = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    following = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    return first.timestamp(), following.timestamp()

"""The little language of amounts, durations, percentages and ranges, and how each is written back.

<n> tokens | $<n> | <n> calls | <n> concurrent_calls | <n>_requests_per_<second|minute|hour|day>
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import NamedTuple

from agentguard.policy.model import MILLION, NANOS_PER_USD, Limit, Unit, Window

MAX_AMOUNT = 2**53 - 1
"""The largest amount: what every store, Lua's numbers included, counts exactly."""

_NUMBER = r"(?P<digits>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)(?P<factor>[kKmM]?)"
_MONEY = re.compile(rf"\$ ?{_NUMBER}")
_COUNT = re.compile(rf"{_NUMBER}[ _]+(?P<unit>tokens?|calls?|concurrent[ _]calls?)")
_RATE = re.compile(rf"{_NUMBER}[ _]+requests?[ _]+per[ _]+(?P<period>second|minute|hour|day)")
_CALL_RATE = re.compile(rf"(?P<count>{_NUMBER})[ _]+calls?[ _]+per[ _]+(?P<period>second|minute|hour|day)")
_DURATION = re.compile(r"(?P<digits>[0-9]{1,15}(?:\.[0-9]{1,9})?)(?P<unit>ms|s|m|h|d)")
_RANGE = re.compile(r"(?P<low>[0-9]{1,15}(?:\.[0-9]{1,9})?) ?- ?(?P<high>[0-9]{1,15}(?:\.[0-9]{1,9})?)")
_PERCENT = re.compile(r"([0-9]{1,3}) ?%")
_PART = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%")

_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}
_UNITS = {"tokens": Unit.TOKENS, "calls": Unit.CALLS, "concurrent_calls": Unit.CONCURRENT_CALLS}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_DURATION_SECONDS = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86_400),
}
CLOCK_WINDOWS = ("minute", "hour", "day", "month")
"""The windows that follow the clock in UTC."""


class WrittenAmount(NamedTuple):
    """What a limit bounds.

    Attributes:
        amount: In the unit; money in nano-USD.
        unit: What is counted.
        rate_seconds: The length of a rate's window; None for what is no rate.
        text: As it was written.
    """

    amount: int
    unit: Unit
    rate_seconds: float | None
    text: str


def read_amount(text: str) -> WrittenAmount:
    """Read `5000 tokens`, `$20.00`, `50 calls`, `4 concurrent_calls` or `1000_requests_per_hour`.

    Raises:
        ValueError: It is none of them, or out of range.
    """
    plain = text.strip()
    if money := _MONEY.fullmatch(plain):
        return WrittenAmount(_bounded(text, _nanos(text, money)), Unit.USD, None, text)
    if count := _COUNT.fullmatch(plain):
        unit = count["unit"].replace(" ", "_").rstrip("s") + "s"
        return WrittenAmount(_bounded(text, _whole(text, count)), _UNITS[unit], None, text)
    if rate := _RATE.fullmatch(plain):
        return WrittenAmount(_bounded(text, _whole(text, rate)), Unit.CALLS, float(_SECONDS[rate["period"]]), text)
    if calls := _CALL_RATE.fullmatch(plain):
        raise ValueError(f"a rate counts requests: write '{calls['count']}_requests_per_{calls['period']}', found {text!r}")
    raise ValueError(f'expected an amount such as "$5.00" or "5000 tokens", found {text!r}')


def write_amount(limit: Limit) -> str:
    """A limit's amount, as `read_amount` reads it: as it was written, if that still says the same."""
    rate_seconds = limit.window.seconds if limit.unit is Unit.CALLS and limit.window.is_rolling else None
    period = next((name for name, seconds in _SECONDS.items() if seconds == rate_seconds), None)
    if limit.text:
        said = _said(limit.text)
        if said and said[:2] == (limit.amount, limit.unit) and said.rate_seconds in (None, rate_seconds):
            return limit.text
    if limit.unit is Unit.USD:
        return write_money(limit.amount)
    if period is not None:
        return f"{limit.amount}_requests_per_{period}"
    return f"{limit.amount} {limit.unit}"


def _said(text: str) -> WrittenAmount | None:
    try:
        return read_amount(text)
    except ValueError:
        return None


def read_money(text: object) -> int:
    """Read `$1.25` into nano-USD.

    Raises:
        ValueError: It is no text, no amount of money, or finer than a nano-dollar.
    """
    money = _MONEY.fullmatch(text.strip()) if isinstance(text, str) else None
    if money is None:
        why = "; a number may already have been rounded" if isinstance(text, float) else ""
        raise ValueError(f'expected money as text such as "$1.25", found {text!r}{why}')
    return _nanos(str(text), money)


def write_money(nanos: int) -> str:
    """Nano-USD as `$1.25`: cents at least, and every digit that counts."""
    dollars, rest = divmod(nanos, NANOS_PER_USD)
    return f"${dollars}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"


def read_window(text: str) -> Window:
    """Read `minute`, `hour`, `day` or `month` (by the clock), or a duration such as `90s` (rolling).

    Raises:
        ValueError: It is neither.
    """
    if text in CLOCK_WINDOWS:
        return Window(every=text)
    if _DURATION.fullmatch(text.strip()):
        return Window(seconds=read_duration(text))
    raise ValueError(f'expected minute, hour, day, month or a rolling duration such as "90s", found {text!r}')


def write_window(window: Window) -> str | None:
    """What `every:` says; None for a whole life."""
    return write_duration(window.seconds) if window.is_rolling else window.every


def read_duration(text: object) -> float:
    """Read `90s`, `5m`, `24h`, `250ms` or `30d` into seconds; more than none.

    Raises:
        ValueError: It is no duration.
    """
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'expected a duration such as "90s", "5m" or "24h", found {text!r}')
    seconds = Decimal(match["digits"]) * _DURATION_SECONDS[match["unit"]]
    if not seconds:
        raise ValueError(f"a duration is longer than nothing, found {text!r}")
    return float(seconds)


def write_duration(seconds: float) -> str:
    """Seconds as `read_duration` reads them."""
    return f"{_plain(seconds)}s"


def read_percent(text: object) -> int:
    """Read `80%`.

    Raises:
        ValueError: It is no whole percentage from 1 to 100.
    """
    match = _PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or not 1 <= int(match[1]) <= 100:
        raise ValueError(f'expected a percentage from "1%" to "100%", found {text!r}')
    return int(match[1])


def read_part(text: object) -> int:
    """Read `12.5%` into millionths.

    Raises:
        ValueError: It is no percentage above nothing and up to 100.
    """
    match = _PART.fullmatch(text.strip()) if isinstance(text, str) else None
    part = int(Decimal(match[1]) * 10_000) if match else 0
    if not 0 < part <= MILLION:
        raise ValueError(f'expected a percentage from "0.0001%" to "100%", found {text!r}')
    return part


def write_part(millionths: int) -> str:
    """Millionths as `read_part` reads them."""
    return f"{_plain(millionths / 10_000)}%"


def read_range(text: object) -> tuple[float, float]:
    """Read `500-1000`.

    Raises:
        ValueError: It is no range, or its ends are the wrong way round.
    """
    match = _RANGE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'expected a range such as "500-1000", found {text!r}')
    low, high = float(match["low"]), float(match["high"])
    if low > high:
        raise ValueError(f"a range goes up: write '{match['high']}-{match['low']}', found {text!r}")
    return low, high


def write_range(ends: tuple[float, float]) -> str:
    """A range as `read_range` reads it."""
    return f"{_plain(ends[0])}-{_plain(ends[1])}"


def _plain(number: float) -> str:
    """A number without an exponent, exactly as `float` reads it back."""
    text = format(Decimal(repr(float(number))), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole(text: str, match: re.Match[str]) -> int:
    number = _scaled(match)
    if number != int(number):
        raise ValueError(f"expected a whole number, found {text!r}")
    return int(number)


def _nanos(text: str, match: re.Match[str]) -> int:
    nanos = _scaled(match) * NANOS_PER_USD
    if nanos != int(nanos):
        raise ValueError(f"money is counted in billionths of a dollar: {text!r} is finer")
    return int(nanos)


def _scaled(match: re.Match[str]) -> Decimal:
    digits = match["digits"].replace("_", "")
    if len(digits) > 27:  # Decimal's context holds 28 digits exactly; no budget needs them
        raise ValueError(f"{digits[:12]}... is too large")
    return Decimal(digits) * _FACTORS[match["factor"].lower()]


def _bounded(text: str, amount: int) -> int:
    if amount < 1:
        raise ValueError(f"a limit needs more than nothing, found {text!r}")
    if amount > MAX_AMOUNT:
        raise ValueError(f"{text!r} is more than can be counted exactly ({MAX_AMOUNT} tokens or calls, or $9007199.25)")
    return amount

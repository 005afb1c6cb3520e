"""Rows and answers as the scripts write them (`lua/rows.lua` says how)."""

from __future__ import annotations

import json
import struct
from array import array
from typing import TYPE_CHECKING, Any

from agentguard.core.limits import Crossed, LimitRow, RefusalKind, Refused, RollingRow, Row, State
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores._rows import _dump_limit, _load_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = (Unit.TOKENS, Unit.USD, Unit.CALLS, Unit.CONCURRENT_CALLS)
_PERIODS = (None, "minute", "hour", "day", "month")
_ROLLING = 5
_HEAD = struct.Struct("<13d")
_ITEM = struct.Struct("<4d")
_SIZE = struct.Struct("<I")

MOST_EXACT = 1 << 53
"""Lua counts in doubles: integers are exact up to here, $9.0 million in nano-USD."""

MICROS = 1_000_000


def encoded(words: Sequence[str | bytes | int]) -> list[str | bytes | int]:
    """Words of which UTF-8 has none: an id that came from a file's name or from JSON may have lone surrogates."""
    return [word.encode("utf-8", "surrogatepass") if isinstance(word, str) else word for word in words]


def decoded(word: bytes) -> str:
    """A word as it was before it was sent."""
    return word.decode("utf-8", "surrogatepass")


def pack_row(row: Row, limit: Limit) -> bytes:
    """A row as a script reads it. It has no id yet: the server gives one."""
    state = row.state()
    window = row.window
    code = _UNITS.index(limit.unit) + 10 * (_ROLLING if window.is_rolling else _PERIODS.index(window.every))
    head = _HEAD.pack(
        state.held, 0, state.spent, row.amount, state.ends, state.start, code, 0, float(row.warn_next), state.warned,
        state.warned_in, window.seconds, len(row.warn_at),
    )  # fmt: skip
    rest = (*row.warn_at, *(row.buckets if isinstance(row, RollingRow) else ()))
    return head + struct.pack(f"<{len(rest)}d", *rest)


def unpack_row(key: str, packed: bytes) -> Row:
    """The row that a script has written."""
    held, _, spent, amount, ends, start, code, row_id, _, warned, warned_in, seconds, steps = _HEAD.unpack_from(packed)
    period, unit = divmod(int(code), 10)
    rest = [int(number) for number in struct.unpack_from(f"<{(len(packed) - _HEAD.size) // 8}d", packed, _HEAD.size)]
    warn_at, buckets = rest[: int(steps)], rest[int(steps) :]
    window = Window(seconds=seconds) if period == _ROLLING else Window(_PERIODS[period])
    row = Row.of(key, Limit(amount=int(amount), unit=_UNITS[unit], window=window, warn_at=tuple(warn_at)), int(row_id))
    row.restore(State(int(spent), int(held), start, ends, int(warned), warned_in, array("q", buckets).tobytes()))
    return row


def pack_registration(row: LimitRow) -> str:
    """What is written down of a limit, for the operator and to see that it has changed."""
    return json.dumps([row.subject, _dump_limit(row.limit)])


def unpack_registration(key: str, text: bytes) -> LimitRow:
    """The row of a limit that was written down."""
    subject, limit = json.loads(text)
    return LimitRow(key, subject, _load_limit(limit))


def unpack_hold(packed: bytes) -> tuple[str, list[tuple[str, int, int]]]:
    """Who holds, and what of each row: its key as the server has it, its id, the amount."""
    holder, at = _unpack_text(packed, 0)
    _, at = _unpack_text(packed, at)
    items = []
    while at < len(packed):
        key, at = _unpack_text(packed, at)
        row_id, _, held, _ = _ITEM.unpack_from(packed, at)
        at += _ITEM.size
        items.append((decoded(key), int(row_id), int(held)))
    return holder.decode(), items


def _unpack_text(packed: bytes, at: int) -> tuple[bytes, int]:
    (size,) = _SIZE.unpack_from(packed, at)
    at += _SIZE.size
    return packed[at : at + size], at + size


def refused_of(answer: list[Any], prefix: int) -> Refused:
    """A refusal as a script says it; `prefix` is the length of what stands in front of a row's key."""
    kind, word, amount, spent, held, requested, retry_at = answer
    refusal = RefusalKind(kind.decode())
    row = decoded(word)
    return Refused(
        refusal,
        row if refusal is RefusalKind.ISOLATED else row[prefix:],
        amount,
        spent,
        held,
        requested,
        float(retry_at) if retry_at else None,
    )


def crossed_of(steps: list[Any], prefix: int) -> tuple[Crossed, ...]:
    """Soft steps as a script tells them."""
    return tuple(Crossed(decoded(key)[prefix:], *numbers) for key, *numbers in steps)

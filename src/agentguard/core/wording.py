"""How amounts and refusals are said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

from agentguard.policy.model import NANOS_PER_USD, Unit

if TYPE_CHECKING:
    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.limits import LimitRow, Refused


def usd_text(nanos: int) -> str:
    """`$5.00`, or as many digits as it takes to show a small amount: `$0.0131`."""
    sign, nanos = ("-", -nanos) if nanos < 0 else ("", nanos)
    whole, part = divmod(nanos, NANOS_PER_USD)
    digits = f"{part:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits[: max(4, _first_digit(digits) + 2)] if whole == 0 else digits[:4]}"


def who(caller: Caller) -> str:
    """The caller, as the subject of a sentence."""
    return f"agent {caller.agent!r}" if caller.agents else "a caller without an agent"


def amount_text(amount: int, unit: Unit) -> str:
    """An amount with its unit, as a person writes it."""
    match unit:
        case Unit.USD:
            return usd_text(amount)
        case Unit.TOKENS:
            return f"{amount:,} tokens"
        case Unit.CALLS:
            return "1 call" if amount == 1 else f"{amount:,} calls"
        case Unit.CONCURRENT_CALLS:
            return "1 call at once" if amount == 1 else f"{amount:,} calls at once"
        case _:
            assert_never(unit)


def refusal_sentence(refused: Refused, row: LimitRow, call: Call, caller: Caller) -> str:
    """What was asked for, what is left of which limit, where the limit stands, and when it starts anew."""
    limit = row.limit
    left = max(refused.amount - refused.spent - refused.held, 0)
    held = f" ({amount_text(refused.held, limit.unit)} held by calls in flight)" if refused.held and limit.unit is not Unit.CONCURRENT_CALLS else ""
    period = _PERIODS.get(limit.window.every or "", f"in {limit.window}" if limit.window.is_rolling else "")
    of = f"{row.subject.partition('@')[0]} has" if row.subject.partition(":")[0] != "agent" else "there is"
    place = limit.rule.place or limit.rule.name
    text = (
        f"{who(caller)} asked for {amount_text(refused.requested, limit.unit)} for {call.name!r} "
        f"but {of} {amount_text(left, limit.unit)} of {amount_text(refused.amount, limit.unit)} left{f' {period}' if period else ''}{held} ({place})"
    )
    return f"{text}; resets {_moment(refused.retry_at)}." if refused.retry_at is not None else f"{text}."


_PERIODS = {"minute": "this minute", "hour": "this hour", "day": "today", "month": "this month"}


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _first_digit(digits: str) -> int:
    return len(digits) - len(digits.lstrip("0"))

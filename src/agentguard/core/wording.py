"""How amounts and refusals are said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

from agentguard.policy.model import NANOS_PER_USD, Unit

if TYPE_CHECKING:
    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.limits import LimitRow, Refused
    from agentguard.policy.model import Limit


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


def left_text(left: int, amount: int, unit: Unit) -> str:
    """What is left of a limit: `13 of 1,000 tokens are left`, `$0.0131 of $5.00 is left`."""
    if unit is Unit.USD:
        return f"{usd_text(left)} of {usd_text(amount)} is left"
    return f"{left:,} of {amount_text(amount, unit)} {'is' if amount == 1 else 'are'} left"


def subject_text(row: LimitRow) -> str:
    """Whose limit it is, when it is not the agent's own: ` for session 42`."""
    kind, _, name = row.subject.partition("@")[0].partition(":")
    match kind:
        case "agent":
            return ""
        case "budget":
            return " of this budget block"
        case "fleet":
            return " for the fleet"
        case "share":
            return f" in {name}'s share of the fleet's limit"
        case _:
            return f" for {kind} {name}"


def refusal_sentence(refused: Refused, row: LimitRow, call: Call, caller: Caller) -> str:
    """What was asked for, what is left of which limit, where the limit stands, and when it starts anew."""
    limit = row.limit
    left = left_text(max(refused.amount - refused.spent - refused.held, 0), refused.amount, limit.unit)
    counts_holds = refused.held and limit.unit is not Unit.CONCURRENT_CALLS
    held = f" ({amount_text(refused.held, limit.unit)} held by calls in flight)" if counts_holds else ""
    asked = f"{who(caller)} asked for {amount_text(refused.requested, limit.unit)} for {call.name!r}"
    return (
        f"{asked} but {left}{subject_text(row)}{_period(limit)}{held} ({limit.rule.place or limit.rule.name}){_reset(refused)}."
    )


def cut_sentence(refused: Refused, row: LimitRow, call: Call, caller: Caller) -> str:
    """Why a stream was cut: it has outgrown what it had reserved, and nothing is left of which limit."""
    limit = row.limit
    used = f"{amount_text(refused.amount, limit.unit)}{subject_text(row)}{_period(limit)}"
    where = limit.rule.place or limit.rule.name
    return f"{who(caller)} was cut off in {call.name!r}: it has used up what was left of {used} ({where}){_reset(refused)}."


def _period(limit: Limit) -> str:
    period = _PERIODS.get(limit.window.every or "", f"in {limit.window}" if limit.window.is_rolling else "")
    return f" {period}" if period else ""


def _reset(refused: Refused) -> str:
    return f"; resets {_moment(refused.retry_at)}" if refused.retry_at is not None else ""


_PERIODS = {"minute": "this minute", "hour": "this hour", "day": "today", "month": "this month"}


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _first_digit(digits: str) -> int:
    return len(digits) - len(digits.lstrip("0"))

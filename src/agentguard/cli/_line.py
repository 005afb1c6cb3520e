"""A record of the event log as one line for people."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agentguard.cli._command import clean, one_line
from agentguard.core.wording import usd_text

if TYPE_CHECKING:
    from collections.abc import Callable

    Record = dict[str, Any]

_HALF_A_DAY_SECONDS = 43_200
_NARROW_COLUMNS = 100
_NARROW_AGENT = 12
_WIDE_AGENT = 24
_DENIALS = frozenset({"call_denied", "tool_proposed"})


class _Said(NamedTuple):
    """A word, its colour, and the rest of the line."""

    word: str
    colour: str | None
    text: str


def is_denial(record: Record) -> bool:
    """Whether a record tells of a refusal."""
    return record["kind"] in _DENIALS or record.get("outcome") in {"denied", "cut"}


def line(record: Record) -> str:
    """The record in local time. A kind that is not known here is named."""
    at = record["at_us"] / 1_000_000
    moment = datetime.fromtimestamp(at).astimezone()
    stamp = moment.strftime("%H:%M:%S" if time.time() - at < _HALF_A_DAY_SECONDS else "%Y-%m-%d %H:%M:%S")
    word, colour, text = _SAYINGS.get(record["kind"], _unknown)(record)
    agent = clean(str(record.get("agent") or "-"))
    room = _NARROW_AGENT if sys.stdout.isatty() and shutil.get_terminal_size().columns < _NARROW_COLUMNS else _WIDE_AGENT
    name = agent if len(agent) <= room else f"{agent[: room - 1]}…"
    return f"{click.style(stamp, dim=True)}  {name:<{room}}  {click.style(f'{clean(word):<8}', fg=colour)}  {clean(text)}"


def _denied(record: Record) -> _Said:
    text = f"{_what(record)}  {_rule(record)}{_numbers(record)}"
    return _Said("DENY", "red", text) if record.get("enforced", True) else _Said("would", "yellow", text)


def _settled(record: Record) -> _Said:
    outcome = record.get("outcome", "")
    status = next((attempt["status"] for attempt in reversed(record.get("attempts", ())) if "status" in attempt), None)
    parts = [
        _what(record),
        _tokens(record),
        usd_text(record["cost_nanos"]) if record.get("cost_nanos") else "",
        _seconds(record),
        str(status) if record.get("call") == "http" and status is not None else "",
        record.get("error", ""),
        _rule(record) if record.get("rule") else "",
    ]
    word, colour = _OUTCOMES.get(outcome, (outcome, "yellow"))
    return _Said(word, colour, "  ".join(filter(None, parts)))


_OUTCOMES = {"complete": ("ok", "green"), "denied": ("DENY", "red"), "cut": ("CUT", "red")}


def _admitted(record: Record) -> _Said:
    return _Said("begin", None, _what(record))


def _proposed(record: Record) -> _Said:
    return _Said("PROPOSE", "red", f"tool {record.get('proposed_tool')}  {_rule(record)}")


def _breached(record: Record) -> _Said:
    used, reserved = record.get("used_tokens", 0), record.get("reserved_tokens", 0)
    return _Said("above", "yellow", f"{_what(record)}  used {used:,} tokens, reserved {reserved:,}")


def _crossed(record: Record) -> _Said:
    return _Said("budget", "yellow", f"{record.get('percent')} % spent of {str(record.get('row')).replace('|', ' ')}")


def _ended(record: Record) -> _Said:
    error = record.get("error")
    text = f"{record.get('scope')} {record.get('name')}  {_seconds(record)}"
    return _Said("error", "yellow", f"{text}  {error}") if error else _Said("end", None, text)


def _policy(record: Record) -> _Said:
    where = record.get("path") or "(no file)"
    problem = record.get("problem")
    return _Said("policy", "red" if problem else None, one_line(problem or "") or f"{where}, mode {record.get('mode')}, in force")


def _seam(record: Record) -> _Said:
    state = record.get("state")
    colour = "red" if state in {"lost", "missing"} else None
    return _Said("seam", colour, f"{record.get('library')} {record.get('seam')} {state}")


def _isolated(record: Record) -> _Said:
    word, colour = ("ISOLATE", "red") if record["kind"] == "subject_isolated" else ("restore", "green")
    how = f" ({record['mode']})" if record.get("mode", "block-all") != "block-all" else ""
    how = " on probation" if "probation_until_us" in record else how
    return _Said(word, colour, f"{record.get('subject')}{how} {_by(record)}")


def _adjusted(record: Record) -> _Said:
    row = str(record.get("row"))
    unit = next((word for word in row.split("|")[1:] if word == "usd"), "")
    amount, spent = record.get("amount", 0), _amount(record.get("spent", 0), unit)
    by = f"{'+' if amount >= 0 else ''}{_amount(amount, unit)}"
    return _Said("adjust", "yellow", f"{row.replace('|', ' ')} by {by}, now {spent} spent, {_by(record)}")


def _by(record: Record) -> str:
    return f"by {record.get('by', '?')}{f': {why}' if (why := record.get('why')) else ''}"


def _child(record: Record) -> _Said:
    return _Said("child", None, f"{record.get('program')} was started, which the policy does not hold in process")


def _disabled(record: Record) -> _Said:
    return _Said("OFF", "red", f"nothing is guarded: {record.get('why')}")


def _lost(record: Record) -> _Said:
    return _Said("LOST", "red", f"{record.get('lost')} events could not be written")


def _opened(record: Record) -> _Said:
    return _Said("open", None, f"process {record.get('pid')} on {record.get('host')}")


def _unknown(record: Record) -> _Said:
    return _Said(record["kind"], None, "")


_SAYINGS: dict[str, Callable[[Record], _Said]] = {
    "budget_adjusted": _adjusted,
    "budget_threshold_crossed": _crossed,
    "call_admitted": _admitted,
    "call_denied": _denied,
    "call_settled": _settled,
    "child_started": _child,
    "estimate_breached": _breached,
    "events_lost": _lost,
    "guard_disabled": _disabled,
    "log_opened": _opened,
    "policy_loaded": _policy,
    "scope_ended": _ended,
    "seam_changed": _seam,
    "subject_isolated": _isolated,
    "subject_restored": _isolated,
    "tool_proposed": _proposed,
}


def _what(record: Record) -> str:
    if record.get("call") == "llm":
        return f"{record.get('operation')} {record.get('model')}"
    if record.get("call") == "tool":
        return f"tool {record.get('name')}"
    return f"{record.get('method')} {record.get('target')}"


def _rule(record: Record) -> str:
    place = f" ({record['place']})" if record.get("place") else ""
    return f"{record.get('rule', '')}{place}"


def _tokens(record: Record) -> str:
    if "input_tokens" not in record:
        return ""
    about = "~" if record.get("estimated") else ""
    return f"{about}{record['input_tokens']:,} in {about}{record.get('output_tokens', 0):,} out"


def _numbers(record: Record) -> str:
    if "limit" not in record:
        return ""
    amounts = (record.get("requested", 0), record.get("spent", 0), record.get("held", 0), record["limit"])
    return "  asked {}; spent {}, held {} of {}".format(*(_amount(amount, record.get("unit", "")) for amount in amounts))


def _amount(amount: int, unit: str) -> str:
    return usd_text(amount) if unit == "usd" else f"{amount:,}"


def _seconds(record: Record) -> str:
    ended = record["at_us"]
    return f"{(ended - record.get('started_us', ended)) / 1_000_000:.2f} s"

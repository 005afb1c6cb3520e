"""`agentguard budgets`: the ledger; `explain` and `adjust` are in files of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json, store_option
from agentguard.cli._fleet import check_agent, open_fleet, split_subject, subject_text
from agentguard.cli.agents import standing_as_json, standing_text
from agentguard.cli.budgets_ledger import adjust, explain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.fleet import Standing
    from agentguard.policy import Policy
    from agentguard.policy.model import Limit
    from agentguard.stores.base import Balance

_LIMIT_WIDTH = 28
_KINDS = ("fleet", "team", "agent", "model", "key", "user", "session", "interaction")


class _Line(NamedTuple):
    """One row of the ledger. Amounts are in the limit's unit, money in nano-USD."""

    subject: str
    limit: Limit
    spent: int
    held: int
    resets_at: float | None

    @property
    def left(self) -> int:
        return max(self.limit.amount - self.spent - self.held, 0)


class _Group(Command, click.Group):
    """Commands of which one is run when none is named."""


@click.group(cls=_Group, invoke_without_command=True)
@click.option("--agent", metavar="NAME", help="Only limits of this agent.")
@click.option("--subject", metavar="SUBJECT", help="Only limits of this subject: session:42, user:u-17, fleet.")
@click.option("--exhausted", is_flag=True, help="Only limits with nothing left. Exit code 1 when there is one.")
@policy_option
@store_option
@json_option
@click.pass_context
def budgets(
    ctx: click.Context,
    agent: str | None,
    subject: str | None,
    exhausted: bool,
    policy_path: str | None,
    store_url: str | None,
    as_json: bool,
) -> int:
    """Show every limit: what is spent, what calls in flight hold, what is left, and when it starts anew."""
    if ctx.invoked_subcommand is not None:
        return Exit.OK
    from agentguard.fleet import standings

    store, policy = open_fleet(policy_path, store_url)
    try:
        counted, standing = store.rows(), standings(store.isolations(), time.time())
        if agent is not None:
            check_agent(agent, policy, store, *(row.subject for row, _ in counted))
    finally:
        store.close()
    among = [line for line in sorted(_lines(counted, policy), key=_order) if _is_wanted(line, agent, subject)]
    lines = [line for line in among if not exhausted or not line.left]
    if as_json:
        shown = [_as_json(line) for line in lines]
        isolated = [standing_as_json(one) for one in standing]
        print_json({"ok": not (exhausted and lines), "limits": shown, "isolated": isolated})
    else:
        _print(lines, standing, _nothing(among, agent, subject))
    return Exit.FINDING if exhausted and lines else Exit.OK


budgets.add_command(explain)
budgets.add_command(adjust)


def _lines(counted: Sequence[tuple[LimitRow, Balance]], policy: Policy | None) -> Iterator[_Line]:
    seen = set()
    for row, balance in counted:
        seen.add(row.key)
        yield _Line(row.subject, row.limit, balance.spent, balance.held, balance.resets_at)
    for row in _unused(policy) if policy is not None else ():
        if row.key not in seen:
            yield _Line(row.subject, row.limit, 0, 0, None)


def _unused(policy: Policy) -> Iterator[LimitRow]:
    """Limits of the policy whose subjects are known before anyone calls."""
    from agentguard.core.limits import LimitRow
    from agentguard.policy.model import Per

    for agent in policy.agents:
        rate = agent.api_keys.rate_limit
        for limit in (*agent.budgets, *((rate,) if rate is not None else ())):
            if limit.per is Per.AGENT:
                yield LimitRow.of(f"agent:{agent.name}", limit)
            elif limit.per is Per.TEAM and agent.team:
                yield LimitRow.of(f"team:{agent.team}", limit)
            elif limit.per is Per.FLEET:
                yield LimitRow.of("fleet", limit)
    for limit in policy.limits.fleet:
        if limit.per is Per.FLEET:
            yield LimitRow.of("fleet", limit)


def _order(line: _Line) -> tuple[int, str, str]:
    kind = line.subject.partition(":")[0]
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS), line.subject, str(line.limit.unit)


def _is_wanted(line: _Line, agent: str | None, subject: str | None) -> bool:
    name, owner = split_subject(line.subject)
    if agent is not None and f"agent:{agent}" not in {name, owner}:
        return False
    return subject is None or subject in {name, line.subject, subject_text(line.subject)}


def _as_json(line: _Line) -> dict[str, Any]:
    limit = line.limit
    return {
        "subject": line.subject,
        "limit": _text(limit),
        "unit": str(limit.unit),
        "per": str(limit.per),
        "over": str(limit.over),
        "window": str(limit.window),
        "amount": limit.amount,
        "spent": line.spent,
        "held": line.held,
        "left": line.left,
        "resets_at": line.resets_at,
        "place": limit.rule.place or None,
    }


def _nothing(among: Sequence[_Line], agent: str | None, subject: str | None) -> str:
    """What to say when no line is left to show."""
    if among:
        said = "its one limit" if len(among) == 1 else f"each of {len(among)} limits"
        return f"Nothing is exhausted: {said} has something left."
    if agent is None and subject is None:
        return "No limits here: the policy writes none, or nothing was counted yet."
    whose = " and ".join(clean(repr(one)) for one in (agent, subject) if one is not None)
    return f"No limits of {whose}: the policy writes none, or nothing was counted yet. `agentguard budgets` lists all."


def _print(lines: Sequence[_Line], standing: Sequence[Standing], nothing: str) -> None:
    from itertools import groupby

    from rich.table import Table
    from rich.text import Text

    out = console()
    for one in standing:
        out.print(Text(standing_text(one, time.time()), style="yellow" if one.mode == "probation" else "bold red"))
    if not lines:
        out.print(Text(nothing))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("LIMIT", overflow="fold", min_width=_LIMIT_WIDTH)
    for heading in ("SPENT", "HELD", "LEFT"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("RESETS", no_wrap=True)
    now = time.time()
    for subject, of_subject in groupby(lines, lambda line: line.subject):
        table.add_row(Text(clean(subject_text(subject)), style="bold"))
        for line in of_subject:
            style = "red" if not line.left else "yellow" if line.left * 5 < line.limit.amount else ""
            amounts = [_amount(amount, line.limit) for amount in (line.spent, line.held, line.left)]
            table.add_row(f"  {_text(line.limit)}", *amounts, resets_text(line.limit, line.resets_at, now), style=style)
    out.print(table)


def _amount(amount: int, limit: Limit) -> str:
    from agentguard.core.wording import usd_text

    if not amount:
        return "-"
    return usd_text(amount) if limit.unit == "usd" else f"{amount:,}"


def _text(limit: Limit) -> str:
    from agentguard.policy.diff import describe

    return describe(limit).replace(f" per {limit.per}", "")


def resets_text(limit: Limit, resets_at: float | None, now: float) -> str:
    """When a limit starts anew."""
    if limit.window.is_rolling:
        return "rolling"
    if limit.unit == "concurrent_calls":
        return "-"
    if limit.window.every is None:
        return "never"
    if resets_at is None:
        return "-"
    seconds = max(int(resets_at - now), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"in {seconds // size} {unit}"
    return f"in {seconds} s"

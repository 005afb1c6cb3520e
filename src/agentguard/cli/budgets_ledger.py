"""`agentguard budgets explain` and `adjust`: what stands in an agent's way, and a correction of what was counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json, store_option
from agentguard.cli._fleet import (
    by_option,
    check_agent,
    new_id,
    open_fleet,
    operator,
    record,
    split_subject,
    subject_text,
    why_option,
)
from agentguard.cli.agents import standing_as_json, standing_text
from agentguard.cli.reservations import holder_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.fleet import Standing
    from agentguard.policy import Policy
    from agentguard.policy.model import Limit
    from agentguard.stores.base import Balance, Hold, Member, Store

_TIGHT_PERCENT = 80


class _Explained(NamedTuple):
    """A limit that an agent is held to, and who holds what of it."""

    row: LimitRow
    spent: int
    held: int
    resets_at: float | None
    holders: dict[str, int]

    @property
    def left(self) -> int:
        return max(self.row.limit.amount - self.spent - self.held, 0)

    @property
    def share_taken(self) -> float:
        return (self.spent + self.held) / self.row.limit.amount


@click.command(cls=Command)
@click.argument("agent")
@policy_option
@store_option
@json_option
def explain(agent: str, policy_path: str | None, store_url: str | None, as_json: bool) -> int:
    """Say what AGENT is held to: each limit, the tightest first, what is spent, what is held and by whom, and when it resets.

    Exit code 1 when it cannot make a call now: it is isolated, or a limit has nothing left.
    """
    from agentguard.fleet import standings

    store, policy = open_fleet(policy_path, store_url)
    now = time.time()
    try:
        check_agent(agent, policy, store, *(row.subject for row, _ in store.rows()))
        limits = _explained(agent, policy, store)
        members = {member.holder: member for member in store.members()}
        standing = [one for one in standings(store.isolations(), now) if one.subject in {f"agent:{agent}", "fleet"}]
    finally:
        store.close()
    is_stopped = any(one.mode != "probation" for one in standing) or any(not one.left for one in limits)
    if as_json:
        shown = [_as_json(one, members) for one in limits]
        said = [standing_as_json(one) for one in standing]
        print_json({"ok": not is_stopped, "agent": agent, "limits": shown, "isolated": said})
    else:
        _print(agent, limits, standing, members, now)
    return Exit.FINDING if is_stopped else Exit.OK


@click.command(cls=Command)
@click.argument("subject")
@click.option("--credit", metavar="AMOUNT", help="Count less as spent: '$1.50', '5000 tokens', '10 calls'.")
@click.option("--charge", metavar="AMOUNT", help="Count more as spent.")
@click.option("--every", metavar="WINDOW", help="Which limit, where several are in this unit: minute, hour, day, month, life.")
@why_option
@by_option
@policy_option
@store_option
@json_option
def adjust(
    subject: str,
    credit: str | None,
    charge: str | None,
    every: str | None,
    why: str,
    by: str | None,
    policy_path: str | None,
    store_url: str | None,
    as_json: bool,
) -> int:
    r"""Correct what a limit of SUBJECT has counted in its current window. The limit itself is the policy's to change.

    \b
        agentguard budgets adjust researcher --credit '$1.50' --why "refunded by the provider"
        agentguard budgets adjust fleet --charge "20000 tokens" --every day --why "a batch job outside"

    It is written to the event log. What was counted never falls below nothing.
    """
    from agentguard.core.wording import amount_text
    from agentguard.fleet import adjust as adjusting

    unit, amount = _asked(credit, charge)
    store, _ = open_fleet(policy_path, store_url)
    try:
        row = _row_of(store, subject, unit, every)
        try:
            done = adjusting(store, row, amount, by=operator(by), why=why, now=time.time(), id=new_id())
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        record(done)
    finally:
        store.close()
    if as_json:
        print_json({"ok": True, "row": done.row, "amount": done.amount, "spent": done.spent, "by": done.by, "why": done.why})
        return Exit.OK
    said = "less" if done.amount < 0 else "more"
    amount_said, limit_said = amount_text(abs(done.amount), row.limit.unit), amount_text(row.limit.amount, row.limit.unit)
    spent_said = amount_text(done.spent, row.limit.unit)
    click.echo(f"{amount_said} {said} is counted for {clean(row.subject)}: now {spent_said} of {limit_said} is spent.")
    return Exit.OK


def _asked(credit: str | None, charge: str | None) -> tuple[str, int]:
    from agentguard.policy.grammar import read_amount

    if (credit is None) == (charge is None):
        message = "say either --credit or --charge"
        raise click.UsageError(message)
    try:
        read = read_amount(credit or charge or "")
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return str(read.unit), -read.amount if credit else read.amount


def _row_of(store: Store, asked: str, unit: str, every: str | None) -> LimitRow:
    """The one row that is meant, by its subject as `budgets` prints it, as JSON has it, or by an agent's name."""
    rows = [row for row, _ in store.rows()]
    subject = _subject_among([row.subject for row in rows], asked)
    of_subject = [row for row in rows if row.subject == subject]
    found = [row for row in of_subject if row.limit.unit == unit and every in {None, str(row.limit.window)}]
    if len(found) == 1:
        return found[0]
    if not of_subject:
        message = f"nothing was counted for {subject!r}; `agentguard budgets` lists the subjects"
    elif not found:
        message = f"{subject!r} has no such limit in {unit}; it has: {', '.join(_said(row.limit) for row in of_subject)}"
    else:
        message = (
            f"{subject!r} has several limits in {unit}: name one with --every: {', '.join(_said(row.limit) for row in found)}"
        )
    raise click.UsageError(message)


def _subject_among(subjects: Sequence[str], asked: str) -> str:
    from agentguard.core.isolation import subject_of

    if asked in subjects:
        return asked
    printed = next((subject for subject in subjects if asked in {subject_text(subject), clean(subject_text(subject))}), None)
    return printed or (asked if "@" in asked else subject_of(asked))


def _said(limit: Limit) -> str:
    from agentguard.policy.diff import describe

    return describe(limit)


def _explained(agent: str, policy: Policy | None, store: Store) -> list[_Explained]:
    team = next((one.team for one in policy.agents if one.name == agent), None) if policy is not None else None
    subjects = {f"agent:{agent}", "fleet", f"team:{team}"}
    holds = store.holds()
    found = [_limit(row, balance, holds) for row, balance in store.rows() if _concerns(row, subjects, agent)]
    return sorted(found, key=lambda one: (-one.share_taken, one.row.key))


def _concerns(row: LimitRow, subjects: set[str], agent: str) -> bool:
    name, owner = split_subject(row.subject)
    return name in subjects or owner in {f"agent:{agent}", "fleet"}


def _limit(row: LimitRow, balance: Balance, holds: Sequence[Hold]) -> _Explained:
    holders: dict[str, int] = {}
    for hold in holds:
        for charge in hold.charges:
            if charge.row == row.key and charge.amount:
                holders[hold.holder] = holders.get(hold.holder, 0) + charge.amount
    return _Explained(row, balance.spent, balance.held, balance.resets_at, holders)


def _as_json(one: _Explained, members: dict[str, Member]) -> dict[str, Any]:
    limit = one.row.limit
    return {
        "subject": one.row.subject,
        "limit": _said(limit),
        "unit": str(limit.unit),
        "amount": limit.amount,
        "spent": one.spent,
        "held": one.held,
        "left": one.left,
        "held_by": [
            {
                "holder": holder,
                "host": members[holder].host if holder in members else None,
                "pid": members[holder].pid if holder in members else None,
                "amount": amount,
            }
            for holder, amount in one.holders.items()
        ],
        "resets_at": one.resets_at,
        "place": limit.rule.place or None,
    }


def _print(
    agent: str, limits: Sequence[_Explained], standing: Sequence[Standing], members: dict[str, Member], now: float
) -> None:
    from rich.table import Table
    from rich.text import Text

    from agentguard.cli.budgets import resets_text
    from agentguard.core.wording import amount_text

    out = console()
    for isolation in standing:
        out.print(Text(standing_text(isolation, now), style="yellow" if isolation.mode == "probation" else "bold red"))
    if not limits:
        out.print(f"Nothing was counted for agent {clean(agent)!r} yet; `agentguard budgets` lists the limits of the policy.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column("LIMIT", overflow="fold")
    for heading in ("SPENT", "HELD", "LEFT"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("RESETS", no_wrap=True)
    table.add_column("WRITTEN AT", overflow="fold")
    for one in limits:
        limit = one.row.limit
        style = "red" if not one.left else "yellow" if one.share_taken * 100 >= _TIGHT_PERCENT else ""
        amounts = [amount_text(amount, limit.unit) if amount else "-" for amount in (one.spent, one.held, one.left)]
        named = f"{clean(subject_text(one.row.subject))}  {_said(limit)}"
        table.add_row(named, *amounts, resets_text(limit, one.resets_at, now), clean(limit.rule.place), style=style)
        for holder, amount in one.holders.items():
            held = amount_text(amount, limit.unit)
            table.add_row(f"  held by {holder_text(holder, members)}", "", held, "", "", "", style="dim")
    out.print(table)

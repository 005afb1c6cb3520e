"""`agentguard reservations`: what calls in flight hold."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json, store_option
from agentguard.cli._fleet import open_fleet, split_subject, subject_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Hold, Member


@click.command(cls=Command)
@click.option("--agent", metavar="NAME", help="Only what is held of this agent's limits.")
@policy_option
@store_option
@json_option
def reservations(agent: str | None, policy_path: str | None, store_url: str | None, as_json: bool) -> int:
    """Show what calls in flight hold of each limit, which process holds it, and when it is charged if nobody settles it."""
    store, _ = open_fleet(policy_path, store_url)
    try:
        holds, rows = store.holds(), {row.key: row for row, _ in store.rows()}
        members = {member.holder: member for member in store.members()}
    finally:
        store.close()
    if agent is not None:
        holds = [hold for hold in holds if any(_is_of(agent, rows.get(charge.row)) for charge in hold.charges)]
    if as_json:
        print_json({"ok": True, "reservations": [_as_json(hold, rows, members) for hold in holds]})
    else:
        _print(holds, rows, members)
    return Exit.OK


def _is_of(agent: str, row: LimitRow | None) -> bool:
    return row is not None and f"agent:{agent}" in split_subject(row.subject)


def holder_text(holder: str, members: Mapping[str, Member]) -> str:
    """The process that holds something, as people know it."""
    member = members.get(holder)
    return clean(holder) if member is None else f"process {member.pid} on {clean(member.host)}"


def _as_json(hold: Hold, rows: Mapping[str, LimitRow], members: Mapping[str, Member]) -> dict[str, Any]:
    member = members.get(hold.holder)
    return {
        "id": hold.id,
        "holder": hold.holder,
        "host": None if member is None else member.host,
        "pid": None if member is None else member.pid,
        "deadline": hold.deadline,
        "holds": [
            {"row": charge.row, "subject": rows[charge.row].subject, "unit": rows[charge.row].limit.unit, "amount": charge.amount}
            for charge in hold.charges
            if charge.row in rows
        ],
    }


def _print(holds: Sequence[Hold], rows: Mapping[str, LimitRow], members: Mapping[str, Member]) -> None:
    from rich.table import Table

    from agentguard.core.wording import amount_text

    out = console()
    if not holds:
        out.print("No call is in flight.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("CALL", "HELD BY", "CHARGED", "OF", "AMOUNT"):
        table.add_column(heading, no_wrap=heading != "OF", overflow="fold")
    now = time.time()
    for hold in holds:
        lead = [clean(hold.id), holder_text(hold.holder, members), _due(hold.deadline, now)]
        for charge in hold.charges:
            if (row := rows.get(charge.row)) is not None:
                subject = clean(subject_text(row.subject))
                table.add_row(*lead, subject, amount_text(charge.amount, row.limit.unit))
                lead = ["", "", ""]
    out.print(table)


def _due(deadline: float | None, now: float) -> str:
    if deadline is None:
        return "when it ends"
    return f"in {max(int(deadline - now), 0)} s" if deadline > now else "now"

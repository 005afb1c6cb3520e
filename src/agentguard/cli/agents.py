"""`agentguard agents`: the guarded processes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json, store_option
from agentguard.cli._fleet import SILENT_SECONDS, ago, member_as_json, open_fleet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.fleet import Standing
    from agentguard.stores.base import Member


@click.command(cls=Command)
@click.option("--drift", "is_check", is_flag=True, help="Exit code 1 when versions or policies differ.")
@policy_option
@store_option
@json_option
def agents(is_check: bool, policy_path: str | None, store_url: str | None, as_json: bool) -> int:
    """Show the guarded processes that share the store: their agent, version and policy, and who is isolated."""
    from agentguard.fleet import standings

    store, _ = open_fleet(policy_path, store_url)
    now = time.time()
    try:
        members, standing, epoch = store.members(), standings(store.isolations(), now), store.epoch()
    finally:
        store.close()
    drift = _drift(members)
    if as_json:
        shown = [member_as_json(one) | {"state": _state(one, epoch, now)} for one in members]
        said = [standing_as_json(one) for one in standing]
        print_json({"ok": not (is_check and drift), "processes": shown, "isolated": said, "drift": drift})
    else:
        _print(members, standing, drift, epoch, now)
    return Exit.FINDING if is_check and drift else Exit.OK


def standing_as_json(standing: Standing) -> dict[str, Any]:
    """How a subject stands, for programs."""
    of_isolation = standing.isolation._asdict() | {"subject": standing.subject, "mode": standing.mode}
    return of_isolation | {"until": standing.until or None}


def standing_text(standing: Standing, now: float) -> str:
    """How a subject stands, in one line."""
    isolation = standing.isolation
    why = f": {clean(isolation.why)}" if isolation.why else ""
    said = f"{clean(standing.subject)}  by {clean(isolation.by)}{why}"
    if standing.mode == "probation":
        return f"on probation for {max(int(standing.until - now), 0) // 60} min  {said}"
    return f"isolated  {said}" if standing.mode == "block-all" else f"isolated ({standing.mode})  {said}"


def _drift(members: Sequence[Member]) -> list[str]:
    """What differs among processes that should be alike: versions, and the policies of one agent."""
    found = []
    versions = sorted({member.version for member in members})
    if len(versions) > 1:
        found.append(f"versions differ: {', '.join(versions)}")
    for agent in sorted({member.agent for member in members}):
        policies = sorted({member.policy for member in members if member.agent == agent})
        if len(policies) > 1:
            found.append(f"policies of {agent or 'processes with several agents'} differ: {', '.join(policies)}")
    return found


def _state(member: Member, epoch: int, now: float) -> str:
    if now - member.at > SILENT_SECONDS:
        return "silent"
    return "behind" if member.epoch < epoch else "ok"


def _print(members: Sequence[Member], standing: Sequence[Standing], drift: Sequence[str], epoch: int, now: float) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    for one in standing:
        out.print(Text(standing_text(one, now), style="yellow" if one.mode == "probation" else "bold red"))
    if not members:
        out.print("No guarded process runs now, or none has made a call yet.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("AGENT", "HOST", "PROCESS", "VERSION", "POLICY", "MODE", "HEARD OF", "STATE"):
        table.add_column(heading, no_wrap=heading != "AGENT", overflow="fold")
    for member in members:
        state = _state(member, epoch, now)
        table.add_row(
            clean(member.agent) or "(several)",
            clean(member.host),
            str(member.pid),
            clean(member.version),
            clean(member.policy),
            clean(member.mode),
            ago(member.at, now),
            state,
            style="" if state == "ok" else "yellow",
        )
    out.print(table)
    for line in drift:
        out.print(Text(f"drift  {clean(line)}", style="yellow"))

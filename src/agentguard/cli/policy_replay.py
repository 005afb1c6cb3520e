"""`agentguard policy replay`: what a policy would have said of what happened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._ago import Ago
from agentguard.cli._command import Command, Exit, clean, console, json_option, print_json
from agentguard.cli._sources import events_directory, required_policy

if TYPE_CHECKING:
    from agentguard.policy import Policy
    from agentguard.replay import Group, Replay

_MOST_SHOWN = 5
_MOST_TOLD = 100


@click.command(cls=Command)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False), envvar="AGENTGUARD_POLICY")
@click.option("--since", type=Ago(), metavar="AGO", help="Only calls of the last 90s, 15m, 2h, 7d. Default: all that is kept.")
@click.option("--agent", metavar="NAME", help="Only this agent's calls; limits that it shares count as if it were alone.")
@click.option("--events", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another event log's folder.")
@json_option
def replay(file: str | None, since: float | None, agent: str | None, events: Path | None, as_json: bool) -> int:
    r"""Judge what happened under the policy FILE: hosts, models, tools, budgets and rates. Makes no call.

    Exit code 1 when it would have refused what was allowed. Whatever the file's mode, it is judged as if it were enforced.

    \b
        agentguard policy replay draft.yaml --since 7d
    """
    from agentguard.audit import read_events
    from agentguard.audit.past import history
    from agentguard.replay import replay as replaying

    policy = required_policy(file)
    directory = events or events_directory()
    past = history(read_events(directory, None if since is None else time.time() - since))
    calls = [call for call in past.calls if agent is None or agent in call.caller.agents]
    if not calls:
        message = f"no calls in {directory}: nothing was judged"
        raise click.UsageError(message)
    found = replaying(policy, calls)
    if as_json:
        print_json({"ok": not found.refused, "policy": policy.path, **_as_json(found), "unreadable": past.unreadable})
    else:
        _print(found, policy, past.unreadable)
    return Exit.FINDING if found.refused else Exit.OK


def _as_json(found: Replay) -> dict[str, Any]:
    return {
        "calls": found.calls,
        "refused": [_group(group) for group in found.refused],
        "allowed": [_group(group) for group in found.allowed],
        "still_refused": [_group(group) for group in found.still_refused],
        "waited": found.waited,
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "agent": group.agent or None,
        "reason": group.reason,
        "rule": group.rule,
        "place": group.place or None,
        "calls": group.calls,
        "first": group.first,
        "last": group.last,
        "what": [{"what": what, "calls": calls} for what, calls in group.what[:_MOST_TOLD]],
        "example": group.example or None,
    }


def _print(found: Replay, policy: Policy, unreadable: int) -> None:
    from rich.text import Text

    out = console()
    out.print(Text(f"{_calls(found.calls)} judged under {clean(policy.path)}.", style="bold"))
    _print_groups("would be refused, and were allowed", "red", found.refused)
    _print_groups("would be allowed, and were refused or reported", "yellow", found.allowed)
    _print_groups("refused both ways", "dim", found.still_refused)
    out.print()
    if not (found.refused or found.allowed):
        out.print(Text("No call would have been decided otherwise.", style="green"))
    if found.waited:
        out.print(Text(f"{_calls(found.waited)} would have waited for room."))
    if unreadable:
        out.print(Text(f"{unreadable} records could not be read."))


def _print_groups(title: str, style: str, groups: tuple[Group, ...]) -> None:
    from rich.text import Text

    out = console()
    if groups:
        out.print()
        out.print(Text(f"{_calls(sum(group.calls for group in groups))} {title}", style=style))
    for group in groups:
        place = f" ({clean(group.place)})" if group.place else ""
        out.print(Text(f"  {group.calls:>7,}  {clean(group.agent) or '-'}  {clean(group.rule)}{place}"))
        for what, calls in group.what[:_MOST_SHOWN]:
            out.print(Text(f"           {calls:>7,}  {clean(what)}", style="dim"))
        if (more := len(group.what) - _MOST_SHOWN) > 0:
            out.print(Text(f"           and {more:,} more", style="dim"))
        if group.example and style == "red":
            out.print(Text(f"           {clean(group.example.partition(chr(10))[0])}"))


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count:,} calls"

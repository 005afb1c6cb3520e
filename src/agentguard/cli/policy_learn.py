"""`agentguard policy learn`: an allowlist from the event log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._ago import Ago
from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json
from agentguard.cli._sources import events_directory, find_policy_file, load_policy
from agentguard.cli.policy_edit import changes_as_json, print_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentguard.audit.past import PastCall
    from agentguard.policy import Policy
    from agentguard.policy.diff import Change
    from agentguard.policy.edit import Learned
    from agentguard.policy.learn import Entry, Proposal, Sighting

_NEW_FILE = "agentguard.yaml"
_HEADER = """\
# What `agentguard policy learn` saw, in report mode: everything is decided and recorded, and nothing is refused.
# When `agentguard tail --denied` shows only what should be refused, write enforce.
"""


@click.command(cls=Command)
@click.option("--since", type=Ago(), metavar="AGO", help="Only calls of the last 90s, 15m, 2h, 7d. Default: all that is kept.")
@click.option("--agent", metavar="NAME", help="Only this agent's calls, and those of no agent.")
@click.option("--events", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another event log's folder.")
@click.option("--pid", "pids", type=int, multiple=True, help="Also what this process and its children are connected to now.")
@click.option(
    "--min-calls", default=2, show_default=True, type=click.IntRange(1), help="What was called less often is a one-off."
)
@click.option("--write", is_flag=True, help="Put what is proposed into the policy file; what is flagged is left to you.")
@policy_option
@json_option
def learn(
    since: float | None,
    agent: str | None,
    events: Path | None,
    pids: tuple[int, ...],
    min_calls: int,
    write: bool,
    policy_path: str | None,
    as_json: bool,
) -> int:
    r"""Propose an allowlist from what was called: hosts by agent, known providers by name, sub-domains as a wildcard.

    What was called once, what lies in private space, and what was refused is flagged, and for a person to decide.

    \b
        agentguard policy learn --since 7d
        agentguard policy learn --since 7d --agent researcher --write
    """
    from agentguard.audit import read_events
    from agentguard.audit.past import history
    from agentguard.policy.learn import learn as learning

    file = find_policy_file(policy_path)
    policy = None if file is None else load_policy(file)
    past = history(read_events(events or events_directory(), None if since is None else time.time() - since))
    home = agent or (policy.agents[0].name if policy is not None and len(policy.agents) == 1 else "")
    sightings = [*_sightings(past.calls, home), *_connected(pids, home)]
    if agent is not None:
        sightings = [sighting._replace(agents=(agent,)) for sighting in sightings if agent in sighting.agents]
    registrable = _registrable()
    proposals = learning(sightings, policy, registrable=registrable, least_calls=min_calls)
    written, changes = _write(file, policy, proposals) if write else (None, ())
    if as_json:
        print_json(
            {
                "ok": True,
                "agents": [_as_json(proposal) for proposal in proposals],
                "wildcards": registrable is not None,
                "unreadable": past.unreadable,
                "written": written,
                "changes": changes_as_json(changes),
            }
        )
        return Exit.OK
    if not proposals:
        click.echo(f"No calls in {events or events_directory()}. Run the program in report mode first.", err=True)
        return Exit.OK
    _print(proposals)
    if registrable is None:
        click.echo("Sub-domains are not grouped: that needs the public suffix list (pip install 'agentguard[learn]').")
    if past.unreadable:
        click.echo(f"{past.unreadable} records could not be read.")
    _print_end(proposals, written, changes, is_asked=write)
    return Exit.OK


def _sightings(calls: Sequence[PastCall], home: str) -> Iterator[Sighting]:
    from agentguard.policy.learn import Sighting

    for call in calls:
        agents = call.caller.agents or ((home,) if home else ())
        for target, went in call.hops:
            yield Sighting(agents, target.host, target.port, call.started, went)


def _connected(pids: tuple[int, ...], home: str) -> Iterator[Sighting]:
    from agentguard.policy.learn import Sighting

    if not pids:
        return
    from agentguard.egress.connections import connections

    now = time.time()
    for pid in pids:
        try:
            found = connections(pid)
        except (OSError, NotImplementedError) as error:
            message = f"the connections of {pid} cannot be read: {error}"
            raise click.BadParameter(message, param_hint="--pid") from None
        for one in found:
            if one.is_outbound and one.address:
                yield Sighting((home,) if home else (), one.address, one.port, now)


def _registrable() -> Callable[[str], str | None] | None:
    try:
        from publicsuffixlist import PublicSuffixList
    except ImportError:
        return None
    found: Callable[[str], str | None] = PublicSuffixList().privatesuffix
    return found


# ---------------------------------------------------------------------------------------------------------------- write


def _write(file: Path | None, policy: Policy | None, proposals: list[Proposal]) -> tuple[str | None, tuple[Change, ...]]:
    """Where it was written, and what that changes; nothing when there was nothing to write."""
    learned = [_learned(proposal) for proposal in proposals if proposal.agent]
    if policy is not None:  # an agent that is new and of which nothing is proposed is not worth an entry
        learned = [one for one in learned if policy.agent(one.agent) is not None or one.providers or one.hosts]
    if file is None:
        return _write_new(learned), ()
    from agentguard.policy.edit import adopt

    revision = adopt(file, learned)
    revision.write()
    return (revision.new.path if revision.is_change else None), revision.changes


def _learned(proposal: Proposal) -> Learned:
    from agentguard.policy.edit import Learned

    proposed = [entry for entry in proposal.entries if entry.is_proposed]
    return Learned(
        proposal.agent,
        tuple(entry.provider for entry in proposed if entry.provider is not None),
        tuple(entry.pattern for entry in proposed if entry.pattern is not None),
    )


def _write_new(learned: list[Learned]) -> str | None:
    from agentguard.policy.dump import to_yaml
    from agentguard.policy.hosts import HostPattern
    from agentguard.policy.model import LLM, AgentPolicy, ExternalCalls, Mode, Policy

    if not learned:
        return None
    agents = tuple(
        AgentPolicy(
            name=agent,
            llm=LLM(providers=providers) if providers else None,
            external_calls=ExternalCalls(allowed_domains=hosts, blocked_domains=(HostPattern.parse("*"),)),
        )
        for agent, providers, hosts in learned
    )
    with Path(_NEW_FILE).open("x", encoding="utf-8") as file:
        file.write(_HEADER + to_yaml(Policy(mode=Mode.REPORT, agents=agents)))
    return _NEW_FILE


# ---------------------------------------------------------------------------------------------------------------- print


def _as_json(proposal: Proposal) -> dict[str, Any]:
    return {
        "agent": proposal.agent or None,
        "entries": [
            {
                "entry": entry.word,
                "kind": "host" if entry.provider is None else "provider",
                "hosts": list(entry.hosts),
                "calls": entry.calls,
                "first": entry.first,
                "last": entry.last,
                "flags": [str(flag) for flag in entry.flags],
                "allowed": entry.is_allowed,
                "proposed": entry.is_proposed,
            }
            for entry in proposal.entries
        ],
    }


def _print(proposals: list[Proposal]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    for proposal in proposals:
        out.print(Text(clean(proposal.agent or "(calls of no agent)"), style="bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        table.add_column(overflow="fold")
        for entry in proposal.entries:
            mark, style = ("?", "yellow") if entry.flags else (" ", "dim") if entry.is_allowed else ("+", "green")
            calls = f"{entry.calls:,} {'call' if entry.calls == 1 else 'calls'}"
            table.add_row(
                f"  {mark}", clean(_said(entry)), calls, _day(entry.first), _day(entry.last), clean(_why(entry)), style=style
            )
        out.print(table)
        out.print()


def _said(entry: Entry) -> str:
    return f"llm.providers: {entry.provider}" if entry.provider is not None else entry.word


def _why(entry: Entry) -> str:
    words = [*(["allowed already"] if entry.is_allowed else []), *map(str, entry.flags)]
    if entry.provider is not None or len(entry.hosts) > 1:
        words.append(", ".join(entry.hosts))
    return "; ".join(words)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def _print_end(proposals: list[Proposal], written: str | None, changes: tuple[Change, ...], *, is_asked: bool) -> None:
    print_changes(changes)
    if written is not None:
        click.echo(f"Wrote {clean(written)}. Check it against what happened: agentguard policy replay")
    elif is_asked:
        click.echo("Nothing to write.")
    elif any(entry.is_proposed for proposal in proposals for entry in proposal.entries):
        click.echo("+ is written by --write.")
    flagged = [(proposal.agent, entry) for proposal in proposals for entry in proposal.entries if _is_for_a_person(entry)]
    if flagged:
        click.echo("? is for you to decide:")
    for agent, entry in flagged:
        click.echo(f"    agentguard policy allow {clean(entry.word)}{f' --agent {clean(agent)}' if agent else ''}")
    if is_asked and any(not proposal.agent for proposal in proposals):
        click.echo("Calls of no agent were left out: say with --agent whose they are.")


def _is_for_a_person(entry: Entry) -> bool:
    from agentguard.policy.learn import Flag

    return bool(entry.flags) and not entry.is_allowed and entry.pattern is not None and Flag.METADATA not in entry.flags

"""`agentguard tail`: the event log, one line an event."""

from __future__ import annotations

import json
import time
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from agentguard.cli._ago import Ago
from agentguard.cli._command import Command, Exit, json_option
from agentguard.cli._line import is_denial, line
from agentguard.cli._sources import events_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_QUIET = frozenset({"call_admitted", "log_opened"})
_QUIET_SEAMS = frozenset({"installed", "removed"})


class _Wanted(NamedTuple):
    """Which records are shown."""

    denied: bool
    agent: str | None
    session: str | None
    everything: bool

    def among(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        return (record for record in records if self._takes(record))

    def _takes(self, record: dict[str, Any]) -> bool:
        if self.denied and not is_denial(record):
            return False
        if not self.everything and (record["kind"] in _QUIET or record.get("state") in _QUIET_SEAMS):
            return False
        if self.agent is not None and self.agent not in {record.get("agent"), *record.get("agents", ())}:
            return False
        return self.session is None or record.get("session") == self.session


@click.command(cls=Command)
@click.option("-f", "--follow", "is_following", is_flag=True, help="Go on as events happen; Ctrl-C ends it.")
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(0), help="How many of the last events.")
@click.option("--denied", is_flag=True, help="Only refusals.")
@click.option("--agent", metavar="NAME", help="Only events of this agent.")
@click.option("--session", metavar="ID", help="Only events of this session.")
@click.option("--since", type=Ago(), metavar="AGO", help="Only events of the last 90s, 15m, 2h, 7d; all of them.")
@click.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Also what is quiet: calls that begin, seams that come and go. --json always tells all.",
)
@json_option
def tail(
    is_following: bool,
    lines: int,
    denied: bool,
    agent: str | None,
    session: str | None,
    since: float | None,
    show_all: bool,
    as_json: bool,
) -> int:
    """Show what happened on this host, from the event log of every guarded process. With --json: one record a line."""
    from agentguard.audit import follow, read_events

    directory = events_directory()
    now = time.time()
    wanted = _Wanted(denied, agent, session, show_all or as_json)
    found: Iterable[dict[str, Any]] = wanted.among(read_events(directory, None if since is None else now - since))
    if since is None:
        found = deque(found, maxlen=lines)
    if is_following:
        found = chain(found, wanted.among(follow(directory, since=now)))
    count = 0
    try:
        for count, record in enumerate(found, 1):  # noqa: B007 - counts
            click.echo(json.dumps(record, separators=(",", ":")) if as_json else line(record))
    except KeyboardInterrupt:
        return Exit.OK
    if not count and not as_json:
        click.echo(f"No such events in {directory}. Guarded processes write there: see `agentguard doctor`.", err=True)
    return Exit.OK

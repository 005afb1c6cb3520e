"""What the commands on a fleet share: who acts, what is told, and how a process is shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import clean
from agentguard.cli._sources import find_policy_file, load_policy, open_ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.events import Event
    from agentguard.policy import Policy
    from agentguard.stores.base import Member, Store

SILENT_SECONDS = 15.0
"""A process beats every five seconds: one that is silent for so long has been stopped, or cannot reach the store."""


def by_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--by`: who does it, for the record."""
    return click.option("--by", metavar="NAME", help="Who does it, for the record. Default: this user on this host.")(command)


def why_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--why`: what for, for the record."""
    return click.option("--why", metavar="TEXT", default="", help="What for, for the record.")(command)


def operator(by: str | None) -> str:
    """Who does it."""
    import getpass
    import platform

    return by or f"{getpass.getuser()}@{platform.node()}"


def open_fleet(policy_path: str | None, store_url: str | None) -> tuple[Store, Policy | None]:
    """The store of a fleet, and its policy as it is found here, if it is.

    Raises:
        StoreUnavailable: It cannot be opened.
    """
    path = find_policy_file(policy_path)
    policy = None if path is None else load_policy(path)
    return open_ledger(store_url, policy), policy


def record(event: Event) -> None:
    """Write down what was done, where the guarded processes of this user write their events."""
    from agentguard.audit.record import EventLog

    log = EventLog()
    log(event)
    log.close()


def member_text(member: Member, now: float) -> str:
    """A process in one line: what it is, where it runs, and when it was heard of."""
    agent = clean(member.agent) or "several agents"
    return f"{agent}, process {member.pid} on {clean(member.host)}, heard of {ago(member.at, now)}"


def member_as_json(member: Member) -> dict[str, Any]:
    """A process for programs."""
    return {key: value for key, value in member._asdict().items() if key != "name"} | {"holder": member.holder}


def ago(at: float, now: float) -> str:
    """How long ago, as people say it."""
    seconds = max(now - at, 0.0)
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now" if seconds < 1 else f"{int(seconds)} s ago"


def new_id() -> str:
    """A name for a change of the ledger, as a call has one."""
    import os

    return f"operator-{int(time.time())}-{os.urandom(6).hex()}"

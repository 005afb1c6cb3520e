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


def split_subject(subject: str) -> tuple[str, str]:
    """A subject of the ledger, and whose limit it counts against where that is another: `session:42`, `agent:bot`."""
    name, _, owner = subject.rpartition("@")  # the last one: a user's id may be an address of mail
    return (name, owner) if name and (owner == "fleet" or owner.startswith("agent:")) else (subject, "")


def subject_text(subject: str) -> str:
    """A subject of the ledger, as people are shown it: `session:42 of agent:bot`."""
    name, owner = split_subject(subject)
    return f"{name} of {owner}" if owner else name


def check_agent(name: str, policy: Policy | None, store: Store, *subjects: str) -> None:
    """Refuse the name of an agent that nobody has: one that is spelled wrongly means nobody, and looks as if it did.

    Args:
        name: The agent's name, as the operator wrote it.
        policy: The policy that is found here, if one is.
        store: Its processes are asked.
        subjects: Further subjects that are known, such as those of the ledger.
    """
    listed = {agent.name for agent in policy.agents} if policy is not None else set()
    running = {member.agent for member in store.members()}
    told = {word.removeprefix("agent:") for subject in subjects for word in split_subject(subject) if word.startswith("agent:")}
    known = (listed | running | told) - {""}
    if name in known:
        return
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(known)) or 'none'}"
    where = f"in {policy.path} or among the running processes" if policy is not None else "among the running processes"
    message = f"no agent {name!r} {where}; {hint}"
    raise click.UsageError(message)


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

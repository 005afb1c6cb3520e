"""`agentguard isolate` and `restore`: stop an agent everywhere, and let it go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._ago import Ago
from agentguard.cli._command import Command, Exit, clean, json_option, policy_option, print_json, store_option
from agentguard.cli._fleet import (
    by_option,
    check_agent,
    member_as_json,
    member_text,
    open_fleet,
    operator,
    record,
    why_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.events import SubjectIsolated
    from agentguard.fleet import Confirmation
    from agentguard.stores.base import Store

_WAIT_SECONDS = 2.0


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        store_option,
        policy_option,
        click.option(
            "--wait", "seconds", type=Ago(), default=f"{_WAIT_SECONDS:g}s", metavar="TIME", show_default=True,
            help="How long to wait for every process to confirm.",
        ),
        by_option,
        why_option,
        click.argument("agent"),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(cls=Command)
@click.option(
    "--mode",
    type=click.Choice(["block-all", "llm-only"]),
    default="block-all",
    show_default=True,
    help="What is stopped: every call, or only those to models.",
)
@_options
def isolate(
    agent: str, mode: str, why: str, by: str | None, seconds: float, policy_path: str | None, store_url: str | None, as_json: bool
) -> int:
    r"""Stop AGENT in every process: its calls are refused, its streams are closed, what is in flight is withheld.

    \b
        agentguard isolate researcher --why "calls a host it never called"
        agentguard isolate session:42
        agentguard isolate fleet --mode llm-only

    It stays so until `agentguard restore`, whatever restarts. Exit code 4 when a process has not confirmed.
    """
    from agentguard.core.isolation import IsolationMode
    from agentguard.fleet import isolate as isolating

    subject = _subject(agent)
    store, policy = open_fleet(policy_path, store_url)
    try:
        if policy is not None and subject.startswith("agent:"):
            check_agent(subject.removeprefix("agent:"), policy, store)
        began = time.perf_counter()
        done = isolating(store, subject, IsolationMode(mode), by=operator(by), why=why, now=time.time())
        return _tell(store, done, began, seconds, as_json=as_json)
    finally:
        store.close()


@click.command(cls=Command)
@click.option("--probation", type=Ago(), metavar="TIME", help="Give it half of its own limits for 90s, 15m, 24h, 7d.")
@_options
def restore(
    agent: str,
    probation: float | None,
    why: str,
    by: str | None,
    seconds: float,
    policy_path: str | None,
    store_url: str | None,
    as_json: bool,
) -> int:
    """Let AGENT go on, in every process. Streams that were closed stay closed."""
    from agentguard.fleet import restore as restoring
    from agentguard.fleet import standings

    subject = _subject(agent)
    if probation and not subject.startswith("agent:"):
        message = "--probation halves the limits of an agent; the fleet, sessions, users and keys have none of their own"
        raise click.UsageError(message)
    store, policy = open_fleet(policy_path, store_url)
    try:
        stopped = {one.subject for one in standings(store.isolations(), time.time())}
        if subject not in stopped:
            # Whoever spells a name wrongly leaves the agent that is meant stopped, and would believe that it goes on.
            if policy is not None and subject.startswith("agent:"):
                check_agent(subject.removeprefix("agent:"), policy, store, *stopped)
            if not probation:
                return _tell_not_isolated(store, subject, sorted(stopped), by, why, as_json=as_json)
        began = time.perf_counter()
        done = restoring(store, subject, by=operator(by), why=why, now=time.time(), probation=probation or 0.0)
        return _tell(store, done, began, seconds, as_json=as_json)
    finally:
        store.close()


def _subject(agent: str) -> str:
    """The subject that is meant. One without a name is nobody, and would look as if it were somebody."""
    from agentguard.core.isolation import subject_of

    subject = subject_of(agent)
    kind, _, name = subject.partition(":")
    if kind != "fleet" and not name.strip():
        message = f"{agent!r} names nobody; expected an agent's name, agent:NAME, session:ID, user:ID, key:NAME or fleet"
        raise click.UsageError(message)
    return subject


def _tell_not_isolated(store: Store, subject: str, stopped: list[str], by: str | None, why: str, *, as_json: bool) -> int:
    if as_json:
        from agentguard.events import SubjectIsolated
        from agentguard.fleet import Confirmation

        nothing = SubjectIsolated(time.time(), subject, False, operator(by), why, store.epoch())
        print_json(_as_json(nothing, Confirmation((), (), ()), 0.0, is_done=True) | {"changed": False})
        return Exit.OK
    others = f"isolated or on probation: {', '.join(map(clean, stopped))}" if stopped else "nothing is isolated"
    click.echo(f"{clean(subject)} is not isolated, so nothing was changed; {others}.")
    return Exit.OK


def _tell(store: Store, done: SubjectIsolated, began: float, seconds: float, *, as_json: bool) -> int:
    from agentguard.fleet import await_confirmation

    said = await_confirmation(store, done.epoch, seconds)
    took = time.perf_counter() - began
    record(done)
    is_done = said.is_complete or (not done.on and not said.missing)
    if as_json:
        print_json(_as_json(done, said, took, is_done=is_done))
    else:
        _print(done, said, took)
    return Exit.OK if is_done else Exit.PARTIAL


def _as_json(done: SubjectIsolated, said: Confirmation, took: float, *, is_done: bool) -> dict[str, Any]:
    return {
        "ok": True,
        "subject": done.subject,
        "isolated": done.on,
        "changed": True,
        "mode": done.mode if done.on else None,
        "probation_until": done.probation_until or None,
        "by": done.by,
        "why": done.why,
        "epoch": done.epoch,
        "complete": is_done,
        "seconds": round(took, 4),
        "confirmed": [member_as_json(member) for member in said.confirmed],
        "missing": [member_as_json(member) for member in said.missing],
        "reporting": [member_as_json(member) for member in said.reporting],
    }


def _print(done: SubjectIsolated, said: Confirmation, took: float) -> None:
    subject, now = clean(done.subject), time.time()
    if not done.on:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(done.probation_until))
        click.echo(f"{subject} may go on{f', with half of its limits until {until}' if done.probation_until else ''}.")
    elif done.mode == "llm-only":
        click.echo(f"{subject} is isolated: its calls to models are stopped.")
    else:
        click.echo(f"{subject} is isolated: all of its calls are stopped.")
    heard, everyone = len(said.confirmed) + len(said.reporting), sum(map(len, said))
    if not everyone:
        click.echo("No process runs now; whoever starts finds it so.")
        return
    colour = "green" if heard == everyone else "red"
    click.echo(click.style(f"confirmed by {heard} of {everyone} processes", fg=colour) + f" in {took * 1000:.0f} ms")
    for member in said.missing:
        click.echo(f"  not by {member_text(member, now)}")
    if done.on:
        for member in said.reporting:
            click.echo(f"  in report mode, so it goes on: {member_text(member, now)}")
    if said.missing:
        click.echo("What has not confirmed is refused at its next decision by the store; end the process to be sure.")

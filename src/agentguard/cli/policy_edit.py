"""`agentguard policy allow` and `deny`: one entry of the policy file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import Command, Exit, clean, json_option, policy_option, print_json
from agentguard.cli._sources import required_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agentguard.policy.diff import Change
    from agentguard.policy.edit import Revision

_WORDS = {"grants": ("+ grants", "red"), "takes": ("- takes ", "green")}


class _Entry(click.ParamType[str]):
    """An entry of `allowed_domains`."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from agentguard.policy.hosts import HostPattern

        try:
            return str(HostPattern.parse(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        policy_option,
        click.option("--dry-run", is_flag=True, help="Say what it would change, and write nothing."),
        click.option("--agent", metavar="NAME", help="Whose list. Default: that of the policy's only agent."),
        click.argument("host", type=_Entry()),
    ):
        command = option(command)
    return command


@click.command(cls=Command)
@_options
def allow(host: str, agent: str | None, dry_run: bool, policy_path: str | None, as_json: bool) -> int:
    r"""Let an agent reach HOST: a name, `*.name`, `name:port`, an address or a network. The rest of the file stays as it is.

    \b
        agentguard policy allow api.acme.com --agent researcher
        agentguard policy allow 10.1.0.7:5432
    """
    from agentguard.policy.edit import allow as allowing

    return tell_revision(allowing(required_file(policy_path), host, agent), f"{host} may be reached", dry_run, as_json)


@click.command(cls=Command)
@_options
def deny(host: str, agent: str | None, dry_run: bool, policy_path: str | None, as_json: bool) -> int:
    """Keep an agent from HOST: it is no longer listed as allowed, and listed as blocked where that is not enough."""
    from agentguard.policy.edit import deny as denying

    return tell_revision(denying(required_file(policy_path), host, agent), f"{host} is refused", dry_run, as_json)


def tell_revision(revision: Revision, already: str, dry_run: bool, as_json: bool) -> int:
    """Write a revision, unless it is a trial, and say what it grants and takes."""
    if not dry_run:
        revision.write()
    if as_json:
        print_json(
            {
                "ok": True,
                "path": revision.new.path,
                "written": revision.is_change and not dry_run,
                "changes": changes_as_json(revision.changes),
                "note": revision.note or None,
            }
        )
        return Exit.OK
    if not revision.is_change:
        click.echo(f"Nothing to do: {already} as {revision.new.path} stands.")
        return Exit.OK
    print_changes(revision.changes)
    click.echo(f"{'Would write' if dry_run else 'Wrote'} {clean(revision.new.path)}.")
    if revision.note:
        click.echo(revision.note)
    return Exit.OK


def print_changes(changes: Iterable[Change]) -> None:
    """A line for each change, with what is granted in the colour of a warning."""
    for change in changes:
        word, colour = _WORDS[change.direction]
        click.echo(f"{click.style(word, fg=colour)}  {clean(change.key)}   {clean(change.sentence)}")


def changes_as_json(changes: Iterable[Change]) -> list[dict[str, str]]:
    """Changes for programs."""
    return [{"direction": str(change.direction), "key": change.key, "sentence": change.sentence} for change in changes]

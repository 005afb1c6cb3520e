"""The command line: `agentguard --help`. Each command parses, calls one public function, and prints.

Commands are imported when they run, so that help costs nothing but click.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import click

__all__ = ["main"]


class _Entry(NamedTuple):
    """Where a command lives, under which heading it is listed, and what help says of it."""

    section: str
    module: str
    summary: str


_COMMANDS = {
    "init": _Entry("Start", "init", "Write a policy to begin with."),
    "demo": _Entry("Start", "demo", "Show a guarded agent on bundled fakes."),
    "run": _Entry("Start", "run", "Run a program under the guard, without changing it."),
    "doctor": _Entry("Start", "doctor", "Say what is guarded, what is not, and what to do."),
    "policy": _Entry("Policy", "policy", "Check, explain, compare, learn and edit policies."),
    "agents": _Entry("Watch", "agents", "Show the guarded processes, and who is isolated."),
    "budgets": _Entry("Watch", "budgets", "Show every limit: spent, held, left; explain and adjust one."),
    "reservations": _Entry("Watch", "reservations", "Show what calls in flight hold."),
    "tail": _Entry("Watch", "tail", "Show what happens, as it happens."),
    "isolate": _Entry("Respond", "isolate", "Stop an agent in every process, at once."),
    "restore": _Entry("Respond", "isolate", "Let an isolated agent go on."),
}


class _Lazy(click.Group):
    """A group that imports a command when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in _COMMANDS.items() if find_spec(f"{__name__}.{entry.module}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(import_module(f"{__name__}.{_COMMANDS[cmd_name].module}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - a fault of this package, caught by its tests
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            from difflib import get_close_matches

            near = get_close_matches(args[0], known, n=1)
            ctx.fail(f"no such command {args[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        for section in dict.fromkeys(_COMMANDS[name].section for name in names):
            with formatter.section(section):
                formatter.write_dl([(name, _COMMANDS[name].summary) for name in names if _COMMANDS[name].section == section])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from agentguard.cli._command import version

        click.echo(f"agentguard {version()}")
        ctx.exit()


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "auto_envvar_prefix": "AGENTGUARD"},
    epilog="Exit codes: 0 ok, 1 a finding, 2 wrong usage, 3 the store or the server cannot be reached, 4 done in part.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version and exit."
)
def main() -> None:
    """See, control and answer for what AI agents do."""

"""What every command has: `--json`, exit codes, and errors without a traceback."""

from __future__ import annotations

import json
import re
from enum import IntEnum
from typing import IO, TYPE_CHECKING, Any, cast

import click

from agentguard.errors import AgentGuardError, PolicyError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

PIPE_WIDTH = 200
"""Columns where nobody looks: a table that is piped is not folded for a terminal's sake."""


class Exit(IntEnum):
    """What a command's exit code means, for every command."""

    OK = 0
    FINDING = 1
    USAGE = 2
    UNREACHABLE = 3
    PARTIAL = 4


class Command(click.Command):
    """A command that returns its exit code, and tells the product's own errors plainly."""

    def __init__(self, name: str | None, *, help: str | None = None, **kwargs: Any) -> None:
        # Below a backspace click leaves lines as they are; a docstring that has one in clear is raw, and spells it.
        super().__init__(name, help=None if help is None else help.replace("\\b\n", "\b\n"), **kwargs)

    def invoke(self, ctx: click.Context) -> None:
        try:
            code = super().invoke(ctx)
        except AgentGuardError as error:
            tell_error(error, as_json=bool(ctx.params.get("as_json")))
            code = Exit.UNREACHABLE if isinstance(error, StoreUnavailable) else Exit.FINDING
        ctx.exit(code or Exit.OK)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--json`: one object on stdout, of the shape that the reference documents."""
    return click.option("--json", "as_json", is_flag=True, envvar="AGENTGUARD_JSON", help="Print JSON, for programs.")(command)


def policy_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--policy`, or AGENTGUARD_POLICY, or the file that is found."""
    return click.option(
        "--policy",
        "policy_path",
        type=click.Path(exists=True, dir_okay=False),
        envvar="AGENTGUARD_POLICY",
        show_envvar=True,
        help="The policy file. Default: agentguard.yaml here, or [tool.agentguard] in pyproject.toml.",
    )(command)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--store`, or AGENTGUARD_STORE, or the policy's."""
    return click.option(
        "--store",
        "store_url",
        metavar="URL",
        envvar="AGENTGUARD_STORE",
        show_envvar=True,
        help="Where the counters live. Default: the policy's store, else SQLite in the state directory.",
    )(command)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def tell_error(error: AgentGuardError, *, as_json: bool) -> None:
    """Print an error: on stderr for people, on stdout for programs."""
    if as_json:
        problems = [problem._asdict() for problem in error.problems] if isinstance(error, PolicyError) else []
        print_json({"ok": False, "error": {"type": type(error).__name__, "message": str(error), "problems": problems}})
        return
    name, _, rest = str(error).partition("\n")
    click.echo(f"{click.style(type(error).__name__, fg='red', bold=True)}: {clean(name)}", err=True)
    for line in rest.splitlines():
        click.echo(clean(line), err=True)


def console(*, is_stderr: bool = False) -> Console:
    """Where tables are printed. Imported here: rich costs more than most commands."""
    import os

    from rich.console import Console

    made = Console(stderr=is_stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.file = cast("IO[str]", _Trimmed(made.file))
        if "COLUMNS" not in os.environ:
            made.width = PIPE_WIDTH
    return made


class _Trimmed:
    """A file that is given no spaces at the ends of lines: rich fills up its tables with them."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write whole lines; rich writes what it prints at once."""
        return self._file.write(re.sub(r" +(?=\n)", "", text))


def clean(text: str) -> str:
    """Text from outside, safe for a terminal: a name must not move the cursor or set the title."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(text: str) -> str:
    """Text of ours that may have several lines, such as an error that names each problem, as one."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def version() -> str:
    """The version of agentguard."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of("agentguard")
    except PackageNotFoundError:  # run from a source tree
        return "from source"

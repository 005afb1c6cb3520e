"""`agentguard doctor`: what is guarded, what is not, and what to do about it."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._checks import CHECKS, Place
from agentguard.cli._command import (
    Command,
    Exit,
    clean,
    console,
    json_option,
    one_line,
    policy_option,
    print_json,
    store_option,
    version,
)

if TYPE_CHECKING:
    from rich.text import Text

    from agentguard.cli._checks import Line

_MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "finding": ("FIND", "bold red"), "fact": ("    ", "")}


@dataclass(slots=True)
class _Report:
    """What was found, section by section."""

    sections: list[tuple[str, list[Line]]] = field(default_factory=list)

    @property
    def findings(self) -> list[Line]:
        return [line for _, lines in self.sections for line in lines if line.mark == "finding"]


@click.command(cls=Command)
@click.option("--no-canary", is_flag=True, help="Send no call through the installed clients; saves some seconds.")
@click.option(
    "--pid",
    "pids",
    type=int,
    multiple=True,
    help="List the connections of this process and its children. Default: of every guarded program that runs now.",
)
@policy_option
@store_option
@json_option
def doctor(no_canary: bool, pids: tuple[int, ...], policy_path: str | None, store_url: str | None, as_json: bool) -> int:
    """Look at what is installed, send a call through every client to a loopback server, and say what is not guarded.

    Lists the connections that running programs hold, and which of them the policy would refuse.

    Exit code 1 when there is a finding. Notes are not findings.
    """
    place = Place(policy_path, store_url, not no_canary, pids)
    report = _Report()
    for title, check in CHECKS:
        report.sections.append((title, list(check(place))))
    if as_json:
        print_json(_as_json(report))
    else:
        _print(report)
    return Exit.FINDING if report.findings else Exit.OK


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "ok": not report.findings,
        "agentguard": version(),
        "python": platform.python_version(),
        "platform": sys.platform,
        "sections": [{"title": title, "lines": [asdict(line) for line in lines]} for title, lines in report.sections],
    }


def _print(report: _Report) -> None:
    from rich.padding import Padding
    from rich.table import Table

    out = console()
    out.print(
        _text(f"agentguard {version()}   Python {platform.python_version()}   {sys.platform}   process {os.getpid()}", "bold")
    )
    for title, lines in report.sections:
        if not lines:
            continue
        out.print()
        out.print(_text(title, "bold"))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for line in lines:
            mark, style = _MARKS[line.mark]
            said = _text(one_line(line.text))
            if line.remedy:
                said.append(f"\n{clean(one_line(line.remedy))}", "dim" if line.mark != "finding" else "")
            table.add_row(_text(mark, style), said)
        out.print(Padding(table, (0, 0, 0, 2)))
    out.print()
    count = len(report.findings)
    ending = "No findings." if not count else "1 finding." if count == 1 else f"{count} findings."
    out.print(_text(ending, "bold green" if not count else "bold red"))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(clean(text), style=style)

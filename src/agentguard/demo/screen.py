"""How it looks: one line per event, and a table of what was measured at the end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agentguard.policy.model import NANOS_PER_USD

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agentguard.demo.acts import Act
    from agentguard.demo.fact import Fact
    from agentguard.demo.program import Report
    from agentguard.demo.tape import Line

WIDE = 110
_STYLES = {"deny": "bold red", "cut": "bold red", "leaked": "bold red", "warn": "yellow"}
"""Colour is for what was stopped, and for what comes near it."""


class Screen(Protocol):
    """Where the demo shows itself."""

    def opening(self, title: str, notes: list[tuple[str, str]]) -> None:
        """Before the first act."""

    def act(self, number: int, act: Act) -> None:
        """An act begins."""

    def line(self, line: Line) -> None:
        """Something has happened. Called from any thread."""

    def end_of_scene(self) -> None:
        """All of its lines have been told. An act has one scene or more."""

    def closing(self, report: Report) -> None:
        """After the last act."""


class Silent:
    """Shows nothing: for `--json`."""

    def opening(self, title: str, notes: list[tuple[str, str]]) -> None:
        """Nothing."""

    def act(self, number: int, act: Act) -> None:
        """Nothing."""

    def line(self, line: Line) -> None:
        """Nothing."""

    def end_of_scene(self) -> None:
        """Nothing."""

    def closing(self, report: Report) -> None:
        """Nothing."""


class Terminal:
    """A terminal, or a file: plain text of 80 columns then.

    Args:
        console: Where it is printed.
        started: Unix seconds of the time that lines count from.
    """

    def __init__(self, console: Console, started: float) -> None:
        self._console = console
        self._started = started
        self._lock = threading.Lock()
        self._folds = False
        self._folded: dict[tuple[str, ...], list[Line]] = {}
        self._explained: set[str] = set()

    def opening(self, title: str, notes: list[tuple[str, str]]) -> None:
        """Print what plays, and with what."""
        grid = Table.grid(padding=(0, 2))
        for word, note in notes:
            grid.add_row(Text(word, "dim"), note)
        self._print(Text(title, "bold"), Padding(grid, (0, 0, 0, 2)))

    def act(self, number: int, act: Act) -> None:
        """Print a heading."""
        self._folds = act.folds
        self._explained.clear()
        heading = Text.assemble(f"{number} ", (act.name, "bold"))
        self._print("", Rule(heading, align="left", style="dim"), Text(act.says, "italic"))

    def line(self, line: Line) -> None:
        """Print a line, or keep it until the end of a scene of an act that folds."""
        with self._lock:
            if self._folds:
                key = (line.agent, line.verb, line.target, line.decision)
                self._folded.setdefault(key, []).append(line)
            else:
                self._show(line)

    def end_of_scene(self) -> None:
        """Print the lines that were folded, each with its number."""
        with self._lock:
            for line in sorted(map(_folded, self._folded.values())):
                self._show(line)
            self._folded.clear()

    def closing(self, report: Report) -> None:
        """Print what was measured, and what it comes to."""
        table: list[RenderableType] = [_table(report.facts), ""] if report.facts else []
        self._print("", Rule(style="dim"), *table, Text(report.verdict, "bold" if report.ok else "bold red"), *report.hints)

    def _show(self, line: Line) -> None:
        self._console.print(self._row(line), soft_wrap=True)
        if line.message and line.note not in self._explained:
            self._explained.add(line.note)
            self._console.print(Padding(Text(line.message, "dim"), (0, 0, 0, 7)))

    def _row(self, line: Line) -> Text:
        is_wide = self._console.width >= WIDE
        style = _STYLES.get(line.decision, "")
        cost = "" if line.nanos is None else _cost(line.nanos)
        row = Text.assemble(
            (f"{line.at - self._started:6.2f} ", "dim"),
            f"{_fit(line.agent, 14)} {_fit(line.verb, 10)} {_fit(line.target, 23 if is_wide else 16)} ",
            (_fit(line.decision, 7), style),
            " ",
        )
        room = 13 if cost else max(len(line.detail), 13)
        row.append(_fit(line.detail, room if is_wide or cost else 22))
        row.append(f" {cost:>8}" if cost else "")
        if is_wide and line.note:
            row.append(f"  {line.note}", "dim")
        row.truncate(self._console.width, overflow="ellipsis")
        row.rstrip()
        return row

    def _print(self, *parts: RenderableType) -> None:
        with self._lock:
            self._console.print(Group(*parts))


def _table(facts: list[Fact]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("claim")
    table.add_column("measured (servers' own logs)")
    table.add_column("holds")
    for fact in facts:
        table.add_row(Text(fact.claim), Text(fact.measured), Text("yes", "green") if fact.holds else Text("NO", "bold red"))
    return table


def _fit(text: str, width: int) -> str:
    return f"{text:<{width}}" if len(text) <= width else f"{text[: width - 1]}…"


def _folded(lines: list[Line]) -> Line:
    first = lines[0]
    if len(lines) == 1:
        return first
    costs = [line.nanos for line in lines if line.nanos is not None]
    is_same = all(line.detail == first.detail for line in lines)
    detail = f"×{len(lines)} {first.detail.partition(' ')[0]}" if is_same and not costs else f"×{len(lines)}"
    return first._replace(
        detail=detail, note=f"{first.detail} each" if is_same and costs else first.note, nanos=sum(costs) if costs else None
    )


def _cost(nanos: int) -> str:
    """Four digits after the point, so that a column of costs can be compared."""
    return "<$0.0001" if 0 < nanos < NANOS_PER_USD // 10_000 else f"${nanos / NANOS_PER_USD:.4f}"

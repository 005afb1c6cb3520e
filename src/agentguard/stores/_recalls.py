"""The rows whose slices are wanted back: one process writes them down, the holders of slices read what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentguard.stores._rows import bound, unbound
from agentguard.stores._watchers import Watchers

if TYPE_CHECKING:
    import sqlite3

TABLE = "CREATE TABLE recalls (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL)"

_KEPT = 1000
"""Whoever has missed more than these gives back unasked, half a horizon later."""


class Recalls(Watchers[[Sequence[str]]]):
    """Who is told of recalls, and up to which one they were told."""

    def __init__(self) -> None:
        super().__init__()
        self._told = 0

    def news(self, db: sqlite3.Connection) -> list[str]:
        """The rows that were recalled since the last look. The first look tells of all that are written down."""
        found = db.execute("SELECT number, key FROM recalls WHERE number > ?", (self._told,)).fetchall()
        if found:
            self._told = found[-1][0]
        return list(dict.fromkeys(unbound(key) for _, key in found))


def write(db: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Write down that rows are recalled."""
    db.executemany("INSERT INTO recalls VALUES (NULL, ?)", [(bound(key),) for key in keys])
    db.execute(f"DELETE FROM recalls WHERE number <= (SELECT MAX(number) FROM recalls) - {_KEPT}")  # noqa: S608 - a constant

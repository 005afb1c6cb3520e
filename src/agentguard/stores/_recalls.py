"""The rows whose slices are wanted back: one process writes them down, the holders of slices read what is new."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from agentguard.stores.base import Closeable

TABLE = "CREATE TABLE recalls (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL)"

_KEPT = 1000
"""Whoever has missed more than these gives back unasked, half a horizon later."""


class Recalls:
    """Who is told of recalls, and up to which one they were told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._callbacks: tuple[Callable[[Sequence[str]], None], ...] = ()
        self._told = 0

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Tell `on_recall` from now on."""
        with self.lock:
            self._callbacks = (*self._callbacks, on_recall)
        return _Recall(self, on_recall)

    def remove(self, on_recall: Callable[[Sequence[str]], None]) -> None:
        """Tell it no more."""
        with self.lock:
            self._callbacks = tuple(callback for callback in self._callbacks if callback is not on_recall)

    def tell(self, keys: Sequence[str]) -> None:
        """Tell everybody."""
        for callback in self._callbacks:
            callback(keys)

    def news(self, db: sqlite3.Connection) -> list[str]:
        """The rows that were recalled since the last look. The first look tells of all that are written down."""
        found = db.execute("SELECT number, key FROM recalls WHERE number > ?", (self._told,)).fetchall()
        if found:
            self._told = found[-1][0]
        return list(dict.fromkeys(key for _, key in found))


class _Recall:
    def __init__(self, recalls: Recalls, on_recall: Callable[[Sequence[str]], None]) -> None:
        self._recalls = recalls
        self._on_recall = on_recall

    def close(self) -> None:
        self._recalls.remove(self._on_recall)


def write(db: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Write down that rows are recalled."""
    db.executemany("INSERT INTO recalls VALUES (NULL, ?)", [(key,) for key in keys])
    db.execute(f"DELETE FROM recalls WHERE number <= (SELECT MAX(number) FROM recalls) - {_KEPT}")  # noqa: S608 - a constant

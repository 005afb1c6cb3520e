"""The rows of a database as this process knows them: read once, and anew only when somebody else has written."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from agentguard.core.limits import Row, State
from agentguard.policy.model import Limit, OnStoreDown, Over, Per, Rule, Unit, Window

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

_MOST_ROWS = 4096
_MOST_TERMS = 50
"""Rows that are selected by a UNION; SQLite takes 500 terms at most."""

_COLUMNS = "c.id, c.key, c.limit_id, c.spent, c.held, c.start, c.ends, c.warned, c.warned_in, c.buckets"
_WRITE_COUNTS = "UPDATE counters SET spent = ?, held = ?, used_at = ? WHERE id = ?"
_WRITE = """UPDATE counters SET spent = ?, held = ?, start = ?, ends = ?, warned = ?, warned_in = ?, buckets = ?, used_at = ?
    WHERE id = ?"""


class KnownRows:
    """What is written down, as objects. Used inside a transaction only; the first word of each is `look`.

    A transaction leaves the rows here as it has written them, so the next one need not read them again. Whoever changes one
    and does not write it, or writes past this class, says `forget`.

    Attributes:
        isolated: The subjects that are isolated.
    """

    def __init__(self) -> None:
        self.isolated: frozenset[str] = frozenset()
        self._limits: dict[int, Limit] = {}
        self._built: dict[int, tuple[int, Row]] = {}
        self._by_key: dict[str, Row] = {}
        self._by_id: dict[int, Row] = {}
        self._written: dict[int, tuple[float, int]] = {}
        self._version: int | None = None
        self._epoch = -1

    def look(self, db: sqlite3.Connection) -> None:
        """Find out whether another process has written since; if so, nothing that is known here holds any more."""
        (version,) = db.execute("PRAGMA data_version").fetchone()
        is_full = len(self._built) > _MOST_ROWS
        if version == self._version and not is_full:
            return
        self.forget()
        if is_full:
            self._built.clear()
        (epoch,) = db.execute("SELECT epoch FROM control").fetchone()
        if epoch != self._epoch:
            self.isolated = frozenset(unbound(subject) for (subject,) in db.execute("SELECT subject FROM isolations"))
            self._epoch = epoch
        self._version = version

    def forget(self) -> None:
        """Read everything anew when it is next asked for."""
        self._version = None
        self._by_key.clear()
        self._by_id.clear()
        self._written.clear()

    def forget_all(self) -> None:
        """The same on another connection: it may be to another file, with other limits under the same ids."""
        self.forget()
        self._limits.clear()
        self._built.clear()
        self._epoch = -1

    def by_key(self, db: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Row]:
        """The rows of these keys, without those that are not registered."""
        known = self._by_key
        absent = [key for key in keys if key not in known]
        if absent:
            for found in db.execute(_select_by_key(len(absent)), [bound(key) for key in absent]).fetchall():
                self._build(db, found)
        return {key: known[key] for key in keys if key in known}

    def by_id(self, db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Row]:
        """The rows of these ids, without those that are forgotten."""
        known = self._by_id
        absent = [row_id for row_id in ids if row_id not in known]
        if absent:
            for found in db.execute(_select_by_id(len(absent)), absent).fetchall():
                self._build(db, found)
        return {row_id: known[row_id] for row_id in ids if row_id in known}

    def all(self, db: sqlite3.Connection) -> list[tuple[str, Limit, Row]]:
        """Every row, with its subject and its limit, in the order in which they were registered."""
        found = db.execute(f"SELECT c.subject, {_COLUMNS} FROM counters c ORDER BY c.id").fetchall()  # noqa: S608 - constants
        return [(unbound(subject), self.limit(db, counted[2]), self._build(db, counted)) for subject, *counted in found]

    def write(self, db: sqlite3.Connection, rows: Iterable[Row], now: float) -> None:
        """Write down what rows have counted."""
        states, counts = [], []
        for row in rows:
            if self._written.get(row.id) == (row.start, row.warned):
                counts.append((row.spent, row.held, now, row.id))
            else:
                states.append((*row.state(), now, row.id))
                self._note_as_written(row)
        if counts:
            db.executemany(_WRITE_COUNTS, counts)
        if states:
            db.executemany(_WRITE, states)

    def limit(self, db: sqlite3.Connection, id: int) -> Limit:
        """The limit of an id."""
        limit = self._limits.get(id)
        if limit is None:
            (spec,) = db.execute("SELECT spec FROM limits WHERE id = ?", (id,)).fetchone()
            limit = self._limits[id] = _load_limit(spec)
        return limit

    def limit_id(self, db: sqlite3.Connection, limit: Limit) -> int:
        """The id of a limit, which is written down if it is not yet."""
        spec = _dump_limit(limit)
        db.execute("INSERT OR IGNORE INTO limits VALUES (NULL, ?, ?)", (limit.per, spec))
        (limit_id,) = db.execute("SELECT id FROM limits WHERE spec = ?", (spec,)).fetchone()
        return int(limit_id)

    def _build(self, db: sqlite3.Connection, found: Sequence[Any]) -> Row:
        """A row as it is written now. The object may be an old one: to build it is most of the cost."""
        row_id, written, limit_id, *counted = found
        key = unbound(written)
        known_limit, row = self._built.get(row_id, (0, None))
        if row is None or known_limit != limit_id:
            row = Row.of(key, self.limit(db, limit_id), row_id)
            self._built[row_id] = limit_id, row
        row.restore(State._make(counted))
        self._by_key[key] = self._by_id[row_id] = row
        self._note_as_written(row)
        return row

    def _note_as_written(self, row: Row) -> None:
        """Between windows and soft steps only two numbers change, unless the window slides: to write the others costs as much."""
        if not row.window.is_rolling:
            self._written[row.id] = row.start, row.warned


def bound(word: str) -> str | bytes:
    """A word as SQLite takes it: as bytes if UTF-8 has none. An id from a file's name or from JSON may have lone surrogates."""
    if word.isascii():
        return word
    try:
        word.encode()
    except UnicodeEncodeError:
        return word.encode("utf-8", "surrogatepass")
    return word


def unbound(written: str | bytes) -> str:
    """A word as it was before it was written."""
    return written if isinstance(written, str) else written.decode("utf-8", "surrogatepass")


def marks(count: int) -> str:
    """As many question marks, for an IN (...)."""
    return ", ".join("?" * count)


@functools.cache
def _select_by_key(count: int) -> str:
    if count > _MOST_TERMS:
        return f"SELECT {_COLUMNS} FROM counters c WHERE c.key IN ({marks(count)})"  # noqa: S608 - constants and question marks
    row = f"SELECT {_COLUMNS} FROM counters c WHERE c.key = ?"  # noqa: S608 - constants
    return " UNION ALL ".join([row] * count)  # an IN (...) builds a table of its own first: 3 us more


@functools.cache
def _select_by_id(count: int) -> str:
    return f"SELECT {_COLUMNS} FROM counters c WHERE c.id IN ({marks(count)})"  # noqa: S608 - constants and question marks


def _dump_limit(limit: Limit) -> str:
    return json.dumps(
        {
            "amount": limit.amount,
            "unit": limit.unit,
            "per": limit.per,
            "window": [limit.window.every, limit.window.seconds],
            "over": limit.over,
            "warn_at": limit.warn_at,
            "on_store_down": limit.on_store_down,
            "text": limit.text,
            "rule": [limit.rule.name, limit.rule.path, limit.rule.line],
        }
    )


def _load_limit(spec: str) -> Limit:
    read = json.loads(spec)
    return Limit(
        amount=read["amount"],
        unit=Unit(read["unit"]),
        per=Per(read["per"]),
        window=Window(*read["window"]),
        over=Over(read["over"]),
        warn_at=tuple(read["warn_at"]),
        on_store_down=OnStoreDown(read["on_store_down"]),
        text=read["text"],
        rule=Rule(*read["rule"]),
    )

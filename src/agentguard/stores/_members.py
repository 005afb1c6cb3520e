"""The processes of a database: each writes down how it describes itself, and what it has heard of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.stores._holder import Holder
from agentguard.stores.base import FORGET_MEMBER_SECONDS, Member

if TYPE_CHECKING:
    import sqlite3

TABLE = """CREATE TABLE members (
    name TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, agent TEXT NOT NULL, version TEXT NOT NULL,
    policy TEXT NOT NULL, mode TEXT NOT NULL, epoch INTEGER NOT NULL, started REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID"""

_WRITE = "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def beat(db: sqlite3.Connection, member: Member, now: float) -> None:
    """Write a process down, and strike those that were forgotten."""
    db.execute(_WRITE, member._replace(at=now))
    db.execute("DELETE FROM members WHERE at < ?", (now - FORGET_MEMBER_SECONDS,))


def leave(db: sqlite3.Connection, name: str) -> None:
    """Strike a process."""
    db.execute("DELETE FROM members WHERE name = ?", (name,))


def living(db: sqlite3.Connection, me: Holder, now: float) -> list[Member]:
    """The processes that were heard of and are not known to be dead, in the order in which they started."""
    found = db.execute("SELECT * FROM members WHERE at >= ? ORDER BY started, name", (now - FORGET_MEMBER_SECONDS,))
    return [member for member in map(Member._make, found) if not Holder.parse(member.holder).is_dead(me)]

"""Counters in a file, shared by the processes of a host, that survive them.

Every verb is one transaction: take the host lock, read the rows of the request that another process may have written since,
decide in memory with `core.limits`, write, commit. A process that is killed anywhere in between has changed nothing: the
kernel frees its lock and SQLite ignores what was not committed. What it had reserved before, `sweep` charges.

The death of a process loses nothing. A loss of power may take the last commits with it (`synchronous=NORMAL`).
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, TypeVar

from agentguard.core.limits import Charge, Crossed, Item, LimitRow, RefusalKind, Refused, Row, charge, give
from agentguard.errors import StoreUnavailable
from agentguard.stores import _members, _recalls, _verbs
from agentguard.stores._bell import ISOLATION, RECALL, Bell, ring
from agentguard.stores._database import Database, Schema
from agentguard.stores._fork import survive_forks
from agentguard.stores._holder import Holder
from agentguard.stores._idle import IDLE_SECONDS, PRUNE_EVERY_SECONDS, SHORT_LIVED
from agentguard.stores._reader import Reader
from agentguard.stores._recalls import Recalls
from agentguard.stores._rows import KnownRows, bound, marks, unbound
from agentguard.stores._watchers import Watchers
from agentguard.stores.base import GRANTED, NOT_SETTLED, SETTLED, Balance, Granted, Hold, Isolation, Settled

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Amounts
    from agentguard.stores.base import Account, Accounted, Closeable, Member, Reserve, WallClock

_A = TypeVar("_A")

logger: logging.Logger = logging.getLogger("agentguard")

HOLD_SECONDS = 600.0
"""How long a hold lives without being renewed: the SDKs' own timeout is 10 minutes."""

_POLL_SECONDS = 0.005
_LISTEN_SECONDS = 0.03
"""How often to look for an isolation that no bell has told of: it was taken down, or nobody could ring it."""

_END_SECONDS = 1.0
_BATCH = 200
"""Holds or rows that one transaction sweeps, so that nobody waits long for the lock."""

_SCHEMA = Schema(
    application_id=0x41474C64,  # "AGLd", the ledger of agentguard
    version=3,
    statements=(
        "CREATE TABLE control (epoch INTEGER NOT NULL)",
        "INSERT INTO control VALUES (0)",
        # A limit is never changed: a row of `counters` is pointed at another. So each process may keep those that it has read.
        "CREATE TABLE limits (id INTEGER PRIMARY KEY AUTOINCREMENT, per TEXT NOT NULL, spec TEXT NOT NULL UNIQUE)",
        # AUTOINCREMENT: a hold on a forgotten row must not settle into the row that was registered after it.
        """CREATE TABLE counters (
            id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, subject TEXT NOT NULL, limit_id INTEGER NOT NULL,
            spent INTEGER NOT NULL, held INTEGER NOT NULL, start REAL NOT NULL, ends REAL NOT NULL,
            warned INTEGER NOT NULL, warned_in REAL NOT NULL, buckets BLOB NOT NULL, used_at REAL NOT NULL)""",
        """CREATE TABLE holds (
            id TEXT PRIMARY KEY, holder TEXT NOT NULL, deadline REAL NOT NULL, items TEXT NOT NULL, answer TEXT) WITHOUT ROWID""",
        "CREATE TABLE isolations (subject TEXT PRIMARY KEY, by TEXT NOT NULL, why TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
        _members.TABLE,
        _recalls.TABLE,
    ),
    upgrades=((_members.TABLE,), (_recalls.TABLE,)),
)


class SqliteStore:
    """A `Store` in a file, for all processes of a host.

    Args:
        path: The database. It and its companions (`-wal`, `-shm`, `.lock`, `.line`, `.bell-*`) are made when absent, for the
            owner only.
        clock: Unix time, for windows and deadlines.

    Raises:
        StoreUnavailable: The file cannot be used: not writable, damaged, not ours, or written by a newer agentguard.
    """

    may_block = True

    def __init__(self, path: str | os.PathLike[str], clock: WallClock = time) -> None:  # the module is a WallClock
        self._rows = KnownRows()
        self._database = Database(os.path.abspath(path), _SCHEMA, self._rows.forget_all)  # noqa: PTH100 - links are left alone
        self._reader = Reader(self._database.path)
        self._now = clock.time
        self._me = Holder.of_this_process()
        self._name = str(self._me)
        self._prune_at = 0.0
        self._watchers: Watchers[[]] = Watchers()
        self._poller: threading.Thread | None = None
        self._listeners: Watchers[[]] = Watchers()
        self._wanted = Recalls()
        self._listener: threading.Thread | None = None
        self._bell: Bell | None = None
        self._database.run(_look)
        survive_forks(self)

    @property
    def me(self) -> str:
        """This process: as the holder of what it holds, and as a member."""
        return self._name

    @property
    def failed(self) -> int:
        """How often the file was removed or replaced under this process, and with it what was counted. Each is logged."""
        return self._database.failed

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        if self._database.run(self._register, tuple(rows)):
            self._watchers.announce()

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        self._database.run(self._forget, [(bound(key),) for key in keys])

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none."""
        return self._database.run(self._reserve, request)

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says if nobody else is deciding; None otherwise."""
        return self._database.try_run(self._reserve, request)

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        return self._database.run(self._extend, id, charges)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        settled = self._database.run(self._settle, id, actual)
        if settled.first:
            self._watchers.announce()
        return settled

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says if nobody else is deciding; None otherwise."""
        settled = self._database.try_run(self._settle, id, actual)
        if settled is not None and settled.first:
            self._watchers.announce()
        return settled

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        return self._database.look(self._balances, keys)

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        return self._database.look(self._all_rows)

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        epoch = self._database.run(self._isolate, subject, on, by, why)
        ring(self._database.path, ISOLATION)
        self._listeners.announce()
        self._watchers.announce()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""
        return self._reader.look(_isolations)

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, of one moment."""
        return self._reader.look(lambda db: (_epoch(db), _isolations(db)))

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        return self._reader.look(_epoch)

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations: those of this process at once, others within two polls."""
        watch = self._watchers.add(on_change)
        self._start_polling()
        return watch

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations: whoever isolates rings a bell of this process."""
        watch = self._listeners.add(on_change)
        self._start_listening()
        return watch

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself, and that it was heard of now."""
        self._database.run(_members.beat, member, self._now())

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        self._database.run(_members.leave, name)

    def members(self) -> Sequence[Member]:
        """The processes that were heard of, without those that have left or are dead."""
        return self._database.look(_members.living, self._me, self._now())

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold; the earliest deadline first."""
        return self._database.look(self._holds)

    def lease(self, account: Account) -> Accounted | Refused:
        """Take the account of a slice, and let it grow."""
        answer = self._database.run(self._lease, account)
        self._watchers.announce()
        return answer

    def recall(self, keys: Sequence[str]) -> None:
        """Ask whoever holds slices of rows to give back what no call holds."""
        self._database.run(_recalls.write, keys)
        ring(self._database.path, RECALL)

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` when slices are asked for, by whatever process."""
        watch = self._wanted.add(on_recall)
        self._start_listening()
        return watch

    def renew(self) -> None:
        """Move on the deadlines of this process's open holds."""
        deadline, holder = self._now() + HOLD_SECONDS, self._name
        self._database.run(lambda db: db.execute("UPDATE holds SET deadline = ? WHERE holder = ?", (deadline, holder)))

    def sweep(self) -> int:
        """Charge the holds of dead processes, and of those past their deadline; now and then drop rows that are long idle."""
        holders = self._database.look(lambda db: [name for (name,) in db.execute("SELECT DISTINCT holder FROM holds")])
        dead = [name for name in holders if Holder.parse(name).is_dead(self._me)]
        swept = self._in_batches(self._charge_lost, dead)
        if swept:
            self._watchers.announce()
        now = self._now()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_EVERY_SECONDS
            self._prune(now - IDLE_SECONDS)
        return swept

    def close(self) -> None:
        """Free the file. Open holds stay, and are swept when the process is gone. A later verb opens it anew."""
        self._end_threads()
        self._database.close()
        self._reader.close()

    def before_fork(self) -> None:
        """Come to rest, in the process that forks."""
        self._database.before_fork()
        self._reader.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self._database.after_fork_in_parent()
        self._reader.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Go on as another process, which has no threads yet."""
        self._database.after_fork_in_child()
        self._reader.after_fork_in_child()
        self._me = Holder.of_this_process()
        self._name = str(self._me)
        self._watchers.lock = threading.Lock()
        self._listeners.lock = threading.Lock()
        self._wanted.lock = threading.Lock()
        self._poller = self._listener = None
        if self._watchers:
            self._start_polling()
        if self._listeners or self._wanted:
            self._start_listening()

    # --- inside a transaction ---------------------------------------------------------------------------------------

    def _register(self, db: sqlite3.Connection, rows: Sequence[LimitRow]) -> bool:
        has_changed = False
        self._rows.look(db)
        for key, subject, limit in rows:
            known = db.execute("SELECT limit_id FROM counters WHERE key = ?", (bound(key),)).fetchone()
            if known is None:
                state = Row.of(key, limit).state()
                db.execute(
                    "INSERT INTO counters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (bound(key), bound(subject), self._rows.limit_id(db, limit), *state, self._now()),
                )
            elif self._rows.limit(db, known[0]) != limit:
                row = self._rows.by_key(db, [key])[key]
                row.configure(limit)
                self._write(db, [row])
                db.execute("UPDATE counters SET limit_id = ? WHERE id = ?", (self._rows.limit_id(db, limit), row.id))
                self._rows.forget()
                has_changed = True
        return has_changed

    def _forget(self, db: sqlite3.Connection, doomed: Sequence[tuple[str | bytes]]) -> None:
        db.executemany("DELETE FROM counters WHERE key = ?", doomed)
        self._rows.forget()

    def _reserve(self, db: sqlite3.Connection, request: Reserve) -> Granted | Refused:
        call, charges, subjects, force, _ = request
        now = self._now()
        self._rows.look(db)
        if isolated := next(filter(self._rows.isolated.__contains__, subjects), None):
            return self._answer(db, call) or Refused(RefusalKind.ISOLATED, isolated)
        rows = self._rows.by_key(db, [key for key, _ in charges])
        is_over = any(now >= row.ends for row in rows.values())
        answer, items = _verbs.reserve(rows, charges, now, force)
        if isinstance(answer, Refused):
            if known := self._answer(db, call):
                self._rows.forget()  # asked before: nothing is written, not even that a window has moved on
                return known
            if is_over:  # rows never move back, not even when the clock does so after a refusal
                self._write(db, rows.values())
            return answer
        hold = (
            bound(call),
            self._name,
            now + HOLD_SECONDS,
            _dump_items(items),
            None if answer is GRANTED else _dump_answer(answer),
        )
        if not db.execute("INSERT OR IGNORE INTO holds VALUES (?, ?, ?, ?, ?)", hold).rowcount:
            self._rows.forget()  # asked before
            return self._answer(db, call) or answer
        self._write(db, rows.values())
        return answer

    def _answer(self, db: sqlite3.Connection, id: str) -> Granted | None:
        """What was said to an id that is open."""
        found = db.execute("SELECT answer FROM holds WHERE id = ?", (bound(id),)).fetchone()
        return None if found is None else _load_answer(found[0])

    def _extend(self, db: sqlite3.Connection, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        self._rows.look(db)
        rows = self._rows.by_key(db, [key for key, _ in charges])
        items = self._items(db, id)
        if items is None:
            return Refused(RefusalKind.UNREGISTERED, id)
        answer = _verbs.extend(rows, charges, items, self._now())
        self._write(db, rows.values())
        if isinstance(answer, Granted):
            db.execute("UPDATE holds SET items = ? WHERE id = ?", (_dump_items(items), bound(id)))
        return answer

    def _settle(self, db: sqlite3.Connection, id: str, actual: Amounts) -> Settled:
        self._rows.look(db)
        items = self._items(db, id)
        if items is None:
            return NOT_SETTLED
        crossed: list[Crossed] = []
        give(items, actual, self._now(), crossed)
        self._write(db, {item[0] for item in items})
        db.execute("DELETE FROM holds WHERE id = ?", (bound(id),))
        return Settled(True, tuple(crossed)) if crossed else SETTLED

    def _lease(self, db: sqlite3.Connection, account: Account) -> Accounted | Refused:
        self._rows.look(db)
        items = self._items(db, account.id)
        rows = self._rows.by_key(db, [key for key, _ in account.call])
        answer, held = _verbs.lease(rows, account, items, self._now())
        if isinstance(answer, Refused):
            return answer
        self._write(db, {row for row, _, _, _ in [*(items or ()), *held]} | set(rows.values()))
        if account.keep or answer.calls:
            hold = (bound(account.id), self._name, self._now() + HOLD_SECONDS, _dump_items(held), None)
            db.execute("INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?, ?)", hold)
        else:
            db.execute("DELETE FROM holds WHERE id = ?", (bound(account.id),))
        return answer

    def _isolate(self, db: sqlite3.Connection, subject: str, on: bool, by: str, why: str) -> int:
        if on:
            db.execute(
                "INSERT OR REPLACE INTO isolations VALUES (?, ?, ?, ?)", (bound(subject), bound(by), bound(why), self._now())
            )
        else:
            db.execute("DELETE FROM isolations WHERE subject = ?", (bound(subject),))
        db.execute("UPDATE control SET epoch = epoch + 1")
        self._rows.forget()
        return _epoch(db)

    def _charge_lost(self, db: sqlite3.Connection, dead: Sequence[str]) -> int:
        dead = dead[:_BATCH]
        self._rows.look(db)
        lost = db.execute(
            f"SELECT id FROM holds WHERE deadline < ? OR holder IN ({marks(len(dead))}) LIMIT {_BATCH}",  # noqa: S608 - question marks
            (self._now(), *dead),
        ).fetchall()
        for (call,) in lost:
            items = self._items(db, unbound(call)) or []
            charge(items)
            self._write(db, {item[0] for item in items})
            db.execute("DELETE FROM holds WHERE id = ?", (call,))
        return len(lost)

    def _balances(self, db: sqlite3.Connection, keys: Sequence[str]) -> list[Balance]:
        now = self._now()
        self._rows.look(db)
        rows = self._rows.by_key(db, keys)
        return [Balance.of(rows[key], now) for key in keys if key in rows]

    def _all_rows(self, db: sqlite3.Connection) -> list[tuple[LimitRow, Balance]]:
        now = self._now()
        self._rows.look(db)
        return [(LimitRow(row.key, subject, limit), Balance.of(row, now)) for subject, limit, row in self._rows.all(db)]

    def _holds(self, db: sqlite3.Connection) -> list[Hold]:
        self._rows.look(db)
        holds = []
        for call, holder, deadline in db.execute("SELECT id, holder, deadline FROM holds ORDER BY deadline, id").fetchall():
            charges = tuple(Charge(item.row.key, item.held) for item in self._items(db, unbound(call)) or ())
            holds.append(Hold(unbound(call), holder, charges, deadline))
        return holds

    def _items(self, db: sqlite3.Connection, id: str) -> list[Item] | None:
        """What a call holds, of rows that are still known; None when the id is not open."""
        hold = db.execute("SELECT items FROM holds WHERE id = ?", (bound(id),)).fetchone()
        if hold is None:
            return None
        items = json.loads(hold[0])
        rows = self._rows.by_id(db, [item[0] for item in items])
        return [Item(rows[row], start, held, bool(continued)) for row, start, held, continued in items if row in rows]

    def _write(self, db: sqlite3.Connection, rows: Iterable[Row]) -> None:
        self._rows.write(db, rows, self._now())

    # --- elsewhere --------------------------------------------------------------------------------------------------

    def _prune(self, before: float) -> None:
        """Drop rows that are long idle, and limits that no row has any more."""
        idle = self._database.look(
            lambda db: db.execute(
                f"""SELECT c.id FROM counters c JOIN limits l ON l.id = c.limit_id
                WHERE c.used_at < ? AND l.per IN ({marks(len(SHORT_LIVED))})""",  # noqa: S608 - question marks
                (before, *SHORT_LIVED),
            ).fetchall()
        )
        for start in range(0, len(idle), _BATCH):
            doomed = [(row_id, before) for (row_id,) in idle[start : start + _BATCH]]
            self._database.run(self._delete_idle, doomed)
        self._database.run(_delete_unused_limits)

    def _delete_idle(self, db: sqlite3.Connection, doomed: Sequence[tuple[int, float]]) -> None:
        db.executemany("DELETE FROM counters WHERE id = ? AND used_at < ?", doomed)  # it may have been used since we looked
        self._rows.forget()

    def _in_batches(self, verb: Callable[[sqlite3.Connection, _A], int], argument: _A) -> int:
        """Run a verb until it finds less than a batch to do. The lock is free in between."""
        done = 0
        while True:
            batch = self._database.run(verb, argument)
            done += batch
            if batch < _BATCH:
                return done

    def _start_polling(self) -> None:
        with self._watchers.lock:
            if self._poller is None or not self._poller.is_alive():
                self._poller = threading.Thread(target=self._poll, name="agentguard-store-watch", daemon=True)
                self._poller.start()

    def _end_threads(self) -> None:
        """Wait for the threads that have nobody left to tell: none of them opens the file again when this store is closed."""
        with self._watchers.lock:
            poller = None if self._watchers else self._poller
        with self._listeners.lock:
            listener = None if self._listeners or self._wanted else self._listener
            bell = self._bell
        if listener is not None and bell is not None:
            bell.wake()
        for thread in (poller, listener):
            if thread is not None and thread is not threading.current_thread():
                thread.join(_END_SECONDS)

    def _poll(self) -> None:
        """Tell the watchers of what other processes write, until nobody watches. The first look counts as a change."""
        seen: object = None
        while True:
            time.sleep(_POLL_SECONDS)
            with self._watchers.lock:
                if not self._watchers:
                    self._poller = None
                    return
            try:
                version = self._database.version()
                if version != seen:
                    seen = version
                    self._watchers.announce()
            except Exception:  # it goes on: whatever it is, waiting calls would not hear of room
                logger.exception("agentguard: a change of the store was not told")

    def _start_listening(self) -> None:
        with self._listeners.lock:
            if self._listener is None or not self._listener.is_alive():
                self._bell = Bell(self._database.path)
                self._listener = threading.Thread(
                    target=self._listen, args=(self._bell,), name="agentguard-store-isolations", daemon=True
                )
                self._listener.start()

    def _listen(self, bell: Bell) -> None:
        """Tell of isolations and recalls by other processes, until nobody listens. The first look counts as a change."""
        seen: object = None
        epoch = -1
        while True:
            rung = bell.wait(_LISTEN_SECONDS)
            with self._listeners.lock:
                if not (self._listeners or self._wanted):
                    self._listener = None
                    bell.close()
                    return
            try:
                if ISOLATION in rung:  # at once: who is told reads what there is, whatever this thread finds
                    self._listeners.announce()
                if not rung:
                    version = self._database.version()
                    if version == seen:
                        continue
                    seen = version
                known, epoch = epoch, self.epoch()
                wanted = self._database.look(self._wanted.news) if self._wanted else ()
                if epoch != known and ISOLATION not in rung:
                    self._listeners.announce()
                if wanted:
                    self._wanted.announce(wanted)
            except StoreUnavailable:  # no decision is made meanwhile; the next look finds what there is
                seen = None
            except Exception:  # it goes on listening: whatever it is, this process would hear of no isolation
                logger.exception("agentguard: an isolation or a recall was not told")
                seen = None


def _epoch(db: sqlite3.Connection) -> int:
    (epoch,) = db.execute("SELECT epoch FROM control").fetchone()
    return int(epoch)


def _isolations(db: sqlite3.Connection) -> list[Isolation]:
    found = db.execute("SELECT subject, by, why, at FROM isolations ORDER BY at, subject")
    return [Isolation(unbound(subject), unbound(by), unbound(why), at) for subject, by, why, at in found]


def _look(db: sqlite3.Connection) -> None:
    """Nothing but a transaction: it opens the file, or says why it cannot be used."""


def _delete_unused_limits(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM limits WHERE id NOT IN (SELECT limit_id FROM counters)")


def _dump_items(items: Iterable[Item]) -> str:
    return "[" + ",".join([f"[{row.id},{start},{held},{int(continued)}]" for row, start, held, continued in items]) + "]"  # JSON


def _dump_answer(answer: Granted) -> str:
    return json.dumps([answer.crossed, answer.refused])


def _load_answer(text: str | None) -> Granted:
    if text is None:
        return GRANTED
    crossed, refused = json.loads(text)
    return Granted(
        (), tuple(Crossed(*step) for step in crossed), Refused(RefusalKind(refused[0]), *refused[1:]) if refused else None
    )

"""A SQLite file that the processes of a host share: one connection a process, and the host lock in front of every transaction."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from agentguard.errors import StoreUnavailable
from agentguard.stores._hostlock import HostLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Concatenate

_P = ParamSpec("_P")
_T = TypeVar("_T")

logger: logging.Logger = logging.getLogger("agentguard")

LOCK_WAIT_SECONDS = 2.0
"""How long a transaction waits for its turn. A decision takes 0.1 ms, so whoever holds the lock for longer has been stopped."""

_STRANGER_PAUSE_SECONDS = 100e-6
"""Between two tries while a stranger, who knows nothing of the lock, writes to the database."""

_VERSION_WAIT_SECONDS = 0.005
_LOOK_EVERY_SECONDS = 0.05
"""How often to look whether the path still names our file: 2.5 us of the 40 that a decision takes."""

_PAGE_BYTES = 2048
"""A decision changes two pages, and each goes to the log whole: a tenth faster than with SQLite's default of 4096."""

_WAL_PAGES = 2000
_WAL_BYTES = 4 << 20
"""The log is checkpointed at 2000 pages and cut to this size: without the limit one burst would stay on disk for ever."""

_FULL = "Free space on its disk, or point `store:` at another."
_NOT_WRITABLE = "Make the file and its folder writable for this user, or point `store:` elsewhere."
_DAMAGED = "Restore it from a backup; or move it away with its -wal and -shm files, and every counter starts anew."
_REMEDIES = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR: _FULL,
    sqlite3.SQLITE_READONLY: _NOT_WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _NOT_WRITABLE,
    sqlite3.SQLITE_PERM: _NOT_WRITABLE,
    sqlite3.SQLITE_AUTH: _NOT_WRITABLE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}


class _Busy(Exception):
    """It is somebody else's turn."""


class Schema(NamedTuple):
    """What is in a file: its mark, its version, the statements that make it, and those that make a version of the one before."""

    application_id: int
    version: int
    statements: tuple[str, ...]
    upgrades: tuple[tuple[str, ...], ...] = ()


class Database:
    """A file and its lock. Used by any number of threads, one transaction at a time.

    SQLite's own waiting starves (of eight processes one waited 1.6 s for its only turn), so nobody waits inside SQLite:
    whoever has the host lock finds the database free, but for a stranger's `sqlite3` shell or a closing connection.

    Args:
        path: The database; its lock is beside it. All are made when absent, for the owner only.
        schema: What is in it.
        on_connect: Called before the first transaction on a connection. It may be to another file than the last one.

    Attributes:
        failed: How often the file was taken away from under this process, and with it what was counted.
    """

    def __init__(self, path: str, schema: Schema, on_connect: Callable[[], None]) -> None:
        self.path = path
        self.failed: int = 0
        self._on_connect = on_connect
        self._schema = schema
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._look_at = 0.0
        self._lock: HostLock | None = None
        self._is_at_rest = False

    def run(self, verb: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a verb in a transaction: all that it writes, or nothing.

        Raises:
            StoreUnavailable: The lock was not free in time, or the file cannot be read or written.
        """
        try:
            return self._run(self._begin, LOCK_WAIT_SECONDS, verb, *args, **kwargs)
        except _Busy:
            raise StoreUnavailable(
                f"no decision was made: another process or thread has held the lock of {self.path!r} "
                f"for {LOCK_WAIT_SECONDS:g} s, where 0.1 ms is usual; it may have been stopped.\n"
                f"  `fuser {self.path}.lock` names it: let it go on, or kill it (nothing is lost)."
            ) from None

    def try_run(self, verb: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        """The same if it is nobody else's turn; None otherwise. Never waits for anybody."""
        try:
            return self._run(self._begin, 0.0, verb, *args, **kwargs)
        except _Busy:
            return None

    def look(self, verb: Callable[Concatenate[sqlite3.Connection, _P], _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run a verb that only reads, beside the transactions of other processes: they do not wait for it."""
        try:
            return self._run(self._begin_beside, LOCK_WAIT_SECONDS, verb, *args, **kwargs)
        except _Busy:  # a reader waits only while another process repairs the log after a crash
            return self.run(verb, *args, **kwargs)

    def version(self) -> object:
        """A value that differs from the last one when another process has written since. It may differ without a change."""
        if not self._mutex.acquire(timeout=_VERSION_WAIT_SECONDS):
            return object()
        try:
            return self._db.execute("PRAGMA data_version").fetchone() if self._db and self._pid == os.getpid() else object()
        except sqlite3.Error:  # whoever asks again by a verb is told what it is
            return object()
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Free the file. A later verb opens it anew."""
        with self._mutex:
            self._disconnect()
            self._inode = None

    # --- forks: SQLite's connections do not survive one, not even to be closed in the child -------------------------

    def before_fork(self) -> None:
        """Wait for the transaction of another thread, and close the connection, so that the child has none to inherit."""
        self._is_at_rest = self._mutex.acquire(timeout=LOCK_WAIT_SECONDS + 1)
        if self._is_at_rest:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Go on; the next transaction connects anew."""
        if self._is_at_rest:
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Go on as another process."""
        self._mutex = threading.Lock()
        if self._is_at_rest:
            self._pid = os.getpid()

    # --- one transaction --------------------------------------------------------------------------------------------

    def _run(
        self,
        begin: Callable[[float], sqlite3.Connection],
        patience: float,
        verb: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        until = time.monotonic() + patience
        if not self._mutex.acquire(timeout=patience):
            raise _Busy
        try:
            db = begin(until)
            answer = verb(db, *args, **kwargs)
            db.execute("COMMIT")
            self._lock.release()  # type: ignore[union-attr]  # `_begin` took it
            return answer
        except _Busy:
            raise
        except BaseException as error:
            self._disconnect()  # rolls back and frees the lock, wherever we were: a Ctrl-C must not keep it from others
            if _is_busy(error):
                raise _Busy from error
            if isinstance(error, OSError | sqlite3.Error):
                raise self._unavailable(error) from error
            raise
        finally:
            self._mutex.release()

    def _begin(self, until: float) -> sqlite3.Connection:
        """Take the lock and begin."""
        if self._pid != os.getpid():
            raise StoreUnavailable(
                f"no decision was made: this process was forked in the middle of a decision, or by a call that Python does not "
                f"see, and must not use the connection to {self.path!r} that it inherited.\n  Make a new guard after the fork."
            )
        if self._lock is None:
            self._lock = HostLock(self.path)
        while True:
            if not self._lock.acquire(until):
                raise _Busy
            try:
                db = self._connected()
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                self._lock.release()
                if time.monotonic() >= until:
                    raise _Busy from error
                time.sleep(_STRANGER_PAUSE_SECONDS)
            else:
                return db

    def _begin_beside(self, until: float) -> sqlite3.Connection:
        """Begin to read, without the lock; what opens the file needs it."""
        if self._db is None or self._pid != os.getpid():
            return self._begin(until)
        self._db.execute("BEGIN")
        return self._db

    def _connected(self) -> sqlite3.Connection:
        """The connection, to the file that the path names now: in one that was removed under us nobody else counts."""
        if self._db is not None:
            if time.monotonic() < self._look_at:
                return self._db
            self._look_at = time.monotonic() + _LOOK_EVERY_SECONDS
            if self._inode == _inode(self.path):
                return self._db
            self._db.close()
            self._db = None
        if self._inode not in {None, _inode(self.path)}:
            self._tell_of_loss()
            self._inode = None
        # Only when absent: closing a descriptor of a database drops the locks that SQLite holds on it in this process.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:  # noted, and raised on
            db.close()
            raise
        self._db, self._inode = db, _inode(self.path)
        self._on_connect()
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        (mark,), (version,) = db.execute("PRAGMA application_id").fetchone(), db.execute("PRAGMA user_version").fetchone()
        is_new = not (mark or version or db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone())
        if not is_new and mark != self._schema.application_id:
            raise StoreUnavailable(
                f"no decision was made: {self.path!r} is the database of another program.\n  Point `store:` at a file of its own."
            )
        if is_new:
            db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        if version > self._schema.version:
            raise StoreUnavailable(
                f"no decision was made: {self.path!r} was written by a newer agentguard "
                f"(its version is {version}, this one reads {self._schema.version}).\n"
                f"  Update agentguard here, or point `store:` elsewhere."
            )
        (journal,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise StoreUnavailable(
                f"no decision was made: the file system of {self.path!r} does not let processes share memory "
                f"(journal mode {journal!r}).\n  Point `store:` at a local disk."
            )
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        if is_new:
            self._write_schema(db, self._schema.statements)
        elif version < self._schema.version:
            self._write_schema(db, [one for upgrade in self._schema.upgrades[version - 1 :] for one in upgrade])

    def _write_schema(self, db: sqlite3.Connection, statements: Iterable[str]) -> None:
        db.execute("BEGIN IMMEDIATE")
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {self._schema.application_id}")
        db.execute(f"PRAGMA user_version = {self._schema.version}")
        db.execute("COMMIT")

    def _disconnect(self) -> None:
        """Close what is open; the kernel takes back the lock with its descriptor."""
        db, self._db = self._db, None
        lock, self._lock = self._lock, None
        try:
            if db is not None:
                db.close()
        finally:
            if lock is not None:
                lock.close()

    # --- faults -----------------------------------------------------------------------------------------------------

    def _tell_of_loss(self) -> None:
        self.failed += 1
        logger.error(
            "agentguard: %r was removed or replaced while this process counted in it. What was spent, held and isolated is now "
            "what the file in its place says; a new one says nothing, and limits begin anew.\n  Put a backup in its place, or "
            "charge what was spent with `agentguard budgets adjust`.",
            self.path,
        )

    def _unavailable(self, error: OSError | sqlite3.Error) -> StoreUnavailable:
        if isinstance(error, sqlite3.Error):
            remedy = _REMEDIES.get(_code(error), "Look at the file with `sqlite3`; if this stays, move it away.")
        else:
            remedy = _FULL if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else _NOT_WRITABLE
        return StoreUnavailable(f"no decision was made: the counters in {self.path!r} cannot be used: {error}.\n  {remedy}")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a third of the cost of a Path's
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_BUSY


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code: the low byte of the extended one."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF

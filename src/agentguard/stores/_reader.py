"""A connection of its own, for looks that must not wait until another thread of this process has its turn to decide."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agentguard.errors import StoreUnavailable
from agentguard.stores._fork import FORK_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_BUSY_SECONDS = 1.0
"""A reader waits only while another process repairs the log after a crash."""


class Reader:
    """Reads a database that is there, and never writes. Used by any number of threads, one look at a time.

    Args:
        path: The database.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._is_at_rest = False

    def look(self, verb: Callable[[sqlite3.Connection], _T]) -> _T:
        """Read, all of it as it stood at one moment.

        Raises:
            StoreUnavailable: It cannot be read.
        """
        with self._mutex:
            try:
                db = self._connected()
                db.execute("BEGIN")
                found = verb(db)
                db.execute("COMMIT")
            except (OSError, sqlite3.Error) as error:
                self._disconnect()
                raise StoreUnavailable(f"who is isolated could not be read from {self._path!r}: {error}") from error
            return found

    def close(self) -> None:
        """Free the file. A later look opens it anew."""
        with self._mutex:
            self._disconnect()

    def before_fork(self) -> None:
        """Close the connection, so that the child has none to inherit."""
        self._is_at_rest = self._mutex.acquire(timeout=FORK_WAIT_SECONDS)
        if self._is_at_rest:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_at_rest:
            self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Go on as another process. A connection that was inherited all the same is left alone: it is not ours to close."""
        self._mutex = threading.Lock()
        if self._is_at_rest:
            self._pid = os.getpid()

    def _connected(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            raise OSError("this process was forked in the middle of a look")
        status = os.stat(self._path)  # noqa: PTH116 - a third of the cost of a Path's
        inode = status.st_dev, status.st_ino
        if self._db is None or inode != self._inode:
            self._disconnect()
            uri = f"{Path(self._path).as_uri()}?mode=ro"
            self._db = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._inode = inode
        return self._db

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

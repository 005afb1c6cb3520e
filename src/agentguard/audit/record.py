"""The event log: an observer that writes each event as one JSON line."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.audit.lines import LineFiles
from agentguard.audit.schema import record, record_of
from agentguard.events import CallAdmitted, CallSettled, ScopeEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.audit.schema import Record
    from agentguard.events import Event

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_TOTAL_BYTES = 256 * 1024 * 1024

_TRAFFIC = frozenset({CallAdmitted, CallSettled, ScopeEnded})
"""Events of normal operation. They are written in batches, all others at once."""

_BATCH_LINES = 256
_BATCH_SECONDS = 0.2
_RETRY_SECONDS = 5.0

_encode = json.JSONEncoder(separators=(",", ":")).encode

logger: logging.Logger = logging.getLogger("agentguard")


def events_directory() -> Path:
    """Where the processes of this user write their events."""
    from agentguard.stores.state import state_dir

    return Path(state_dir()) / "events"


class EventLog:
    """Writes events to files of this process in a directory that processes share. Thread-safe; a forked child writes its own.

    A disk that is full or not writable is a fault of telemetry: it is logged once, lost lines are counted, and the log
    goes on, with a record of how many were lost, when the disk does.

    Args:
        directory: None: `events` in the state directory.
        max_file_bytes: Size at which the next file is started.
        max_total_bytes: Size of all files of the directory; the oldest are removed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self.directory: Path = Path(directory) if directory is not None else events_directory()
        self.lost: int = 0
        """Lines that could not be written."""
        self._files = LineFiles(self.directory, _header, max_file_bytes, max_total_bytes)
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._written_at = -_RETRY_SECONDS
        self._retry_at = 0.0
        self._lost_since = 0
        self._has_told = False
        ref = weakref.ref(self)
        atexit.register(_call, ref, EventLog.flush)
        if hasattr(os, "register_at_fork"):  # Windows has no fork
            os.register_at_fork(after_in_child=lambda: _call(ref, EventLog._forked))

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        line = _encode(record_of(event))
        with self._lock:
            self._lines.append(line)
            is_due = len(self._lines) >= _BATCH_LINES or time.monotonic() - self._written_at >= _BATCH_SECONDS
            if is_due or type(event) not in _TRAFFIC:
                self._write()

    def flush(self) -> None:
        """Write what waits. Never raises for the disk's sake."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what waits and close the file. A later event opens another."""
        with self._lock:
            self._write()
            self._files.close()

    def _write(self) -> None:
        now = time.monotonic()
        self._written_at = now
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        if now < self._retry_at:
            self._lose(len(lines))
            return
        try:
            self._files.append(_bytes(*self._told_losses(), *lines))
        except OSError as error:
            self._retry_at = now + _RETRY_SECONDS
            self._lose(len(lines))
            if not self._has_told:
                self._has_told = True
                logger.warning("agentguard: events cannot be written to %s and are lost: %s", self.directory, error)
        else:
            self._lost_since = 0

    def _lose(self, lines: int) -> None:
        self.lost += lines
        self._lost_since += lines

    def _told_losses(self) -> tuple[str, ...]:
        if not self._lost_since:
            return ()
        return (_encode(record("events_lost", time.time()) | {"lost": self._lost_since}),)

    def _forked(self) -> None:
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self._lines = []  # the parent writes them
        self._files.close()


def _call(ref: weakref.ref[EventLog], method: Callable[[EventLog], None]) -> None:
    """Call a method of a log that is still alive: a hook must not keep it so."""
    if (log := ref()) is not None:
        method(log)


def _header() -> bytes:
    import platform

    head: Record = record("log_opened", time.time()) | {"pid": os.getpid(), "host": platform.node()}
    return _bytes(_encode(head))


def _bytes(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")

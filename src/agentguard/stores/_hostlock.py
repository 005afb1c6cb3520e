"""A lock between the processes of a host that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import os
import sys
import time

if sys.platform == "win32":  # pragma: no cover - no Windows among the machines that run the tests
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:  # held by another: msvcrt knows no narrower error
            return False
        return True

    def _unlock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


TURN_SECONDS = 2e-3
"""How long a process may decide on end while others wait. To take over costs as much as three decisions: its caches are cold."""

_FRONT_PAUSE_SECONDS = 100e-6
_BACK_PAUSE_SECONDS = 4e-3, 0.5e-3
"""Between two tries, of the one who is first in line and of all others. These look the more often the longer they have waited,
so that the line forms in the order of arrival, by and large."""

_LOOKS_PAST_THE_LINE = 32
"""Now and then, those behind ask for the lock itself: whoever is first in line may have been stopped."""


class HostLock:
    """An exclusive advisory lock on a file of its own, and the line of those who wait for it.

    The file is never the database: closing any descriptor of a file drops SQLite's own locks on it. Nobody ever blocks
    in the kernel: a holder that is stopped (SIGSTOP, a paused container) would block its waiters for ever, so they ask again.
    To ask is not free either, so only one of them, who holds the line, asks often; the others look on now and then. Whoever
    finds somebody in line after a turn stands back.

    Args:
        path: What is locked. The files `.lock` and `.line` beside it are made when absent, for the owner only.

    Raises:
        OSError: A file cannot be made or opened.
    """

    def __init__(self, path: str) -> None:
        self._lock = _open(f"{path}.lock")
        try:
            self._line = _open(f"{path}.line")
        except BaseException:  # noted, and raised on
            os.close(self._lock)
            raise
        self._is_held = False
        self._turn_ends = 0.0
        self._not_before = 0.0

    def acquire(self, until: float) -> bool:
        """Take the lock; False when it is not free by `until`, in the time of `time.monotonic`."""
        if self.try_acquire():
            return True
        is_in_front = False
        looks = 0
        began = now = time.monotonic()
        try:
            while now < until:
                is_in_front = is_in_front or _try_lock(self._line)
                time.sleep(_FRONT_PAUSE_SECONDS if is_in_front else _back_pause_seconds(now - began))
                looks += 1
                now = time.monotonic()
                if (is_in_front or looks % _LOOKS_PAST_THE_LINE == 0) and self._try():
                    self._turn_ends = now + TURN_SECONDS
                    return True
            return False
        finally:
            if is_in_front:
                _unlock(self._line)

    def try_acquire(self) -> bool:
        """Take the lock if it is free, and nobody else's turn."""
        return time.monotonic() >= self._not_before and self._try()

    def release(self) -> None:
        """Give it back, if it is held."""
        if not self._is_held:
            return
        self._is_held = False
        now = time.monotonic()
        if now >= self._turn_ends:
            self._turn_ends = now + TURN_SECONDS
            if self._is_waited_for():
                self._not_before = now + 2 * _FRONT_PAUSE_SECONDS
        _unlock(self._lock)

    def close(self) -> None:
        """Free the descriptors, and what is held."""
        os.close(self._lock)
        os.close(self._line)

    def _try(self) -> bool:
        self._is_held = _try_lock(self._lock)
        return self._is_held

    def _is_waited_for(self) -> bool:
        if _try_lock(self._line):
            _unlock(self._line)
            return False
        return True


def _back_pause_seconds(waited: float) -> float:
    longest, shortest = _BACK_PAUSE_SECONDS
    return max(longest - waited / 4, shortest)


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

"""A lock between the processes of a host that the kernel releases when its holder dies, however it dies."""

from __future__ import annotations

import os
import sys

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


class HostLock:
    """An exclusive advisory lock on a file of its own.

    The file is never the database: closing any descriptor of a file drops SQLite's own locks on it. Nobody ever blocks
    in the kernel: a holder that is stopped (SIGSTOP, a paused container) would block its waiters for ever, so they ask again.

    Raises:
        OSError: The file cannot be made or opened.
    """

    def __init__(self, path: str) -> None:
        self._is_held = False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        self._is_held = _try_lock(self._descriptor)
        return self._is_held

    def release(self) -> None:
        """Give it back, if it is held."""
        if self._is_held:
            self._is_held = False
            _unlock(self._descriptor)

    def close(self) -> None:
        """Free the descriptor, and the lock if it is held."""
        os.close(self._descriptor)

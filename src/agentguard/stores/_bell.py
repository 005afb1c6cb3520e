"""A bell that the processes of a host ring for each other: a named pipe for each who listens.

To wait for it costs nothing, and to hear it takes as long as to wake a thread. It says what to look at, and no more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from pathlib import Path

ISOLATION = b"i"
RECALL = b"r"
_MADE_ANEW = b"?"
_WAKE = b"!"


class Bell:
    """One process's bell beside a shared file. Where there are no named pipes (Windows) it never rings, and `wait` only waits.

    Args:
        path: The shared file. The bells of all processes are beside it, as `<file>.bell-...`, each for its owner only.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.bell-{os.getpid()}-{os.urandom(4).hex()}"
        self._descriptor: int | None = None

    def wait(self, seconds: float) -> bytes:
        """Wait until it rings, at most so long. What for; empty when it did not. A pipe that had to be made counts as rung."""
        if not hasattr(os, "mkfifo"):
            time.sleep(seconds)
            return b""
        if self._descriptor is None or not os.path.exists(self._path):  # noqa: PTH110 - a third of the cost of a Path's
            return self._hang(seconds)
        waiting = select.poll()  # `select` takes no descriptor beyond 1023
        waiting.register(self._descriptor, select.POLLIN)
        return os.read(self._descriptor, 4096) if waiting.poll(seconds * 1000) else b""

    def wake(self) -> None:
        """End a `wait`, from any thread."""
        _ring_one(self._path, _WAKE)

    def close(self) -> None:
        """Take it down, in the thread that waits for it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)  # noqa: PTH108 - as above

    def _hang(self, seconds: float) -> bytes:
        self.close()
        try:
            os.mkfifo(self._path, 0o600)
            # For writing too: a pipe that nobody else has open would be at its end, and never wait.
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_NONBLOCK)
        except OSError:  # a folder that we may not write to, or a file system without pipes: the caller looks by itself
            time.sleep(seconds)
            return b""
        return _MADE_ANEW


def ring(path: str, what: bytes) -> None:
    """Ring the bells of all processes that listen beside a shared file; those of dead processes are taken away."""
    shared = Path(path)
    for bell in shared.parent.glob(f"{shared.name}.bell-*"):
        _ring_one(bell, what)


def _ring_one(bell: str | Path, what: bytes) -> None:
    try:
        descriptor = os.open(bell, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody has it open
            with contextlib.suppress(OSError):
                os.unlink(bell)  # noqa: PTH108 - as above
        return
    # It is full of rings already, or was taken down since it was opened.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(descriptor, what)
    os.close(descriptor)

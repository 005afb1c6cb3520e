"""Changes that waiting calls are woken by, in threads and in event loops."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from agentguard.stores.base import Closeable, Store


class Changes:
    """Tells waiting calls that something has changed. It counts only while somebody waits.

    Take `version` before asking, and wait for another one: a change in between is not missed.

    Args:
        store: A store whose changes are told, which is listened to only while somebody waits. None: only what is announced.

    Attributes:
        waiting: How many wait.
        version: Grows with every change that was told.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._condition = threading.Condition()
        self._watch: Closeable | None = None
        self._wake_loops: dict[object, Callable[[], object]] = {}
        self.waiting: int = 0
        self.version: int = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count changes for the duration of a block."""
        with self._condition:
            self.waiting += 1
            if self.waiting == 1 and self._store is not None:
                self._watch = self._store.watch(self.announce)
        try:
            yield
        finally:
            with self._condition:
                self.waiting -= 1
                watch, self._watch = (self._watch, None) if self.waiting == 0 else (None, self._watch)
            if watch is not None:
                watch.close()

    def announce(self) -> None:
        """Wake everybody who waits."""
        if not self.waiting:
            return
        with self._condition:
            self.version += 1
            self._condition.notify_all()
            wake_loops, self._wake_loops = self._wake_loops, {}
        for wake in wake_loops.values():
            wake()

    def wait(self, seen: int, seconds: float) -> None:
        """Block this thread until the version is no longer `seen`, or the time is over."""
        with self._condition:
            if self.version == seen:
                self._condition.wait(seconds)

    async def await_change(self, seen: int, seconds: float) -> None:
        """Suspend this task until the version is no longer `seen`, or the time is over."""
        import asyncio

        loop = asyncio.get_running_loop()
        changed: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not changed.done():
                changed.set_result(None)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed, and nobody waits in it
                loop.call_soon_threadsafe(end)

        with self._condition:
            if self.version != seen:
                return
            self._wake_loops[changed] = wake
        timer = loop.call_later(seconds, end)
        try:
            await changed
        finally:
            timer.cancel()
            with self._condition:
                self._wake_loops.pop(changed, None)

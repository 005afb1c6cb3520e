"""The one background thread of a guard: it tells observers, and keeps house.

`tell` and `wake` may run inside the garbage collector, in the middle of anything, so they take no lock: a `deque`
and a `SimpleQueue` are all they touch.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.events import Event, Observer

CAPACITY = 20_000
"""Events that may wait. Beyond it they are dropped and counted: telemetry never holds up a call, nor eats the memory."""

BATCH_SECONDS = 0.02
"""The worker sleeps so long after being woken, so that a burst of calls wakes it once."""

TICK_SECONDS = 1.0

logger: logging.Logger = logging.getLogger("agentguard")


T = TypeVar("T")


def after_fork(owner: T, restart: Callable[[T], None]) -> None:
    """Have an object begin anew in each forked child, for as long as it lives."""
    ref = weakref.ref(owner)

    def restart_if_alive() -> None:
        alive = ref()
        if alive is not None:
            restart(alive)

    os.register_at_fork(after_in_child=restart_if_alive)


class Worker:
    """Runs observers and a housekeeping tick off the call path. Its thread starts with the first call."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.observers: list[Observer] = []
        self.dropped: int = 0
        self.failed: int = 0
        self._tick = tick
        self._events: deque[Event] = deque()
        self._faulty: set[int] = set()
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.is_woken: bool = False
        self._is_closing: bool = False
        self._is_telling: bool = False
        after_fork(self, Worker.restart)

    def add(self, observer: Observer) -> None:
        """Have an observer told from now on."""
        if observer not in self.observers:
            self.observers.append(observer)

    def tell(self, event: Event) -> None:
        """Queue an event. Costs less than a microsecond, never blocks, never raises."""
        if not self.observers:
            return
        if len(self._events) >= CAPACITY:
            self.dropped += 1
            return
        self._events.append(event)
        if not self.is_woken:
            self.wake()

    def wake(self) -> None:
        """Have the worker look soon."""
        if not self.is_woken:
            self.is_woken = True
            self._signals.put(None)

    def flush(self, seconds: float = 2.0) -> bool:
        """Have everything told that was queued before, at most for so long. False when time ran out."""
        deadline = time.monotonic() + seconds
        while self._events or self._is_telling:
            if time.monotonic() >= deadline:
                return False
            if self._thread is None or not self._thread.is_alive():
                self._tell_queued()
            else:
                time.sleep(0.001)
        return True

    def close(self) -> None:
        """Tell what is queued and stop the thread."""
        self._is_closing = True
        self._signals.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)
        self.flush()

    def restart(self) -> None:
        """Begin anew in a forked child, which has no thread. What was queued is the parent's to tell."""
        self._events.clear()
        self._signals = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = None
        self.is_woken = self._is_telling = False

    def start(self) -> None:
        """See that the thread runs. Not from a finalizer."""
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._is_closing:
                return
            thread = threading.Thread(target=self._run, name="agentguard", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process is ending, or may have no more threads: whoever flushes does the work
                logger.warning("agentguard: calls go on, and nothing is told of them until they are flushed: %s", error)
            else:
                self._thread = thread

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._signals.get(timeout=TICK_SECONDS)
            except queue.Empty:
                pass
            else:
                time.sleep(BATCH_SECONDS)
            self.is_woken = False
            self._tell_queued()
            self._guarded(self._tick)
        self._tell_queued()

    def _tell_queued(self) -> None:
        self._is_telling = True
        while self._events:
            event = self._events.popleft()
            for observer in self.observers:
                self._guarded(observer, event)
        self._is_telling = False

    def _guarded(self, fn: Callable[..., None], *args: object) -> None:
        try:
            fn(*args)
        except Exception:  # telemetry must not break the app: the other observers are told, and the fault is counted
            self.failed += 1
            if id(fn) not in self._faulty:
                self._faulty.add(id(fn))
                logger.exception("agentguard: %r failed; further failures of it are counted, not logged", fn)

"""Time that only moves when a test says so."""

from __future__ import annotations

import threading

DEFAULT_START_SECONDS = 1_767_225_600.0
"""2026-01-01 00:00:00 UTC: the start of a minute, an hour, a day and a month at once."""


class FrozenClock:
    """A clock for tests: wall time and monotonic time stand still until `advance` moves both.

    Args:
        time: Wall time to start at, in seconds since the epoch.
        monotonic: Monotonic time to start at, in seconds. It differs from wall time so that mixing the two is noticed.
    """

    def __init__(self, time: float = DEFAULT_START_SECONDS, *, monotonic: float = 1_000.0) -> None:
        self._lock = threading.Lock()
        self._time = time
        self._monotonic = monotonic

    def time(self) -> float:
        """Seconds since the epoch, as `time.time` would say."""
        with self._lock:
            return self._time

    def monotonic(self) -> float:
        """Seconds since an arbitrary start, as `time.monotonic` would say."""
        with self._lock:
            return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both times forward together.

        Raises:
            ValueError: `seconds` is negative; time does not run backwards (`set_time` makes the wall clock jump).
        """
        if seconds < 0:
            message = f"a clock cannot be advanced by {seconds} seconds; use set_time() to make the wall clock jump"
            raise ValueError(message)
        with self._lock:
            self._time += seconds
            self._monotonic += seconds

    def set_time(self, time: float) -> None:
        """Make the wall clock jump to `time`, backwards too, as a corrected system clock does; monotonic time stays."""
        with self._lock:
            self._time = time

    def __repr__(self) -> str:
        return f"FrozenClock(time={self.time()}, monotonic={self.monotonic()})"

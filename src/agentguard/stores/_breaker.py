"""What keeps a store that does not answer from costing every call its timeout."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = 3
WITHIN_SECONDS = 1.0
PROBE_SECONDS = 0.1
"""How often a store that does not answer is asked whether it does again, on a thread of its own."""


class Breaker:
    """Opens after `FAILURES` failures within `WITHIN_SECONDS`; closes when a probe is answered.

    While it is open a verb fails at once and touches no socket, no file and no lock.

    Args:
        probe: Asks the store for anything; raises when there is no answer. It is called on a thread of its own.
        monotonic: The clock by which failures are near each other.
    """

    def __init__(self, probe: Callable[[], object], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._probe = probe
        self._monotonic = monotonic
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child: the thread that probes is the parent's."""
        self._lock = threading.Lock()
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._closing = threading.Event()
        self._message: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the store is known not to answer."""
        return self._message is not None

    def check(self) -> None:
        """Let a verb go on.

        Raises:
            StoreUnavailable: The store is known not to answer.
        """
        if self._message is not None:
            raise StoreUnavailable(self._message)

    def failed(self, message: str) -> None:
        """Note that a verb got no answer. `message` says why, and is what the next ones raise."""
        now = self._monotonic()
        with self._lock:
            self._failures.append(now)
            is_full = len(self._failures) == FAILURES and now - self._failures[0] <= WITHIN_SECONDS
            if not is_full or self._message is not None or self._closing.is_set():
                return
            self._message = f"{message} It is asked again every {PROBE_SECONDS:g} s, and no call waits for it until then."
        threading.Thread(target=self._ask_again, name="agentguard-store-probe", daemon=True).start()

    def close(self) -> None:
        """Ask no more, and never open again: nobody would ask whether it may close."""
        with self._lock:
            self._closing.set()
            self._message = None

    def _ask_again(self) -> None:
        while not self._closing.wait(PROBE_SECONDS):
            try:
                self._probe()
            except Exception:  # noqa: BLE001, S112 - whatever it is, there is no answer yet: the breaker stays open
                continue
            with self._lock:
                self._failures.clear()
                self._message = None
            return

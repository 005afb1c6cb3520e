"""What a process that holds slices hears of the others: who is isolated, and what is wanted back."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailable
from agentguard.stores._leases import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.stores._leases import Leases
    from agentguard.stores.base import Closeable, Isolation, Leasable

_RECALL_PAUSE_SECONDS = 0.02
_MOST_REMEMBERED = 4096


class Others:
    """The other processes of a store.

    Args:
        store: What they have in common.
        leases: From which no call is taken for whoever is isolated.
        give_back: Gives back what lies idle of rows.
    """

    def __init__(self, store: Leasable, leases: Leases, give_back: Callable[[Sequence[str]], object]) -> None:
        self._store = store
        self._leases = leases
        self._give_back = give_back
        self._listening: tuple[Closeable, ...] = ()
        self._recalled: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._joining = threading.Lock()
        self._looking = threading.Lock()
        self._noting = threading.Lock()

    def after_fork_in_child(self) -> None:
        """Go on as another process: a lock that another thread has held is nobody's."""
        self._begin()

    @property
    def are_heard(self) -> bool:
        """Whether this process listens to them."""
        return bool(self._listening)

    def listen(self) -> None:
        """Hear of isolations and recalls from now on. A process that has never taken a slice has no need to."""
        if self._listening:
            return
        with self._joining:
            if not self._listening:
                self._listening = (
                    self._store.watch_isolations(self.look, self._stop),
                    self._store.watch_recalls(self._heed),
                )
                self.look()

    def close(self) -> None:
        """Hear nothing more."""
        for listening in self._listening:
            listening.close()

    # --- isolations -------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read who is isolated. While that is known to have changed and cannot be read, the store decides every call."""
        with self._looking:  # so that what is read first is not what stands last
            try:
                isolated = frozenset(isolation.subject for isolation in self._store.isolations())
            except StoreUnavailable:
                isolated = UNKNOWN
            self._leases.know_isolated(isolated)

    def look_again(self) -> None:
        """Read who is isolated, if that could not be read."""
        if self._listening and not self._leases.knows_isolated:
            self.look()

    def _stop(self, _epoch: int, isolation: Isolation) -> None:
        """Take no more for a subject, before it is read who is isolated."""
        with self._looking:
            self._leases.stop(isolation.subject)

    # --- recalls ----------------------------------------------------------------------------------------------------

    def recall(self, key: str) -> bool:
        """Ask for what lies idle of a row. Whether it was done: every waiting call asks, and all of a fleet seldom."""
        if time.monotonic() - self._recalled.get(key, -1.0) < _RECALL_PAUSE_SECONDS:
            return False
        self._note([key])
        self._store.recall([key])
        return True

    def _heed(self, keys: Sequence[str]) -> None:
        """Somebody waits for what lies idle here. All have heard it, so nobody needs to say it again just now."""
        self._note(keys)
        with contextlib.suppress(StoreUnavailable):  # it stays held, and is given back by the next sweep
            self._give_back(keys)

    def _note(self, keys: Sequence[str]) -> None:
        now = time.monotonic()
        with self._noting:
            if len(self._recalled) >= _MOST_REMEMBERED:
                self._recalled.clear()
            self._recalled.update(dict.fromkeys(keys, now))

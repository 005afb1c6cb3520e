"""What a fork does to a store: what another thread was doing stops half-way, and a lock it held stays locked in the child."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable


FORK_WAIT_SECONDS = 1.0
"""How long a fork waits for a verb to end. A verb takes microseconds: only a fork inside of one waits in vain."""


class Forkable(Protocol):
    """A store that gets through `os.fork`."""

    def before_fork(self) -> None:
        """Come to rest, in the process that forks."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on as another process."""


class Rests:
    """The first two hooks of a store with one lock: no other thread is in a verb of it when the fork is made.

    The third is the store's own: it makes a new lock.
    """

    _lock: threading.Lock
    _is_at_rest: bool = False

    def before_fork(self) -> None:
        """Wait for the verb that another thread is in, so that the child's copy is whole."""
        self._is_at_rest = self._lock.acquire(timeout=FORK_WAIT_SECONDS)

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._is_at_rest:
            self._lock.release()


def survive_forks(store: Forkable) -> None:
    """Call the store's three hooks around every fork, as long as the store lives."""
    if not hasattr(os, "register_at_fork"):  # Windows has no fork
        return
    alive = weakref.ref(store)  # hooks cannot be taken back, so they must not keep the store

    def hook(name: str) -> Callable[[], None]:
        def call() -> None:
            if (forkable := alive()) is not None:
                getattr(forkable, name)()

        return call

    os.register_at_fork(
        before=hook("before_fork"),
        after_in_parent=hook("after_fork_in_parent"),
        after_in_child=hook("after_fork_in_child"),
    )

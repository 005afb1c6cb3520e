"""What a fork does to a store: what another thread was doing stops half-way, and a lock it held stays locked in the child."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Forkable(Protocol):
    """A store that gets through `os.fork`."""

    def before_fork(self) -> None:
        """Come to rest, in the process that forks."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on as another process."""


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

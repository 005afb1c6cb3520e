"""Who is told when a store changes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.stores.base import Closeable


class Watchers:
    """The callbacks of a store. Announcing takes no lock, so it may be done from anywhere but inside the store's own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._callbacks: tuple[Callable[[], None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def add(self, on_change: Callable[[], None]) -> Watch:
        """Tell `on_change` from now on."""
        watch = Watch(self, on_change)
        with self.lock:
            self._callbacks = (*self._callbacks, watch)
        return watch

    def remove(self, watch: Watch) -> None:
        """Tell it no more."""
        with self.lock:
            self._callbacks = tuple(callback for callback in self._callbacks if callback is not watch)

    def announce(self) -> None:
        """Tell everybody."""
        for callback in self._callbacks:
            callback()


class Watch:
    """One who is told, until closed."""

    def __init__(self, watchers: Watchers, on_change: Callable[[], None]) -> None:
        self._watchers = watchers
        self._on_change = on_change

    def __call__(self) -> None:
        self._on_change()

    def close(self) -> None:
        """Be told no more. Twice is once."""
        self._watchers.remove(self)


class Together:
    """Several watches as one."""

    def __init__(self, *watches: Closeable) -> None:
        self._watches = watches

    def close(self) -> None:
        """Be told no more. Twice is once."""
        for watch in self._watches:
            watch.close()

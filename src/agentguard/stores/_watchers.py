"""Who is told when a store changes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.stores.base import Closeable

_Said = ParamSpec("_Said")


class Watchers(Generic[_Said]):
    """The callbacks of a store. Announcing takes no lock, so it may be done from anywhere but inside the store's own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.callbacks: tuple[Watch[_Said], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    def add(self, on_change: Callable[_Said, None]) -> Watch[_Said]:
        """Tell `on_change` from now on."""
        watch = Watch(self, on_change)
        with self.lock:
            self.callbacks = (*self.callbacks, watch)
        return watch

    def remove(self, watch: Watch[_Said]) -> None:
        """Tell it no more."""
        with self.lock:
            self.callbacks = tuple(callback for callback in self.callbacks if callback is not watch)

    def announce(self, *said: _Said.args, **named: _Said.kwargs) -> None:
        """Tell everybody."""
        for callback in self.callbacks:
            callback(*said, **named)


class Watch(Generic[_Said]):
    """One who is told, until closed."""

    def __init__(self, watchers: Watchers[_Said], on_change: Callable[_Said, None]) -> None:
        self._watchers = watchers
        self._on_change = on_change

    def __call__(self, *said: _Said.args, **named: _Said.kwargs) -> None:
        self._on_change(*said, **named)

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

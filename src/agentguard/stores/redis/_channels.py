"""What the processes of a fleet tell each other: that a call has settled, who is isolated, what is wanted back."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

from agentguard.stores._watchers import Together, Watchers
from agentguard.stores.base import Isolation
from agentguard.stores.redis._listener import Listener
from agentguard.stores.redis._packing import MICROS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.stores.base import Closeable
    from agentguard.stores.redis._keys import Keys
    from agentguard.stores.redis._link import Link


class Channels:
    """The channels of a fleet, which are listened to while somebody in this process wants to know.

    Isolations and recalls come over one connection: a process that leases listens to both all the time.

    Args:
        link: The way to the server.
        keys: The fleet's.
        epoch: Reads the epoch: the net under the isolations.
    """

    def __init__(self, link: Link, keys: Keys, epoch: Callable[[], int]) -> None:
        self._link = link
        self._recalls = keys.recalls
        self._settled = Listener(link, {keys.settlements: self._hear_of_settlement})
        heard = {keys.isolations: self._hear_of_isolation, keys.recalls: self._hear_of_recall}
        self._steered = Listener(link, heard, epoch)
        self._isolating: Watchers[[int, Isolation]] = Watchers()
        self._recalling: Watchers[[Sequence[str]]] = Watchers()

    def watch_settlements(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements."""
        return self._settled.add(on_change)

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_isolated` with what a message says of an isolation, and `on_change` after it."""
        if on_isolated is None:
            return self._steered.add(on_change)
        return Together(self._isolating.add(on_isolated), self._steered.add(on_change))

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` with the rows that any process has recalled."""
        return Together(self._recalling.add(on_recall), self._steered.add(_hear_nothing))

    def say_settled(self) -> None:
        """Tell this process; the script has told the others."""
        self._settled.watchers.announce()

    def say_isolated(self) -> None:
        """Tell this process; the script has told the others."""
        self._settled.watchers.announce()
        self._steered.watchers.announce()

    def recall(self, keys: Sequence[str]) -> None:
        """Tell every process that these rows are wanted back, unless one has just told it."""
        said = json.dumps(list(keys))
        self._link.run("recall", [f"{self._recalls}:{said}"], [self._recalls, said])

    def restart(self) -> None:
        """Go on in a forked child, which has no threads."""
        self._isolating.lock = threading.Lock()
        self._recalling.lock = threading.Lock()
        self._settled.restart()
        self._steered.restart()

    def close(self) -> None:
        """Listen no more."""
        self._settled.close()
        self._steered.close()

    def _hear_of_settlement(self, _: bytes) -> None:
        self._settled.watchers.announce()

    def _hear_of_isolation(self, said: bytes) -> None:
        told = _told(said)
        if told is not None:
            self._isolating.announce(*told)
        self._steered.watchers.announce()

    def _hear_of_recall(self, said: bytes) -> None:
        keys = _keys_in(said)
        if keys:
            self._recalling.announce(keys)


def isolation_of(subject: str, by: str, why: str, at: str) -> Isolation:
    """An isolation as `isolate.lua` writes it."""
    return Isolation(subject, by, why, int(at) / MICROS)


def _told(said: bytes) -> tuple[int, Isolation] | None:
    """The epoch and the isolation that a message tells of; None when a subject was restored, or when it is not ours."""
    try:
        epoch, subject, by, why, at = json.loads(said)
        return int(epoch), isolation_of(str(subject), str(by), str(why), at)
    except (ValueError, TypeError, OverflowError):
        return None


def _keys_in(said: bytes) -> list[str]:
    """The rows that a message recalls; none when it is not ours."""
    try:
        return [str(key) for key in json.loads(said)]
    except (ValueError, TypeError):
        return []


def _hear_nothing() -> None:
    """Whoever listens to recalls has no need to know of isolations."""

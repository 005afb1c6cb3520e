"""A thread that hears what the server publishes."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import redis

from agentguard.context import own_traffic
from agentguard.errors import StoreUnavailable
from agentguard.stores._watchers import Watchers
from agentguard.stores.redis._link import SILENCE
from agentguard.stores.redis._urls import open_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agentguard.stores._watchers import Watch
    from agentguard.stores.redis._link import Link

_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 0.001
_MOST_RETRY_SECONDS = 0.25

logger: logging.Logger = logging.getLogger("agentguard")


class Listener:
    """Tells watchers of what is said on some channels, as long as there are any, over one connection.

    A message is a hint: whoever is told reads the truth. So a subscription that has just begun to stand tells too,
    since a message may have been missed; and about every second a number is looked at that every message changes.

    Args:
        link: The way to the server.
        channels: What to listen to, and what each message is told to. Anybody may have published it: it is not to be trusted.
        look: Reads the number; None when there is none.
    """

    def __init__(
        self, link: Link, channels: Mapping[str, Callable[[bytes], None]], look: Callable[[], object] | None = None
    ) -> None:
        self.watchers: Watchers[[]] = Watchers()
        self._link = link
        self._channels = channels
        self._look = look
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._wait = _RETRY_SECONDS

    def add(self, on_change: Callable[[], None]) -> Watch[[]]:
        """Tell `on_change` from now on."""
        watch = self.watchers.add(on_change)
        self._start()
        return watch

    def restart(self) -> None:
        """Go on in a forked child, which has no threads."""
        self.watchers.lock = threading.Lock()
        self._thread = None
        if self.watchers:
            self._start()

    def close(self) -> None:
        """Listen no more."""
        self._is_closed = True

    def _start(self) -> None:
        with self.watchers.lock:
            self._is_closed = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="agentguard-store-listen", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._is_done():
            try:
                self._listen()
            except (redis.RedisError, *SILENCE, StoreUnavailable):
                self._pause()
            except Exception:  # it goes on listening: whatever it is, this process would hear of no isolation
                logger.exception("agentguard: what the store says was not understood")
                self._pause()

    def _listen(self) -> None:
        # A client of its own: whoever closes the store's does not tear the connection from under this thread.
        with own_traffic():
            opened = open_client(self._link.address)
        with closing(opened) as client:
            while not self._is_done():
                has_stood = False
                try:
                    for message in self._messages(client):
                        has_stood = True
                        self._wait = _RETRY_SECONDS
                        self._tell(message)
                except (redis.ConnectionError, OSError):
                    if not has_stood:  # the server may be another one by now, which a new client finds
                        raise
                    self._pause()

    def _messages(self, client: Any) -> Iterator[Mapping[str, Any]]:
        """What is published, after word that the subscription has begun to stand."""
        seen: Any = None
        with client.pubsub() as subscription:
            with own_traffic():
                subscription.subscribe(*self._channels)
            while not self._is_done():
                seconds = _LOOK_SECONDS * random.uniform(0.75, 1.25)  # noqa: S311 - spreads load
                with own_traffic():
                    message = subscription.get_message(timeout=seconds)
                if message is not None:
                    yield message
                elif self._look is not None and (number := self._look()) != seen:
                    seen = number
                    self.watchers.announce()

    def _tell(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "message":
            self._channels[message["channel"].decode()](message["data"])
        else:
            self.watchers.announce()

    def _pause(self) -> None:
        time.sleep(self._wait)
        self._wait = min(2 * self._wait, _MOST_RETRY_SECONDS)

    def _is_done(self) -> bool:
        with self.watchers.lock:
            if self._is_closed or not self.watchers:
                self._thread = None
                return True
            return False

"""This process among those that share a store: it acts on isolations as soon as they are made, and says that it does."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import StoreUnavailable
from agentguard.stores.base import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentguard.stores.base import Closeable, Isolation, Store

BEAT_SECONDS = 5.0
"""How often a process says that it lives."""

logger: logging.Logger = logging.getLogger("agentguard")


class Described(NamedTuple):
    """What a process says of itself: its own agent, the digest of its policy, and its mode."""

    agent: str
    policy: str
    mode: str


class Membership:
    """Listens for isolations, and keeps this process on the store's list of members.

    Args:
        store: The store.
        describe: What to say of this process.
        act: Called with all isolations whenever they were read; when it returns, they are acted on. Never twice at once.
        now: Unix time.
    """

    def __init__(
        self,
        store: Store,
        describe: Callable[[], Described],
        act: Callable[[Mapping[str, Isolation]], None],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._describe = describe
        self._act = act
        self._now = now
        self.has_joined: bool = False
        self._watch: Closeable | None = None
        self._known: dict[str, Isolation] = {}
        self._epoch = 0
        self._started = now()
        self._suffix = os.urandom(2).hex()
        self._said: Described | None = None
        self._beaten = -float("inf")
        self._is_reminding = False
        self._lock = threading.RLock()

    def join(self) -> None:
        """Listen from now on. The first beat is the worker's to give."""
        with self._lock:
            if not self.has_joined:
                self.has_joined = True
                self._watch = self._store.watch_isolations(self._hear, self._hear_of)

    def look(self) -> None:
        """Read who is isolated, act on it, and say so.

        Raises:
            StoreUnavailable: It cannot be read. What was known stays in force.
        """
        with self._lock:
            if self._is_reminding:  # a store in this process tells us of what we are just telling it
                return
            epoch, isolations = self._read()
            if epoch - self._epoch < len(self._known.keys() ^ isolations.keys()):  # every change of one subject is counted
                epoch, isolations = self._remind(isolations)
            is_news = epoch != self._epoch
            self._known, self._epoch = isolations, epoch
            self._act(isolations)
            if is_news and self.has_joined:
                self.beat()

    def beat_when_due(self, monotonic: float) -> None:
        """Say that this process lives, every few seconds, and at once when it has changed."""
        if self.has_joined and (monotonic - self._beaten >= BEAT_SECONDS or self._describe() != self._said):
            self._beaten = monotonic
            self.beat()

    def beat(self) -> None:
        """Say that this process lives, and which isolations it acts on."""
        with self._lock:
            said = self._said = self._describe()
            self._store.beat(
                Member(
                    self._name,
                    socket.gethostname(),
                    os.getpid(),
                    said.agent,
                    _version(),
                    said.policy,
                    said.mode,
                    self._epoch,
                    self._started,
                )
            )

    def leave(self) -> None:
        """Listen no more, and be struck from the list, if there still is one."""
        with self._lock:
            if not self.has_joined:
                return
            self.has_joined = False
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        try:
            self._store.leave(self._name)
        except StoreUnavailable as error:
            logger.debug("agentguard: the store was not told that this process ends: %s", error)

    def restart(self) -> None:
        """Begin anew in a forked child: another process, which has not joined."""
        self._lock = threading.RLock()
        self._is_reminding = False
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()
        self.has_joined = False
        self._said = None
        self._beaten = -float("inf")
        self._started = self._now()

    @property
    def _name(self) -> str:
        return f"{self._store.me}/{self._suffix}"  # two guards in one process are two members

    def _hear(self) -> None:
        try:
            self.look()
        except StoreUnavailable as error:  # what is known stays in force; the store is looked at again every second
            logger.warning("agentguard: an isolation may have been made and could not be read: %s", error)

    def _hear_of(self, epoch: int, isolation: Isolation) -> None:
        """Act on an isolation that a message tells of: to read it takes longer, and is done next."""
        with self._lock:
            if epoch > self._epoch and not self._is_reminding:
                self._act({**self._known, isolation.subject: isolation})

    def _remind(self, isolations: dict[str, Isolation]) -> tuple[int, dict[str, Isolation]]:
        """Isolate again whom the store has forgotten: it has lost what it was told, and nobody was restored by that."""
        self._is_reminding = True
        try:
            for lost in self._known.keys() - isolations.keys():
                was = self._known[lost]
                logger.error("agentguard: the store has lost the isolation of %s; it is isolated again", lost)
                self._store.isolate(lost, on=True, by=was.by, why=was.why)
        finally:
            self._is_reminding = False
        return self._read()

    def _read(self) -> tuple[int, dict[str, Isolation]]:
        epoch, isolations = self._store.dated_isolations()
        return epoch, {one.subject: one for one in isolations}


@functools.cache
def _version() -> str:
    """The version of agentguard. To look it up takes milliseconds, which an isolation must not wait for."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("agentguard")
    except PackageNotFoundError:  # run from a source tree
        return "from source"

"""How the supervisor lays hands on a task's socket: a duplicate of its descriptor, or a socket that we made for it."""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentguard.egress.kernel import tasks
from agentguard.egress.kernel.filter import TYPE_MASK
from agentguard.egress.kernel.notices import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.kernel.notices import Listener, Notice, Outcome

_KEPT_SECONDS = 60.0
_SWEPT_EVERY_SECONDS = 1.0
_MOST_CONNECTED = 4096


class Sockets(Protocol):
    """A way to a task's socket. What is given is the plain C type: Python's own costs as much again as the connect."""

    def take(self, tid: int, descriptor: int) -> _socket.socket:
        """A socket of this process that is the task's own, to be closed by who takes it.

        Raises:
            OSError: It is none, or cannot be had.
        """

    def let_go(self, descriptor: int) -> None:
        """The socket of ours is connected, or on its way: it is not needed any more."""

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """Further system calls that this way has to be asked about."""


class DuplicatedSockets:
    """Takes a duplicate of the task's descriptor: any socket, however the task came by it.

    Args:
        duplicates: Takes them.
        refuse: Answers for sockets that are refused.
    """

    def __init__(self, duplicates: tasks.Duplicates, refuse: Callable[[Notice], Answer]) -> None:
        self._duplicates = duplicates
        self._refuse = refuse

    def take(self, tid: int, descriptor: int) -> _socket.socket:
        """A duplicate of a task's socket."""
        return _socket.socket(fileno=self._duplicates.take(tid, descriptor))

    def let_go(self, descriptor: int) -> None:
        """Nothing is kept."""

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """Sockets that are refused: the others are not asked about."""
        return {"socket": self._refuse}


class _Made(NamedTuple):
    """A socket that we made for a task: ours, and where the task has its own."""

    ours: socket.socket
    pid: int
    descriptor: int
    since: float


class MadeSockets:
    """Makes the tree's sockets, and keeps a duplicate of each until it is connected, listens, or is gone.

    For containers whose profile forbids `pidfd_getfd` (Docker's default one). A duplicate that is kept too long would keep
    a connection open that the task has closed, or a port taken; so it is let go as soon as it has served.

    Args:
        listener: Where descriptors are given.
        refuse: Answers for datagram sockets: where these are allowed, another way has to be had.
    """

    def __init__(self, listener: Listener, refuse: Callable[[Notice], Answer]) -> None:
        self._listener = listener
        self._refuse = refuse
        self._made: dict[int, _Made] = {}
        self._connected: dict[int, None] = {}
        self._lock = threading.Lock()
        self._swept = 0.0

    def take(self, tid: int, descriptor: int) -> _socket.socket:
        """A duplicate of a socket that was made for the task."""
        inode = _inode(tid, descriptor)
        with self._lock:
            made = self._made.get(inode)
            if made is None:
                raise OSError(errno.EISCONN if inode in self._connected else errno.EACCES, "a socket that is not ours")
            return _socket.socket(fileno=os.dup(made.ours.fileno()))

    def let_go(self, descriptor: int) -> None:
        """Close ours: the task's own is all that it needs."""
        inode = os.fstat(descriptor).st_ino
        with self._lock:
            if inode in self._made:
                self._close(inode)
                if len(self._connected) >= _MOST_CONNECTED:
                    del self._connected[next(iter(self._connected))]
                self._connected[inode] = None

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """What makes a socket, and what makes it hold on to something."""
        return {"socket": self._make, "bind": self._watch_bind, "listen": self._watch_listen}

    def _make(self, notice: Notice) -> Outcome:
        family, kind, protocol = (argument & 0xFFFFFFFF for argument in notice.args[:3])
        if kind & TYPE_MASK == socket.SOCK_DGRAM and family != socket.AF_NETLINK:
            return self._refuse(notice)
        self._sweep()
        made = socket.socket(family, kind & ~socket.SOCK_CLOEXEC, protocol)
        given = self._listener.give(notice, made.fileno(), closes_on_exec=bool(kind & socket.SOCK_CLOEXEC))
        inode = os.fstat(made.fileno()).st_ino
        with self._lock:
            self._made[inode] = _Made(made, tasks.process_of(notice.tid), given, time.monotonic())
        return Answer(was_sent=True)

    def _watch_bind(self, _: Notice) -> Outcome:
        """A port that the task has given up is free only when we have given it up too."""
        self._sweep(at_once=True)
        return Answer(goes_on=True)

    def _watch_listen(self, notice: Notice) -> Outcome:
        with self._lock, contextlib.suppress(OSError):
            self._close(_inode(notice.tid, notice.args[0] & 0xFFFFFFFF))
        return Answer(goes_on=True)

    def _sweep(self, *, at_once: bool = False) -> None:
        """Let go what its task has closed; what another task may have been handed, only after a while."""
        now = time.monotonic()
        if not at_once and now < self._swept + _SWEPT_EVERY_SECONDS:
            return
        self._swept = now
        with self._lock:
            for inode, made in list(self._made.items()):
                is_due = (
                    made.ours.family == socket.AF_NETLINK  # each look-up makes one, and hands it to nobody
                    or (at_once and _is_bound(made.ours))
                    or now > made.since + _KEPT_SECONDS
                )
                if is_due and not _is_still(made, inode):
                    self._close(inode)

    def _close(self, inode: int) -> None:
        made = self._made.pop(inode, None)
        if made is not None:
            made.ours.close()


def _inode(tid: int, descriptor: int) -> int:
    """Which socket a descriptor of a task stands for.

    Raises:
        OSError: It stands for none.
    """
    name = os.readlink(f"/proc/{tid}/fd/{descriptor}")
    if not name.startswith("socket:["):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return int(name[8:-1])


def _is_bound(ours: socket.socket) -> bool:
    name = ours.getsockname()
    return bool(name[1] if isinstance(name, tuple) else name)


def _is_still(made: _Made, inode: int) -> bool:
    try:
        return _inode(made.pid, made.descriptor) == inode
    except OSError:
        return False

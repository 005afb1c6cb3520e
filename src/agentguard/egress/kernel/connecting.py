"""Connecting on behalf of a task.

The address is read from the task's memory once, judged, and then used from the supervisor's own memory, on a duplicate of
the task's socket. Nothing that the task changes meanwhile is looked at again, and the kernel is never told to go on with
the call: what was judged is what is done.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

from agentguard.egress.kernel import abi, sockaddr, tasks
from agentguard.egress.kernel.gate import CONTROL
from agentguard.egress.kernel.notices import Answer, Later

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from agentguard.egress.kernel.gate import Gate
    from agentguard.egress.kernel.notices import Listener, Notice, Outcome
    from agentguard.egress.kernel.sockaddr import Address, Inet, UnixPath
    from agentguard.egress.kernel.sockets import Sockets

CARRIED = {(int(socket.SOCK_STREAM), int(socket.IPPROTO_TCP)), (int(socket.SOCK_DGRAM), int(socket.IPPROTO_UDP))}
"""The kinds of internet sockets that may be used: others were made before the filter stood, or handed in."""

_UNDER_WAY = {0, errno.EINPROGRESS, errno.EALREADY, errno.EISCONN}
_MOST_UNDELIVERED = 256
_MOST_NEAR = 1024
_NEAR_SECONDS = 0.002
_BRIEFLY = struct.pack("@ll", 0, 1000)  # a timeval; the kernel rounds it up to its own tick
_TIMEVAL_BYTES = len(_BRIEFLY)

_connect = abi.libc.connect
_connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class Connecting:
    """Makes `connect` calls.

    Args:
        listener: Asked whether the task still waits.
        gate: Judges addresses.
        sockets: How a task's socket is laid hands on.
        invite: Connects a task's socket to the supervisor's control channel, and gives an error number.
    """

    def __init__(self, listener: Listener, gate: Gate, sockets: Sockets, invite: Callable[[int, int], int]) -> None:
        self._listener = listener
        self._gate = gate
        self._sockets = sockets
        self._invite = invite
        self._undelivered: dict[tuple[int, int], Answer] = {}
        self._near: dict[bytes, None] = {}

    def __call__(self, notice: Notice) -> Outcome:
        """Make one call: `connect(descriptor, address, length)`."""
        descriptor, pointer, length = notice.args[0] & 0xFFFFFFFF, notice.args[1], notice.args[2] & 0xFFFFFFFF
        if length > sockaddr.LONGEST:
            return Answer(errno.EINVAL)
        raw = tasks.read_memory(notice.tid, pointer, length)
        address = sockaddr.parse(raw)
        refusal = self._gate.refusal_of(notice, address, "connect")
        if refusal is not None:
            return refusal
        taken = self._sockets.take(notice.tid, descriptor)
        try:
            if not self._listener.is_waiting(notice):
                return Answer(errno.EINTR)
            return self._connect(notice, taken, address, raw)
        finally:
            taken.close()

    def keep_undelivered(self, notice: Notice, answer: Answer) -> None:
        """Remember an answer that a signal kept the task from hearing."""
        if len(self._undelivered) >= _MOST_UNDELIVERED:
            self._undelivered.clear()
        self._undelivered[notice.tid, notice.args[0]] = answer

    def _connect(self, notice: Notice, taken: _socket.socket, address: Address, raw: bytes) -> Outcome:
        if taken.family in (socket.AF_INET, socket.AF_INET6):
            if (taken.type, taken.proto) not in CARRIED:
                return Answer(errno.EPROTONOSUPPORT)
            if isinstance(address, sockaddr.Inet):
                return self._connect_inet(notice, taken, address)
            return _connected(taken.fileno(), raw) if isinstance(address, sockaddr.Unspecified) else Answer(errno.EAFNOSUPPORT)
        if taken.family == socket.AF_UNIX:
            if isinstance(address, sockaddr.UnixPath):
                return self._connect_unix(notice, taken, address)
            return self._connect_abstract(notice, taken, address, raw)
        if taken.family == socket.AF_NETLINK and taken.proto == 0 and isinstance(address, sockaddr.Netlink):
            return _connected(taken.fileno(), raw)
        return Answer(errno.EAFNOSUPPORT)

    def _connect_inet(self, notice: Notice, taken: _socket.socket, address: Inet) -> Outcome:
        if taken.type == socket.SOCK_DGRAM and not self._gate.takes_datagrams(address):
            return Answer(errno.EACCES)  # not recorded: getaddrinfo connects one to every address that it sorts
        raw = self._gate.destination(address, taken.family, taken.type)
        if taken.type != socket.SOCK_STREAM or not os.get_blocking(taken.fileno()):
            return self._as_first_told(notice, self._connect_to(taken.fileno(), raw))
        if raw in self._near:
            answer = _connected_briefly(taken, raw)
            if answer.error != errno.EINPROGRESS:
                if answer.error in _UNDER_WAY:
                    self._sockets.let_go(taken.fileno())
                return self._as_first_told(notice, answer)
            self._near.pop(raw, None)
        descriptor = taken.detach()
        return Later(
            lambda: self._as_first_told(notice, self._connect_at_leisure(descriptor, raw)),
            lambda: os.close(descriptor),
        )

    def _connect_at_leisure(self, descriptor: int, raw: bytes) -> Answer:
        """Connect, however long it takes; who is near is connected to at once the next time."""
        begun = time.monotonic()
        answer = self._connect_and_close(descriptor, raw)
        if time.monotonic() - begun < _NEAR_SECONDS:
            if len(self._near) >= _MOST_NEAR:
                self._near.pop(next(iter(self._near)), None)
            self._near[raw] = None
        return answer

    def _connect_abstract(self, notice: Notice, taken: _socket.socket, address: Address, raw: bytes) -> Outcome:
        if not isinstance(address, sockaddr.UnixAbstract):
            return Answer(errno.EINVAL)
        if address.name != CONTROL:
            return self._connect_to(taken.fileno(), raw)
        error = self._invite(notice.tid, taken.fileno())
        if not error:
            self._sockets.let_go(taken.fileno())
        return Answer(error)

    def _connect_unix(self, notice: Notice, taken: _socket.socket, address: UnixPath) -> Outcome:
        pinned = self._gate.pin_unix(notice, address)
        if isinstance(pinned, Answer):
            return pinned
        if not self._listener.is_waiting(notice):
            pinned.close()
            return Answer(errno.EINTR)
        descriptor = taken.detach()

        def connect() -> Answer:
            try:
                return self._connect_and_close(descriptor, pinned.raw)
            finally:
                pinned.close()

        def drop() -> None:
            os.close(descriptor)
            pinned.close()

        return Later(connect, drop) if os.get_blocking(descriptor) else connect()

    def _connect_to(self, descriptor: int, raw: bytes) -> Answer:
        answer = _connected(descriptor, raw)
        if answer.error in _UNDER_WAY:
            self._sockets.let_go(descriptor)
        return answer

    def _connect_and_close(self, descriptor: int, raw: bytes) -> Answer:
        try:
            return self._connect_to(descriptor, raw)
        finally:
            os.close(descriptor)

    def _as_first_told(self, notice: Notice, answer: Answer) -> Answer:
        """The answer, unless a signal took the task away before it heard a first one: it asks again, and means the first."""
        if answer.error not in (errno.EISCONN, errno.EALREADY):
            return answer
        return self._undelivered.pop((notice.tid, notice.args[0]), answer)


def _connected(descriptor: int, raw: bytes) -> Answer:
    return Answer(ctypes.get_errno()) if _connect(descriptor, raw, len(raw)) < 0 else Answer()


def _connected_briefly(taken: _socket.socket, raw: bytes) -> Answer:
    """Connect a blocking socket, or give up for now with EINPROGRESS.

    Whether it blocks is shared with the task, and so is its timeout; but the task itself waits for us meanwhile.
    """
    timeout = taken.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL_BYTES)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _BRIEFLY)
    try:
        return _connected(taken.fileno(), raw)
    finally:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

"""Sending on behalf of a task, where a message names its receiver: `sendto` with an address, `sendmsg`, `sendmmsg`.

As with `connect`, everything is read once and used from the supervisor's own memory. What rides along with a message is
passed on only when it is known to lead nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.kernel import sockaddr, tasks
from agentguard.egress.kernel.connecting import CARRIED
from agentguard.egress.kernel.filter import MSG_FASTOPEN
from agentguard.egress.kernel.notices import Answer, Later

if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from agentguard.egress.kernel.gate import Gate
    from agentguard.egress.kernel.judge import Pinned
    from agentguard.egress.kernel.notices import Listener, Notice, Outcome
    from agentguard.egress.kernel.sockaddr import Address
    from agentguard.egress.kernel.sockets import Sockets

_HEADER = struct.Struct("=QI4xQQQQi4x")
_LENGTH_AT = _HEADER.size  # of a mmsghdr: where the number of bytes sent is written
_SPAN = struct.Struct("=QQ")
_MOST_SPANS = 1024
_MOST_BYTES = 1024 * 1024
_MOST_CONTROL = 4096
_CONTROL = struct.Struct("=Qii")

_LOCAL_CHOICES = {
    (socket.IPPROTO_IP, 1),  # IP_TOS
    (socket.IPPROTO_IP, 2),  # IP_TTL
    (socket.IPPROTO_IP, 8),  # IP_PKTINFO
    (socket.IPPROTO_IPV6, 50),  # IPV6_PKTINFO
    (socket.IPPROTO_IPV6, 52),  # IPV6_HOPLIMIT
    (socket.IPPROTO_IPV6, 67),  # IPV6_TCLASS
    (socket.IPPROTO_UDP, 103),  # UDP_SEGMENT
}
"""What may ride along on the internet: how a packet is sent, not where to."""


class _Message(NamedTuple):
    """What a task wants to send; `address` None: to whom its socket is connected."""

    content: bytes
    address: Address | None
    control: tuple[tuple[int, int, bytes], ...]
    flags: int


class _Receiver(NamedTuple):
    """To whom a message goes: as the socket takes it (None: to whom it is connected), and the file that has to stay open."""

    name: tuple[str, int] | tuple[str, int, int, int] | tuple[int, int] | str | None = None
    pinned: Pinned | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self.pinned is not None:
            self.pinned.close()


_CONNECTED = _Receiver()


class Sending:
    """Makes `sendto`, `sendmsg` and `sendmmsg` calls.

    Args:
        listener: Asked whether the task still waits.
        gate: Judges addresses.
        sockets: How a task's socket is laid hands on.
        duplicates: How a descriptor that a task passes on is laid hands on.
    """

    def __init__(self, listener: Listener, gate: Gate, sockets: Sockets, duplicates: tasks.Duplicates) -> None:
        self._listener = listener
        self._gate = gate
        self._sockets = sockets
        self._duplicates = duplicates

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """What it makes, by name."""
        return {"sendto": self._send_to, "sendmsg": self._send_message, "sendmmsg": self._send_messages}

    def _send_to(self, notice: Notice) -> Outcome:
        _, pointer, length, flags, name, name_length = notice.args
        content = tasks.read_memory(notice.tid, pointer, min(length, _MOST_BYTES))
        address = _read_address(notice.tid, name, name_length & 0xFFFFFFFF)
        return self._send(notice, _Message(content, address, (), flags & 0xFFFFFFFF))

    def _send_message(self, notice: Notice) -> Outcome:
        header = tasks.read_memory(notice.tid, notice.args[1], _HEADER.size)
        return self._send(notice, _read_message(notice.tid, header, notice.args[2] & 0xFFFFFFFF))

    def _send_messages(self, notice: Notice) -> Outcome:
        """Send the first of several messages: who sends several has to go on where fewer were taken."""
        _, pointer, count, flags = notice.args[:4]
        if not count & 0xFFFFFFFF:
            return Answer()
        header = tasks.read_memory(notice.tid, pointer, _HEADER.size)
        outcome = self._send(notice, _read_message(notice.tid, header, flags & 0xFFFFFFFF))

        def counted(answer: Answer) -> Answer:
            if answer.error:
                return answer
            tasks.write_memory(notice.tid, pointer + _LENGTH_AT, answer.value.to_bytes(4, "little"))
            return Answer(value=1)

        if isinstance(outcome, Answer):
            return counted(outcome)
        return Later(lambda: counted(outcome.finish()), outcome.drop)

    def _send(self, notice: Notice, message: _Message) -> Outcome:
        if message.flags & MSG_FASTOPEN:
            return Answer(errno.EOPNOTSUPP)
        if message.address is not None:
            refusal = self._gate.refusal_of(notice, message.address, "send")
            if refusal is not None:
                return refusal
        taken = self._sockets.take(notice.tid, notice.args[0] & 0xFFFFFFFF)
        passed_on: list[int] = []
        try:
            control = tuple(self._passed_on(notice.tid, taken, message, passed_on))
            receiver = self._receiver(notice, taken, message.address)
            if isinstance(receiver, Answer):
                return receiver
            if not self._listener.is_waiting(notice):
                receiver.close()
                return Answer(errno.EINTR)
            return _sent(taken, message._replace(control=control), receiver)
        finally:
            taken.close()
            for descriptor in passed_on:
                os.close(descriptor)

    def _receiver(self, notice: Notice, taken: _socket.socket, address: Address | None) -> _Receiver | Answer:
        if taken.family in (socket.AF_INET, socket.AF_INET6):
            if (taken.type, taken.proto) not in CARRIED:
                return Answer(errno.EPROTONOSUPPORT)
            if address is None or taken.type == socket.SOCK_STREAM:
                return _CONNECTED
            if not isinstance(address, sockaddr.Inet):
                return Answer(errno.EAFNOSUPPORT)  # AF_UNSPEC, too: the kernel would read it as IPv4
            if not self._gate.takes_datagrams(address):
                return self._gate.refuse_datagram(notice, address)
            raw = self._gate.destination(address, taken.family, taken.type)
            return _as_received(sockaddr.parse(raw), taken.family)
        if taken.family == socket.AF_UNIX:
            return self._path(notice, taken, address)
        if taken.family == socket.AF_NETLINK and taken.proto == 0:
            if address is None:
                return _CONNECTED
            return _Receiver((0, 0)) if isinstance(address, sockaddr.Netlink) else Answer(errno.EINVAL)
        return Answer(errno.EAFNOSUPPORT)

    def _path(self, notice: Notice, taken: _socket.socket, address: Address | None) -> _Receiver | Answer:
        if address is None or taken.type != socket.SOCK_DGRAM:
            return _CONNECTED
        if not isinstance(address, sockaddr.UnixPath):
            return Answer(errno.EINVAL)
        pinned = self._gate.pin_unix(notice, address)
        return pinned if isinstance(pinned, Answer) else _Receiver(pinned.name, pinned)

    def _passed_on(
        self, tid: int, taken: _socket.socket, message: _Message, descriptors: list[int]
    ) -> list[tuple[int, int, bytes]]:
        kept = []
        for level, kind, content in message.control:
            if taken.family == socket.AF_UNIX and (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                theirs = struct.unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
                ours = []
                for descriptor in theirs:
                    ours.append(self._duplicates.take(tid, descriptor))
                    descriptors.append(ours[-1])
                kept.append((level, kind, struct.pack(f"={len(ours)}i", *ours)))
            elif (level, kind) in _LOCAL_CHOICES:
                kept.append((level, kind, content))
        return kept


def _sent(taken: _socket.socket, message: _Message, receiver: _Receiver) -> Outcome:
    """Send at once what can be sent at once; what has to wait, waits on a thread of its own."""
    try:
        return _send_by(taken, message, receiver, socket.MSG_DONTWAIT)
    except BlockingIOError:
        if message.flags & socket.MSG_DONTWAIT or not os.get_blocking(taken.fileno()):
            return Answer(errno.EAGAIN)
        if receiver.pinned is not None or message.control:
            return Answer(errno.EAGAIN)  # what rides along is not kept open for so long
    finally:
        receiver.close()
    waiting = socket.socket(fileno=os.dup(taken.fileno()))

    def send_later() -> Answer:
        with waiting:
            return _send_by(waiting, message, receiver, 0)

    return Later(send_later, waiting.close)


def _send_by(taken: _socket.socket, message: _Message, receiver: _Receiver, more: int) -> Answer:
    flags = message.flags | more | socket.MSG_NOSIGNAL  # the signal would be ours
    return Answer(value=taken.sendmsg([message.content], message.control, flags, receiver.name))


def _as_received(address: Address, family: int) -> _Receiver | Answer:
    if not isinstance(address, sockaddr.Inet):
        return Answer(errno.EINVAL)
    if family == socket.AF_INET:
        return _Receiver((address.ip, address.port)) if address.family == socket.AF_INET else Answer(errno.EAFNOSUPPORT)
    if address.family == socket.AF_INET:
        return _Receiver((f"::ffff:{address.ip}", address.port))
    flow, scope = struct.unpack_from("!I", address.raw, 4)[0], struct.unpack_from("=I", address.raw, 24)[0]
    return _Receiver((socket.inet_ntop(socket.AF_INET6, address.raw[8:24]), address.port, flow & 0xFFFFF, scope))


def _read_message(tid: int, header: bytes, flags: int) -> _Message:
    name, name_length, spans, count, control, control_length, _ = _HEADER.unpack(header)
    if count > _MOST_SPANS:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    address = _read_address(tid, name, name_length) if name and name_length else None
    content, room = b"", _MOST_BYTES
    for pointer, length in _SPAN.iter_unpack(tasks.read_memory(tid, spans, count * _SPAN.size)):
        content += tasks.read_memory(tid, pointer, min(length, room))
        room = _MOST_BYTES - len(content)
    return _Message(content, address, _read_control(tid, control, control_length) if control else (), flags)


def _read_address(tid: int, pointer: int, length: int) -> Address:
    if length > sockaddr.LONGEST:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return sockaddr.parse(tasks.read_memory(tid, pointer, length))


def _read_control(tid: int, pointer: int, length: int) -> tuple[tuple[int, int, bytes], ...]:
    if length > _MOST_CONTROL:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    raw = tasks.read_memory(tid, pointer, length)
    found, place = [], 0
    with contextlib.suppress(struct.error):
        while place + _CONTROL.size <= len(raw):
            size, level, kind = _CONTROL.unpack_from(raw, place)
            if size < _CONTROL.size or place + size > len(raw):
                break
            found.append((level, kind, raw[place + _CONTROL.size : place + size]))
            place += (size + 7) & ~7
    return tuple(found)

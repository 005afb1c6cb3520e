"""The supervisor's side of the filter: it is asked about system calls, and makes them on the task's behalf.

An address is read from the task's memory once, judged, and then used from the supervisor's own memory, on a duplicate of
the task's descriptor. Nothing that the task changes meanwhile is looked at again, and the kernel is never told to go on
with a call: what was judged is what is done.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.boundary import UNIX_SOCKETS
from agentguard.egress.kernel import abi, sockaddr, tasks
from agentguard.egress.kernel.judge import pin_unix_path
from agentguard.policy.hosts import Verdict, canonical

if TYPE_CHECKING:
    from agentguard.egress.kernel.judge import Judge
    from agentguard.egress.kernel.record import Record
    from agentguard.egress.kernel.sockaddr import Address, Inet, UnixPath
    from agentguard.egress.kernel.sockets import Sockets

_NOTICE = struct.Struct("=QIIiIQ6Q")
_MOST_THREADS = 128
_SPARE_THREADS = 4
_STACK_BYTES = 256 * 1024
_MOST_UNDELIVERED = 256

_CARRIED = {(socket.SOCK_STREAM, socket.IPPROTO_TCP), (socket.SOCK_DGRAM, socket.IPPROTO_UDP)}

_ioctl = abi.libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_connect = abi.libc.connect
_connect.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class Notice(NamedTuple):
    """One system call that waits for an answer."""

    id: int
    tid: int
    number: int
    args: tuple[int, ...]


class Answer(NamedTuple):
    """What a system call comes to: its result, an error number, or nothing because the answer has been given already."""

    error: int = 0
    value: int = 0
    was_sent: bool = False
    then: Callable[[], None] | None = None


# What may take long is returned to be called, so that others are answered meanwhile.
Outcome = Answer | Callable[[], Answer]


class Supervisor:
    """Answers the notices of one listener, on threads that take turns at receiving.

    Whoever receives answers at once what can be answered at once. Before a connect that may block it hands the listener
    to the next thread, so that the answer is given by the thread that has the call in hand, without another switch.

    Args:
        listener: The descriptor that the filter gave.
        judge: What may be reached.
        record: Told of what was refused.
        sockets: How a task's socket is laid hands on.
        detours: Addresses that are connected to something else: (ip, port) and socket type to an address on loopback.
        invite: Connects a socket to the supervisor's control channel on behalf of a task.
    """

    def __init__(
        self,
        listener: int,
        judge: Judge,
        record: Record,
        sockets: Sockets,
        detours: dict[tuple[str, int], dict[int, tuple[str, int]]],
        invite: Callable[[int, int], int],
    ) -> None:
        self._listener = listener
        self._judge = judge
        self._record = record
        self._sockets = sockets
        self._detours = detours
        self._invite = invite
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._undelivered: dict[tuple[int, int], Answer] = {}
        numbers = abi.this_machine()
        names = {number: name for name, number in numbers.numbers.items()} if numbers else {}
        calls = {"connect": self._connect_call, **sockets.calls()}
        self._calls = {number: calls[name] for number, name in names.items() if name in calls}

    def start(self) -> None:
        """Begin to answer."""
        threading.stack_size(_STACK_BYTES)
        self._add_thread()

    # ------------------------------------------------------------------------------------------------------ taking turns

    def _add_thread(self) -> None:
        self._threads += 1
        self._idle += 1
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._turn:
                work = self._answer_until_one_takes_long()
            self._finish(*work)
            with self._count:
                self._idle += 1
                if self._idle > _SPARE_THREADS:
                    self._idle -= 1
                    self._threads -= 1
                    return

    def _answer_until_one_takes_long(self) -> tuple[Notice, Callable[[], Answer]]:
        buffer = ctypes.create_string_buffer(_NOTICE.size)
        while True:
            notice = self._receive(buffer)
            if notice is None:
                continue
            outcome = self._decide(notice)
            if isinstance(outcome, Answer):
                self._send(notice, outcome)
            elif self._leaves_a_thread():
                return notice, outcome
            else:
                self._send(notice, Answer(errno.EAGAIN))

    def _leaves_a_thread(self) -> bool:
        """Make sure that somebody receives while this thread is busy; False when that is not possible."""
        with self._count:
            if self._idle <= 1:
                if self._threads >= _MOST_THREADS:
                    return False
                self._add_thread()
            self._idle -= 1
            return True

    def _finish(self, notice: Notice, work: Callable[[], Answer]) -> None:
        try:
            answer = work()
        except OSError as error:
            answer = Answer(error.errno or errno.EACCES)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one call, it is refused, and the others are answered
            answer = self._fault(notice, error)
        self._send(notice, answer)

    # --------------------------------------------------------------------------------------------------------- the kernel

    def _receive(self, buffer: ctypes.Array[ctypes.c_char]) -> Notice | None:
        ctypes.memset(buffer, 0, _NOTICE.size)
        if _ioctl(self._listener, abi.SECCOMP_IOCTL_NOTIF_RECV, buffer) < 0:
            return None  # the task was killed, or interrupted, before it was heard
        number, tid, _, call, _, _, *args = _NOTICE.unpack(buffer.raw)
        return Notice(number, tid, call, tuple(args))

    def _is_waiting(self, notice: Notice) -> bool:
        """Whether the task still waits for this answer: what was read by its number was really its own."""
        return _ioctl(self._listener, abi.SECCOMP_IOCTL_NOTIF_ID_VALID, struct.pack("=Q", notice.id)) == 0

    def _send(self, notice: Notice, answer: Answer) -> None:
        if not answer.was_sent:
            reply = struct.pack("=QqiI", notice.id, answer.value, -answer.error, 0)
            if _ioctl(self._listener, abi.SECCOMP_IOCTL_NOTIF_SEND, reply) < 0:
                self._keep_undelivered(notice, answer)
        if answer.then is not None:
            answer.then()

    # ---------------------------------------------------------------------------------------------------------- decisions

    def _decide(self, notice: Notice) -> Outcome:
        call = self._calls.get(notice.number)
        if call is None:
            return Answer(errno.ENOSYS)
        try:
            return call(notice)
        except OSError as error:
            return Answer(error.errno or errno.EACCES)
        except Exception as error:  # noqa: BLE001 - as in _finish
            return self._fault(notice, error)

    def _fault(self, notice: Notice, error: Exception) -> Answer:
        return Answer(
            errno.EACCES, then=lambda: self._record.note("fault", call=notice.number, error=f"{type(error).__name__}: {error}")
        )

    def _connect_call(self, notice: Notice) -> Outcome:
        descriptor, pointer, length = notice.args[0] & 0xFFFFFFFF, notice.args[1], notice.args[2] & 0xFFFFFFFF
        if length > sockaddr.LONGEST:
            return Answer(errno.EINVAL)
        raw = tasks.read_memory(notice.tid, pointer, length)
        address = sockaddr.parse(raw)
        refusal = self._refusal_of(notice, address)
        if refusal is not None:
            return refusal
        taken = self._sockets.take(notice.tid, descriptor)
        try:
            return self._connect_taken(notice, taken, address, raw)
        finally:
            taken.close()

    def _refusal_of(self, notice: Notice, address: Address) -> Answer | None:
        """Whether an address is refused by itself, before any socket is looked at."""
        match address:
            case sockaddr.Inet():
                return self._refuses_inet(notice, address)
            case sockaddr.Unknown():
                verdict = Verdict(False, address.why, "egress")
                return self._refused(notice, "connect", "an address that cannot be read", verdict, error=errno.EAFNOSUPPORT)
            case sockaddr.UnixAbstract() if address.name != CONTROL:
                verdict = Verdict(False, "abstract names are not connected to", UNIX_SOCKETS)
                return self._refused(notice, "unix", "@" + address.name[1:].decode("utf-8", "replace"), verdict)
            case _:
                return None

    def _refuses_inet(self, notice: Notice, address: Inet) -> Answer | None:
        if (address.ip, address.port) in self._detours:
            return None
        ip = canonical(address.ip) if address.family == socket.AF_INET6 else address.ip
        names = self._judge.names_of(ip)
        verdict = self._judge.judge_address(ip, address.port, names)
        if verdict.allowed:
            return None
        host = min(names) if names else ip
        refused = self._refused(notice, "connect", host, verdict, ip=ip, port=address.port)
        return refused if self._judge.is_enforced else self._only_recorded(refused)

    def _only_recorded(self, refused: Answer) -> None:
        if refused.then is not None:
            refused.then()

    def _refused(
        self, notice: Notice, what: str, host: str, verdict: Verdict, *, ip: str = "", port: int = 0, error: int = errno.EACCES
    ) -> Answer:
        enforced = self._judge.is_enforced

        def record() -> None:
            self._record.refuse(what, notice.tid, host, verdict, ip=ip, port=port, enforced=enforced)

        return Answer(error, then=record)

    # ------------------------------------------------------------------------------------------------------- on behalf of

    def _connect_taken(self, notice: Notice, taken: socket.socket, address: Address, raw: bytes) -> Outcome:
        if not self._is_waiting(notice):
            return Answer(errno.EINTR)
        family, kind, protocol = taken.family, taken.type, taken.proto
        if family in (socket.AF_INET, socket.AF_INET6):
            if (kind, protocol) not in _CARRIED:
                return Answer(errno.EPROTONOSUPPORT)
            if isinstance(address, sockaddr.Inet):
                return self._connect_inet(notice, taken, kind, address)
            return _connected(taken.fileno(), raw) if isinstance(address, sockaddr.Unspecified) else Answer(errno.EAFNOSUPPORT)
        if family == socket.AF_UNIX:
            if isinstance(address, sockaddr.UnixPath):
                return self._connect_unix(notice, taken, address)
            if isinstance(address, sockaddr.UnixAbstract):
                return Answer(self._invite(notice.tid, taken.fileno()))
        if family == socket.AF_NETLINK and protocol == 0 and isinstance(address, sockaddr.Netlink):
            return _connected(taken.fileno(), raw)
        return Answer(errno.EAFNOSUPPORT if family != socket.AF_UNIX else errno.EINVAL)

    def _connect_inet(self, notice: Notice, taken: socket.socket, kind: int, address: Inet) -> Outcome:
        raw = address.raw
        detour = self._detours.get((address.ip, address.port))
        if detour is not None:
            ip, port = detour[kind]
            raw = sockaddr.inet(f"::ffff:{ip}" if taken.family == socket.AF_INET6 else ip, port)
        if kind == socket.SOCK_STREAM and os.get_blocking(taken.fileno()):
            descriptor = taken.detach()
            return lambda: self._as_first_told(notice, _connected_and_closed(descriptor, raw))
        return self._as_first_told(notice, _connected(taken.fileno(), raw))

    def _connect_unix(self, notice: Notice, taken: socket.socket, address: UnixPath) -> Outcome:
        try:
            pinned = pin_unix_path(notice.tid, address.path)
        except PermissionError as error:
            verdict = Verdict(False, error.strerror or "", UNIX_SOCKETS)
            return self._refused(notice, "unix", address.path.decode("utf-8", "replace"), verdict)
        try:
            if not self._is_waiting(notice):
                return Answer(errno.EINTR)
            verdict = self._judge.judge_unix(pinned.path)
            if not verdict.allowed:
                refused = self._refused(notice, "unix", pinned.path, verdict)
                if self._judge.is_enforced:
                    return refused
                self._only_recorded(refused)
            raw = struct.pack("=H", socket.AF_UNIX) + b"/proc/self/fd/%d\0" % pinned.descriptor
            if not os.get_blocking(taken.fileno()):
                return _connected(taken.fileno(), raw)
            descriptor, file = taken.detach(), os.dup(pinned.descriptor)
        finally:
            os.close(pinned.descriptor)
        return lambda: _connected_to_file(descriptor, file)

    # -------------------------------------------------------------------------------------------------------- interrupted

    def _keep_undelivered(self, notice: Notice, answer: Answer) -> None:
        if len(self._undelivered) >= _MOST_UNDELIVERED:
            self._undelivered.clear()
        self._undelivered[notice.tid, notice.args[0]] = answer

    def _as_first_told(self, notice: Notice, answer: Answer) -> Answer:
        """The answer, unless a signal took the task away before it heard a first one: it asks again, and means the first."""
        if answer.error not in (errno.EISCONN, errno.EALREADY):
            return answer
        return self._undelivered.pop((notice.tid, notice.args[0]), answer)


CONTROL = b"\0agentguard"
"""The abstract name that leads to the supervisor's control channel: only for whom the filter asks about."""


def _connected(descriptor: int, raw: bytes) -> Answer:
    return Answer(ctypes.get_errno()) if _connect(descriptor, raw, len(raw)) < 0 else Answer()


def _connected_and_closed(descriptor: int, raw: bytes) -> Answer:
    try:
        return _connected(descriptor, raw)
    finally:
        os.close(descriptor)


def _connected_to_file(descriptor: int, file: int) -> Answer:
    try:
        return _connected_and_closed(descriptor, struct.pack("=H", socket.AF_UNIX) + b"/proc/self/fd/%d\0" % file)
    finally:
        os.close(file)

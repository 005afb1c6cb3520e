"""The listener: system calls that wait for an answer, and the answers."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from fcntl import ioctl
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.kernel import abi

if TYPE_CHECKING:
    from collections.abc import Callable

_NOTICE = struct.Struct("=QIIiIQ6Q")
_NO_NOTICE = bytes(_NOTICE.size)
_REPLY = struct.Struct("=QqiI")
_ID = struct.Struct("=Q")
_ADDFD = struct.Struct("=QIIII")
_GOES_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


class Notice(NamedTuple):
    """One system call that waits for an answer."""

    id: int
    tid: int
    number: int
    args: tuple[int, ...]


class Answer(NamedTuple):
    """What a system call comes to.

    Attributes:
        error: Its error number; 0: it succeeds.
        value: What it returns when it succeeds.
        goes_on: Whether the kernel makes the call itself: only for calls that are watched, not judged, because the task may
            change its arguments meanwhile.
        was_sent: Whether the answer has been given already.
        then: What is left to do when the task goes on.
    """

    error: int = 0
    value: int = 0
    goes_on: bool = False
    was_sent: bool = False
    then: Callable[[], None] | None = None


class Later(NamedTuple):
    """What may take long, so that others are answered meanwhile. Either of both is called, once.

    Attributes:
        finish: Makes the call.
        drop: Lets go of what was held for it: nobody can make it now.
    """

    finish: Callable[[], Answer]
    drop: Callable[[], None]


Outcome = Answer | Later


class Listener:
    """The descriptor that the filter gave. Used by several threads.

    Who asks waits for the answer, so the kernel is told to wake us, and it, where the other one runs: another core would have to
    be woken first, which takes longer than the answer.

    Args:
        descriptor: The descriptor; it is ours from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor: int = descriptor
        with contextlib.suppress(OSError):  # before Linux 6.6
            ioctl(descriptor, abi.SECCOMP_IOCTL_NOTIF_SET_FLAGS, abi.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)

    def receive(self) -> Notice | None:
        """Wait for a call; None when its task was taken away before it was heard."""
        try:
            raw = ioctl(self.descriptor, abi.SECCOMP_IOCTL_NOTIF_RECV, _NO_NOTICE)
        except OSError:
            return None
        number, tid, _, call, _, _, *args = _NOTICE.unpack(raw)
        return Notice(number, tid, call, tuple(args))

    def is_waiting(self, notice: Notice) -> bool:
        """Whether the task still waits for this answer: what was taken from it by its number was really its own."""
        try:
            ioctl(self.descriptor, abi.SECCOMP_IOCTL_NOTIF_ID_VALID, _ID.pack(notice.id))
        except OSError:
            return False
        return True

    def answer(self, notice: Notice, answer: Answer) -> bool:
        """Let the call end, or go on. False: nobody waits for it any more."""
        reply = _REPLY.pack(notice.id, answer.value, -answer.error, _GOES_ON if answer.goes_on else 0)
        try:
            ioctl(self.descriptor, abi.SECCOMP_IOCTL_NOTIF_SEND, reply)
        except OSError:
            return False
        return True

    def give(self, notice: Notice, descriptor: int, *, closes_on_exec: bool) -> int:
        """Put a descriptor of ours into the task's table, and let the call end with its number there.

        Raises:
            OSError: Nobody waits for it any more, or the task's table is full.
        """
        flags = os.O_CLOEXEC if closes_on_exec else 0
        given = self._add(notice, abi.SECCOMP_ADDFD_FLAG_SEND, descriptor, flags)
        if given < 0 and ctypes.get_errno() == errno.EINVAL:  # before Linux 5.14: in two steps
            given = self._add(notice, 0, descriptor, flags)
            if given >= 0:
                self.answer(notice, Answer(value=given))
        if given < 0:
            raise OSError(ctypes.get_errno(), "a descriptor could not be given")
        return given

    def _add(self, notice: Notice, how: int, descriptor: int, flags: int) -> int:
        # Python's ioctl keeps the result of a call that is given bytes to itself.
        given: int = _ioctl(self.descriptor, abi.SECCOMP_IOCTL_NOTIF_ADDFD, _ADDFD.pack(notice.id, how, descriptor, 0, flags))
        return given


_ioctl = abi.libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_char_p)

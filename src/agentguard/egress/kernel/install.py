"""Putting a filter on this process: on all of its threads, with the listener in the supervisor's hands and in no other."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Self

from agentguard.egress.kernel import abi, landlock
from agentguard.egress.kernel.cut_off import CutOff
from agentguard.egress.kernel.filter import allow_everything
from agentguard.errors import EnforcementUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(program: bytes, link: socket.socket, *, shields: bool) -> None:
    """Filter this process and its children from now on, and send the listener over `link`.

    The listener is sent by a thread that does not bear the filter yet, because the filter may watch `sendmsg` itself.
    Then a filter that does nothing is put on all threads, and brings along what this one has.

    Args:
        program: The filter.
        link: A Unix socket to the supervisor.
        shields: Whether to put Landlock on first; only a process of one thread and without children can bear it.

    Raises:
        EnforcementUnavailable: The kernel refuses; the message names the cause. A `CutOff` when it was too late to go back.
    """
    is_on = False
    try:
        abi.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
        if shields:
            landlock.restrict_this_thread()
        _put_on(allow_everything(), abi.SECCOMP_FILTER_FLAG_TSYNC)  # what would hinder the last step hinders this one
        with _Messenger(lambda listener: socket.send_fds(link, [b"!"], [listener])) as messenger:
            messenger.deliver(_put_on_with_listener(program))
            is_on = True
        _put_on(allow_everything(), abi.SECCOMP_FILTER_FLAG_TSYNC)
    except OSError as error:
        raise (CutOff if is_on else EnforcementUnavailable)(_cause(error)) from error


class _Messenger:
    """A thread that was there before the filter, and does one errand."""

    def __init__(self, errand: Callable[[int], object]) -> None:
        self._errand = errand
        self._listener: int | None = None
        self._error: OSError | None = None
        self._called = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def deliver(self, listener: int) -> None:
        """Have the listener sent."""
        self._listener = listener

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._called.set()
        self._thread.join()
        if self._listener is not None:
            os.close(self._listener)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        self._called.wait()
        try:
            if self._listener is not None:
                self._errand(self._listener)
        except OSError as error:
            self._error = error


def _put_on_with_listener(program: bytes) -> int:
    """Put the filter on; a call that the supervisor has taken up is not interrupted by a signal, where the kernel can do that.

    Otherwise a signal would tell the task that its connect goes on, before it has begun.
    """
    try:
        return _put_on(program, abi.SECCOMP_FILTER_FLAG_NEW_LISTENER | abi.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 5.19
            raise
    return _put_on(program, abi.SECCOMP_FILTER_FLAG_NEW_LISTENER)


def _put_on(program: bytes, flags: int) -> int:
    wrapped = _Program(len(program) // 8, program)
    address = ctypes.addressof(wrapped)
    done = abi.syscall("seccomp", abi.SECCOMP_SET_MODE_FILTER, flags, address)
    if done and flags == abi.SECCOMP_FILTER_FLAG_TSYNC:
        raise OSError(errno.EALREADY, f"thread {done} has a seccomp filter of its own")
    return done


def _cause(error: OSError) -> str:
    known = {
        errno.EBUSY: "another program supervises this process tree by a seccomp filter, and there can be only one",
        errno.EINVAL: "this kernel knows no seccomp user notification (before Linux 5.5, or gVisor)",
        errno.ENOSYS: "this kernel has no seccomp",
        errno.EPERM: "seccomp is refused to this process (a container's own profile may forbid it)",
        errno.EACCES: "seccomp asks for no_new_privs, which could not be set",
    }
    return f"kernel enforcement is not to be had: {known.get(error.errno or 0, error.strerror or str(error))}"

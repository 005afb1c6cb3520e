"""The tasks of the tree, as the supervisor sees them: their memory, their descriptors, who they are."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading

from agentguard.egress.kernel import abi

_MOST_HANDLES = 256


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_readv = abi.libc.process_vm_readv
_readv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_readv.restype = ctypes.c_ssize_t
_writev = abi.libc.process_vm_writev
_writev.argtypes = _readv.argtypes
_writev.restype = ctypes.c_ssize_t

# A function of its own, with its types said: this one is on the way of every connect.
_GETFD = abi.NUMBERS["pidfd_getfd"]
_getfd = ctypes.CDLL(None, use_errno=True).syscall
_getfd.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_uint)
_getfd.restype = ctypes.c_long


class _Window(threading.local):
    """Where a thread reads other tasks' memory into: made once, because every connect needs it."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(_WINDOW)
        self.here = _Span(ctypes.addressof(self.buffer), _WINDOW)
        self.there = _Span()
        self.addresses = ctypes.addressof(self.here), ctypes.addressof(self.there)


_WINDOW = 4096
_window = _Window()


def read_memory(tid: int, address: int, length: int) -> bytes:
    """What stands in a task's memory, read once.

    Raises:
        OSError: EFAULT where it is not all there; EPERM where the kernel lets nobody look.
    """
    if length <= 0:
        return b""
    if length > _WINDOW:
        buffer = ctypes.create_string_buffer(length)
        here, there = _Span(ctypes.addressof(buffer), length), _Span(address, length)
        done = _readv(tid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
    else:
        buffer = _window.buffer
        _window.here.length = _window.there.length = length
        _window.there.base = address
        here_at, there_at = _window.addresses
        done = _readv(tid, here_at, 1, there_at, 1, 0)
    if done != length:
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(number, f"reading the memory of task {tid}: {os.strerror(number)}")
    return ctypes.string_at(buffer, length)


def write_memory(tid: int, address: int, content: bytes) -> None:
    """Write into a task's memory, where a system call would have.

    Raises:
        OSError: EFAULT where it cannot be written.
    """
    buffer = ctypes.create_string_buffer(content, len(content))
    here = _Span(ctypes.addressof(buffer), len(content))
    there = _Span(address, len(content))
    if _writev(tid, ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0) != len(content):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def process_of(tid: int) -> int:
    """The process that a task belongs to; the task itself when it is gone."""
    return _status(tid, b"Tgid:", tid)


def parent_of(pid: int) -> int:
    """The parent of a process; 0 when it is gone."""
    return _status(pid, b"PPid:", 0)


def program_of(pid: int) -> str:
    """The name of the program that a process runs, as the kernel keeps it."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().strip().decode("utf-8", "replace")
    except OSError:
        return ""


def has_signal(tid: int) -> bool:
    """Whether a signal waits that the task has a handler for."""
    masks = {"SigPnd": 0, "ShdPnd": 0, "SigBlk": 0, "SigCgt": 0}
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in masks:
                masks[name] = int(value, 16)
    return bool((masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & masks["SigCgt"])


def _status(pid: int, field: bytes, default: int) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return next((int(line.split()[1]) for line in file if line.startswith(field)), default)
    except (OSError, ValueError):
        return default


class Duplicates:
    """Descriptors of the tree's tasks, duplicated into this process by `pidfd_getfd`. Used by several threads."""

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}
        self._keeps_handles = _knows_threads()

    def take(self, tid: int, descriptor: int) -> int:
        """A duplicate of a task's descriptor, to be closed by who takes it.

        Raises:
            OSError: The task has no such descriptor, or is gone.
        """
        handle = self._handles.get(tid)
        if handle is not None:
            with contextlib.suppress(OSError):  # the task that the handle stands for is gone, and its number used again
                return _duplicate(handle, descriptor)
            self._forget(tid)
        handle = self._open(tid)
        try:
            duplicate = _duplicate(handle, descriptor)
        except OSError:
            os.close(handle)
            raise
        self._keep(tid, handle)
        return duplicate

    def _open(self, tid: int) -> int:
        if self._keeps_handles:
            return abi.syscall("pidfd_open", tid, abi.PIDFD_THREAD)
        return abi.syscall("pidfd_open", process_of(tid), 0)

    def _keep(self, tid: int, handle: int) -> None:
        """Keep a handle that stands for one thread. One of a process would outlive the thread whose number it is kept by."""
        if not self._keeps_handles or self._handles.setdefault(tid, handle) != handle:
            os.close(handle)
            return
        if len(self._handles) > _MOST_HANDLES:
            self._forget(next(iter(self._handles)))

    def _forget(self, tid: int) -> None:
        handle = self._handles.pop(tid, None)
        if handle is not None:
            os.close(handle)


def _duplicate(handle: int, descriptor: int) -> int:
    duplicate: int = _getfd(_GETFD, handle, descriptor, 0)
    if duplicate < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"pidfd_getfd: {os.strerror(number)}")
    return duplicate


def _knows_threads() -> bool:
    """Whether a handle can stand for one thread (Linux 6.9)."""
    try:
        os.close(abi.syscall("pidfd_open", os.getpid(), abi.PIDFD_THREAD))
    except OSError:
        return False
    return True

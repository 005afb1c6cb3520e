"""What an attempt may need. Asked outside of the guard: what a guard refuses must not pass for something that is absent."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
from functools import cache


def _opens(*arguments: int) -> bool:
    try:
        socket.socket(*arguments).close()
    except OSError:
        return False
    return True


def _has_system_call(number: int) -> bool:
    import ctypes
    import errno

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(number, -1, 0, 0, 0, 0, 0)
    return ctypes.get_errno() != errno.ENOSYS


def _has_io_uring() -> bool:
    return _has_system_call(425)


def _has_x32() -> bool:
    return platform.machine() == "x86_64" and _has_system_call(0x40000000 + 39)


def _has_int80() -> bool:
    if platform.machine() != "x86_64":
        return False
    child = os.fork()
    if child == 0:
        from machine import compat_call

        os._exit(0 if compat_call(20) == os.getpid() else 1)
    return os.waitpid(child, 0)[1] == 0


def _may_trace_siblings() -> bool:
    """Yama forbids it where it is set."""
    scope = "/proc/sys/kernel/yama/ptrace_scope"
    if not os.path.exists(scope):
        return True
    with open(scope, encoding="ascii") as file:
        return file.read().strip() == "0"


def _may_type_for_others() -> bool:
    """Since Linux 6.2 it can be switched off."""
    switch = "/proc/sys/dev/tty/legacy_tiocsti"
    if not os.path.exists(switch):
        return True
    with open(switch, encoding="ascii") as file:
        return file.read().strip() == "1"


FEATURES = {
    "siblings": _may_trace_siblings,
    "ipv6": lambda: socket.has_ipv6,
    "mptcp": lambda: _opens(socket.AF_INET, socket.SOCK_STREAM, 262),
    "sctp": lambda: _opens(socket.AF_INET, socket.SOCK_STREAM, 132),
    "sctp-seqpacket": lambda: _opens(socket.AF_INET, socket.SOCK_SEQPACKET, 132),
    "udplite": lambda: _opens(socket.AF_INET, socket.SOCK_DGRAM, 136),
    "smc": lambda: _opens(43, socket.SOCK_STREAM, 0),
    "dccp": lambda: _opens(socket.AF_INET, 6, 33),
    "vsock": lambda: os.path.exists("/sys/module/vsock_loopback"),
    "tipc": lambda: _opens(30, socket.SOCK_STREAM, 0),
    "io_uring": _has_io_uring,
    "int80": _has_int80,
    "x32": _has_x32,
    "tiocsti": _may_type_for_others,
}


@cache
def is_here(need: str) -> bool:
    """Whether one need is met."""
    kind, _, what = need.partition(":")
    if kind == "module":
        return importlib.util.find_spec(what) is not None
    if kind == "program":
        return shutil.which(what) is not None
    if kind == "machine":
        return platform.machine() == what
    if kind == "feature":
        return bool(FEATURES[what]())
    if kind in {"root", "user"}:
        return (os.environ.get("BYPASS_UID", "0") == "0") == (kind == "root")
    raise ValueError(need)

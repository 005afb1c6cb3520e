"""What the kernel is called by: system call numbers, constants, and the few calls that Python has no name for.

Numbers are of x86-64 and of the generic table (aarch64, riscv64); constants are of the kernel's own headers.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
_syscall = libc.syscall
_syscall.restype = ctypes.c_long
_prctl = libc.prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_FILTER_FLAG_TSYNC = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32
SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000

SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102
SECCOMP_IOCTL_NOTIF_ADDFD = 0x40182103
SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1
SECCOMP_ADDFD_FLAG_SEND = 2

PIDFD_THREAD = os.O_EXCL


class Machine(NamedTuple):
    """What differs between machines: the audit architecture, the system calls by name, and the bit of a second table."""

    audit_arch: int
    numbers: dict[str, int]
    second_table_bit: int = 0


_COMMON = {
    "pidfd_open": 434,
    "pidfd_getfd": 438,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446,
}
_X86_64 = {
    "ioctl": 16,
    "socket": 41,
    "connect": 42,
    "sendto": 44,
    "sendmsg": 46,
    "bind": 49,
    "listen": 50,
    "socketpair": 53,
    "setsockopt": 54,
    "ptrace": 101,
    "request_key": 249,
    "sendmmsg": 307,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "seccomp": 317,
    "bpf": 321,
    "userfaultfd": 323,
}
_GENERIC = {
    "ioctl": 29,
    "ptrace": 117,
    "socket": 198,
    "socketpair": 199,
    "bind": 200,
    "listen": 201,
    "connect": 203,
    "sendto": 206,
    "setsockopt": 208,
    "sendmsg": 211,
    "request_key": 218,
    "sendmmsg": 269,
    "process_vm_readv": 270,
    "process_vm_writev": 271,
    "seccomp": 277,
    "bpf": 280,
    "userfaultfd": 282,
}

MACHINES = {
    "x86_64": Machine(0xC000003E, _X86_64 | _COMMON, second_table_bit=0x40000000),
    "aarch64": Machine(0xC00000B7, _GENERIC | _COMMON),
}


def this_machine() -> Machine | None:
    """The machine that this process runs on; None for one that is not known, and for a 32-bit process on one that is."""
    known = MACHINES.get(os.uname().machine) if os.name == "posix" else None
    return known if ctypes.sizeof(ctypes.c_void_p) == 8 else None


NUMBERS: dict[str, int] = (this_machine() or MACHINES["x86_64"]).numbers


def syscall(name: str, *args: int | ctypes.Array[ctypes.c_char]) -> int:
    """Make a system call.

    Raises:
        OSError: The kernel refused it.
    """
    given = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    done: int = _syscall(ctypes.c_long(NUMBERS[name]), *given)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return done


def prctl(option: int, value: int = 0) -> int:
    """Set or ask an attribute of this process.

    Raises:
        OSError: The kernel refused it.
    """
    done: int = _prctl(option, value, 0, 0, 0)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")
    return done

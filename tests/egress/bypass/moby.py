"""Starts a program as Docker's default profile would: what that profile refuses without capabilities is refused here.

`python moby.py PROGRAM ARGS...`. Taken from moby's profiles/seccomp/default.json: pidfd_getfd wants CAP_SYS_PTRACE; setns, mount,
unshare and the like want CAP_SYS_ADMIN; io_uring and userfaultfd are not listed at all.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import sys

REFUSED = {
    "x86_64": {
        "pidfd_getfd": 438, "setns": 308, "unshare": 272, "mount": 165, "umount2": 166,
        "pivot_root": 155, "open_by_handle_at": 304,
        "bpf": 321, "perf_event_open": 298, "kcmp": 312, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "move_mount": 429, "fsopen": 430, "fsmount": 432,
        "open_tree": 428, "process_madvise": 440, "quotactl": 179, "lookup_dcookie": 212, "syslog": 103, "reboot": 169,
    },
    "aarch64": {
        "pidfd_getfd": 438, "setns": 268, "unshare": 97, "mount": 40, "umount2": 39, "pivot_root": 41, "open_by_handle_at": 265,
        "bpf": 280, "perf_event_open": 241, "kcmp": 272, "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "move_mount": 429, "fsopen": 430, "fsmount": 432,
        "open_tree": 428, "process_madvise": 440, "quotactl": 60, "lookup_dcookie": 18, "syslog": 116, "reboot": 142,
    },
}  # fmt: skip
EPERM = 1
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def install(refused: list[int]) -> None:
    """Refuse these system calls from now on, here and in every child."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    rows = [(LOAD, 0, 0, 0)]
    rows += [(IF_EQUAL, len(refused) - at, 0, number) for at, number in enumerate(refused)]
    rows += [(RETURN, 0, 0, 0x7FFF0000), (RETURN, 0, 0, 0x50000 | EPERM)]
    code = b"".join(struct.pack("=HBBI", *row) for row in rows)
    text = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, ctypes.byref(Program(len(rows), ctypes.addressof(text))), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    install(list(REFUSED[platform.machine()].values()))
    os.execv(shutil.which(sys.argv[1]) or sys.argv[1], sys.argv[1:])

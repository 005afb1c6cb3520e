"""How the C library asks its nameservers: over TCP, if it reads its configuration after it was told to."""

from __future__ import annotations

import ctypes
import os
import threading

from agentguard.egress.kernel import abi

_RES_USEVC = 0x8


class _State(ctypes.Structure):
    """The beginning of glibc's `struct __res_state`, which each thread has for itself."""

    _fields_ = (("retrans", ctypes.c_int), ("retry", ctypes.c_int), ("options", ctypes.c_ulong))


def looks_up_over_tcp() -> bool:
    """Have names looked up over TCP from now on, here and in children; False where it is too late, or not known how.

    glibc reads RES_OPTIONS once, at the first lookup of a process, and keeps what it has read for all threads.
    """
    options = os.environ.get("RES_OPTIONS", "")
    if "use-vc" not in options.split():
        os.environ["RES_OPTIONS"] = f"{options} use-vc".strip()
    if not hasattr(abi.libc, "__res_state") or not hasattr(abi.libc, "__res_init"):
        return False
    state_of_thread = abi.libc["__res_state"]
    state_of_thread.restype = ctypes.POINTER(_State)
    found: list[int] = []

    def look() -> None:
        abi.libc["__res_init"]()  # this thread is new: it takes up what holds for all
        found.append(state_of_thread().contents.options)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return bool(found and found[0] & _RES_USEVC)

"""What a process has open already when the filter is put on it: some of it would lead around the filter."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from agentguard.errors import EnforcementUnavailable

_RING = "anon_inode:[io_uring]"
_LOCAL = {socket.AF_UNIX, socket.AF_NETLINK}
_INTERNET = {socket.AF_INET, socket.AF_INET6}


def look_at_descriptors() -> bool:
    """Whether a datagram socket is open, so that messages have to be watched.

    Raises:
        EnforcementUnavailable: Something is open that sends without being asked about: a raw socket, SCTP, an io_uring.
    """
    has_datagrams = False
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile: the descriptor of this very listing, at least
            has_datagrams |= _carries_datagrams(int(entry.name), str(entry.readlink()))
    return has_datagrams


def _carries_datagrams(descriptor: int, target: str) -> bool:
    if target == _RING:
        _refuse(descriptor, "an io_uring")
    if not target.startswith("socket:"):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as found:
        if found.family in _INTERNET and found.type == socket.SOCK_STREAM and found.proto == socket.IPPROTO_TCP:
            return False
        if found.family in _INTERNET and found.type == socket.SOCK_DGRAM and found.proto == socket.IPPROTO_UDP:
            return True
        if found.family not in _LOCAL:
            _refuse(descriptor, f"a socket of family {found.family}, type {found.type}, protocol {found.proto}")
        return found.family == socket.AF_UNIX and found.type == socket.SOCK_DGRAM


def _refuse(descriptor: int, what: str) -> None:
    msg = f"kernel enforcement is not to be had: descriptor {descriptor} is {what}, which could send past it; close it first"
    raise EnforcementUnavailable(msg)

"""The connections that a process and its children hold now, as Linux tells them: TCP, UDP and Unix sockets, with their far end.

In-process enforcement looks at connections as they are made. What was connected before, by a library that no layer sees or
by a child, shows here.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.hosts import fold, in_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PROC = Path("/proc")
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_INET = ("tcp", "tcp6", "udp", "udp6")
_LISTENING = 10
_NOT_CONNECTED = frozenset({7, _LISTENING})
"""TCP's states CLOSE, which an unconnected UDP socket is in too, and LISTEN."""


class Connection(NamedTuple):
    """One end of a connection.

    Attributes:
        pid: Who holds it: the first, when several processes share it.
        program: Its name.
        kind: `tcp`, `udp` or `unix`.
        address: The far end's address; of a Unix socket its path (`@name` for an abstract one), empty where it has none.
        port: The far end's port; 0 of a Unix socket.
        is_outbound: Whether it was made from here. What was accepted is not governed.
    """

    pid: int
    program: str
    kind: str
    address: str
    port: int
    is_outbound: bool

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.address}"
        return f"{self.kind} {in_url(self.address)}:{self.port}"


def connections(pid: int | None = None) -> tuple[Connection, ...]:
    """The connections of a process and of all below it, each far end once a process.

    Args:
        pid: None: this process.

    Raises:
        ProcessLookupError: There is no such process.
        PermissionError: It belongs to somebody else.
        NotImplementedError: This system has no `/proc`: only Linux tells.
    """
    if not (_PROC / "self" / "fd").exists():
        message = "live connections are read from /proc, which this system does not have"
        raise NotImplementedError(message)
    root = os.getpid() if pid is None else pid
    holders: dict[int, int] = {}
    for number, one in enumerate(_tree(root)):
        try:
            inodes = _sockets_of(one)
        except (ProcessLookupError, FileNotFoundError, PermissionError) as error:
            if number == 0:
                raise _told(error, root) from None
            continue  # a child that has ended, or has become somebody else
        for inode in inodes:
            holders.setdefault(inode, one)
    found = (*_inet(root, holders), *_unix(root, holders))
    return tuple(sorted(dict.fromkeys(found), key=lambda one: (one.pid, one.kind, one.address, one.port)))


def _told(error: OSError, pid: int) -> OSError:
    if isinstance(error, PermissionError):
        return PermissionError(error.errno, f"process {pid} belongs to somebody else")
    return ProcessLookupError(error.errno, f"there is no process {pid}")


# ---------------------------------------------------------------------------------------------------------- the processes


def _tree(root: int) -> Iterator[int]:
    """A process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += children.get(one, ())


def _parent(process: Path) -> int | None:
    try:
        stat = (process / "stat").read_text(errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])  # the name before it may hold anything


def _sockets_of(pid: int) -> set[int]:
    found = set()
    with os.scandir(_PROC / str(pid) / "fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # closed since
                if match := _SOCKET.fullmatch(str(Path(entry.path).readlink())):
                    found.add(int(match[1]))
    return found


def _program(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


# --------------------------------------------------------------------------------------------------------- TCP and UDP


class _Socket(NamedTuple):
    kind: str
    inode: int
    state: int
    local: tuple[str, int]
    remote: tuple[str, int]


def _inet(root: int, holders: Mapping[int, int]) -> Iterator[Connection]:
    sockets = [one for table in _INET for one in _table(root, table)]
    listening = {one.local[1] for one in sockets if one.kind == "tcp" and one.state == _LISTENING}
    for one in sockets:
        if one.inode in holders and one.state not in _NOT_CONNECTED and one.remote[1]:
            pid = holders[one.inode]
            # What was accepted has the port of a listener. An outbound connection is never given one that is listened on.
            is_outbound = one.kind != "tcp" or one.local[1] not in listening
            yield Connection(pid, _program(pid), one.kind, *one.remote, is_outbound)


def _table(root: int, table: str) -> Iterator[_Socket]:
    """The sockets of the network namespace in which the process lives."""
    try:
        lines = (_PROC / str(root) / "net" / table).read_text().splitlines()[1:]
    except OSError:  # no IPv6, or gone
        return
    for line in lines:
        fields = line.split()
        yield _Socket(table[:3], int(fields[9]), int(fields[3], 16), _end(fields[1]), _end(fields[2]))


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.partition(":")
    words = struct.pack(f"={len(address) // 8}I", *(int(address[at : at + 8], 16) for at in range(0, len(address), 8)))
    ip = IPv4Address(words) if len(words) == 4 else fold(IPv6Address(words))
    return str(ip), int(port, 16)


# --------------------------------------------------------------------------------------------------------- Unix sockets

_DIAG = struct.Struct("=IHHII")  # netlink's header
_ASK = struct.Struct("=BBHIIIII")  # unix_diag_req
_ANSWER = struct.Struct("=BBBBIII")  # unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_SOCK_DIAG, _BY_FAMILY, _DUMP, _DONE, _ERROR, _SHOW_PEER, _PEER = 4, 20, 0x301, 3, 2, 4, 2


def _unix(root: int, holders: Mapping[int, int]) -> Iterator[Connection]:
    paths = _unix_paths(root)
    if not any(inode in paths for inode in holders):
        return
    peers = _unix_peers() if _shares_our_network(root) else {}
    for inode, pid in holders.items():
        peer = peers.get(inode)
        if peer is None or peer in holders or paths.get(inode, ""):
            continue  # not connected, a pair of our own, or accepted: it has the listener's path itself
        if path := paths.get(peer, ""):
            yield Connection(pid, _program(pid), "unix", path, 0, is_outbound=True)


def _unix_paths(root: int) -> dict[int, str]:
    """The path of each Unix socket, by its inode; empty where it has none."""
    try:
        lines = (_PROC / str(root) / "net" / "unix").read_text(errors="replace").splitlines()[1:]
    except OSError:
        return {}
    fields = (line.split(maxsplit=7) for line in lines)
    return {int(field[6]): field[7] if len(field) > 7 else "" for field in fields if len(field) > 6}


def _shares_our_network(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "ns" / "net").stat().st_ino == (_PROC / "self" / "ns" / "net").stat().st_ino
    except OSError:
        return False


def _unix_peers() -> dict[int, int]:
    """The other end of each connected Unix socket of this network namespace: only the kernel's diagnosis tells."""
    ask = _ASK.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_PEER, 0, 0)
    peers: dict[int, int] = {}
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as link:
            link.settimeout(2.0)
            link.send(_DIAG.pack(_DIAG.size + len(ask), _BY_FAMILY, _DUMP, 1, 0) + ask)
            while _read_peers(link.recv(1 << 18), peers):
                pass
    except OSError:  # a sandbox without it
        return {}
    return peers


def _read_peers(data: bytes, peers: dict[int, int]) -> bool:
    """Take what one datagram says. Whether there is more to come."""
    for kind, body in _messages(data):
        if kind in (_DONE, _ERROR):
            return False
        _, _, _, _, inode, _, _ = _ANSWER.unpack_from(body)
        for attribute, value in _attributes(body[_ANSWER.size :]):
            if attribute == _PEER:
                (peers[inode],) = struct.unpack("=I", value)
    return True


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _DIAG.size:
        length, kind, *_ = _DIAG.unpack_from(data)
        yield kind, data[_DIAG.size : length]
        data = data[-(-length // 4) * 4 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[-(-length // 4) * 4 :]

"""What the supervisor's boundary says of an address: the policy's verdict, the pins of its resolver, and Unix sockets."""

from __future__ import annotations

import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.unix_sockets import SERVICES, UNIX_SOCKETS, is_below
from agentguard.policy.hosts import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentguard.egress.boundary import Boundary
    from agentguard.egress.pins import Pins

_NO_NAMES: frozenset[str] = frozenset()
_MOST_VERDICTS = 4096
_MOST_BOUNDARIES = 64


class Judge:
    """The boundaries in force, one inside the other, and what is known of addresses. Used by several threads.

    Args:
        boundary: The boundary that the tree starts with.
        pins: What the resolver answered.
        hosts: What the hosts file said when the supervisor started: names by address.
        folders: Directories for temporary files, below which Unix sockets may be connected to.
    """

    def __init__(self, boundary: Boundary, pins: Pins, hosts: dict[str, frozenset[str]], folders: Iterable[str]) -> None:
        self.pins: Pins = pins
        self._hosts = hosts
        self._folders = tuple(os.path.realpath(folder) for folder in folders)
        self._boundaries: tuple[Boundary, ...] = ()
        self._unix: tuple[tuple[str, ...], ...] = ()
        self._verdicts: dict[tuple[str, int | None, frozenset[str]], Verdict] = {}
        self._put_in_force((boundary,))

    @property
    def boundary(self) -> Boundary:
        """The innermost boundary."""
        return self._boundaries[-1]

    @property
    def is_enforced(self) -> bool:
        """Whether a refusal refuses."""
        return any(boundary.is_enforced for boundary in self._boundaries)

    @property
    def allows_udp(self) -> bool:
        """Whether datagrams may be sent."""
        return all(boundary.allows_udp for boundary in self._boundaries)

    def narrow(self, boundary: Boundary) -> bool:
        """Hold one more boundary from now on, inside of those in force. False: too many are, and nothing changed."""
        kept = tuple(outer for outer in self._boundaries if not boundary.narrows(outer))
        if len(kept) >= _MOST_BOUNDARIES:
            return False
        self._put_in_force((*kept, boundary))
        return True

    def replace(self, boundary: Boundary) -> None:
        """Hold another boundary instead of all others: for the supervisor's own reading of the policy file alone."""
        self._put_in_force((boundary,))

    def names_of(self, ip: str) -> frozenset[str]:
        """The names that an address stands for."""
        return self.pins.names_of(ip) | self._hosts.get(ip, _NO_NAMES)

    def judge_name(self, name: str) -> Verdict:
        """Whether a name may be resolved."""
        return _strictest(boundary.judge_name(name, None) for boundary in self._boundaries)

    def judge_answer(self, ip: str, name: str) -> Verdict:
        """Whether a name may resolve to an address."""
        return _strictest(boundary.judge_address(ip, None, (name,)) for boundary in self._boundaries)

    def judge_address(self, ip: str, port: int, names: frozenset[str]) -> Verdict:
        """Whether an address may be connected to."""
        key = ip, port, names
        verdicts = self._verdicts  # taken before the boundaries: what comes into force meanwhile starts with its own
        verdict = verdicts.get(key)
        if verdict is None:
            verdict = _strictest(boundary.judge_address(ip, port, names) for boundary in self._boundaries)
            if len(verdicts) >= _MOST_VERDICTS:
                verdicts.clear()
            verdicts[key] = verdict
        return verdict

    def judge_unix(self, path: str) -> Verdict:
        """Whether a Unix socket may be connected to, by its real path, or by `@` and its abstract name."""
        is_usual = any(is_below(path, folder) and not _is_service(path, folder) for folder in self._folders)
        if all(is_usual or any(is_below(path, top) for top in listed) for listed in self._unix):
            return Verdict(True, "a socket of the program's own" if is_usual else f"in {UNIX_SOCKETS}", UNIX_SOCKETS)
        return Verdict(False, f"not in {UNIX_SOCKETS}", UNIX_SOCKETS)

    def _put_in_force(self, boundaries: tuple[Boundary, ...]) -> None:
        # What is listed is resolved now: by the time that somebody connects, the program may have put a link in its place.
        self._unix = tuple(tuple(map(_resolved, boundary.unix_sockets)) for boundary in boundaries)
        self._boundaries = boundaries
        self._verdicts = {}


class Pinned(NamedTuple):
    """A Unix socket that cannot be exchanged any more: its real path, and a descriptor of the file itself."""

    path: str
    descriptor: int

    @property
    def name(self) -> str:
        """What it is connected to by: the file itself, whatever stands at its path by then."""
        return f"/proc/self/fd/{self.descriptor}"

    @property
    def raw(self) -> bytes:
        """The name as an address."""
        return socket.AF_UNIX.to_bytes(2, sys.byteorder) + self.name.encode() + b"\0"

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)


def pin_unix_path(tid: int, path: bytes) -> Pinned:
    """Hold on to the file that a task means by a path.

    Raises:
        OSError: There is none, or the task sees other files under the same names.
    """
    if not os.path.samestat(os.stat(f"/proc/{tid}/root"), os.stat("/")) or not os.path.samestat(
        os.stat(f"/proc/{tid}/ns/mnt"), os.stat("/proc/self/ns/mnt")
    ):
        raise PermissionError(13, "the process sees a file system of its own")
    if os.stat(f"/proc/{tid}").st_uid != os.geteuid():
        # Who listens would take the supervisor's user for that of the process.
        raise PermissionError(13, "the process has another user than the supervisor")
    folder = os.open(f"/proc/{tid}/cwd", os.O_PATH | os.O_DIRECTORY)
    try:
        descriptor = os.open(path, os.O_PATH, dir_fd=folder)
    finally:
        os.close(folder)
    found = os.fstat(descriptor)
    if not stat.S_ISSOCK(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise ConnectionRefusedError(111, "it is no socket, or one with several names")
    return Pinned(os.readlink(f"/proc/self/fd/{descriptor}"), descriptor)


def _strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """The first refusal; else the last verdict."""
    verdict = Verdict(False, "no boundary is in force", "")
    for verdict in verdicts:
        if not verdict.allowed:
            return verdict
    return verdict


def _is_service(path: str, folder: str) -> bool:
    return path[len(folder) :].lstrip("/").startswith(SERVICES)


def _resolved(listed: str) -> str:
    return listed if listed.startswith("@") else os.path.realpath(listed)

"""Where a judgement becomes an answer: addresses and paths that a task names are let through, or refused with a record."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.kernel import sockaddr
from agentguard.egress.kernel.judge import pin_unix_path
from agentguard.egress.kernel.notices import Answer
from agentguard.egress.kernel.record import Who
from agentguard.egress.unix_sockets import LOOKUPS, UNIX_SOCKETS, is_below
from agentguard.policy.hosts import Verdict

if TYPE_CHECKING:
    from agentguard.egress.kernel.judge import Judge, Pinned
    from agentguard.egress.kernel.notices import Notice
    from agentguard.egress.kernel.record import Record
    from agentguard.egress.kernel.sockaddr import Address, Inet, UnixPath

CONTROL = b"\0agentguard"
"""The abstract name that leads to the supervisor's control channel: only for whom the filter asks about."""


_LOOKUP_SECONDS = 5.0
_MOST_NOTED = 4096
_now = time.monotonic


class Detour(NamedTuple):
    """Where the broker listens: what would go to a nameserver goes there."""

    stream: tuple[str, int]
    datagram: tuple[str, int]


class Gate:
    """Judges what a task names.

    Args:
        judge: What may be reached.
        record: Told of what was refused.
        detours: Nameservers, by (ip, port), and where their queries go instead.
    """

    def __init__(self, judge: Judge, record: Record, detours: dict[tuple[str, int], Detour]) -> None:
        self._judge = judge
        self._record = record
        self._detours = detours
        self._looked_up: dict[int, float] = {}
        self._without_datagrams: set[int] = set()

    def refusal_of(self, notice: Notice, address: Address, what: str) -> Answer | None:
        """Whether an address is refused by itself, before any socket is looked at. Paths are judged when they are pinned."""
        match address:
            case sockaddr.Inet():
                return self._refusal_of_inet(notice, address, what)
            case sockaddr.Unknown():
                return Answer(errno.EAFNOSUPPORT)
            case sockaddr.UnixAbstract() if address.name != CONTROL:
                shown = "@" + address.name[1:].decode("utf-8", "replace")
                verdict = self._judge.judge_unix(shown)
                return None if verdict.allowed else self._refuse_or_record(notice, "unix", shown, verdict)
            case _:
                return None

    def takes_datagrams(self, address: Inet) -> bool:
        """Whether a datagram may go to an address that may be reached: only lookups may, unless the policy allows more."""
        return (address.ip, address.port) in self._detours or self._judge.allows_udp or not self._judge.is_enforced

    def refuse_datagram(self, notice: Notice, address: Inet) -> Answer:
        """The refusal of a datagram to an address that may be reached otherwise."""
        verdict = Verdict(False, "it is a datagram", "external_calls.allow_udp")
        return self._refuse(notice, "send", address.ip, verdict, ip=address.ip, port=address.port)

    def refuse_socket(self, notice: Notice) -> Answer:
        """The refusal of a datagram socket. It is recorded once a process, and not after a lookup: getaddrinfo tries one then."""
        who = Who.of(notice.tid)
        if who.pid in self._without_datagrams or self._looked_up.get(notice.tid, -_LOOKUP_SECONDS) + _LOOKUP_SECONDS > _now():
            return Answer(errno.EACCES)
        if len(self._without_datagrams) >= _MOST_NOTED:
            self._without_datagrams.clear()
        self._without_datagrams.add(who.pid)
        is_unix = notice.args[0] & 0xFFFFFFFF == socket.AF_UNIX
        verdict = Verdict(False, "datagrams are refused", "external_calls.allow_udp")
        return self._refuse(notice, "socket", "a Unix datagram socket" if is_unix else "a UDP socket", verdict)

    def destination(self, address: Inet, family: int, kind: int) -> bytes:
        """The address that is really used: the broker's for a nameserver's, spelled for the family of the socket."""
        detour = self._detours.get((address.ip, address.port))
        if detour is None:
            return address.raw
        ip, port = detour.stream if kind == socket.SOCK_STREAM else detour.datagram
        return sockaddr.inet(f"::ffff:{ip}" if family == socket.AF_INET6 else ip, port)

    def pin_unix(self, notice: Notice, address: UnixPath) -> Pinned | Answer:
        """Hold on to the socket that a path means, if it may be connected to; else the refusal.

        Raises:
            OSError: There is none.
        """
        try:
            pinned = pin_unix_path(notice.tid, address.path)
        except PermissionError as error:
            shown = address.path.decode("utf-8", "replace")
            return self._refuse(notice, "unix", shown, Verdict(False, error.strerror or "", UNIX_SOCKETS))
        verdict = self._judge.judge_unix(pinned.path)
        if verdict.allowed:
            return pinned
        if any(is_below(pinned.path, asked) for asked in LOOKUPS):
            # In report mode too: what is looked up there the broker does not see. It is nobody's intent, so it is not recorded.
            pinned.close()
            return Answer(errno.ECONNREFUSED)
        refused = self._refuse_or_record(notice, "unix", pinned.path, verdict)
        if refused is None:
            return pinned
        pinned.close()
        return refused

    def _refusal_of_inet(self, notice: Notice, address: Inet, what: str) -> Answer | None:
        if (address.ip, address.port) in self._detours:
            if len(self._looked_up) >= _MOST_NOTED:
                self._looked_up.clear()
            self._looked_up[notice.tid] = _now()
            return None
        verdict = self._judge.judge_address(address.ip, address.port, self._judge.names_of(address.ip))
        if verdict.allowed:
            return None
        asked = self._judge.pins.names_of(address.ip)
        host = min(asked) if asked else address.ip
        return self._refuse_or_record(notice, what, host, verdict, ip=address.ip, port=address.port)

    def _refuse_or_record(
        self, notice: Notice, what: str, host: str, verdict: Verdict, *, ip: str = "", port: int = 0
    ) -> Answer | None:
        """The refusal; in report mode it is recorded, and there is none."""
        refused = self._refuse(notice, what, host, verdict, ip=ip, port=port)
        if self._judge.is_enforced or refused.then is None:
            return refused
        refused.then()
        return None

    def _refuse(self, notice: Notice, what: str, host: str, verdict: Verdict, *, ip: str = "", port: int = 0) -> Answer:
        enforced, who = self._judge.is_enforced, Who.of(notice.tid)

        def record() -> None:
            self._record.refuse(what, who, host, verdict, ip=ip, port=port, enforced=enforced)

        return Answer(errno.EACCES, then=record)

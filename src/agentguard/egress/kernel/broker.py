"""The resolver of the tree: it asks the real one about allowed names only, and remembers what was answered.

Connections to the nameserver end here instead. A name that is not allowed does not leave this process, so that nothing
can be told to the outside by asking for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from agentguard.egress.kernel import dns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentguard.egress.kernel.judge import Judge
    from agentguard.policy.hosts import Verdict

    Refuse = Callable[[str, Verdict], None]

_UPSTREAM_SECONDS = 3.0
_IDLE_SECONDS = 30.0
_SHORTAGE_SECONDS = 0.05
_MOST_AT_ONCE = 64
_DATAGRAM = 4096
_SHORT_ANSWER = 512
PORT = 53


class Broker:
    """Answers DNS queries over TCP and UDP on loopback.

    Args:
        judge: Which names may be asked about, and what may answer.
        nameservers: The real ones, as (address, port).
        refuse: Told of every name that is refused.
        search: The domains in which the C library looks for a name, below each of them.
    """

    def __init__(self, judge: Judge, nameservers: Sequence[tuple[str, int]], refuse: Refuse, search: Sequence[str] = ()) -> None:
        self._judge = judge
        self._nameservers = tuple(nameservers)
        self._refuse = refuse
        self._search = tuple(f".{domain}" for domain in search)
        self._room = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._stream = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind(("127.0.0.1", 0))

    @property
    def stream_address(self) -> tuple[str, int]:
        """Where it listens for TCP."""
        ip, port = self._stream.getsockname()
        return ip, port

    @property
    def datagram_address(self) -> tuple[str, int]:
        """Where it listens for UDP."""
        ip, port = self._datagrams.getsockname()
        return ip, port

    def start(self) -> None:
        """Begin to answer, on threads of its own."""
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._receive, daemon=True).start()

    def answer(self, message: bytes, most: int = 65_535) -> bytes | None:
        """The answer to a query; None for what is no query."""
        try:
            question = dns.read_question(message)
        except ValueError:
            return None
        verdict = self._judge.judge_name(question.name)
        if not verdict.allowed:
            if not self._is_searched_for(question.name):
                self._refuse(question.name, verdict)
            if self._judge.is_enforced:
                return dns.answer(question, dns.NAME_ERROR)
        if question.kind in (dns.SVCB, dns.HTTPS):  # they carry addresses too, which nobody would have judged
            return dns.answer(question, dns.NO_ERROR)
        if question.kind not in (dns.A, dns.AAAA):
            return self._pass_on(question, most)
        return self._resolve(question, most)

    def _is_searched_for(self, name: str) -> bool:
        """Whether the C library has made a name of an allowed one: in Kubernetes it asks three such before the name itself."""
        return any(name.endswith(domain) and self._judge.judge_name(name.removesuffix(domain)).allowed for domain in self._search)

    def _resolve(self, question: dns.Question, most: int) -> bytes:
        number = int.from_bytes(os.urandom(2))
        for raw in self._ask(number, question):
            with contextlib.suppress(ValueError):
                found = dns.read_answer(raw, number, question.name, question.kind)
                return self._filter(question, found, most)
        return dns.answer(question, dns.SERVER_FAILURE)

    def _filter(self, question: dns.Question, found: dns.Found, most: int) -> bytes:
        """Leave out addresses that the name may not lead to; pin the others."""
        if blocked := self._blocked_alias(found.aliases):
            self._refuse(question.name, blocked)
            return dns.answer(question, dns.NAME_ERROR)
        kept = []
        for ip, ttl in found.addresses:
            verdict = self._judge.judge_answer(ip, question.name)
            if verdict.allowed or not self._judge.is_enforced:
                kept.append((ip, ttl))
            else:
                self._refuse(question.name, verdict)
        for ip, ttl in kept:
            self._judge.pins.pin(question.name, (ip,), ttl)
        code = dns.NAME_ERROR if found.addresses and not kept else found.code
        return dns.answer(question, code, tuple(kept), most)

    def _blocked_alias(self, aliases: Sequence[str]) -> Verdict | None:
        """An alias needs no entry of its own, but one that the policy blocks by name is not led over."""
        for alias in aliases:
            verdict = self._judge.judge_name(alias)
            if not verdict.allowed and verdict.rule.endswith("blocked_domains") and self._judge.is_enforced:
                return verdict
        return None

    def _pass_on(self, question: dns.Question, most: int) -> bytes:
        """Answer about what is no address with the nameserver's own words."""
        number = int.from_bytes(os.urandom(2))
        for raw in self._ask(number, question):
            with contextlib.suppress(ValueError):
                dns.read_answer(raw, number, question.name, question.kind)
                if len(raw) > most:
                    return dns.answer(question, dns.NO_ERROR, is_cut=True)  # who asked asks again over TCP
                return question.id.to_bytes(2) + raw[2:]
        return dns.answer(question, dns.SERVER_FAILURE)

    # ------------------------------------------------------------------------------------------------------ upstream

    def _ask(self, number: int, question: dns.Question) -> Iterator[bytes]:
        """What each nameserver answers, the first one first."""
        query = dns.ask(number, question.name, question.kind)
        for nameserver in self._nameservers:
            with contextlib.suppress(OSError, ValueError):
                raw = _ask_by_datagram(nameserver, query)
                if dns.read_answer(raw, number, question.name, question.kind).is_truncated:
                    raw = _ask_by_stream(nameserver, query)
                yield raw
                continue
            with contextlib.suppress(OSError):
                yield _ask_by_stream(nameserver, query)

    # ------------------------------------------------------------------------------------------------------ downstream

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._stream.accept()
            except OSError:  # no descriptor is left for it: it waits in the queue until there is one
                time.sleep(_SHORTAGE_SECONDS)
                continue
            if not self._start(self._serve, connection):
                connection.close()

    def _receive(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                message, client = self._datagrams.recvfrom(_DATAGRAM)
                self._start(self._reply, message, client)

    def _start(self, serve: Callable[..., None], *args: object) -> bool:
        """Serve one client on a thread; False when there is none to be had, and the client has to ask again."""
        self._room.acquire()
        try:
            threading.Thread(target=self._serve_one, args=(serve, args), daemon=True).start()
        except RuntimeError:  # the tree has taken all the processes that its user or its container may have
            self._room.release()
            return False
        return True

    def _serve_one(self, serve: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            with contextlib.suppress(OSError):
                serve(*args)
        finally:
            self._room.release()

    def _reply(self, message: bytes, client: tuple[str, int]) -> None:
        reply = self.answer(message, _SHORT_ANSWER)
        if reply is not None:
            self._datagrams.sendto(reply, client)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_IDLE_SECONDS)
            while True:
                message = _receive_message(connection)
                reply = self.answer(message)
                if reply is None:
                    return
                connection.sendall(len(reply).to_bytes(2) + reply)


def _ask_by_datagram(nameserver: tuple[str, int], query: bytes) -> bytes:
    with socket.socket(socket.AF_INET6 if ":" in nameserver[0] else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(_UPSTREAM_SECONDS)
        asking.connect(nameserver)
        asking.send(query)
        while True:  # what answers another query is a late answer, or a forged one
            raw = asking.recv(_DATAGRAM)
            if raw[:2] == query[:2]:
                return raw


def _ask_by_stream(nameserver: tuple[str, int], query: bytes) -> bytes:
    with socket.create_connection(nameserver, timeout=_UPSTREAM_SECONDS) as asking:
        asking.sendall(len(query).to_bytes(2) + query)
        return _receive_message(asking)


def _receive_message(connection: socket.socket) -> bytes:
    length = int.from_bytes(_receive_exactly(connection, 2))
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise ConnectionResetError
        received += part
    return received


def read_nameservers(path: str = "/etc/resolv.conf") -> list[tuple[str, int]]:
    """The nameservers of this host, as its C library reads them."""
    found = []
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append((str(ip_address(words[1].partition("%")[0])), PORT))
    return found or [("127.0.0.1", PORT)]


def read_search(path: str = "/etc/resolv.conf") -> list[str]:
    """The domains in which this host's C library looks for a name; without a list, that of the host itself."""
    found = [socket.gethostname().partition(".")[2]]
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) > 1 and words[0] in {"search", "domain"}:  # the last of them holds
                found = words[1:]
    return [domain.strip(".").lower() for domain in found if domain.strip(".")]


def read_hosts(path: str = "/etc/hosts") -> dict[str, frozenset[str]]:
    """What the hosts file says: names by address."""
    names: dict[str, set[str]] = {}
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.partition("#")[0].split()
            if words:
                names.setdefault(words[0], set()).update(word.lower() for word in words[1:])
    for loopback in ("127.0.0.1", "::1"):
        names.setdefault(loopback, set()).add("localhost")
    return {ip: frozenset(found) for ip, found in names.items()}

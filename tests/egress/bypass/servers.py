"""The far side: HTTP, TLS, proxy, DNS, UDP, ICMP and unix servers on every address of the namespace, and what they saw.

Who is denied is no server's business: the log keeps what arrived where, and `world.is_allowed_address` tells which of it is a
leak. An allowed server that is asked to pass something on to a denied name (Host, SNI, CONNECT, SOCKS) logs that as the
denied server's, as if it were the front of both.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import world

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

PLAIN_PORTS = (world.HTTP, world.ALTERNATE, world.PROXY, world.SOCKS, world.DNS, world.POSTGRES, world.BANNER)
TLS_PORTS = (world.HTTPS, world.TLS_ALTERNATE)
UDP_PORTS = (world.HTTPS, world.UDP)
UDPLITE = 136
UNIX_PATHS = ("docker.sock", "dbus.sock")
UNIX_ABSTRACT = "\0bypass-abstract"


@dataclass(slots=True)
class Contact:
    """One connection, datagram or question that arrived."""

    at: float
    where: str
    port: int
    is_allowed: bool
    what: str
    said: bytes = b""

    @property
    def tokens(self) -> set[str]:
        return set(world.TOKEN.findall(self.said.decode("latin-1").lower()))


@dataclass(slots=True)
class Log:
    """What arrived, in order."""

    contacts: list[Contact] = field(default_factory=list)

    def add(self, where: str, port: int, what: str, said: bytes = b"", *, is_allowed: bool | None = None) -> Contact:
        if is_allowed is None:
            is_allowed = world.is_allowed_address(where, port)
        contact = Contact(time.monotonic(), where, port, is_allowed, what, said)
        self.contacts.append(contact)
        return contact


# ------------------------------------------------------------------------------------------------------------------ DNS


class Names:
    """The nameserver of the namespace, authoritative for everything. What an attacker asks for, the attacker learns."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.asked: dict[str, int] = {}

    def answer(self, query: bytes, where: str, what: str) -> bytes:
        """Answer the first question, and log whatever else the packet brings."""
        try:
            name, kind, end = self._question(query)
        except (IndexError, struct.error, UnicodeDecodeError):
            self.log.add(where, world.DNS, what, query, is_allowed=False)
            return b""
        is_harmless = where == world.NAMESERVER4 and world.is_allowed_name(name) and not world.TOKEN.search(
            query[end:].decode("latin-1").lower()
        )  # fmt: skip
        said = name.encode() + b" " + query[end:]
        self.log.add(where, world.DNS, f"{what} {name}", said, is_allowed=is_harmless)
        return self._reply(query[:end], name, kind)

    @staticmethod
    def _question(query: bytes) -> tuple[str, int, int]:
        labels, at = [], 12
        while query[at]:
            length = query[at]
            labels.append(query[at + 1 : at + 1 + length].decode("latin-1"))
            at += 1 + length
        (kind,) = struct.unpack_from(">H", query, at + 1)
        return ".".join(labels).lower(), kind, at + 5

    def _reply(self, question: bytes, name: str, kind: int) -> bytes:
        known, addresses, ttl = self._addresses(name)
        answers = b""
        count = 0
        target = world.ALIASES.get(name)
        if target is not None:
            encoded = b"".join(bytes([len(label)]) + label.encode() for label in target.split(".")) + b"\0"
            at = len(question)
            answers += b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, ttl, len(encoded)) + encoded
            pointer = struct.pack(">H", 0xC000 | (at + 12))
            count += 1
        else:
            pointer = b"\xc0\x0c"
        for address in addresses:
            packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
            if kind != (28 if len(packed) == 16 else 1):
                continue
            answers += pointer + struct.pack(">HHIH", kind, 1, ttl, len(packed)) + packed
            count += 1
        flags = 0x8580 if known else 0x8583
        return question[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + question[12:] + answers

    def _addresses(self, name: str) -> tuple[bool, tuple[str, ...], int]:
        if name in world.REBINDING:
            turn = self.asked.get(name, 0)
            self.asked[name] = turn + 1
            return True, (world.REBINDING[name][min(turn, 1)],), 0
        name = world.ALIASES.get(name, name)
        while name not in world.ZONE:
            _, _, name = name.partition(".")
            if not name:
                return False, (), 60
        return True, world.ZONE[name], 60


# ------------------------------------------------------------------------------------------------------------------ TCP


class Web:
    """One connection to a TCP port: HTTP, an open proxy, SOCKS, DNS, and what else a first packet asks for."""

    def __init__(self, servers: Servers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.servers = servers
        self.reader, self.writer = reader, writer
        where, self.port = writer.get_extra_info("sockname")[:2]
        self.where = where.partition("%")[0]
        tunnel = writer.get_extra_info("ssl_object")
        self.name = getattr(tunnel, "asked_for", None) if tunnel else None
        self.contact = servers.log.add(self.where, self.port, "tcp")

    async def serve(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError, asyncio.TimeoutError):
            if self.name and not world.is_allowed_name(self.name):
                self._front(f"SNI {self.name}", self.name.encode())
            if self.port == world.BANNER:
                self.writer.write(b"220 ok\r\n")
            if self.port == world.DNS:
                await self._dns()
            while not self.reader.at_eof():
                data = await self.reader.read(65536)
                if not data:
                    break
                self.contact.said += data
                await self._answer(data)
        with suppress(OSError):
            self.writer.close()

    def _front(self, what: str, said: bytes) -> None:
        if self.contact.is_allowed:
            self.servers.log.add(self.where, self.port, f"front: {what}", said, is_allowed=False)

    async def _dns(self) -> None:
        while True:
            (length,) = struct.unpack(">H", await self.reader.readexactly(2))
            query = await self.reader.readexactly(length)
            self.contact.said += query
            reply = self.servers.names.answer(query, self.where, "tcp question")
            self.writer.write(struct.pack(">H", len(reply)) + reply)

    async def _answer(self, data: bytes) -> None:
        write = self.writer.write
        if data[:1] in {b"\x04", b"\x05"} and self.port in {world.SOCKS, world.PROXY}:
            await self._socks(data)
        elif data.startswith(b"PRI * HTTP/2.0"):
            write(b"\0\0\0\4\0\0\0\0\0")  # empty SETTINGS: a gRPC client now sends its call
        elif data[:8] == struct.pack(">II", 8, 80877103):
            write(b"N")  # PostgreSQL: no TLS, go on in the clear
        elif b" HTTP/1." in data.partition(b"\r\n")[0]:
            await self._http(data)
        elif self.contact.tokens or self.port == world.BANNER:
            self.writer.close()  # heard, and nothing to say

    async def _http(self, data: bytes) -> None:
        for request in data.split(b"\r\n\r\n"):
            line, _, rest = request.partition(b"\r\n")
            if line.count(b" ") < 2 or b" HTTP/1." not in line:
                continue
            method, target, _ = line.split(b" ", 2)
            host = next((head[5:].strip() for head in rest.split(b"\r\n") if head.lower().startswith(b"host:")), b"")
            asked = target if method == b"CONNECT" else target.split(b"/")[2] if b"://" in target else host
            name = asked.decode("latin-1").rpartition("@")[2].partition(":")[0]
            if name and not self._serves(name):
                self._front(f"{method.decode()} {name}", line + rest)
            if method == b"CONNECT":
                self.writer.write(b"HTTP/1.1 200 ok\r\n\r\n")
                if name and not self._serves(name):
                    inside = await self.reader.read(65536)
                    self._front(f"tunnel {name}", inside)
                    self.contact.said += inside
                    await self._answer(inside)
                return
            self.writer.write(self._response(target.decode("latin-1"), rest))
            if line.endswith(b"/1.0"):
                self.writer.close()
                return
        await self.writer.drain()

    def _serves(self, name: str) -> bool:
        """Whether a front has the name for an allowed one. Its own address is."""
        name = name.strip("[]")
        return world.is_allowed_name(name) or name in {self.where, "", world.UDP_ALLOWED4} or name == "front.allowed.test"

    def _response(self, target: str, rest: bytes) -> bytes:
        if target.startswith("/redirect/"):
            _, _, status, to = target.split("/", 3)
            return f"HTTP/1.1 {status} Moved\r\nLocation: {unquote(to)}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
        if target.startswith("/alt-svc/"):
            return f"HTTP/1.1 200 ok\r\nAlt-Svc: {unquote(target[9:])}\r\nContent-Length: 2\r\n\r\nok".encode("latin-1")
        if b"upgrade: websocket" in rest.lower():
            return self._websocket(rest)
        return b"HTTP/1.1 200 ok\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    @staticmethod
    def _websocket(rest: bytes) -> bytes:
        from base64 import b64encode
        from hashlib import sha1

        key = next(
            head.partition(b":")[2].strip() for head in rest.split(b"\r\n") if head.lower().startswith(b"sec-websocket-key")
        )
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        return b"HTTP/1.1 101 ok\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"

    async def _socks(self, data: bytes) -> None:
        if data[0] == 4:
            self._front("SOCKS4", data)
            self.writer.write(b"\0\x5a" + b"\0" * 6)
            said = data
        else:
            self.writer.write(b"\x05\0")
            said = await self.reader.read(512)
            self.contact.said += said
            self._front("SOCKS5", said)
            self.writer.write(b"\x05\0\0\1" + b"\0" * 6)
        inside = await self.reader.read(65536)
        self.contact.said += inside
        self._front("SOCKS tunnel", inside)
        await self._answer(inside)


# --------------------------------------------------------------------------------------------------- everything together


class Servers:
    """All servers of the namespace, on one thread. Entered: they listen."""

    def __init__(self, folder: Path, services: Path) -> None:
        self.log = Log()
        self.names = Names(self.log)
        self.folder, self.services = folder, services
        self.certificates = folder / "ca.pem"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="servers", daemon=True)
        self._open: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        from agentguard.testing.provider import Provider

        provider = Provider(port=world.PROVIDER)
        self._open.append(provider.close)
        ready = threading.Event()
        self._loop.call_soon(lambda: self._loop.create_task(self._listen(ready)))
        self._thread.start()
        if not ready.wait(20):
            message = "the servers of the battery do not listen"
            raise TimeoutError(message)
        return self

    def __exit__(self, *error: object) -> None:
        for close in self._open:
            close()
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(2)

    def _end(self) -> None:
        """Leave no connection half answered, and stop."""
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.05, self._loop.stop)

    async def _listen(self, ready: threading.Event) -> None:
        context = self._tls()
        for host in ("0.0.0.0", "::"):
            for port in PLAIN_PORTS:
                await asyncio.start_server(self._accept, host, port, backlog=1024)
            for port in TLS_PORTS:
                await asyncio.start_server(self._accept, host, port, ssl=context, backlog=1024)
        for address in (*world.ADDRESSES, world.METADATA4, "127.0.0.1", "::1"):
            for port in UDP_PORTS:
                self._udp(address, port)
        self._udp(world.NAMESERVER4, world.DNS, is_dns=True)
        for address in (world.DENIED4, world.DENIED6, world.METADATA4):
            self._udp(address, world.DNS, is_dns=True)
        self._udp("0.0.0.0", 5353, group="224.0.0.251")
        with suppress(OSError):
            self._udp(world.DENIED4, world.UDP, protocol=UDPLITE)
        for family, protocol in ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)):
            self._icmp(family, protocol)
        for path in UNIX_PATHS:
            await self._unix(str(self.services / path))
        await self._unix(UNIX_ABSTRACT)
        self._unix_datagrams(str(self.services / "log"))
        ready.set()

    def _tls(self) -> ssl.SSLContext:
        import trustme

        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.certificates))
        hosts = [*world.ZONE, "*.denied.test", "*.partner.test", "*.allowed.test", world.ALLOWED4, world.DENIED4, world.DENIED6]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*hosts).configure_cert(context)

        def remember(tunnel: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            tunnel.asked_for = name  # type: ignore[attr-defined]

        context.sni_callback = remember
        return context

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the end of the servers
            await Web(self, reader, writer).serve()

    def _receive(self, opened: socket.socket, receive: Callable[[bytes, object], None]) -> None:
        opened.setblocking(False)

        def ready() -> None:
            with suppress(OSError):
                receive(*opened.recvfrom(65536))

        self._loop.add_reader(opened, ready)
        self._open.append(opened.close)

    def _udp(self, address: str, port: int, *, is_dns: bool = False, protocol: int = 0, group: str = "") -> None:
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        if group:
            joined = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)

        def receive(data: bytes, sender: object) -> None:
            if is_dns:
                reply = self.names.answer(data, address, "udp question")
            else:
                self.log.add(group or address, port, "udp", data)
                reply = data
            with suppress(OSError):
                opened.sendto(reply, sender)  # type: ignore[arg-type]

        self._receive(opened, receive)

    def _icmp(self, family: int, protocol: int) -> None:
        opened = socket.socket(family, socket.SOCK_RAW, protocol)

        def receive(data: bytes, sender: object) -> None:
            kind = data[(data[0] & 15) * 4] if family == socket.AF_INET else data[0]
            if kind in {8, 128} and world.TOKEN.search(
                data.decode("latin-1")
            ):  # an echo request, no complaint about another packet
                self.log.add(world.DENIED4, 0, "icmp", data)

        self._receive(opened, receive)

    async def _unix(self, path: str) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            contact = self.log.add("127.0.0.1", 0, f"unix {path!r}", is_allowed=False)
            with suppress(OSError, asyncio.CancelledError):
                while data := await reader.read(65536):
                    contact.said += data
                    writer.write(b"HTTP/1.1 200 ok\r\nContent-Length: 2\r\n\r\n{}")
                writer.close()

        await asyncio.start_unix_server(accept, path)
        if not path.startswith("\0"):
            Path(path).chmod(0o666)

    def _unix_datagrams(self, path: str) -> None:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        opened.bind(path)
        Path(path).chmod(0o666)
        self._receive(opened, lambda data, _: self.log.add("127.0.0.1", 0, f"unix {path!r}", data, is_allowed=False) and None)

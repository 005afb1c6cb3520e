"""Looks around from behind the filter, and prints what it found: as nobody, in the namespace that inside.py makes."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bypass"))

import world  # of the battery


def outcome(work, *args):
    """What some work comes to: its result, or the name of its error."""
    try:
        return work(*args)
    except socket.gaierror as error:
        return f"gaierror {error.errno}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def get(host, port=80, timeout=20.0):
    with socket.create_connection((host, port), timeout=timeout) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(100)[9:12].decode()


def get_blocking(address):
    with socket.socket() as connection:
        connection.connect((address, 80))
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(100)[9:12].decode()


async def get_by_streams(host):
    reader, writer = await asyncio.open_connection(host, 80)
    writer.writelines([b"GET / HTTP/1.0\r\n", b"\r\n"])
    said = await reader.read(100)
    writer.close()
    return said[9:12].decode()


def child(*command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)
    return done.stdout.strip() or f"exit {done.returncode}"


def connect_unix(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        return "connected"


def own_unix_socket():
    path = f"{tempfile.gettempdir()}/own.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        return connect_unix(path)


def swapped_unix_socket():
    """A link that leads to the program's own socket and to Docker's in turn."""
    own, link = f"{tempfile.gettempdir()}/swap.sock", f"{tempfile.gettempdir()}/link"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(own)
        listening.listen(64)
        said = set()
        done = threading.Event()

        def swap():
            while not done.is_set():
                for target in (own, "/run/docker.sock"):
                    Path(f"{link}.new").symlink_to(target)
                    Path(f"{link}.new").replace(link)

        Path(link).symlink_to(own)
        threading.Thread(target=swap, daemon=True).start()
        for _ in range(50):
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    connection.connect(link)
                    said.add(Path(f"/proc/self/fd/{connection.fileno()}").exists() and peer(connection))
                except OSError as error:
                    said.add(errno.errorcode[error.errno])
        done.set()
        return sorted(map(str, said))


def peer(connection):
    return connection.getpeername()


def datagram(address, how):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        word = f"{how} to {address}".encode()
        if how == "sendto":
            sending.sendto(word, (address, world.UDP))
        elif how == "sendmsg":
            sending.sendmsg([word[:3], word[3:]], [], 0, (address, world.UDP))
        elif how == "mapped":
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
                six.sendto(word, (f"::ffff:{address}", world.UDP))
        elif how == "unspecified":
            raw = struct.pack("=H", socket.AF_UNSPEC) + struct.pack("!H", world.UDP) + socket.inet_aton(address) + bytes(8)
            if ctypes.CDLL(None, use_errno=True).sendto(sending.fileno(), word, len(word), 0, raw, len(raw)) < 0:
                raise OSError(ctypes.get_errno(), "sendto")
        else:
            sending.connect((address, world.UDP))
            sending.send(word)
        return "sent"


def interrupted_connect():
    """A blocking connect to who takes nobody any more, with signals meanwhile: the handler runs at once."""
    happened = []
    signal.signal(signal.SIGALRM, lambda *_: happened.append("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with socket.socket() as connection:
        connection.settimeout(None)

        def end():
            happened.append("end")
            connection.shutdown(socket.SHUT_RDWR)

        threading.Timer(1.2, end).start()
        outcome(connection.connect, (world.ALLOWED4, 81))
    return happened == ["signal", "end"]


def others_connect_meanwhile():
    """While several connects hang, others are answered."""
    hanging = []
    for _ in range(12):
        connection = socket.socket()
        hanging.append(connection)
        threading.Thread(target=lambda one=connection: outcome(one.connect, (world.ALLOWED4, 81)), daemon=True).start()
    time.sleep(0.2)
    begun = time.monotonic()
    said = [get_blocking(world.ALLOWED4) for _ in range(5)]
    return said == ["200"] * 5 and time.monotonic() - begun < 20


def port_is_free_again():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with socket.socket() as two:
        two.bind(("127.0.0.1", port))
        two.listen()
    return "free"


def connect_to_loopback():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as connection:
        connection.connect(listening.getsockname())


def managed():
    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.list([1, 2])
        shared.append(3)
        return list(shared)


def attack_supervisor():
    from agentguard.egress.kernel import channel

    supervisor = channel.ask_status().supervisor
    return {
        "signal": outcome(os.kill, supervisor, 0),
        "memory": outcome(lambda: Path(f"/proc/{supervisor}/mem").open("rb").close() or "open"),
        "descriptors": outcome(lambda: list(Path(f"/proc/{supervisor}/fd").iterdir()) and "seen"),
    }


def widen():
    """Every word of the control channel, and none widens."""
    from agentguard.egress.boundary import Boundary
    from agentguard.egress.kernel import channel
    from agentguard.policy import Policy

    wide = Boundary.of(Policy.from_mapping({"agents": [{"name": "x", "external_calls": {"allowed_domains": ["*"]}}]}))
    whole = channel.narrow(wide)
    still = outcome(get, world.DENIED4)
    narrow = Boundary.of(
        Policy.from_mapping({"agents": [{"name": "x", "external_calls": {"allowed_domains": ["shop.partner.test"]}}]})
    )
    channel.narrow(narrow)
    return {
        "whole": whole,
        "denied": still,
        "allowed before": outcome(get, "allowed.test"),
        "kept": outcome(get, "shop.partner.test"),
    }


def leave_a_listener():
    """No descriptor of ours is the listener."""
    return [str(one) for one in Path("/proc/self/fd").iterdir() if "seccomp" in str(outcome(one.readlink))]


def activate():
    import agentguard

    resolved = outcome(get, "allowed.test")  # the C library has read its configuration before
    agentguard.instrument(os.environ["AGENTGUARD_POLICY"], egress="kernel", store="memory://")
    agentguard.uninstrument()  # the kernel holds for good, and is what is looked at here
    return resolved


def look(way):
    facts = {}
    ready = threading.Event()
    before: list[object] = []

    def wait_and_connect():
        ready.wait()
        before.append(outcome(get_blocking, world.DENIED4))

    thread = threading.Thread(target=wait_and_connect)
    thread.start()  # under activate(): it was there before the filter
    if way == "activate":
        facts["before"] = activate()
    ready.set()
    thread.join()
    facts["thread"] = before[0]
    facts["allowed"] = outcome(get, "allowed.test")
    facts["allowed, blocking"] = outcome(get_blocking, world.ALLOWED4)
    facts["streams"] = outcome(asyncio.run, get_by_streams("allowed.test"))
    facts["wildcard"] = outcome(get, "shop.partner.test")
    facts["curl"] = child("curl", "-sS", "-m", "5", "http://allowed.test/")
    facts["python child"] = child(
        sys.executable, "-I", "-S", "-c", "import socket; print(socket.create_connection(('allowed.test', 80)) and 'connected')"
    )
    facts["managed"] = outcome(managed)
    facts["own socket"] = outcome(own_unix_socket)
    facts["many"] = outcome(lambda: len(socket.getaddrinfo("many.partner.test", 80, socket.AF_INET, socket.SOCK_STREAM)))
    facts["port"] = outcome(port_is_free_again)

    facts["denied address"] = outcome(get, world.DENIED4)
    facts["denied name"] = outcome(get, "denied.test")
    facts["secret name"] = outcome(get, "secret.attacker.test")
    facts["curl denied"] = child("curl", "-sS", "-m", "5", f"http://{world.DENIED4}/")
    facts["private"] = outcome(get, world.PRIVATE4)
    facts["name to private"] = outcome(get, "inner.partner.test")
    facts["metadata"] = outcome(get, world.METADATA4)
    facts["mapped"] = outcome(get, f"::ffff:{world.DENIED4}")
    facts["alias to blocked"] = outcome(get, "alias.partner.test")
    facts["loopback"] = outcome(connect_to_loopback)
    facts["docker"] = outcome(connect_unix, "/run/docker.sock")
    facts["abstract"] = outcome(connect_unix, "\0somebody")
    facts["swapped"] = outcome(swapped_unix_socket)
    facts["udp"] = {f"{how} {at}": outcome(datagram, at, how) for at in (world.UDP_ALLOWED4, world.DENIED4) for how in
                    ("sendto", "sendmsg", "connect", "mapped", "unspecified")}  # fmt: skip
    facts["fast open"] = outcome(lambda: socket.socket().sendto(b"x", 0x20000000, (world.DENIED4, 80)))
    facts["mptcp"] = outcome(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close())
    facts["interrupted"] = outcome(interrupted_connect)
    facts["meanwhile"] = outcome(others_connect_meanwhile)
    facts["listener"] = leave_a_listener()
    if way not in {"bare", "report"}:
        facts["attack"] = outcome(attack_supervisor)
        facts["widen"] = outcome(widen)
    return facts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look(sys.argv[1])))
    sys.stdout.flush()
    os._exit(23)

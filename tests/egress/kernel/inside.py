"""Runs inside of a network namespace of its own, with a nameserver and servers; starts the probe as nobody, under the filter.

Started by test_kernel.py as `unshare --net --mount --pid --fork --mount-proc python inside.py FOLDER WAY`. Prints what the
probe found and what the servers saw, as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bypass"))

import stage  # noqa: E402 - of the battery: it makes a network of the same kind
import world  # noqa: E402

POLICY = f"""\
version: 1
mode: {{mode}}
agents:
  - name: probe
    external_calls:
      allowed_domains: [allowed.test, "*.partner.test", "{world.UDP_ALLOWED4}"]
      blocked_domains: ["*", blocked.partner.test]
      {{more}}
"""


class Web:
    """A TCP server that answers `ok` to whoever speaks, and counts."""

    def __init__(self, address: str, port: int = 80) -> None:
        self.calls = 0
        self._listening = socket.create_server((address, port), backlog=64)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            self.calls += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection:
            if connection.recv(4096):
                connection.sendall(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok")


class NameServiceCache:
    """What glibc asks for names before it asks a nameserver, where it runs. This one hangs up, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self._listening = socket.socket(socket.AF_UNIX)
        Path("/run/nscd").mkdir()
        self._listening.bind("/run/nscd/socket")
        Path("/run/nscd/socket").chmod(0o777)
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._listening.accept()[0].close()
            self.calls += 1


class Names:
    """A nameserver over UDP and TCP that keeps what it was asked."""

    def __init__(self, address: str) -> None:
        self.asked: set[str] = set()
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((address, 53))
        self._streams = socket.create_server((address, 53))
        threading.Thread(target=self._serve, daemon=True).start()
        threading.Thread(target=self._serve_streams, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, client = self._datagrams.recvfrom(4096)
            self._datagrams.sendto(self._answer(query, 512), client)

    def _serve_streams(self) -> None:
        while True:
            connection, _ = self._streams.accept()
            with connection:
                length = int.from_bytes(connection.recv(2))
                reply = self._answer(connection.recv(length), 65535)
                connection.sendall(len(reply).to_bytes(2) + reply)

    def _answer(self, query: bytes, most: int) -> bytes:
        labels, place = [], 12
        while query[place]:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += 1 + query[place]
        question = query[12 : place + 5]
        name = ".".join(labels)
        self.asked.add(name)
        found = world.ZONE.get(name)
        if name in world.ALIASES:
            target = world.ALIASES[name].encode()
            alias = b"".join(bytes([len(part)]) + part for part in target.split(b".")) + b"\0"
            records = [b"\xc0\x0c\0\5\0\1" + struct.pack(">IH", 60, len(alias)) + alias]
        elif name == "many.partner.test":
            records = [b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + bytes([93, 184, 216, n]) for n in range(100)]
        else:
            packed = [socket.inet_aton(ip) for ip in found or () if ":" not in ip] if question[-4:-2] == b"\0\1" else []
            records = [b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + one for one in packed]
        known = records or found is not None
        whole = b"".join(records)
        is_cut = len(whole) + len(question) + 12 > most
        flags = 0x8180 | (0x0200 if is_cut else 0) | (0 if known else 3)
        return (
            query[:2]
            + struct.pack(">HHHHH", flags, 1, 0 if is_cut else len(records), 0, 0)
            + question
            + (b"" if is_cut else whole)
        )


def main(folder: Path, way: str) -> None:
    """Bring everything up, run the probe, and print what came of it."""
    stage.prepare(folder)
    names = Names(world.NAMESERVER4)
    servers = {
        address: Web(address) for address in (world.ALLOWED4, world.PARTNER4, world.DENIED4, world.PRIVATE4, world.METADATA4)
    }
    deaf = socket.create_server((world.ALLOWED4, 81), backlog=0)  # takes no more than it has room for
    queue = [socket.socket() for _ in range(4)]
    for waiting in queue:
        waiting.setblocking(False)
        waiting.connect_ex((world.ALLOWED4, 81))
    datagrams = {}
    for address in (world.UDP_ALLOWED4, world.DENIED4):
        datagrams[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams[address].bind((address, world.UDP))
    cache = NameServiceCache()
    with socket.socket(socket.AF_UNIX) as docker:
        docker.bind("/run/docker.sock")
        docker.listen()
        Path("/run/docker.sock").chmod(0o777)
        said = run_probe(folder, way)
    received = {address: server.calls for address, server in servers.items()}
    heard = {address: _heard(one) for address, one in datagrams.items()}
    sys.stdout.write(
        json.dumps({"probe": said, "received": received, "asked": sorted(names.asked), "heard": heard, "cache": cache.calls})
    )
    sys.stdout.flush()
    deaf.close()
    os.kill(-1, signal.SIGKILL) if stage.is_entered() and os.getpid() == 1 else None
    os._exit(0)


def run_probe(folder: Path, way: str) -> dict[str, object]:
    """Start the probe under the guard, the way that is asked for."""
    policy = folder / "agentguard.yaml"
    more = "allow_udp: true" if way == "udp" else "unix_sockets: []"
    policy.write_text(POLICY.format(mode="report" if way == "report" else "enforce", more=more), encoding="utf-8")
    state, scratch = folder / "state", folder / "scratch"
    uid = stage.NOBODY if stage.can_be_nobody() else os.geteuid()
    for path in (state, scratch):
        path.mkdir(mode=0o700)
        os.chown(path, uid, uid)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ["PYTHONPATH"],
        "AGENTGUARD_STATE_DIR": str(state),
        "AGENTGUARD_POLICY": str(policy),
        "AGENTGUARD_STORE": "memory://",
        "TMPDIR": str(scratch),
        "HOME": str(scratch),
    }
    guarded = [
        sys.executable,
        "-m",
        "agentguard.cli",
        "run",
        "--egress",
        "kernel",
        "--",
        "/usr/bin/env",
        "AGENTGUARD_RUN=0",
        sys.executable,
    ]
    commands = {
        "docker": [sys.executable, str(HERE / "as_in_docker.py"), *guarded],
        "activate": [sys.executable],
        "bare": [sys.executable],
    }
    command = [*commands.get(way, guarded), str(HERE / "probe.py"), way]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=90, check=False, cwd=scratch,
        preexec_fn=lambda: stage.become(uid),
    )  # fmt: skip
    logs = [json.loads(line) for log in sorted((state / "egress").glob("*.jsonl")) for line in log.read_text().splitlines()]
    if not done.stdout:
        raise SystemExit(f"the probe said nothing: {done.stderr}")
    facts = json.loads(done.stdout.splitlines()[-1])
    return {"facts": facts, "exit": done.returncode, "stderr": done.stderr, "log": logs}


def _heard(one: socket.socket) -> list[str]:
    one.setblocking(False)
    heard = []
    try:
        while True:
            heard.append(one.recv(100).decode())
    except BlockingIOError:
        return heard


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

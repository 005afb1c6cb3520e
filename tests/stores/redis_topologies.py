"""Redis as it is run in earnest: over TLS, behind a sentinel, in a cluster. Real servers of our own, on free ports."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import redis
import trustme

from agentguard.errors import StoreUnavailable

from .redis_server import PROGRAM, Server, free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVICE = "counters"
SOON, LATE = (
    500,
    30_000,
)  # milliseconds without an answer before a server is taken for dead; a busy machine makes a short one long


def wait_until(is_so: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.RedisError, OSError, StoreUnavailable):
            if is_so():
                return
        assert time.monotonic() < until, f"never came: {what}"
        time.sleep(0.02)


def port_with_a_bus() -> int:
    """A free port, and 10,000 above it another one, by which nodes talk; both are below those that the kernel gives out."""
    while True:
        port = random.randrange(12_000, 22_000)
        with contextlib.suppress(OSError):
            for one in (port, port + 10_000):
                socket.create_server(("127.0.0.1", one)).close()
            return port


def is_in_step(master: Server, replica: Server) -> bool:
    """Whether a replica has all that its master has."""
    told, heard = master.ask("INFO", "replication"), replica.ask("INFO", "replication")
    return heard["master_link_status"] == "up" and told["master_repl_offset"] == heard["slave_repl_offset"]


def follow(master: Server, replica: Server) -> None:
    """Wait until what is written reaches the replica: a master begins to send about a second after the first copy."""
    wait_until(lambda: master.ask("FLUSHALL"), "a master that takes what is written")
    wait_until(lambda: is_in_step(master, replica), "a replica in step")


class TlsServer(Server):
    """A server that speaks TLS on a port of its own, beside the plain one by which a test looks at it."""

    def __init__(self, folder: Path, *, asks_clients: bool = False) -> None:
        self.tls_port = free_port()
        self.trusted, self.stranger, self.certificate, self.key = (
            folder / name for name in ("trusted.pem", "stranger.pem", "certificate.pem", "key.pem")
        )
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.trusted)
        trustme.CA().cert_pem.write_to_path(self.stranger)
        certificate = authority.issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self.certificate)
        certificate.private_key_pem.write_to_path(self.key)
        super().__init__(
            *("--tls-port", str(self.tls_port), "--tls-auth-clients", "yes" if asks_clients else "no"),
            *("--tls-ca-cert-file", str(self.trusted), "--tls-cert-file", str(self.certificate), "--tls-key-file", str(self.key)),
        )

    @property
    def servers(self) -> tuple[Server, ...]:
        return (self,)

    @property
    def url(self) -> str:
        return self.url_trusting(self.trusted)

    def url_trusting(self, authority: Path) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0?ssl_ca_certs={authority}"


class Sentinel(Server):
    """One sentinel, that suffices to promote a replica."""

    def __init__(self, master: Server, down_after: int) -> None:
        self._lines = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} 2000",
        )
        super().__init__()

    def start(self) -> None:
        written = self.folder / "sentinel.conf"
        written.write_text("\n".join((f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", *self._lines)))
        self.process = subprocess.Popen([PROGRAM, written, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.answers, "an answer of the sentinel")


class Replicated:
    """A master, a replica that has all that it has, and a sentinel that watches both."""

    def __init__(self, *options: str, down_after: int = SOON) -> None:
        self.master = Server("--repl-diskless-sync-delay", "0", *options)
        self.replica = Server("--repl-diskless-sync-delay", "0", *options, "--replicaof", "127.0.0.1", str(self.master.port))
        follow(self.master, self.replica)
        self.sentinel = Sentinel(self.master, down_after)
        wait_until(lambda: self._watched()["num-slaves"] == 1, "a sentinel that knows the replica")

    @property
    def servers(self) -> tuple[Server, ...]:
        return (self.master, self.replica)

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/{SERVICE}/0"

    def _watched(self) -> dict[str, int]:
        with self.sentinel.client() as client:
            return client.sentinel_master(SERVICE)

    def master_port(self) -> int:
        """Where the sentinel says that the master is."""
        return self._watched()["port"]

    def ask(self, *words: object) -> object:
        now = self.master if self.master_port() == self.master.port else self.replica
        return now.ask(*words)

    def close(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.close()


class Cluster:
    """Masters that share the slots, each with a replica or none."""

    def __init__(self, masters: int = 3, *, replicated: bool = False) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
        self.masters = [Server(*options, port=port_with_a_bus()) for _ in range(masters)]
        self.replicas = [Server(*options, port=port_with_a_bus()) for _ in range(masters if replicated else 0)]
        self.servers = [*self.masters, *self.replicas]
        self.ids = {node.port: str(node.ask("CLUSTER", "MYID"), "ascii") for node in self.servers}
        bounds = [16384 * place // masters for place in range(masters + 1)]
        for epoch, (node, start, end) in enumerate(zip(self.masters, bounds, bounds[1:], strict=False), 1):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            node.ask("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
        for node in self.servers[1:]:
            node.ask("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        for node in self.servers:
            wait_until(lambda node=node: len(self._known(node)) == len(self.servers), "nodes that know each other")
        for master, replica in zip(self.masters, self.replicas, strict=bool(self.replicas)):
            replica.ask("CLUSTER", "REPLICATE", self.ids[master.port])
        for master, replica in zip(self.masters, self.replicas, strict=bool(self.replicas)):
            follow(master, replica)
        for node in self.servers:
            wait_until(lambda node=node: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"), "a cluster that serves")
            wait_until(lambda node=node: self._serving_with(node) == len(self.servers), "a cluster that knows its replicas")

    def _serving_with(self, node: Server) -> int:
        return sum(len(served) - 2 for served in node.ask("CLUSTER", "SLOTS"))

    def _known(self, node: Server) -> list[bytes]:
        return [line for line in node.ask("CLUSTER", "NODES").splitlines() if b"handshake" not in line]

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.masters[0].port},127.0.0.1:{self.masters[1].port}"

    def ask(self, *words: object) -> None:
        for node in self.masters:
            node.ask(*words)

    def place_of(self, slot: int) -> int:
        """Which of the masters serves a slot."""
        return next(place for place, node in enumerate(self.masters) if self._serves(node, slot))

    def _serves(self, node: Server, slot: int) -> bool:
        mine = next(line for line in self._known(node) if b"myself" in line).split()[8:]
        bounds = [[int(bound) for bound in part.split(b"-")] for part in mine if not part.startswith(b"[")]
        return any(bound[0] <= slot <= bound[-1] for bound in bounds)

    def begin_to_move(self, slot: int, source: int, target: int) -> None:
        self.masters[target].ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[self.masters[source].port])
        self.masters[source].ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[self.masters[target].port])

    def move(self, keys: list[bytes], source: int, target: int) -> None:
        self.masters[source].ask("MIGRATE", "127.0.0.1", self.masters[target].port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, target: int) -> None:
        for node in (self.masters[target], *self.masters):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.ids[self.masters[target].port])

    def close(self) -> None:
        for node in self.servers:
            node.close()

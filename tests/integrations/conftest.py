"""What the tests of the seams share: a guard on every installed library, and what it told."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from agentguard.core.call import LLMCall
from agentguard.events import CallAdmitted, CallDenied, CallSettled
from agentguard.guard import Guard
from agentguard.integrations._seam import Seams
from agentguard.integrations.registry import integrations
from agentguard.policy import Policy
from agentguard.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agentguard.events import Event


class Guarded:
    """A guard on the call path of this process, for one test."""

    def __init__(self, policy: Policy) -> None:
        self.guard = Guard(policy, store=MemoryStore())
        self.events: list[Event] = []
        self.is_on = True
        self.guard.observe(self.events.append)
        self.seams = Seams(integrations(self._verify), self._resolve, lambda *_: None)
        self.seams.install()

    def _resolve(self) -> Guard | None:
        return self.guard if self.is_on else None

    def _verify(self, module: str) -> None:
        self.seams.verify(module)

    def catch_up(self) -> None:
        """Wait until every call that has ended is charged and told: the worker may have one in hand."""
        for _ in range(3000):
            self.guard.flush(30)
            told = [type(event) for event in self.events]
            is_open = [admitted for admitted in self.guard.open_calls if admitted.is_open]
            if told.count(CallAdmitted) == told.count(CallSettled) + len(is_open):
                return
            time.sleep(0.01)

    def balance(self, unit: str = "tokens") -> tuple[int, int]:
        """Spent and held, summed over the limits of a unit."""
        self.catch_up()
        rows = [balance for row, balance in self.guard.usage() if row.limit.unit.value == unit]
        return sum(row.spent for row in rows), sum(row.held for row in rows)

    @property
    def spent(self) -> int:
        """Tokens that settled calls have used."""
        return self.balance()[0]

    @property
    def held(self) -> int:
        """Tokens that open calls hold."""
        return self.balance()[1]

    @property
    def settled(self) -> list[CallSettled]:
        """Calls that have ended."""
        self.catch_up()
        return [event for event in self.events if isinstance(event, CallSettled)]

    @property
    def llm_calls(self) -> list[CallSettled]:
        """LLM calls that have ended."""
        return [event for event in self.settled if isinstance(event.call, LLMCall)]

    @property
    def denied(self) -> list[CallDenied]:
        """Refusals."""
        self.catch_up()
        return [event for event in self.events if isinstance(event, CallDenied)]

    def close(self) -> None:
        """Take the seams off and end the guard."""
        self.seams.remove()
        self.guard.close()


def policy_of(tokens: int = 100_000, mode: str = "enforce", **agent: Any) -> Policy:
    """A policy with one agent, which may reach 127.0.0.1 and nothing else."""
    egress = {"allowed_domains": ["127.0.0.1"], "blocked_domains": ["*"]}
    return Policy.from_mapping(
        {
            "mode": mode,
            "agents": [
                {
                    "name": "bot",
                    "external_calls": egress,
                    "llm": {"providers": ["openai"]},
                    "budgets": [{"limit": f"{tokens} tokens"}, {"limit": "1000 calls"}],
                    **agent,
                }
            ],
        }
    )


@pytest.fixture
def guard_with() -> Iterator[Any]:
    """Put a guard on the call path: `guard_with(tokens=500)`."""
    made: list[Guarded] = []

    def make(tokens: int = 100_000, mode: str = "enforce", **agent: Any) -> Guarded:
        made.append(Guarded(policy_of(tokens, mode, **agent)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def guarded(guard_with: Any) -> Guarded:
    """A guard with a budget that no test exhausts."""
    return guard_with()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of 127.0.0.1 in one file."""
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("not on PATH: openssl")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    name = "-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", "req", "-x509", *key.split(), *name.split(), *files], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


class Relay:
    """A TLS server in front of another one."""

    def __init__(self, certificate: Path, port: int) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends = [self._listener]
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: socket.socket) -> None:
        self._threads.append(threading.Thread(target=work, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open(client)

    def _open(self, client: socket.socket) -> None:
        try:
            inside = self._context.wrap_socket(client, server_side=True)
        except OSError:
            client.close()
            return
        outside = socket.create_connection(("127.0.0.1", self._behind))
        self._ends += [inside, outside]
        self._start(_carry, inside, outside)
        self._start(_carry, outside, inside)

    def close(self) -> None:
        """Hang up on everybody."""
        for end in self._ends:
            _shut(end)
        for thread in self._threads:
            thread.join(5)
        for end in self._ends:
            end.close()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    _shut(source)
    _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def tls(provider: Any, certificate: Path) -> Iterator[int]:
    """The provider behind TLS: the port of it."""
    relay = Relay(certificate, provider.port)
    yield relay.port
    relay.close()

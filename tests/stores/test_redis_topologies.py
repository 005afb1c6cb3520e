"""Redis as it is run in earnest: over TLS, with users, behind a sentinel that promotes a replica, in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest
from redis.crc import key_slot

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.redis import RedisStore

from . import test_contract as contract
from .redis_server import PROGRAM, ClockedScripts, Server, free_port
from .redis_topologies import Cluster, Replicated, TlsServer, is_in_step, wait_until

pytestmark = pytest.mark.needs(PROGRAM)
AGENT = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS, window=Window("day")))
SLOT = key_slot(b"{support}")


def with_options(url: str, *options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{'&'.join(('fleet=support', *options))}"


@contextlib.contextmanager
def opened(url: str, *options: str):
    store = RedisStore(with_options(url, *(options or ("timeout=5",))))
    store.register([AGENT])
    yield store
    store.close()


class Blocking:
    """The verbs of a call, asked from a thread."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store

    def reserve(self, name: str, amount: int = 10, *subjects: str):
        return self.store.reserve(Reserve(name, (Charge(AGENT.key, amount),), subjects))

    def extend(self, name: str, amount: int):
        return self.store.extend(name, (Charge(AGENT.key, amount),))

    def settle(self, name: str, tokens: int) -> bool:
        return self.store.settle(name, Amounts(tokens)).first

    def close(self) -> None:
        self.store.close()


class InALoop(Blocking):
    """The same, asked from a task."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self._runner = asyncio.Runner()

    def reserve(self, name: str, amount: int = 10, *subjects: str):
        return self._runner.run(self.store.areserve(Reserve(name, (Charge(AGENT.key, amount),), subjects)))

    def extend(self, name: str, amount: int):
        return self._runner.run(self.store.aextend(name, (Charge(AGENT.key, amount),)))

    def settle(self, name: str, tokens: int) -> bool:
        return self._runner.run(self.store.asettle(name, Amounts(tokens))).first

    def close(self) -> None:
        self._runner.run(self.store.aclose())
        self._runner.close()


@pytest.fixture(params=[Blocking, InALoop], ids=["blocking", "in_a_loop"])
def way(request):
    return request.param


def spent_and_held(store: RedisStore) -> tuple[int, int]:
    (balance,) = store.read([AGENT.key])
    return balance.spent, balance.held


def take_until_refused(asking: Blocking, name: str, seconds: float = 30.0) -> tuple[int, int]:
    """Take ten by ten until the limit ends it, asking again whenever there is no answer. Returns what was taken, and how often
    there was none."""
    taken = silent = number = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        try:
            answer = asking.reserve(f"{name}-{number}")
        except StoreUnavailable:
            silent += 1
            time.sleep(0.02)
            continue
        if isinstance(answer, Refused):
            assert answer.kind is not RefusalKind.UNREGISTERED, "the server has lost what it was told"
            return taken, silent
        taken += 10
        assert not number % 2 or asking.settle(f"{name}-{number}", 10)
    raise AssertionError(f"never refused; {taken} taken")


# --- what every store promises --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def replicated():
    replicated = Replicated()
    yield replicated
    replicated.close()


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(params=["tls", "replicated", "cluster"])
def store(request, clock):
    """A store on each, that knows the rows of the contract and goes by the test's clock."""
    topology = request.getfixturevalue(request.param)
    topology.ask("FLUSHALL")
    store = RedisStore(with_options(topology.url, "timeout=5"), scripts=ClockedScripts(clock))
    store.register(contract.ROWS)
    yield store
    store.close()


globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_a_server_of_another_authority_is_refused_and_the_option_is_named(tls, way):
    with opened(tls.url) as known:
        asking = way(RedisStore(with_options(tls.url_trusting(tls.stranger), "timeout=5")))
        known.read([AGENT.key])

        with pytest.raises(StoreUnavailable, match=r"(?s)certificate verify failed.*ssl_ca_certs") as refused:
            asking.reserve("1")
        asking.close()

    assert "password" not in str(refused.value)


def test_a_certificate_for_another_host_is_refused(tls):
    asking = Blocking(RedisStore(with_options(tls.url.replace("127.0.0.1", "localhost"), "timeout=5")))
    with pytest.raises(StoreUnavailable, match="localhost"):
        asking.reserve("1")
    asking.close()


def test_a_plain_client_of_a_server_that_speaks_tls_gets_no_answer(tls):
    asking = Blocking(RedisStore(f"redis://127.0.0.1:{tls.tls_port}/0?timeout=1"))
    with pytest.raises(StoreUnavailable, match="gave no answer"):
        asking.reserve("1")
    asking.close()


def test_a_server_that_asks_for_certificates_knows_its_clients_by_them(tmp_path):
    server = TlsServer(tmp_path, asks_clients=True)
    with opened(server.url, f"ssl_certfile={server.certificate}", f"ssl_keyfile={server.key}", "timeout=5") as store:
        assert Blocking(store).reserve("1") == GRANTED
        with pytest.raises(StoreUnavailable):
            Blocking(RedisStore(with_options(server.url, "timeout=5"))).reserve("2")
    server.close()

"""A store of every kind, on a clock that stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing.clock import FrozenClock

from .redis_server import PROGRAM, Server, clocked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentguard.stores.base import Store
    from agentguard.stores.redis import RedisStore


@pytest.fixture
def clock() -> FrozenClock:
    return FrozenClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counters.sqlite"


@pytest.fixture
def sqlite(path: Path, clock: FrozenClock) -> Iterator[SqliteStore]:
    store = SqliteStore(path, clock)
    yield store
    store.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One redis-server for all tests of a run; each empties it."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def own() -> Iterator[Server]:
    """A server that a test may break."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def redis(server: Server, clock: FrozenClock) -> Iterator[RedisStore]:
    server.ask("FLUSHALL")
    store = clocked(server.url, clock)
    yield store
    store.close()


@pytest.fixture
def memory(clock: FrozenClock) -> MemoryStore:
    return MemoryStore(clock)


OVER_THE_NETWORK = pytest.mark.needs(PROGRAM)
KINDS = ["memory", "sqlite", pytest.param("redis", marks=OVER_THE_NETWORK)]
LEASED = ["leased-memory", "leased-sqlite", pytest.param("leased-redis", marks=OVER_THE_NETWORK)]


@pytest.fixture(params=[*KINDS, *LEASED])
def store(request: pytest.FixtureRequest, clock: FrozenClock) -> Store:
    kind = request.param.removeprefix("leased-")
    store = request.getfixturevalue(kind)
    return store if kind == request.param else LeasedStore(store, clock)

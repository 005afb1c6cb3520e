"""A store of every kind, on a clock that stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing.clock import FrozenClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from agentguard.stores.base import Store


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


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, clock: FrozenClock) -> Store:
    if request.param == "memory":
        return MemoryStore(clock)
    return request.getfixturevalue("sqlite")

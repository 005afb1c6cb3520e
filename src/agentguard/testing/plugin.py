"""pytest fixtures. With agentguard installed they are simply there; nothing is imported until one is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.testing.clock import FrozenClock
    from agentguard.testing.provider import Provider
    from agentguard.testing.server import Recorder


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An LLM provider on loopback."""
    from agentguard.testing.provider import Provider

    with Provider() as server:
        yield server


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A server on 127.0.0.2 that answers anything and remembers it."""
    from agentguard.testing.server import Recorder

    with Recorder("127.0.0.2") as server:
        yield server


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """A clock that only moves when told."""
    from agentguard.testing.clock import FrozenClock

    return FrozenClock()

"""Where the counters live. `open_store` picks a backend by URL."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.stores.base import Store, WallClock

__all__ = ["open_store"]


def open_store(url: str, clock: WallClock = time) -> Store:  # the module is a WallClock
    """The store that a URL names.

    Args:
        url: `memory://`, `sqlite:///path/to/file`, `sqlite://` for a file in the state directory, or the path of a file.
        clock: Unix time.

    Raises:
        PolicyError: The URL names no store.
        StoreUnavailable: The store is there and cannot be used.
    """
    scheme, separator, rest = url.partition("://")
    if url == "memory://":
        from agentguard.stores.memory import MemoryStore

        return MemoryStore(clock)
    if separator and scheme != "sqlite":
        raise _unknown(url, scheme)
    from agentguard.stores.sqlite import SqliteStore

    return SqliteStore(_sqlite_path(rest) if separator else Path(url).expanduser(), clock)


def _sqlite_path(rest: str) -> Path:
    if not rest:
        from agentguard.stores.state import state_dir

        return state_dir() / "counters.sqlite"
    if not rest.startswith("/"):
        raise _unknown(f"sqlite://{rest}", "sqlite")
    return Path(re.sub(r"^/+(?=[A-Za-z]:)|^/+(?=/)", "", rest))  # `/C:/x` is a drive, `//x` is how SQLAlchemy writes `/x`


def _unknown(url: str, scheme: str) -> Exception:
    from agentguard.errors import PolicyError, Problem

    message = {
        "memory": "expected `memory://` and nothing behind it",
        "redis": "this version has no Redis store; use `sqlite:///path` for the processes of one host",
        "rediss": "this version has no Redis store; use `sqlite:///path` for the processes of one host",
        "sqlite": "expected three slashes and an absolute path: `sqlite:///var/lib/app/counters.sqlite`",
    }.get(scheme, "expected `memory://`, `sqlite:///path` or the path of a file")
    return PolicyError(url, (Problem("", 0, 0, "store", message),))

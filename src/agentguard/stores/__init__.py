"""Where the counters live. `open_store` picks a backend by URL."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.stores.base import Store, WallClock

__all__ = ["open_store"]

_NETWORK = frozenset({"redis", "rediss"})


def open_store(url: str, clock: WallClock = time, *, fleet: str = "default") -> Store:  # the module is a WallClock
    """The store that a URL names.

    Args:
        url: `memory://`, `sqlite:///path/to/file`, `sqlite://` for a file in the state directory, or the path of a file;
            `redis://`, `rediss://`, `redis+sentinel://` or `redis+cluster://` for a fleet, whose processes decide most calls by
            themselves, from what they have leased; `?leases=off` asks the Redis for every call.
        clock: Unix time; a Redis goes by its own.
        fleet: Names the shared counters of a Redis, or the file in the state directory. A path that is named is what it is.

    Raises:
        PolicyError: The URL names no store.
        StoreUnavailable: The store is there and cannot be used.
    """
    scheme, separator, rest = url.partition("://")
    if url == "memory://":
        from agentguard.stores.memory import MemoryStore

        return MemoryStore(clock)
    if scheme.partition("+")[0] in _NETWORK and separator:
        return _open_redis(url, fleet)
    if separator and scheme != "sqlite":
        raise _unknown(url, scheme)
    from agentguard.stores.sqlite import SqliteStore

    return SqliteStore(_sqlite_path(rest, fleet) if separator else Path(url).expanduser(), clock)


def _open_redis(url: str, fleet: str) -> Store:
    from urllib.parse import urlsplit

    from agentguard.errors import PolicyError, Problem
    from agentguard.stores.leased import LeasedStore
    from agentguard.stores.standby import Standby

    try:
        from agentguard.stores.redis import RedisStore
    except ImportError as error:
        message = "a Redis store needs the package redis: pip install 'agentguard[redis]'"
        raise PolicyError("store", (Problem("", 0, 0, "store", message),)) from error
    try:
        if url.startswith(("redis://", "rediss://")):
            urlsplit(url).port  # noqa: B018 - redis-py reads it when it is asked the first time
        store = RedisStore(url, fleet=fleet)
    except PolicyError:
        raise
    except ValueError:
        # What urlsplit and redis-py say of a URL may hold a part of its password, and so may the URL.
        message = (
            "the URL cannot be read: expected such as redis://host:6379/0, with a number for a port, "
            "and / @ : of a password written as %2F %40 %3A"
        )
        raise PolicyError("store", (Problem("", 0, 0, "store", message),)) from None
    return Standby(LeasedStore(store) if store.is_leased else store)


def _sqlite_path(rest: str, fleet: str) -> Path:
    if not rest:
        from agentguard.stores.state import ledger_path

        return ledger_path(fleet)
    if not rest.startswith("/"):
        raise _unknown(f"sqlite://{rest}", "sqlite")
    return Path(re.sub(r"^/+(?=[A-Za-z]:)|^/+(?=/)", "", rest))  # `/C:/x` is a drive, `//x` is how SQLAlchemy writes `/x`


def _unknown(url: str, scheme: str) -> Exception:
    from agentguard.errors import PolicyError, Problem

    message = {
        "memory": "expected `memory://` and nothing behind it",
        "sqlite": "expected three slashes and an absolute path: `sqlite:///var/lib/app/counters.sqlite`",
    }.get(scheme, "expected `memory://`, `sqlite:///path`, the path of a file or `redis://host`")
    return PolicyError(url, (Problem("", 0, 0, "store", message),))

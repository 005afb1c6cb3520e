"""Decisions from leases, over a Redis, a file and memory: how long one takes, and how many trips to the store it costs.

Starts a redis-server of its own on loopback. Prints the median of `reserve` and of `settle` over four rows, beside an empty
call of Python in the same run, and the trips of a decision (`reserve` and `settle` together) when slices are of 100 calls, and
when they are as large as a process likes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis_fixture import CHARGES, ROWS, USED, redis_server

from agentguard.core.limits import Refused
from agentguard.stores.base import GRANTED, Reserve
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.redis import RedisStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.stores.standby import Standby

if TYPE_CHECKING:
    from agentguard.stores.base import Leasable

CALLS = 20_000
TASKS = 64


class Counted:
    """A store, and how often it is asked to decide."""

    def __init__(self, store: Leasable) -> None:
        self._store = store
        self.trips = 0

    def __getattr__(self, name: str) -> object:
        verb = getattr(self._store, name)
        if name not in {"reserve", "areserve", "settle", "lease", "extend"}:
            return verb

        def asked(*arguments: object) -> object:
            self.trips += 1
            return verb(*arguments)

        return asked


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; an empty call {1e6 * floor():.2f} us")
    print(f"{'':34}{'reserve':>12}{'settle':>12}{'trips, slices of 100':>24}{'as it likes':>14}")
    folder = tempfile.mkdtemp()
    try:
        with redis_server() as (url, _, _):
            measure("leased over memory", MemoryStore())
            measure("leased over SQLite", SqliteStore(Path(folder, "counters.sqlite")))
            measure("leased over Redis", RedisStore(f"{url}?timeout=2"))
            measure("leased over Redis, on standby", RedisStore(f"{url}?timeout=2"), on_standby=True)
            asyncio.run(from_tasks(f"{url}?timeout=2"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(what: str, behind: Leasable, *, on_standby: bool = False) -> None:
    """Print the line of one store."""
    trips = []
    for most in (100, 1024):
        counted = Counted(behind)
        leased = LeasedStore(counted, most_calls=most)  # type: ignore[arg-type]  # it hands through
        store = Standby(leased) if on_standby else leased
        store.register(ROWS)
        reserves, settles = one_after_the_other(store, f"{what}-{most}")
        trips.append(counted.trips / CALLS)
    behind.close()
    print(
        f"{what:<34}{1e6 * statistics.median(reserves):>9.2f} us{1e6 * statistics.median(settles):>9.2f} us"
        f"{trips[0]:>24.4f}{trips[1]:>14.4f}"
    )


def one_after_the_other(store: LeasedStore | Standby, name: str) -> tuple[list[float], list[float]]:
    reserves, settles = [], []
    clock = time.perf_counter
    for number in range(CALLS):
        request = Reserve(f"{name}-{number}", CHARGES, ("agent:bot", "team:support"), False, ROWS)
        began = clock()
        answer = store.reserve(request)
        reserved = clock()
        store.settle(request.id, USED)
        settled = clock()
        if answer is not GRANTED and number > 100:
            sys.exit(f"refused: {answer}")
        reserves.append(reserved - began)
        settles.append(settled - reserved)
    return reserves, settles


async def from_tasks(url: str) -> None:
    """Many tasks of one event loop, leased and not."""
    for what, store in (("exact", RedisStore(url)), ("leased", LeasedStore(RedisStore(url)))):
        store.register(ROWS)
        began = time.perf_counter()
        await asyncio.gather(*(decide(store, f"{what}-{task}", CALLS // TASKS) for task in range(TASKS)))
        seconds = time.perf_counter() - began
        print(f"{TASKS} tasks, {what:<24} {CALLS // TASKS * TASKS / seconds:>10,.0f} reserve + settle a second")
        behind = store.store if isinstance(store, LeasedStore) else store
        await behind.aclose()  # type: ignore[attr-defined]  # a Redis


async def decide(store: RedisStore | LeasedStore, name: str, calls: int) -> None:
    for number in range(calls):
        request = Reserve(f"{name}-{number}", CHARGES, ("agent:bot",), False, ROWS)
        if isinstance(await store.areserve(request), Refused):
            sys.exit("refused")
        if isinstance(store, RedisStore):
            await store.asettle(request.id, USED)
        else:
            store.settle(request.id, USED)


def floor() -> float:
    """What one empty call costs, with the two looks at the clock around it."""
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        nothing()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def nothing() -> None:
    """Nothing."""


if __name__ == "__main__":
    main()

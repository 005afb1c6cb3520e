"""Decisions in a Redis: against PING in the same seconds, alone and with many tasks of an event loop.

Starts a redis-server of its own on loopback. Latencies are medians of calls that take turns with a PING each, so that whatever
else the machine does slows both alike. Trips are counted by the server.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING

from redis_fixture import CHARGES, ROWS, USED, redis_server

from agentguard.errors import StoreUnavailable
from agentguard.stores.base import GRANTED, Reserve
from agentguard.stores.redis import RedisStore

if TYPE_CHECKING:
    import subprocess

    import redis

CALLS = 3000
TASKS = (1, 16, 64)


def main() -> None:
    with redis_server() as (url, client, server):
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, redis {client.info('server')['redis_version']}")
        store = RedisStore(f"{url}?timeout=2")
        store.register(ROWS)
        one_at_a_time(store, client)
        asyncio.run(together(store))
        when_frozen(url, server)
        store.close()


def one_at_a_time(store: RedisStore, client: redis.Redis) -> None:
    pings, reserves, settles = [], [], []
    before = client.info("commandstats")
    for number in range(CALLS):
        name = f"one-{number}"
        began = time.perf_counter()
        client.ping()
        pinged = time.perf_counter()
        answer = store.reserve(Reserve(name, CHARGES))
        reserved = time.perf_counter()
        store.settle(name, USED)
        settled = time.perf_counter()
        if answer is not GRANTED:
            sys.exit(f"refused: {answer}")
        pings.append(pinged - began)
        reserves.append(reserved - pinged)
        settles.append(settled - reserved)
    after = client.info("commandstats")
    trips = after["cmdstat_evalsha"]["calls"] - before.get("cmdstat_evalsha", {"calls": 0})["calls"]
    floor = statistics.median(pings)
    print(f"PING                        p50 {1e6 * floor:6.0f} us   p10 {1e6 * tenth(pings):6.0f} us")
    for what, times in (("reserve, 4 rows, with id", reserves), ("settle, 4 rows", settles)):
        ratios = f"{statistics.median(times) / floor:.2f} x PING, p10 {tenth(times) / tenth(pings):.2f} x"
        print(f"{what:<27} p50 {1e6 * statistics.median(times):6.0f} us   p10 {1e6 * tenth(times):6.0f} us   {ratios}")
    print(f"round trips per verb        {trips / (2 * CALLS):.3f}")
    print(f"server CPU per reserve      {after['cmdstat_evalsha']['usec_per_call']:.1f} us (reserve and settle alike)")


async def together(store: RedisStore) -> None:
    for tasks in TASKS:
        began = time.perf_counter()
        await asyncio.gather(*(decide(store, f"task-{tasks}-{task}", CALLS // tasks) for task in range(tasks)))
        seconds = time.perf_counter() - began
        print(f"{tasks:3} tasks                   {CALLS // tasks * tasks / seconds:6.0f} reserve + settle a second")
    await store.aclose()


async def decide(store: RedisStore, name: str, calls: int) -> None:
    for number in range(calls):
        if await store.areserve(Reserve(f"{name}-{number}", CHARGES)) is not GRANTED:
            sys.exit("refused")
        await store.asettle(f"{name}-{number}", USED)


def when_frozen(url: str, server: subprocess.Popen[bytes]) -> None:
    store = RedisStore(url)
    store.register(ROWS)
    store.reserve(Reserve("warm", CHARGES))
    server.send_signal(19)
    times = []
    for number in range(2000):
        began = time.perf_counter()
        try:
            store.reserve(Reserve(f"frozen-{number}", CHARGES))
        except StoreUnavailable:
            times.append(time.perf_counter() - began)
    server.send_signal(18)
    store.close()
    print(f"frozen: first decision      {1e3 * times[0]:6.1f} ms")
    print(f"with the breaker open       p50 {1e6 * statistics.median(times[10:]):6.1f} us")


def tenth(times: list[float]) -> float:
    return statistics.quantiles(times, n=10)[0]


if __name__ == "__main__":
    main()

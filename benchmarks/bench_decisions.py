"""What a decision costs: `python benchmarks/bench_decisions.py` (needs the `bench` dependencies).

Memory is compared with one `limits` memory fixed-window hit on one key, in rounds that alternate, by the CPU time of the
thread: each of our decisions charges four subjects. Leased decisions are timed one by one. SQLite is
measured alone, and by eight processes that do nothing else.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.core.limits import Amounts, Charge, LimitRow
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import Reserve
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 200
DECISIONS = 500
PROCESSES = 8
SLICE = 100
SECONDS = 4.0

ROWS = [
    LimitRow.of(subject, Limit(amount=10**15, unit=unit, window=window, warn_at=(50, 80)))
    for subject, unit, window in [
        ("fleet", Unit.TOKENS, Window("hour")),
        ("team:support", Unit.USD, Window("day")),
        ("agent:bot", Unit.TOKENS, Window.LIFE),
        ("session:42", Unit.CALLS, Window.LIFE),
    ]
]
CHARGES = tuple(Charge(row.key, 5) for row in ROWS)
USED = Amounts(3, 3)


def main() -> None:
    for title, lines in (
        ("memory", memory()),
        ("leased", leased()),
        ("sqlite, one process", sqlite_alone()),
        ("sqlite, saturated", sqlite_together()),
    ):
        print(f"\n{title}")
        for name, figure in lines:
            print(f"  {name:<48}{figure:>16}")


def memory() -> list[tuple[str, str]]:
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    peer, item = FixedWindowRateLimiter(MemoryStorage()), parse("1000000000/hour")
    store = MemoryStore()
    store.register(ROWS)
    hits, reserves, settles = [], [], []
    for number in range(ROUNDS):
        ids = [f"{number}-{call}" for call in range(DECISIONS)]
        hits.append(cpu_per_call(lambda _: peer.hit(item, "key"), ids))
        reserves.append(cpu_per_call(lambda call: store.reserve(Reserve(call, CHARGES)), ids))
        settles.append(cpu_per_call(lambda call: store.settle(call, USED), ids))
    return [
        ("limits: hit, 1 key", us(statistics.median(hits))),
        ("reserve, 4 subjects", us(statistics.median(reserves))),
        ("settle", us(statistics.median(settles))),
        ("reserve / limits hit", ratio(reserves, hits)),
        ("settle / limits hit", ratio(settles, hits)),
    ]


def leased() -> list[tuple[str, str]]:
    """Slices of 100 calls of a SQLite file, each call with an amount of its own."""
    with tempfile.TemporaryDirectory() as folder:
        behind = SqliteStore(Path(folder, "counters.sqlite"))
        store = LeasedStore(behind, most_calls=SLICE)
        store.register(ROWS)
        rows, dice = tuple(ROWS), random.Random(1)
        amounts = [dice.randint(1, 100_000) for _ in range(20_000)]
        requests = [
            Reserve(
                str(call), tuple(Charge(row.key, 1 if row.limit.unit is Unit.CALLS else amount) for row in ROWS), (), False, rows
            )
            for call, amount in enumerate(amounts)
        ]
        trips = itertools.count()
        lease = behind.lease
        behind.lease = lambda account: (next(trips), lease(account))[1]
        reserves, settles = [], []
        for request in requests:
            reserves.append(wall(store.reserve, request))
            settles.append(wall(lambda call: store.settle(call, USED), request.id))
        store.close()
    return [
        ("reserve, 4 subjects, p50", us(statistics.median(reserves))),
        ("reserve, 4 subjects, p99", us(statistics.quantiles(reserves, n=100)[98])),
        ("settle, p50", us(statistics.median(settles))),
        (f"store trips per decision, slices of {SLICE}", f"{next(trips) / 2 / len(requests):.4f}"),
    ]


def sqlite_alone() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder, "counters.sqlite"))
        store.register(ROWS)
        ids = [str(call) for call in range(5000)]
        reserves = [wall(lambda call: store.reserve(Reserve(call, CHARGES)), name) for name in ids]
        settles = [wall(lambda call: store.settle(call, USED), name) for name in ids]
        log = Path(folder, "counters.sqlite-wal").stat().st_size
        store.close()
    return [
        ("reserve, 4 subjects, p50", us(statistics.median(reserves))),
        ("reserve, 4 subjects, p99", us(statistics.quantiles(reserves, n=100)[98])),
        ("settle, p50", us(statistics.median(settles))),
        ("write-ahead log after 10,000 transactions", f"{log / 1024:.0f} KiB"),
    ]


def sqlite_together() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "counters.sqlite")
        store = SqliteStore(path)
        store.register(ROWS)
        store.close()
        spawn = multiprocessing.get_context("spawn")
        answers: multiprocessing.Queue[tuple[list[float], int]] = spawn.Queue()
        start = spawn.Barrier(PROCESSES)
        workers = [spawn.Process(target=decide_for_a_while, args=(path, start, answers)) for _ in range(PROCESSES)]
        for worker in workers:
            worker.start()
        results = [answers.get() for _ in workers]
        for worker in workers:
            worker.join()
    counts = [len(waits) for waits, _ in results]
    waits = sorted(wait for waits, _ in results for wait in waits)
    return [
        (f"decisions per second, {PROCESSES} processes", f"{sum(counts) / SECONDS:,.0f}"),
        ("fairness, least / most served", f"{min(counts) / max(counts):.2f}"),
        ("a decision, with its wait, p50", us(waits[len(waits) // 2])),
        ("a decision, with its wait, p99", f"{waits[len(waits) * 99 // 100] * 1e3:.1f} ms"),
        ("longest wait", f"{waits[-1] * 1e3:.0f} ms"),
        ("errors", str(sum(errors for _, errors in results))),
    ]


def decide_for_a_while(path: Path, start, answers) -> None:
    store = SqliteStore(path)
    name = multiprocessing.current_process().name
    start.wait()
    waits: list[float] = []
    errors = 0
    until = now = time.perf_counter()
    until += SECONDS
    while now < until:
        try:
            store.reserve(Reserve(f"{name}-{len(waits)}", CHARGES))
        except Exception:
            errors += 1
        began, now = now, time.perf_counter()
        waits.append(now - began)
    answers.put((waits, errors))
    store.close()


def cpu_per_call(call: Callable[[str], object], ids: list[str]) -> float:
    began = time.thread_time()
    for name in ids:
        call(name)
    return (time.thread_time() - began) / len(ids)


def wall(call: Callable[[str], object], name: str) -> float:
    began = time.perf_counter()
    call(name)
    return time.perf_counter() - began


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} us"


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median over rounds: both arms of a round ran in the same milliseconds."""
    return f"{statistics.median(mine / peer for mine, peer in zip(ours, theirs, strict=True)):.2f}"


if __name__ == "__main__":
    main()

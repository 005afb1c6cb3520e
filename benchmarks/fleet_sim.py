"""A fleet in one process: `python benchmarks/fleet_sim.py`. What 10,000 agents of 10 decisions a second ask of one Redis.

Every decision is made by the real `LeasedStore`, on a clock that is simulated: a sample of the processes runs against one
store that counts what it is asked, and the rest is multiplication. Inputs that were measured elsewhere stand at the top.
"""

from __future__ import annotations

import heapq
import random
import statistics
import time
from typing import NamedTuple

from agentguard.core.limits import Amounts, Charge, LimitRow
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import Reserve
from agentguard.stores.leased import HORIZON_SECONDS, LeasedStore
from agentguard.stores.memory import MemoryStore

AGENTS = 10_000
PER_SECOND = 10
SAMPLE = 40
SECONDS = 30.0
CALL_SECONDS = 1.0

SERVER_MICROS = 75.6
"""Of a Redis core, for one script over four rows, unpipelined: half of the 93.8 + 57.5 us of a reserve and a settle."""

CONNECTIONS_EACH = 2
MAXCLIENTS = 10_000
USABLE = 0.6
"""The part of a core that may be used before waiting shows."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


class Counted:
    """A store that counts how often it is asked to decide."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.trips = 0

    def __getattr__(self, name: str):
        verb = getattr(self._store, name)
        if name not in {"reserve", "extend", "settle", "lease"}:
            return verb

        def asking(*args):
            self.trips += 1
            return verb(*args)

        return asking


class Figures(NamedTuple):
    per_decision: float
    trips: float
    micros: float
    idle: float


def main() -> None:
    print(f"{AGENTS:,} agents x {PER_SECOND} decisions/s = {AGENTS * PER_SECOND:,} reserves and as many settlements a second")
    print(f"horizon {HORIZON_SECONDS:g} s; a script takes {SERVER_MICROS:g} us of a Redis core\n")
    exact = AGENTS * PER_SECOND * 2 * SERVER_MICROS / 1e6
    print(f"every call decided by Redis: {AGENTS * PER_SECOND * 2:,} scripts/s = {exact:.1f} cores of one thread: not possible\n")
    heads = ("agents a process", "trips/decision", "scripts/s", "Redis cores", "connections", "agent cores", "idle held")
    print("".join(f"{head:>17}" for head in heads))
    for together in (1, 10, 100):
        figures = simulated(together)
        scripts = figures.trips * AGENTS / (SAMPLE * together)
        connections = AGENTS // together * CONNECTIONS_EACH
        cores = AGENTS * PER_SECOND * figures.micros / 1e6
        print(
            f"{together:>17}{figures.per_decision:>17.4f}{scripts:>17,.0f}{scripts * SERVER_MICROS / 1e6:>17.2f}"
            f"{connections:>17,}{cores:>17.2f}{figures.idle:>17.1%}"
        )
        if scripts * SERVER_MICROS / 1e6 > USABLE:
            print("  more than a core should carry: shard by fleet, or lease from a second tier on each host")
        if connections > MAXCLIENTS:
            print(f"  more than the {MAXCLIENTS:,} clients that Redis takes by default: raise maxclients, or share a process")
    print(f"\nstaleness: usage is told at most {HORIZON_SECONDS / 2 + 1:g} s late (half a horizon, and a sweep a second)")


def simulated(together: int) -> Figures:
    """A sample of processes, with so many agents each; the first seconds, in which slices grow, are not counted."""
    clock = Clock()
    behind = Counted(MemoryStore(clock))
    fleet = (
        LimitRow.of("fleet", Limit(amount=10**15, unit=Unit.TOKENS, window=Window("day"))),
        LimitRow.of("team:t", Limit(amount=10**15, unit=Unit.USD, window=Window("day"))),
    )
    processes = max(SAMPLE // together, 2)
    stores = [LeasedStore(behind, clock) for _ in range(processes)]
    dice = random.Random(1)
    waiting: list[tuple[float, int, str, tuple]] = []
    number = 0
    for store in stores:
        for _ in range(together):
            number += 1
            rows = (
                *fleet,
                *(LimitRow.of(f"agent:{number}", Limit(amount=10**12, unit=unit)) for unit in (Unit.TOKENS, Unit.USD)),
            )
            store.register(rows)
            heapq.heappush(waiting, (clock.now + dice.random() / PER_SECOND, number, "call", (store, rows, "")))
    began, counted_from = clock.now, clock.now + SECONDS / 3
    swept = began
    decisions = trips = 0
    spent: list[float] = []
    idle: list[float] = []
    while waiting and clock.now < began + SECONDS:
        clock.now, mark, what, (store, rows, open_call) = heapq.heappop(waiting)
        if clock.now >= counted_from and not decisions:
            trips = behind.trips
        if what == "call":
            open_call = f"{mark}-{clock.now}"
            tokens = dice.randint(200, 4000)
            charges = tuple(Charge(row.key, tokens) for row in rows)
            request = Reserve(open_call, charges, (), False, rows)
            start = time.perf_counter_ns()
            store.reserve(request)
            if clock.now >= counted_from:
                spent.append((time.perf_counter_ns() - start) / 1e3)
                decisions += 1
            heapq.heappush(waiting, (clock.now + CALL_SECONDS, mark, "end", (store, rows, open_call)))
            heapq.heappush(waiting, (clock.now + dice.expovariate(PER_SECOND), mark, "call", (store, rows, "")))
        else:
            store.settle(open_call, Amounts(900, 900))
        if clock.now - swept >= 1:
            swept = clock.now
            for each in stores:
                each.sweep()
            slices = [part for each in stores for part in each._slices.values()]  # noqa: SLF001 - no verb tells what lies idle
            left = sum(part.left.tokens for part in slices)
            total = sum(part.total.tokens for part in slices)
            idle.append(left / total if total else 0.0)
    agents = processes * together
    seconds = began + SECONDS - counted_from
    return Figures(
        (behind.trips - trips) / decisions,
        (behind.trips - trips) / seconds * SAMPLE * together / agents,
        statistics.median(spent),
        statistics.mean(idle),
    )


if __name__ == "__main__":
    main()

"""A fleet on paper and in code: `python benchmarks/fleet_sim.py`. What 10,000 agents of 10 decisions a second ask of one Redis.

First the inputs are measured, here and now: a redis-server of its own says what each question costs it in time and bytes, and
processes of their own what a guard costs them. Then every decision of a sample of the agents is made by the real `LeasedStore`,
in processes and at times that are simulated, against one store that counts what it is asked. The rest is multiplication.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from typing import NamedTuple

import redis
from redis_fixture import redis_server

from agentguard.core.call import HTTPCall
from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.guard import Guard
from agentguard.membership import BEAT_SECONDS
from agentguard.policy.model import AgentPolicy, Limit, Per, Policy, Unit, Window
from agentguard.stores import leased, open_store
from agentguard.stores.base import Account, Member, Reserve
from agentguard.stores.leased import HORIZON_SECONDS, SHARE, LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.redis import RedisStore

AGENTS = 10_000
PER_SECOND = 10
CALL_SECONDS = 1.0
"""From the reserve of a call to its settlement."""

TOKENS = (200, 4000)
"""What a call reserves; it uses half of it."""

MEAN_TOKENS = sum(TOKENS) // 4

SAMPLE = 200
SECONDS = 30.0
USABLE = 0.6
"""The part of a core that may be used before waiting shows."""

MAXCLIENTS = 10_000
RETRY_SECONDS = 0.05
"""A call that waits for what others hold asks again this often."""

QUESTIONS = 3000
GUARDS = 40
IDLE_SECONDS = 5.0


class Inputs(NamedTuple):
    """What was measured.

    Attributes:
        reserve, settle, lease: Microseconds of a Redis core for one of them, over four rows and unpipelined.
        tick_commands, tick: Commands a second of a process that makes no call, and what they cost in all, in microseconds.
        recall: What it costs to have one process hear of a recall, in microseconds.
        row, hold, member, connection: Bytes in Redis.
        connections: Of one process.
        guard_kb: Resident memory that a guard over Redis adds to a process that has imported openai.
    """

    reserve: float
    settle: float
    lease: float
    tick_commands: float
    tick: float
    recall: float
    row: float
    hold: float
    member: float
    connection: float
    connections: float
    guard_kb: float


class Figures(NamedTuple):
    """What a simulated second asks, per agent."""

    leases: float
    exact: float
    recalls: float
    micros: float
    idle: float
    late: float


# --- the rows of a call -------------------------------------------------------------------------------------------------

DAY = Window("day")


def rows_of(agent: int, fleet_tokens: int = 10**15) -> tuple[LimitRow, ...]:
    """The fleet's tokens, a team's money, and the agent's share of both."""
    subject = f"agent:{agent:05}"
    return (
        LimitRow.of("fleet", Limit(amount=fleet_tokens, unit=Unit.TOKENS, per=Per.FLEET, window=DAY)),
        LimitRow.of("team:support", Limit(amount=10**15, unit=Unit.USD, per=Per.TEAM, window=DAY)),
        LimitRow.of(subject, Limit(amount=10**12, unit=Unit.TOKENS)),
        LimitRow.of(subject, Limit(amount=10**12, unit=Unit.USD)),
    )


def charges(rows: tuple[LimitRow, ...], amount: int) -> tuple[Charge, ...]:
    return tuple(Charge(row.key, amount) for row in rows)


# --- inputs -------------------------------------------------------------------------------------------------------------


def spent(client: redis.Redis) -> float:
    """Microseconds of the server's main thread so far."""
    cpu = client.info("cpu")
    return (cpu["used_cpu_sys_main_thread"] + cpu["used_cpu_user_main_thread"]) * 1e6


def used_memory(client: redis.Redis) -> int:
    return client.info("memory")["used_memory"]


def measured() -> Inputs:
    with redis_server() as (server, client, _):
        url = f"{server}?timeout=5"
        reserve, settle, lease = cost_of_questions(url, client)
        row, hold, member = bytes_of_what_is_kept(url, client)
        recall = cost_of_hearing(client)
        tick = cost_of_ticking(url, client)
        tick_commands, connections, connection = idling(url, client)
        guard_kb = resident(url) - resident("")
    return Inputs(reserve, settle, lease, tick_commands, tick, recall, row, hold, member, connection, connections, guard_kb)


def cost_of_questions(url: str, client: redis.Redis) -> tuple[float, float, float]:
    rows = rows_of(0)
    asked = charges(rows, 500)
    with closing(RedisStore(url, fleet="costs")) as store:
        store.register(rows)
        marks = [spent(client)]
        for number in range(QUESTIONS):
            store.reserve(Reserve(f"call-{number}", asked))
        marks.append(spent(client))
        for number in range(QUESTIONS):
            store.settle(f"call-{number}", Amounts(400, 400))
        marks.append(spent(client))
        kept = charges(rows, 500 * 25)
        store.lease(Account("slice", Amounts(), (), asked, 50, SHARE))
        for _ in range(QUESTIONS):
            store.lease(Account("slice", Amounts(500 * 25, 500 * 25), kept, asked, 25, SHARE))
        marks.append(spent(client))
    reserve, settle, lease = ((after - before) / QUESTIONS for before, after in itertools.pairwise(marks))
    return reserve, settle, lease


def bytes_of_what_is_kept(url: str, client: redis.Redis) -> tuple[float, float, float]:
    with closing(RedisStore(url, fleet="bytes")) as store:
        marks = [used_memory(client)]
        for agent in range(QUESTIONS):
            store.register(rows_of(agent)[2:])
        marks.append(used_memory(client))
        store.register(rows_of(0)[:2])
        for agent in range(QUESTIONS):
            asked = charges(rows_of(agent), 500)
            store.lease(Account(f"slice-0123456789ab-{agent}", Amounts(), (), asked, 50, SHARE))
        marks.append(used_memory(client))
        for agent in range(QUESTIONS):
            store.beat(Member(f"{store.me}{agent}/0123", "host", agent, f"agent-{agent}", "1.0.0", "0" * 16, "enforce", 0, 0.0))
        marks.append(used_memory(client))
    row, hold, member = ((after - before) / QUESTIONS for before, after in itertools.pairwise(marks))
    return row / 2, hold, member


def cost_of_hearing(client: redis.Redis) -> float:
    """What a message costs for each connection that hears it."""
    pool = client.connection_pool.connection_kwargs
    hearing = [redis.Redis(port=pool["port"]).pubsub() for _ in range(200)]
    for subscription in hearing:
        subscription.subscribe("heard")
        subscription.get_message(timeout=1)
    before = spent(client)
    for _ in range(200):
        client.publish("heard", "x" * 40)
    after = spent(client)
    for subscription in hearing:
        subscription.close()
    return (after - before) / (200 * len(hearing))


def cost_of_ticking(url: str, client: redis.Redis) -> float:
    """What a process asks in a second that makes no call: is anything lost or to be swept, who is isolated, twice; it lives."""
    with closing(RedisStore(url, fleet="ticks")) as store:
        store.register(rows_of(0))
        lives = Member(f"{store.me}/0123", "host", 1, "agent", "1.0.0", "0" * 16, "enforce", 0, 0.0)
        store.sweep()
        before = spent(client)
        for number in range(QUESTIONS):
            store.sweep()
            store.dated_isolations()
            store.epoch()
            if number % round(BEAT_SECONDS) == 0:
                store.beat(lives)
        return (spent(client) - before) / QUESTIONS


def idling(url: str, client: redis.Redis) -> tuple[float, float, float]:
    """How many commands a second guards ask that make no call any more, their connections, and the bytes of one."""
    policy = Policy(agents=(AgentPolicy(name="bot", budgets=(Limit(amount=10**12, unit=Unit.CALLS),)),))
    before, memory = len(client.client_list()), used_memory(client)
    guards = [Guard(policy, store=open_store(url, fleet="idle")) for _ in range(GUARDS)]
    for guard in guards:
        guard.join()
        with guard.admit(HTTPCall.to("GET", "https://api.test/")):
            pass
    time.sleep(2.0)
    connections = (len(client.client_list()) - before) / GUARDS
    connection = (used_memory(client) - memory) / GUARDS / connections
    commands = asked_in(client, IDLE_SECONDS)
    for guard in guards:
        guard.close()
    return commands / GUARDS, connections, connection


def asked_in(client: redis.Redis, seconds: float) -> float:
    """How many commands arrive in a second; what scripts ask among themselves is none."""
    until, commands = time.monotonic() + seconds, 0
    with client.monitor() as monitor:
        while time.monotonic() < until:
            commands += monitor.next_command()["client_type"] != "lua"
    return commands / seconds


def resident(url: str) -> float:
    """Kilobytes of a process that has imported openai, and with a URL is guarded and has made a decision."""
    guarded = f"""
import agentguard
from agentguard.core.call import HTTPCall
installed = agentguard.instrument(agentguard.Policy.from_mapping({{"agents": [{{"name": "bot",
    "external_calls": {{"allowed_domains": ["api.test"]}}, "budgets": [{{"limit": "1000 calls"}}]}}]}}), store={url!r})
with installed.guard.admit(HTTPCall.to("GET", "https://api.test/")):
    pass
"""
    look = "import re; print(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    program = f"import openai\n{guarded if url else ''}\n{look}"
    with tempfile.TemporaryDirectory() as state:
        environment = {**os.environ, "AGENTGUARD_STATE_DIR": state}
        sizes = [
            int(subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout)
            for _ in range(3)
        ]
    return statistics.median(sizes)


# --- the simulation -----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Counted:
    """A store that counts what it is asked to decide, and how often others are asked to give back."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str):
        verb = getattr(self._store, name)
        if name not in {"reserve", "extend", "settle", "lease", "recall"}:
            return verb

        def asking(*args):
            self.asked[name] += 1
            return verb(*args)

        return asking


class Fleet:
    """Agents in simulated processes, each with a `LeasedStore` of its own over one store.

    Attributes:
        refused: Calls that were refused for good.
        waited: The longest that a call has waited, in seconds.
    """

    def __init__(self, together: int, fleet_tokens: int) -> None:
        self.clock = Clock()
        leased.time = self.clock  # it paces its recalls by it
        self.behind = Counted(MemoryStore(self.clock))
        self.stores = [LeasedStore(self.behind, self.clock) for _ in range(max(SAMPLE // together, 2))]
        self.agents = len(self.stores) * together
        self.decided: list[float] = []
        self.refused = 0
        self.waited = 0.0
        self.idle: list[float] = []
        self.late = 0.0
        self._dice = random.Random(1)
        self._coming: list[tuple[float, int, str, tuple]] = []
        self._number = 0
        for place, store in enumerate(self.stores):
            self._at(self._dice.random(), "sweep", (store,))
            for agent in range(place * together, (place + 1) * together):
                rows = rows_of(agent, fleet_tokens)
                store.register(rows)
                self._at(self._dice.random() / PER_SECOND, "call", (store, rows))

    def _at(self, seconds: float, what: str, about: tuple) -> None:
        self._number += 1
        heapq.heappush(self._coming, (self.clock.now + seconds, self._number, what, about))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.clock.now + seconds
        while self._coming[0][0] < until:
            self.clock.now, number, what, about = heapq.heappop(self._coming)
            getattr(self, f"_{what}")(number, *about)
        self.clock.now = until

    def _call(self, number: int, store: LeasedStore, rows: tuple[LimitRow, ...]) -> None:
        self._ask(number, store, rows, f"call-{number}", charges(rows, self._dice.randint(*TOKENS)), self.clock.now)

    def _ask(self, _: int, store: LeasedStore, rows: tuple, call: str, asked: tuple[Charge, ...], since: float) -> None:
        began = time.perf_counter_ns()
        answer = store.reserve(Reserve(call, asked, (), False, rows))
        self.decided.append((time.perf_counter_ns() - began) / 1e3)
        if isinstance(answer, Refused) and answer.kind is RefusalKind.CONTENDED:
            self._at(RETRY_SECONDS, "ask", (store, rows, call, asked, since))
            return
        self._at(self._dice.expovariate(PER_SECOND), "call", (store, rows))
        if not isinstance(answer, Refused):
            self.waited = max(self.waited, self.clock.now - since)
            self._at(CALL_SECONDS, "end", (store, call, asked[0].amount // 2))
        else:
            self.refused += 1

    def _end(self, _: int, store: LeasedStore, call: str, used: int) -> None:
        store.settle(call, Amounts(used, used))

    def _sweep(self, _: int, store: LeasedStore) -> None:
        self._at(1.0, "sweep", (store,))
        slices = store._leases.all()  # noqa: SLF001 - no verb tells what lies idle, nor since when
        self.late = max([self.late, *(self.clock.now - part.accounted_at for part in slices)])
        if total := sum(part.total.tokens for part in slices):
            self.idle.append(sum(part.left.tokens for part in slices) / total)
        store.sweep()


def simulated(together: int) -> Figures:
    """What a sample of processes with so many agents each asks, after the first seconds, in which slices grow."""
    fleet = Fleet(together, 10**15)
    fleet.run(SECONDS / 3)
    fleet.behind.asked.clear()
    fleet.decided.clear()
    fleet.idle.clear()
    fleet.run(SECONDS)
    asked = fleet.behind.asked
    exact = asked["reserve"] + asked["extend"] + asked["settle"]
    seconds = SECONDS * fleet.agents
    micros = statistics.median(fleet.decided)
    return Figures(
        asked["lease"] / seconds, exact / seconds, asked["recall"] / seconds, micros, statistics.mean(fleet.idle), fleet.late
    )


# --- what is printed ----------------------------------------------------------------------------------------------------


def main() -> None:
    inputs = measured()
    tell_inputs(inputs)
    tell_fleets(inputs)
    tell_the_end_of_a_limit(inputs)


def tell_inputs(inputs: Inputs) -> None:
    print(f"measured here, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores:")
    print(f"  Redis core: reserve {inputs.reserve:.1f}, settle {inputs.settle:.1f}, lease {inputs.lease:.1f} us, of 4 rows each")
    print(f"  a guard that makes no call: {inputs.tick_commands:.2f} commands a second, {inputs.tick:.0f} us of a Redis core")
    print(f"  a process that hears a recall: {inputs.recall:.1f} us")
    kept = f"a row {inputs.row:.0f}, a slice {inputs.hold:.0f}, a process {inputs.member:.0f}"
    print(f"  bytes in Redis: {kept}, a connection {inputs.connection:.0f}; connections of a process {inputs.connections:.1f}")
    print(f"  memory of a process: + {inputs.guard_kb / 1024:.1f} MB over one that has imported openai\n")


def tell_fleets(inputs: Inputs) -> None:
    pairs = AGENTS * PER_SECOND
    exact = pairs * (inputs.reserve + inputs.settle) / 1e6
    print(f"{AGENTS:,} agents x {PER_SECOND} decisions a second; slices of a horizon of {HORIZON_SECONDS:g} s")
    print(f"decided one by one: {2 * pairs:,} scripts a second, {exact:.1f} cores of one thread\n")
    columns = (
        "agents a process",
        "trips/decision",
        "scripts/s",
        "own commands/s",
        "Redis cores",
        "connections",
        "Redis MB",
        "idle held",
    )
    print("".join(f"{column:>17}" for column in columns))
    ends = []
    for together in (1, 10, 100):
        one = simulated(together)
        processes = AGENTS // together
        for_calls = AGENTS * (one.leases * inputs.lease + one.exact * (inputs.reserve + inputs.settle) / 2) / 1e6
        for_ticks = processes * inputs.tick / 1e6
        memory = AGENTS * (2 * inputs.row + inputs.hold) + processes * (inputs.member + inputs.connections * inputs.connection)
        print(
            f"{together:>17}{(one.leases + one.exact) / PER_SECOND:>17.4f}{AGENTS * (one.leases + one.exact):>17,.0f}"
            f"{processes * inputs.tick_commands:>17,.0f}{f'{for_calls:.2f} + {for_ticks:.2f}':>17}"
            f"{processes * inputs.connections:>17,.0f}{memory / 1e6:>17.0f}{one.idle:>17.0%}"
        )
        by_cores = USABLE / (for_calls + for_ticks) * AGENTS
        by_connections = MAXCLIENTS / inputs.connections * together
        ends.append(f"{together:>17}{by_cores:>17,.0f}{by_connections:>17,.0f}{one.late:>15.1f} s{one.micros:>14.1f} us")
    columns = ("agents a process", "agents by cores", "by connections", "told after", "a decision")
    print(f"\nhow many agents one Redis carries, at {USABLE:.0%} of a core and with {MAXCLIENTS:,} connections, its default:")
    print("".join(f"{column:>17}" for column in columns), *ends, sep="\n")


SHOWN = (15, 18, 19, 20, 22, 25, 30, 35, 40, 45, 50)
END_SECONDS = max(SHOWN)


def tell_the_end_of_a_limit(inputs: Inputs) -> None:
    """The last seconds of a limit of the whole fleet, when slices are small and are asked back; and those after it."""
    print(f"\nthe end of a limit of the fleet, {SAMPLE} agents, one a process:")
    columns = ("second", "decided", "refused", "scripts/s", "recalls/s", "heard/s", "waited", "Redis cores")
    print("".join(f"{column:>12}" for column in columns))
    budget = SAMPLE * PER_SECOND * MEAN_TOKENS * 20
    fleet = Fleet(1, budget)
    for second in range(1, END_SECONDS + 1):
        fleet.behind.asked.clear()
        before = len(fleet.decided), fleet.refused
        fleet.run(1.0)
        asked = fleet.behind.asked
        decided = len(fleet.decided) - before[0]
        trips = sum(asked.values()) - asked["recall"]
        heard = asked["recall"] * fleet.agents
        cores = (trips * (inputs.reserve + inputs.settle) / 2 + heard * inputs.recall) / 1e6
        if second in SHOWN:
            print(
                f"{second:>12}{decided:>12,}{fleet.refused - before[1]:>12,}{trips:>12,}{asked['recall']:>12,}{heard:>12,}"
                f"{f'{fleet.waited:.1f} s':>12}{cores:>12.2f}"
            )
    key = rows_of(0)[0].key
    [balance] = fleet.behind.read([key])
    print(f"spent {balance.spent:,} of {budget:,}, held {balance.held:,}")


if __name__ == "__main__":
    main()

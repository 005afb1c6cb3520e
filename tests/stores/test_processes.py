"""SQLite between processes: races, deaths, forks."""

from __future__ import annotations

import collections
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import HOLD_SECONDS, SqliteStore

WORKER = Path(__file__).with_name("worker.py")
FLEET, TEAM, AGENT, SESSION = ROWS = [
    LimitRow.of("fleet", Limit(amount=4001, unit=Unit.TOKENS, window=Window("day"))),
    LimitRow.of("team:t", Limit(amount=4003, unit=Unit.USD, window=Window("day"))),
    LimitRow.of("agent:a", Limit(amount=3999, unit=Unit.TOKENS)),
    LimitRow.of("session:s", Limit(amount=10**9, unit=Unit.TOKENS, window=Window(seconds=3600.0))),
]
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="no /proc: dead holders are judged by their deadline"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def charges(amount: int) -> tuple[Charge, ...]:
    return tuple(Charge(row.key, amount) for row in ROWS)


@pytest.fixture
def shared(path):
    """A store that is shared with other processes: it has their clock."""
    store = SqliteStore(path)
    store.register(ROWS)
    yield store
    store.close()


@contextmanager
def worker(what: str, *args):
    """Another process, that is ready to begin."""
    process = subprocess.Popen([sys.executable, WORKER, what, *map(str, args)], stdin=-1, stdout=-1, text=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate()


def go(process) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def start(what: str, *args):
    process = subprocess.Popen([sys.executable, WORKER, what, *map(str, args)], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def balances(store) -> list[tuple[int, int]]:
    return [(balance.spent, balance.held) for balance in store.read([row.key for row in ROWS])]


# --- races ----------------------------------------------------------------------------------------------------------


def run_a_race(path: Path, processes: int) -> list[list[int]]:
    racers = [start("race", path) for _ in range(processes)]
    for racer in racers:
        go(racer)
    return [[int(number) for number in racer.communicate()[0].split()] for racer in racers]


@pytest.mark.parametrize("processes", [4, pytest.param(8, marks=pytest.mark.storm)])
def test_racing_processes_take_exactly_the_limit(shared, path, processes):
    taken = run_a_race(path, processes)

    assert sum(amount for amount, _ in taken) == AGENT.limit.amount
    assert [spent + held for spent, held in balances(shared)] == [AGENT.limit.amount] * len(ROWS)


def test_racing_threads_take_exactly_the_limit(shared):
    taken = collections.Counter()

    def race(name: str) -> None:
        for number in range(200):
            if shared.reserve(Reserve(f"{name}-{number}", charges(7))) is GRANTED:
                taken[name] += 7

    threads = [threading.Thread(target=race, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert taken.total() == AGENT.limit.amount // 7 * 7
    assert balances(shared) == [(0, taken.total())] * len(ROWS)


# --- deaths ---------------------------------------------------------------------------------------------------------


@needs_proc
def test_the_calls_of_a_killed_process_are_charged_at_once(shared, path):
    at_once = LimitRow.of("agent:a", Limit(amount=1, unit=Unit.CONCURRENT_CALLS))
    shared.register([at_once])
    with worker("hold", path) as process:
        assert process.stdout.readline().startswith("Granted")
        assert shared.sweep() == 0
        assert balances(shared) == [(0, 100)] * len(ROWS)
        process.kill()
        process.wait()

        assert shared.sweep() == 1

    assert balances(shared) == [(100, 0)] * len(ROWS)
    assert shared.sweep() == 0


@needs_proc
def test_a_zombie_is_dead(shared, path):
    with worker("hold", path) as process:
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent has not looked

        assert shared.sweep() == 1


def test_a_call_that_nobody_renews_is_charged_after_its_deadline(sqlite, clock):
    sqlite.register(ROWS)
    sqlite.reserve(Reserve("1", charges(100)))
    clock.advance(HOLD_SECONDS)
    assert sqlite.sweep() == 0
    clock.advance(1)

    assert sqlite.sweep() == 1

    assert balances(sqlite) == [(100, 0)] * len(ROWS)
    assert not sqlite.settle("1", Amounts(1, 1)).first


@pytest.mark.parametrize("stranger", [{"namespace": "another"}, {"boot": "another"}])
def test_a_holder_that_cannot_be_looked_at_is_judged_by_its_deadline_only(sqlite, clock, stranger):
    sqlite.register(ROWS)
    sqlite._name = str(sqlite._me._replace(pid=2**22 + 1, **stranger))
    sqlite.reserve(Reserve("1", charges(100)))

    assert sqlite.sweep() == 0
    clock.advance(HOLD_SECONDS + 1)
    assert sqlite.sweep() == 1


def test_many_lost_calls_are_swept_in_batches(sqlite, clock):
    sqlite.register(ROWS)
    for number in range(450):
        sqlite.reserve(Reserve(str(number), charges(1)))
    clock.advance(HOLD_SECONDS + 1)

    assert sqlite.sweep() == 450
    assert balances(sqlite)[2] == (450, 0)


def storm(shared, path, tmp_path, seconds: float, processes: int) -> None:
    """Kill random processes for a while; then compare the store with what they wrote down."""
    log = tmp_path / "acks"
    dice = random.Random(7)
    waits = []
    kills = 0
    workers = [start("storm", path, log) for _ in range(processes)]
    for process in workers:
        go(process)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.01, 0.05))
        victim = dice.choice(workers)
        victim.kill()
        kills += 1
        began = time.monotonic()
        shared.reserve(Reserve(f"after-{kills}", ()))
        waits.append(time.monotonic() - began)
        victim.communicate()
        workers.remove(victim)
        workers.append(start("storm", path, log))
        go(workers[-1])
    for process in workers:
        process.kill()
        process.communicate()
    in_flight = shared.sweep()
    steps = collections.Counter(line.split()[0] for line in log.read_text().splitlines() if len(line.split()) == 2)

    assert steps["settled"] > 0
    assert in_flight <= kills + processes
    for spent, held in balances(shared):
        # Every settlement that was acknowledged is there, at 4; what was in flight is charged, at 10 when it was not settled.
        assert held == 0
        assert steps["settled"] * 4 <= spent <= steps["start"] * 10
        settled = (spent - in_flight * 10) / 4
        assert settled == int(settled)
        assert steps["settled"] <= settled <= steps["reserved"] + kills + processes
        assert steps["reserved"] <= settled + in_flight <= steps["start"]
    assert len({spent for spent, _ in balances(shared)}) == 1
    assert statistics.median(waits) < 0.5, waits  # 2 s when the kernel gives the lock of the dead to nobody


@needs_proc
def test_kill_9_loses_no_charge_and_leaves_none_half_done(shared, path, tmp_path):
    storm(shared, path, tmp_path, seconds=2.0, processes=3)


@needs_proc
@pytest.mark.storm
def test_a_long_storm_of_kills_loses_no_charge(shared, path, tmp_path):
    storm(shared, path, tmp_path, seconds=30.0, processes=6)


@needs_proc
def test_the_next_decision_after_a_kill_inside_a_decision_is_quick(shared, path):
    waits = []
    for number in range(5):
        with worker("stay_in_a_decision", path) as process:
            process.stdout.readline()
            connection = shared._database._db
            assert shared.try_reserve(Reserve(f"try-{number}", charges(1))) is None
            assert shared._database._db is connection
            process.kill()
            process.wait()
            began = time.perf_counter()
            assert shared.reserve(Reserve(f"next-{number}", charges(1))) is GRANTED
            waits.append(time.perf_counter() - began)

    assert min(waits) < 0.05, waits


# --- a lock that is not given back ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP")
def test_a_stopped_holder_of_the_lock_is_an_error_in_bounded_time_and_nothing_is_taken(shared, path):
    with worker("stay_in_a_decision", path) as process:
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        began = time.monotonic()

        with pytest.raises(StoreUnavailable, match=r"has held the lock of '.*counters.sqlite' for 2 s.*\n.*fuser"):
            shared.reserve(Reserve("1", charges(1)))

        assert 1.9 < time.monotonic() - began < 10
        os.kill(process.pid, signal.SIGCONT)
        go(process)
        process.wait()
    assert balances(shared)[0] == (0, 0)
    assert shared.reserve(Reserve("1", charges(1))) is GRANTED


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP")
def test_a_process_that_is_stopped_while_it_is_first_in_line_keeps_nobody_out(shared, path):
    inside, leave = threading.Event(), threading.Event()
    other = SqliteStore(path)
    holder = threading.Thread(target=other._database.run, args=(lambda db: inside.set() or leave.wait(60),))
    with worker("wait_in_line", path) as process:
        process.stdout.readline()
        holder.start()
        inside.wait(60)
        go(process)
        while not shared._database._lock._is_waited_for():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGSTOP)
        threading.Timer(0.02, leave.set).start()
        began = time.monotonic()

        assert shared.reserve(Reserve("1", charges(1))) is GRANTED
        assert time.monotonic() - began < 1.9  # it would give up after 2

    holder.join()
    other.close()


def test_while_another_thread_decides_the_answer_without_waiting_is_none(shared):
    inside, leave = threading.Event(), threading.Event()
    other = threading.Thread(target=shared._database.run, args=(lambda db: inside.set() or leave.wait(60),))
    other.start()
    inside.wait(60)

    answer = shared.try_reserve(Reserve("1", charges(1)))
    leave.set()
    other.join()

    assert answer is None
    assert shared.try_reserve(Reserve("1", charges(1))) is GRANTED


# --- what others do -------------------------------------------------------------------------------------------------


def test_a_settlement_in_another_process_is_told_within_20_ms(shared, path):
    late = []
    while len(late) < 20 and not any(seconds < 0.02 for seconds in late):  # a busy machine may let either of them wait
        told = threading.Event()
        with worker("tell", path) as process:
            process.stdout.readline()
            watch = shared.watch(told.set)
            time.sleep(0.05)
            told.clear()
            go(process)
            assert told.wait(30)
            heard = time.time()
            late.append(heard - float(process.stdout.readline()))
            watch.close()

    assert min(late) < 0.02, late


def test_nobody_polls_while_nobody_watches(shared):
    watch = shared.watch(lambda: None)
    poller = shared._poller
    watch.close()
    poller.join(10)

    assert not poller.is_alive()


def test_two_stores_that_decide_by_turns_count_each_other(shared, path):
    other = SqliteStore(path)
    for number in range(5):
        shared.reserve(Reserve(f"mine-{number}", charges(10)))
        other.reserve(Reserve(f"theirs-{number}", charges(1)))
        other.settle(f"mine-{number}", Amounts(7, 7))

    assert balances(shared) == balances(other) == [(35, 5)] * len(ROWS)
    other.close()


def test_rows_beyond_those_that_are_kept_in_memory_count_the_same(shared, monkeypatch):
    monkeypatch.setattr("agentguard.stores._rows._MOST_ROWS", 2)
    for number in range(5):
        shared.reserve(Reserve(str(number), charges(10)))
    shared.settle("0", Amounts(7, 7))

    assert balances(shared) == [(7, 40)] * len(ROWS)


def test_what_is_asked_twice_is_counted_once_by_the_next_decisions_too(shared):
    first = Reserve("1", charges(10))
    for _ in range(3):
        assert shared.reserve(first) is GRANTED
    shared.reserve(Reserve("2", charges(5)))

    assert balances(shared) == [(0, 15)] * len(ROWS)


def test_a_decision_that_fails_half_way_leaves_no_trace_in_the_next(shared):
    shared.reserve(Reserve("1", charges(10)))

    with pytest.raises(ValueError, match="charges a row twice"):
        shared.reserve(Reserve("2", (*charges(5), *charges(5))))
    with pytest.raises(KeyboardInterrupt):
        shared._database.run(take_and_be_interrupted, shared)
    shared.reserve(Reserve("3", charges(1)))

    assert balances(shared) == [(0, 11)] * len(ROWS)


def take_and_be_interrupted(db, store) -> None:
    store._reserve(db, Reserve("interrupted", charges(100)))
    raise KeyboardInterrupt


def test_an_isolation_in_another_process_refuses_the_next_decision(shared, path):
    other = SqliteStore(path)
    assert shared.reserve(Reserve("1", charges(1), ("agent:a",))) is GRANTED

    other.isolate("agent:a", on=True, by="ada", why="drill")
    refused = shared.reserve(Reserve("2", charges(1), ("agent:a",)))
    other.isolate("agent:a", on=False, by="ada", why="done")
    other.close()

    assert refused == Refused(RefusalKind.ISOLATED, "agent:a")
    assert shared.reserve(Reserve("3", charges(1), ("agent:a",))) is GRANTED


def test_a_limit_that_another_process_has_changed_holds_at_once(shared, path):
    shared.reserve(Reserve("1", charges(100)))
    other = SqliteStore(path)
    other.register([LimitRow.of("agent:a", Limit(amount=150, unit=Unit.TOKENS))])
    other.close()

    assert shared.reserve(Reserve("2", charges(51))).amount == 150


# --- forks ----------------------------------------------------------------------------------------------------------


@contextmanager
def fork():
    """Run a block in a forked child; its exit code is the verdict."""
    pid = os.fork()
    if pid == 0:
        return_code = 1
        try:
            yield True
            return_code = 0
        finally:
            os._exit(return_code)
    yield False
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
@pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"
)  # 3.12 warns in a process with threads: that is what is tested
def test_a_forked_child_decides_on_a_connection_of_its_own(shared):
    shared.reserve(Reserve("parent", charges(10)))
    holder = shared._name

    with fork() as is_child:
        if is_child:
            assert shared._database._db is None
            assert shared.reserve(Reserve("child", charges(5))) is GRANTED
            assert shared._name != holder
            assert shared.sweep() == 0

    assert balances(shared)[0] == (0, 15)
    assert shared.settle("parent", Amounts(3, 3)).first
    if Path("/proc/self/stat").exists():
        assert shared.sweep() == 1  # the child is gone, and its call is charged
        assert balances(shared)[0] == (8, 0)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_forks_amid_decisions_of_other_threads_lose_nothing(shared):
    stop = threading.Event()
    counts = collections.Counter()

    def decide() -> None:
        while not stop.is_set():
            shared.reserve(Reserve(f"parent-{counts['parent']}", charges(1), force=True))
            counts["parent"] += 1

    thread = threading.Thread(target=decide)
    thread.start()
    for number in range(5):
        with fork() as is_child:
            if is_child:
                for call in range(20):
                    assert isinstance(shared.reserve(Reserve(f"child-{number}-{call}", charges(1), force=True)), Granted)
    stop.set()
    thread.join()

    assert balances(shared)[2] == (0, counts["parent"] + 100)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_watched_store_is_watched_in_the_child_too(shared):
    told = threading.Event()
    watch = shared.watch(told.set)

    with fork() as is_child:
        if is_child:
            assert shared._poller.is_alive()
            assert told.wait(30)

    watch.close()


@needs_fork
def test_a_fork_that_python_did_not_see_is_refused(shared):
    shared._database._pid = 1

    with pytest.raises(StoreUnavailable, match="Make a new guard after the fork"):
        shared.reserve(Reserve("1", charges(1)))


@needs_fork
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_memory_store_goes_on_in_a_child_with_the_open_calls_charged():
    store = MemoryStore()
    store.register(ROWS)
    store.reserve(Reserve("parent", charges(10)))
    stop = threading.Event()

    def decide() -> None:
        while not stop.is_set():
            store.reserve(Reserve("again", ()))

    thread = threading.Thread(target=decide)
    thread.start()
    for _ in range(20):
        with fork() as is_child:
            if is_child:
                assert balances(store)[0] == (10, 0)
                assert store.reserve(Reserve("child", charges(5))) is GRANTED
    stop.set()
    thread.join()

    assert balances(store)[0] == (0, 10)

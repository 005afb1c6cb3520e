"""Redis between processes: races, deaths, forks."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentguard.core.limits import Amounts, Charge, RefusalKind
from agentguard.stores.base import GRANTED, Reserve
from agentguard.stores.redis import RedisStore

from . import test_processes as processes
from .redis_server import PROGRAM
from .test_processes import AGENT, ROWS, balances, charges, go, needs_fork, needs_proc

pytestmark = pytest.mark.needs(PROGRAM)
WORKER = Path(__file__).with_name("redis_worker.py")


@pytest.fixture
def url(server):
    """With patience: the cores are shared with all the processes of a storm."""
    server.ask("FLUSHALL")
    return f"{server.url}?timeout=10"


@pytest.fixture
def shared(url):
    store = RedisStore(url)
    store.register(ROWS)
    yield store
    store.close()


def start(what: str, *args):
    process = subprocess.Popen([sys.executable, WORKER, what, *map(str, args)], stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@contextmanager
def worker(what: str, *args):
    process = subprocess.Popen([sys.executable, WORKER, what, *map(str, args)], stdin=-1, stdout=-1, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run_a_race(url: str, racing: int) -> None:
    racers = [start("race", url) for _ in range(racing)]
    for racer in racers:
        go(racer)
    taken = [[int(number) for number in racer.communicate()[0].split()] for racer in racers]

    assert sum(amount for amount, _ in taken) == AGENT.limit.amount


def test_racing_processes_take_exactly_the_limit(shared, url):
    run_a_race(url, 3)

    assert [spent + held for spent, held in balances(shared)] == [AGENT.limit.amount] * len(ROWS)


@pytest.mark.storm
@pytest.mark.parametrize("repetition", range(10))
def test_eight_racing_processes_take_exactly_the_limit(shared, url, repetition):
    run_a_race(url, 8)

    assert [spent + held for spent, held in balances(shared)] == [AGENT.limit.amount] * len(ROWS)


@needs_proc
def test_the_calls_of_a_killed_process_are_charged_at_once(shared, url):
    with worker("hold", url) as process:
        assert process.stdout.readline().startswith("Granted")
        assert shared.sweep() == 0
        assert balances(shared) == [(0, 100)] * len(ROWS)
        assert [hold.charges for hold in shared.holds()] == [charges(100)]
        process.kill()
        process.wait()

        assert shared.sweep() == 1

    assert balances(shared) == [(100, 0)] * len(ROWS)
    assert shared.sweep() == 0


@needs_proc
def test_kill_9_loses_no_charge_and_leaves_none_half_done(shared, url, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKER", WORKER)

    processes.storm(shared, url, tmp_path, seconds=5.0, processes=2)


@needs_proc
@pytest.mark.storm
def test_a_long_storm_of_kills_loses_no_charge(shared, url, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKER", WORKER)

    processes.storm(shared, url, tmp_path, seconds=30.0, processes=6)


@pytest.mark.storm
def test_a_server_that_is_emptied_amid_a_race_admits_no_more_than_the_limit(shared, server, url):
    racers = [start("race_and_register", url) for _ in range(4)]
    for racer in racers:
        go(racer)
    for racer in racers:
        assert racer.stdout.readline() == "half\n"
    server.ask("FLUSHALL")
    for racer in racers:
        go(racer)
    taken = sum(int(racer.communicate(timeout=60)[0].split()[-1]) for racer in racers)

    assert taken == AGENT.limit.amount


@needs_fork
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_decides_on_connections_of_its_own(shared):
    shared.reserve(Reserve("parent", charges(10)))
    holder = shared.me

    with processes.fork() as is_child:
        if is_child:
            assert shared.me != holder
            assert shared.reserve(Reserve("child", charges(5))) is GRANTED

    assert balances(shared)[0] == (0, 15)
    assert shared.settle("parent", Amounts(3, 3)).first
    if Path("/proc/self/stat").exists():
        assert shared.sweep() == 1  # the child was put on its host's list before it asked
        assert balances(shared)[0] == (8, 0)


@needs_fork
@needs_proc
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_process_that_has_told_an_emptied_server_again_is_missed_when_it_dies(shared, server):
    shared.reserve(Reserve("parent", charges(10)))

    with processes.fork() as is_child:
        if is_child:
            assert shared.reserve(Reserve("child", charges(5))) is GRANTED
            server.ask("FLUSHALL")
            assert shared.sweep() == 0

    assert shared.sweep() == 1
    assert balances(shared)[0] == (5, 10)


def test_a_call_of_another_process_can_be_settled_here(shared, url):
    other = RedisStore(url)
    other.register(ROWS)
    other.reserve(Reserve("1", charges(10)))
    other.extend("1", (Charge(AGENT.key, 5),))

    assert shared.settle("1", Amounts(12, 9)).first
    assert not other.settle("1", Amounts(1, 1)).first
    other.close()
    assert [spent for spent, _ in balances(shared)] == [12, 9, 12, 12]


def test_an_isolation_in_another_process_refuses_the_next_decision(shared, url):
    other = RedisStore(url)
    other.isolate("agent:a", on=True, by="ada", why="drill")
    refused = shared.reserve(Reserve("1", charges(1), ("fleet", "agent:a")))
    other.close()

    assert (refused.kind, refused.row) == (RefusalKind.ISOLATED, "agent:a")

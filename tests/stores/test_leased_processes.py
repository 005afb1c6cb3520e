"""Slices in several processes: nothing is admitted beyond a limit, nothing strands, and the dead are charged what they held."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .leased_worker import ROWS, opened
from .redis_server import PROGRAM

WORKER = Path(__file__).with_name("leased_worker.py")
LEAST = min(row.limit.amount for row in ROWS)


def started(what: str, place: str, *more: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, WORKER, what, place, *map(str, more)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.needs(PROGRAM))])
def place(request, path):
    """A file, or a server: with patience, since the cores are shared with all the processes of a storm."""
    if request.param == "sqlite":
        return str(path)
    server = request.getfixturevalue("server")
    server.ask("FLUSHALL")
    return f"{server.url}?timeout=10"


def raced(place: str, processes: int) -> list[int]:
    with contextlib.closing(opened(place)) as store:
        store.register(ROWS)
    racers = [started("race", place) for _ in range(processes)]
    for racer in racers:
        go(racer)
    return [int(racer.communicate(timeout=100)[0].split()[0]) for racer in racers]


def balances(place: str) -> list[tuple[int, int]]:
    with contextlib.closing(opened(place)) as store:
        store.sweep()
        return [(balance.spent, balance.held) for balance in store.read([row.key for row in ROWS])]


def test_four_processes_use_a_budget_up_to_its_last_unit_and_not_one_more(place):
    used = raced(place, 4)

    assert sum(used) == LEAST
    assert balances(place) == [(LEAST, 0)] * 4


def test_a_forked_child_takes_slices_of_its_own(place):
    with contextlib.closing(opened(place)) as store:
        store.register(ROWS)

    subprocess.run([sys.executable, WORKER, "fork", place], check=True, timeout=60)

    assert balances(place) == [(750, 0)] * 4


@pytest.mark.storm
@pytest.mark.parametrize("repetition", range(10))
def test_eight_processes_use_a_budget_up_to_its_last_unit_and_not_one_more(place, repetition):
    used = raced(place, 8)

    assert sum(used) == LEAST
    assert balances(place) == [(LEAST, 0)] * 4


@pytest.mark.storm
def test_killed_processes_are_charged_for_all_that_they_used_and_for_no_more_than_was_theirs(place, tmp_path):
    with contextlib.closing(opened(place)) as store:
        store.register(ROWS)
    logs = [tmp_path / f"log-{number}" for number in range(30)]
    running: list[subprocess.Popen[str]] = []
    for log in logs:
        running.append(started("storm", place, log))
        go(running[-1])
        time.sleep(0.05)
        if len(running) >= 4:
            kill(running.pop(random.randrange(4)))
    for process in running:
        kill(process)
    settled = sum(log.read_text().count("settled") for log in logs)

    spent = balances(place)

    assert len(set(spent)) == 1
    ((used, held),) = set(spent)
    assert held == 0
    assert 4 * settled <= used <= LEAST

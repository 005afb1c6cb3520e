"""Slices in several processes: nothing is admitted beyond a limit, nothing strands, and the dead are charged what they held."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentguard.stores.sqlite import SqliteStore

from .leased_worker import ROWS

WORKER = Path(__file__).with_name("leased_worker.py")
LEAST = min(row.limit.amount for row in ROWS)


def started(what: str, path: Path, *more: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, WORKER, what, path, *map(str, more)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def raced(path: Path, processes: int) -> list[int]:
    with contextlib.closing(SqliteStore(path)) as store:
        store.register(ROWS)
    racers = [started("race", path) for _ in range(processes)]
    for racer in racers:
        go(racer)
    return [int(racer.communicate(timeout=100)[0].split()[0]) for racer in racers]


def balances(path: Path) -> list[tuple[int, int]]:
    with contextlib.closing(SqliteStore(path)) as store:
        store.sweep()
        return [(balance.spent, balance.held) for balance in store.read([row.key for row in ROWS])]


def test_four_processes_use_a_budget_up_to_its_last_unit_and_not_one_more(path):
    used = raced(path, 4)

    assert sum(used) == LEAST
    assert balances(path) == [(LEAST, 0)] * 4


def test_a_forked_child_takes_slices_of_its_own(path):
    with contextlib.closing(SqliteStore(path)) as store:
        store.register(ROWS)

    subprocess.run([sys.executable, WORKER, "fork", path], check=True, timeout=60)

    assert balances(path) == [(750, 0)] * 4


@pytest.mark.storm
@pytest.mark.parametrize("repetition", range(10))
def test_eight_processes_use_a_budget_up_to_its_last_unit_and_not_one_more(path, repetition):
    used = raced(path, 8)

    assert sum(used) == LEAST
    assert balances(path) == [(LEAST, 0)] * 4


@pytest.mark.storm
def test_killed_processes_are_charged_for_all_that_they_used_and_for_no_more_than_was_theirs(path, tmp_path):
    with contextlib.closing(SqliteStore(path)) as store:
        store.register(ROWS)
    logs = [tmp_path / f"log-{number}" for number in range(30)]
    running: list[subprocess.Popen[str]] = []
    for log in logs:
        running.append(started("storm", path, log))
        go(running[-1])
        time.sleep(0.05)
        if len(running) >= 4:
            kill(running.pop(random.randrange(4)))
    for process in running:
        kill(process)
    settled = sum(log.read_text().count("settled") for log in logs)

    spent = balances(path)

    assert len(set(spent)) == 1
    ((used, held),) = set(spent)
    assert held == 0
    assert 4 * settled <= used <= LEAST

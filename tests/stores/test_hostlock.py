"""Who is next."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from agentguard.stores._hostlock import TURN_SECONDS, HostLock


@pytest.fixture
def locks(path):
    """Three locks on one path: each has descriptors of its own, as in another process."""
    three = [HostLock(str(path)) for _ in range(3)]
    yield three
    for lock in three:
        lock.close()


def soon() -> float:
    return time.monotonic() + 30


@contextmanager
def waiting(lock: HostLock, holder: HostLock):
    """Somebody in line, seen from the holder. What he is told is in the list when the block is over."""
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(lock.acquire(soon())))
    thread.start()
    while not holder._is_waited_for():
        time.sleep(1e-3)
    yield told
    thread.join()


def test_one_holds_it_at_a_time(locks):
    mine, theirs, _ = locks

    assert mine.acquire(soon())
    assert not theirs.try_acquire()
    mine.release()
    assert theirs.try_acquire()


def test_who_waits_is_told_in_bounded_time_and_leaves_the_line(locks):
    mine, theirs, _ = locks
    mine.acquire(soon())
    began = time.monotonic()

    assert not theirs.acquire(began + 0.05)

    assert 0.05 <= time.monotonic() - began < 10
    assert not mine._is_waited_for()


def test_whoever_has_had_a_turn_stands_back_for_the_one_in_line(locks, monkeypatch):
    monkeypatch.setattr("agentguard.stores._hostlock._FRONT_PAUSE_SECONDS", 0.5)
    mine, theirs, _ = locks
    mine.acquire(soon())
    with waiting(theirs, mine) as told:
        time.sleep(TURN_SECONDS)
        mine.release()
        assert not mine.try_acquire()

    assert told == [True]


def test_a_turn_that_is_not_over_goes_on_while_others_wait(locks, monkeypatch):
    monkeypatch.setattr("agentguard.stores._hostlock.TURN_SECONDS", 60.0)
    monkeypatch.setattr("agentguard.stores._hostlock._FRONT_PAUSE_SECONDS", 0.2)
    mine, theirs, third = locks
    third.acquire(soon())
    with waiting(mine, third):
        third.release()
    with waiting(theirs, mine) as told:
        mine.release()
        assert mine.try_acquire()
        mine.release()

    assert told == [True]


def test_nobody_stands_back_when_nobody_is_in_line(locks):
    mine = locks[0]
    for _ in range(3):
        assert mine.try_acquire()
        time.sleep(TURN_SECONDS)
        mine.release()


def test_a_front_that_never_asks_does_not_keep_those_behind_out(locks, monkeypatch):
    monkeypatch.setattr("agentguard.stores._hostlock._FRONT_PAUSE_SECONDS", 2.5)
    mine, front, behind = locks
    mine.acquire(soon())
    with waiting(front, mine) as told:
        threading.Timer(0.01, mine.release).start()
        began = time.monotonic()

        assert behind.acquire(soon())
        assert time.monotonic() - began < 2.4
        behind.release()

    assert told == [True]

from __future__ import annotations

import threading

import pytest

from agentguard.testing import FrozenClock


def test_a_frozen_clock_stands_still():
    clock = FrozenClock(1_000.0)

    assert (clock.time(), clock.time()) == (1_000.0, 1_000.0)


def test_advance_moves_wall_and_monotonic_time_together():
    clock = FrozenClock(1_000.0, monotonic=5.0)

    clock.advance(2.5)

    assert (clock.time(), clock.monotonic()) == (1_002.5, 7.5)


def test_a_clock_cannot_be_advanced_backwards():
    clock = FrozenClock()

    with pytest.raises(ValueError, match="set_time"):
        clock.advance(-1)


def test_the_wall_clock_jumps_without_the_monotonic_one():
    clock = FrozenClock(1_000.0, monotonic=5.0)

    clock.set_time(10.0)

    assert (clock.time(), clock.monotonic()) == (10.0, 5.0)


def test_no_advance_of_many_threads_is_lost():
    clock = FrozenClock(0.0, monotonic=0.0)
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(1_000)]) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (clock.time(), clock.monotonic()) == (8_000.0, 8_000.0)

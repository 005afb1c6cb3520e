"""When a store counts as down, and when as back."""

from __future__ import annotations

import os
import threading

import pytest

from agentguard.errors import StoreUnavailable
from agentguard.stores._breaker import FAILURES, WITHIN_SECONDS, Breaker


class Asked:
    """A store that is down until it is said to be back."""

    def __init__(self):
        self.is_back = threading.Event()
        self.asked = threading.Semaphore(0)

    def __call__(self):
        self.asked.release()
        if not self.is_back.is_set():
            raise OSError("down")


@pytest.fixture
def store():
    return Asked()


@pytest.fixture
def breaker(store, clock):
    made = Breaker(store, clock.monotonic)
    yield made
    made.close()


def fail(breaker, times=FAILURES):
    for number in range(times):
        breaker.failed(f"no answer {number}.")


def ended(probes):
    for probe in probes:
        probe.join(5)
    return not any(probe.is_alive() for probe in probes)


def probes():
    return [thread for thread in threading.enumerate() if thread.name == "agentguard-store-probe"]


def test_a_store_that_answers_lets_every_verb_go_on(breaker):
    breaker.check()

    assert not breaker.is_open


def test_fewer_failures_than_it_takes_leave_it_closed(breaker):
    fail(breaker, FAILURES - 1)

    breaker.check()


def test_failures_within_a_second_open_it_and_the_last_one_says_why(breaker):
    fail(breaker)

    with pytest.raises(StoreUnavailable, match=r"no answer 2\. It is asked again every 0\.1 s"):
        breaker.check()


def test_failures_that_lie_apart_leave_it_closed(breaker, clock):
    for _ in range(2 * FAILURES):
        fail(breaker, 1)
        clock.advance(WITHIN_SECONDS / (FAILURES - 1) + 0.01)

    breaker.check()


def test_failures_that_lie_just_a_second_apart_open_it(breaker, clock):
    fail(breaker, 1)
    clock.advance(WITHIN_SECONDS)
    fail(breaker, FAILURES - 1)

    assert breaker.is_open


def test_it_stays_open_while_probes_are_not_answered_and_only_one_thread_asks(breaker, store):
    before = set(probes())
    fail(breaker, 3 * FAILURES)

    assert store.asked.acquire(timeout=5)
    assert store.asked.acquire(timeout=5)
    assert breaker.is_open
    assert len(set(probes()) - before) == 1


def test_a_probe_that_is_answered_closes_it_and_it_counts_anew(breaker, store):
    fail(breaker)
    asking = probes()

    store.is_back.set()

    assert ended(asking)
    breaker.check()
    fail(breaker, FAILURES - 1)
    breaker.check()


def test_it_opens_again_when_the_store_goes_down_again(breaker, store):
    fail(breaker)
    asking = probes()
    store.is_back.set()
    assert ended(asking)
    store.is_back.clear()

    fail(breaker)

    assert breaker.is_open


def test_a_closed_one_asks_no_more_and_lets_every_verb_find_out_by_itself(breaker):
    fail(breaker)
    asking = probes()

    breaker.close()

    assert ended(asking)
    breaker.check()
    fail(breaker)
    breaker.check()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_begins_with_a_closed_one_and_asks_by_itself(breaker, store):
    fail(breaker)
    pid = os.fork()
    if pid == 0:
        try:
            store.__init__()  # its locks may be the parent's, held for ever
            breaker.reset()
            breaker.check()
            fail(breaker)
            store.is_back.set()
            os._exit(0 if breaker.is_open and ended(probes()) and not breaker.is_open else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert breaker.is_open

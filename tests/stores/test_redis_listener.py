"""What a process hears of the channels of a Redis, also when it is cut off from them."""

from __future__ import annotations

import json
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agentguard.stores.redis import RedisStore

from .redis_server import PROGRAM

if TYPE_CHECKING:
    from agentguard.stores.base import Isolation

pytestmark = pytest.mark.needs(PROGRAM)
PATIENT = "?timeout=5"


@pytest.fixture
def telling(own):
    store = RedisStore(own.url + PATIENT)
    yield store
    store.close()


class Listening:
    """A process that listens for isolations: what it was told, and what it has read when it was told to."""

    def __init__(self, url: str) -> None:
        self.store = RedisStore(url + PATIENT)
        self.told: list[tuple[int, Isolation]] = []
        self.read: frozenset[str] = frozenset()
        self._has_heard = threading.Condition()
        self._others = threads()
        self._times = 0
        self.watch = self.store.watch_isolations(self._hear, lambda epoch, isolation: self.told.append((epoch, isolation)))
        assert self._hears(lambda: self._times)  # the subscription stands

    def _hear(self) -> None:
        with self._has_heard:
            self.read = frozenset(isolation.subject for isolation in self.store.isolations())
            self._times += 1
            self._has_heard.notify_all()

    def _hears(self, is_so) -> bool:
        with self._has_heard:
            return bool(self._has_heard.wait_for(is_so, 10))

    def reads(self, *subjects: str) -> bool:
        return self._hears(lambda: self.read == frozenset(subjects))

    @property
    def threads(self) -> int:
        return len(threads() - self._others)

    def close(self) -> None:
        self.watch.close()
        self.store.close()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "agentguard-store-listen"}


@pytest.fixture
def listening(own):
    process = Listening(own.url)
    yield process
    process.close()


def until(is_so, seconds: float = 10.0) -> None:
    """Wait for something that nobody tells."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def subscribed(server) -> int:
    """How many connections listen to anything."""
    return server.ask("CLIENT", "LIST", "TYPE", "pubsub").count(b"id=")


def isolate(store, subject: str, *, on: bool = True) -> int:
    return store.isolate(subject, on=on, by="ada", why="drill")


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_message_says_who_is_isolated_in_which_epoch_and_the_truth_can_be_read_then(listening, telling):
    epoch = isolate(telling, "agent:a")

    assert listening.reads("agent:a")
    assert listening.told == [(epoch, telling.isolations()[0])]


def test_a_restored_subject_is_read_and_not_told(listening, telling):
    isolate(telling, "agent:a")
    assert listening.reads("agent:a")

    isolate(telling, "agent:a", on=False)

    assert listening.reads()
    assert len(listening.told) == 1


@pytest.mark.parametrize("said", ["", "7", "null", "{", "[1]", '[1, 2, 3, 4, "x"]', '["x", "a", "b", "c", "1"]', "\u00ff"])
def test_nothing_that_anybody_publishes_makes_a_process_deaf(listening, telling, own, said):
    own.ask("PUBLISH", telling._keys.isolations, said)

    isolate(telling, "agent:a")

    assert listening.reads("agent:a")
    assert [isolation.subject for _, isolation in listening.told] == ["agent:a"]


def test_a_watcher_that_raises_makes_a_process_not_deaf(listening, telling, caplog):
    def fails():
        if fails.is_first:
            fails.is_first = False
            raise LookupError("not a fault of the store's")

    fails.is_first = True
    watch = listening.store.watch_isolations(fails)

    isolate(telling, "agent:a")

    assert listening.reads("agent:a")
    until(lambda: not fails.is_first)
    isolate(telling, "agent:b")
    assert listening.reads("agent:a", "agent:b")
    assert "LookupError: not a fault of the store's" in caplog.text
    watch.close()


@pytest.mark.parametrize("said", ["", "7", "null", "{"])
def test_a_recall_that_is_none_is_passed_over(own, telling, said):
    recalled: list[list[str]] = []
    other = RedisStore(own.url + PATIENT)
    watch = other.watch_recalls(recalled.append)
    until(lambda: subscribed(own) == 1)
    own.ask("PUBLISH", telling._keys.recalls, said)

    telling.recall(["row"])

    until(lambda: recalled == [["row"]])
    watch.close()
    other.close()


# --- cut off --------------------------------------------------------------------------------------------------------


def test_an_isolation_is_heard_of_when_the_subscription_is_killed_at_that_moment(listening, telling, own):
    for number in range(1, 6):
        own.ask("CLIENT", "KILL", "TYPE", "pubsub")
        isolate(telling, f"agent:{number}")

        assert listening.reads(*(f"agent:{each}" for each in range(1, number + 1)))


def test_what_was_said_while_the_server_was_away_is_read_when_it_is_back(listening, telling, own):
    own.kill()
    until(lambda: listening.store._channels._steered._wait > 0.1)  # it has tried in vain for a while
    own.start()
    isolate(telling, "agent:a")

    assert listening.reads("agent:a")


def test_after_an_outage_a_killed_subscription_heals_as_fast_as_before_it(listening, own):
    own.kill()
    until(lambda: listening.store._channels._steered._wait > 0.1)
    own.start()
    until(lambda: subscribed(own) == 1)

    until(lambda: listening.store._channels._steered._wait < 0.01)


def test_a_message_that_was_lost_is_found_by_a_look_at_the_epoch(listening, telling, own):
    isolate(telling, "agent:a")
    assert listening.reads("agent:a")

    own.ask("HSET", telling._keys.isolated, "agent:b", json.dumps(["ada", "drill", "0"]))
    own.ask("SET", telling._keys.control, struct.pack("<dd", 2, 2))  # the second epoch, of which nothing was said

    assert listening.reads("agent:a", "agent:b")


# --- when it ends ---------------------------------------------------------------------------------------------------


def test_a_thread_ends_when_nobody_listens_any_more(listening, own):
    listening.watch.close()

    until(lambda: listening.threads == 0)
    until(lambda: subscribed(own) == 0)


def test_a_store_that_is_closed_listens_no_more_and_again_when_it_is_watched_again(listening, telling, own):
    listening.store.close()
    again = threading.Event()

    watch = listening.store.watch_isolations(again.set)

    assert again.wait(10)
    again.clear()
    time.sleep(1.3)  # longer than a thread takes to see that it is to end
    isolate(telling, "agent:a")
    assert again.wait(10)
    watch.close()


def test_watching_takes_one_thread_and_one_connection_whatever_the_number_of_watchers(listening, own):
    watches = [listening.store.watch_isolations(threading.Event().set) for _ in range(5)]
    watches.append(listening.store.watch_recalls(lambda _: None))

    assert listening.threads == 1
    assert subscribed(own) == 1
    for watch in watches:
        watch.close()

"""What a resolver answered holds for its time, and no longer."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentguard.egress.pins import GRACE_SECONDS, SHORTEST_SECONDS, Pins
from agentguard.testing import FrozenClock

NAMES = ["a.test", "b.test", "c.test"]
ADDRESSES = ["1.2.3.4", "1.2.3.5", "2606:2800:220:1::14"]


class Model(RuleBasedStateMachine):
    """Pins beside a plain list of what was answered and until when."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pins = Pins(lambda: self.now)
        self.answers: list[tuple[str, str, float]] = []

    @rule(name=st.sampled_from(NAMES), ip=st.sampled_from(ADDRESSES), ttl=st.integers(0, 1000))
    def answer(self, name, ip, ttl):
        self.pins.pin(name, [ip], ttl)
        self.answers.append((name, ip, self.now + max(ttl, SHORTEST_SECONDS) + GRACE_SECONDS))

    @rule(seconds=st.integers(0, 400))
    def time_passes(self, seconds):
        self.now += seconds

    @invariant()
    def an_address_stands_for_what_still_holds(self):
        for ip in ADDRESSES:
            expected = {name for name, found, end in self.answers if found == ip and end > self.now}
            assert self.pins.names_of(ip) == expected


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=50, deadline=None)


@pytest.fixture
def clock():
    return FrozenClock()


def test_an_address_is_one_however_it_is_spelled(clock):
    pins = Pins(clock.monotonic)

    pins.pin("API.Example.com.", ["::ffff:1.2.3.4"], 60)

    assert pins.names_of("1.2.3.4") == {"api.example.com"}
    assert pins.names_of("::ffff:102:304") == {"api.example.com"}


def test_what_is_no_host_pins_nothing(clock):
    pins = Pins(clock.monotonic)

    pins.pin("no host", ["1.2.3.4"], 60)

    assert pins.names_of("1.2.3.4") == frozenset()
    assert pins.names_of("no host") == frozenset()


def test_a_longer_answer_is_not_shortened_by_a_later_one(clock):
    pins = Pins(clock.monotonic)
    pins.pin("a.test", ["1.2.3.4"], 1000)
    pins.pin("a.test", ["1.2.3.4"], 0)

    clock.advance(SHORTEST_SECONDS + GRACE_SECONDS + 1)

    assert pins.names_of("1.2.3.4") == {"a.test"}


@given(count=st.integers(1, 400))
def test_memory_is_bounded(count):
    now = [0.0]
    pins = Pins(lambda: now[0], most=64)

    for number in range(count):
        now[0] += 1
        pins.pin(f"n{number}.test", [f"10.0.{number // 256}.{number % 256}"], 60)

    assert len(pins) <= 64
    last = count - 1
    assert pins.names_of(f"10.0.{last // 256}.{last % 256}") == {f"n{last}.test"}


def test_an_address_of_very_many_names_keeps_the_last_ones(clock):
    pins = Pins(clock.monotonic)

    for number in range(1000):
        pins.pin(f"n{number}.test", ["1.2.3.4"], 60 + number)

    found = pins.names_of("1.2.3.4")
    assert len(found) == 256
    assert "n999.test" in found


def test_threads_pin_and_ask_at_once(clock):
    pins = Pins(clock.monotonic, most=32)
    done = []

    def work(number):
        for turn in range(500):
            pins.pin(f"t{number}.test", [f"10.1.{number}.{turn % 50}"], 60)
            pins.names_of(f"10.1.{(number + 1) % 8}.{turn % 50}")
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(done) == list(range(8))
    assert len(pins) <= 32

"""What slices are for, and that they never show: every answer is the one that the store behind would have given."""

from __future__ import annotations

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore

TOKENS = LimitRow.of("agent:a", Limit(amount=10_000, unit=Unit.TOKENS))
MONEY = LimitRow.of("team:t", Limit(amount=10_000, unit=Unit.USD, window=Window("day")))
CALLS = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.CALLS, window=Window(seconds=60.0)))
FLEET = LimitRow.of("fleet", Limit(amount=100_000, unit=Unit.TOKENS))
CHAIN = (TOKENS, MONEY, CALLS, FLEET)


class Counted:
    """A store that counts how often it is asked to decide."""

    def __init__(self, store) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str):
        verb = getattr(self._store, name)
        if name not in {"reserve", "extend", "settle", "lease", "try_reserve"}:
            return verb

        def asking(*args):
            self.asked.append(name)
            return verb(*args)

        return asking


def charges(tokens=10, nanos=5, calls=1):
    return (Charge(TOKENS.key, tokens), Charge(MONEY.key, nanos), Charge(CALLS.key, calls), Charge(FLEET.key, tokens))


@pytest.fixture
def behind(clock):
    return Counted(MemoryStore(clock))


@pytest.fixture
def leased(behind, clock):
    store = LeasedStore(behind, clock)
    store.register(CHAIN)
    return store


def spent_and_held(store, *rows):
    return [(balance.spent, balance.held) for balance in store.read([row.key for row in rows])]


def call(store, name, tokens=10, used=4):
    answer = store.reserve(Reserve(name, charges(tokens)))
    assert answer == GRANTED, answer
    assert store.settle(name, Amounts(used, 2)).first


def test_calls_that_repeat_are_admitted_without_asking_the_store(leased, behind):
    for number in range(100):
        call(leased, f"{number}")

    assert len(behind.asked) < 12
    assert spent_and_held(leased, *CHAIN) == [(400, 0), (200, 0), (100, 0), (400, 0)]


def test_what_a_slice_holds_is_held_by_the_store_behind(leased, behind):
    for number in range(20):
        call(leased, f"{number}")

    ((spent, held),) = spent_and_held(behind, TOKENS)
    assert held > 0
    assert spent + held >= 80


def test_closing_gives_back_what_lies_idle(leased, behind):
    for number in range(50):
        call(leased, f"{number}")
    leased.reserve(Reserve("open", charges(10)))

    leased.close()

    assert spent_and_held(behind, *CHAIN) == [(200, 10), (100, 5), (51, 0), (200, 10)]


def test_not_a_unit_strands_and_none_is_taken_twice(leased, behind):
    admitted = 0
    while isinstance(leased.reserve(Reserve(f"{admitted}", (Charge(TOKENS.key, 7),))), Granted):
        leased.settle(f"{admitted}", Amounts(7, 0))
        admitted += 1

    assert admitted == 10_000 // 7
    refused = leased.reserve(Reserve("more", (Charge(TOKENS.key, 7),)))
    assert (refused.kind, refused.spent, refused.held) == (RefusalKind.EXHAUSTED, 9996, 0)
    assert leased.reserve(Reserve("last", (Charge(TOKENS.key, 4),))) == GRANTED


def test_a_slice_of_another_process_is_recalled_before_a_final_refusal(clock):
    behind = MemoryStore(clock)
    one, other = LeasedStore(behind, clock), LeasedStore(behind, clock)
    one.register([TOKENS])
    other.register([TOKENS])
    for number in range(50):
        one.reserve(Reserve(f"one-{number}", (Charge(TOKENS.key, 10),)))
        one.settle(f"one-{number}", Amounts(10, 0))

    assert other.reserve(Reserve("all", (Charge(TOKENS.key, 9500),))) == GRANTED
    assert one.reserve(Reserve("none", (Charge(TOKENS.key, 1),))).kind is RefusalKind.CONTENDED

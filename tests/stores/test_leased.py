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


def test_a_call_in_a_slice_is_extended_as_any_other(leased, behind):
    for number in range(20):
        call(leased, f"{number}")
    leased.reserve(Reserve("long", charges(10)))

    more = tuple(charge for charge in charges(3000, 1500) if charge.row != CALLS.key)
    assert leased.extend("long", more) == Granted(more)
    assert leased.extend("long", (Charge(TOKENS.key, 9000),)).charges == (Charge(TOKENS.key, 6910),)

    assert leased.settle("long", Amounts(8000, 1000)).first
    assert not leased.settle("long", Amounts(8000, 1000)).first
    leased.close()
    assert spent_and_held(behind, *CHAIN) == [(8080, 0), (1040, 0), (21, 0), (8080, 0)]


def test_a_call_that_runs_past_the_end_of_its_window_is_charged_to_both(leased, behind, clock):
    for number in range(20):
        call(leased, f"{number}")
    leased.reserve(Reserve("long", charges(10, 50)))
    clock.advance(86400)

    more = tuple(charge for charge in charges(100, 100) if charge.row != CALLS.key)
    assert leased.extend("long", more) == Granted(more)
    leased.settle("long", Amounts(60, 120))
    leased.close()

    assert spent_and_held(behind, TOKENS, MONEY) == [(140, 0), (70, 0)]


def test_an_isolated_subject_gets_nothing_from_a_slice(leased):
    for number in range(20):
        call(leased, f"{number}")

    leased.isolate("agent:a", on=True, by="ada", why="drill")

    assert leased.reserve(Reserve("x", charges(), ("agent:a",))).kind is RefusalKind.ISOLATED
    assert leased.reserve(Reserve("y", charges(), ("agent:b",))) == GRANTED


def test_a_rate_admits_no_call_from_the_slice_of_a_bucket_that_is_over(leased, behind, clock):
    for number in range(20):
        call(leased, f"{number}")
    clock.advance(1.0)
    asked = len(behind.asked)

    call(leased, "next bucket")

    assert len(behind.asked) > asked


def test_a_slice_that_lies_idle_for_half_a_horizon_is_given_back(leased, behind, clock):
    for number in range(20):
        call(leased, f"{number}")
    clock.advance(2.5)

    leased.sweep()
    clock.advance(2.5)
    leased.sweep()

    assert behind.holds() == []
    assert spent_and_held(behind, TOKENS) == [(80, 0)]


def test_a_limit_on_calls_at_once_is_decided_by_the_store(behind, clock):
    at_once = LimitRow.of("agent:a", Limit(amount=1, unit=Unit.CONCURRENT_CALLS))
    leased = LeasedStore(behind, clock)
    leased.register([at_once])
    for number in range(5):
        assert leased.reserve(Reserve(f"{number}", (Charge(at_once.key, 1),))) == GRANTED
        assert leased.reserve(Reserve("another", (Charge(at_once.key, 1),))).kind is RefusalKind.CONTENDED
        leased.settle(f"{number}", Amounts())

    assert "lease" not in behind.asked

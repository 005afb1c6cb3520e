"""Redis in any order: against the ledger that adds up every grant, and verb for verb against the pure algebra."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentguard.core.limits import Amounts, Charge, LimitRow
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import Account, Reserve
from agentguard.stores.memory import MemoryStore
from agentguard.testing.clock import FrozenClock

from . import test_machine as machine
from .redis_server import PROGRAM, clocked

pytestmark = pytest.mark.needs(PROGRAM)
FLEETS = itertools.count()


def make(server, clock):
    """A store whose fleet nobody has used."""
    return clocked(server.url, clock, f"machine-{next(FLEETS)}")


def test_redis_in_any_order_counts_the_sum_of_its_grants(server):
    class RedisInAnyOrder(machine.SqliteInAnyOrder):
        """With another process on the same server, deaths, and new connections."""

        def make_stores(self) -> list:
            self.fleet = f"machine-{next(FLEETS)}"
            self.other = self.make_one()
            return [self.make_one()]

        def make_one(self):
            return clocked(server.url, self.clock, self.fleet)

        make_sqlite = make_one

        @rule(call=machine.CALLS, charges=machine.CHARGES)
        def crash(self, call, charges) -> None:
            """A process registers, reserves and dies."""
            (store,) = self.stores
            was_open = call in self.ledger.open
            name, store._name = store._name, str(store._me._replace(pid=machine.DEAD, started="1"))
            store.register(())
            self.reserve(call, charges, "fleet", False)
            store._name = name
            if call in self.ledger.open and not was_open:
                self.ledger.open[call] = float("-inf")
            self.sweep()

        @rule()
        def renew(self) -> None:
            """A store renews the calls that it opened itself."""
            (store,) = self.stores
            store.renew()
            for call in store._own.ids():
                if call in self.ledger.open:
                    self.ledger.open[call] = self.clock.time() + machine.HOLD_SECONDS

    run_state_machine_as_test(RedisInAnyOrder, settings=settings(machine.LONG, max_examples=40))


def test_redis_and_memory_give_the_same_answers_to_the_same_history(server):
    class RedisAndMemory(machine.AnyOrder):
        def make_stores(self) -> list:
            return [MemoryStore(self.clock), make(server, self.clock)]

    run_state_machine_as_test(RedisAndMemory, settings=settings(machine.LONG, max_examples=40))


MOMENTS = st.integers(1_500_000_000, 4_000_000_000).map(float) | st.integers(15 * 10**14, 40 * 10**14).map(lambda us: us / 1e6)
WINDOWS = st.sampled_from([Window.LIFE, *(Window(every) for every in ("minute", "hour", "day", "month"))]) | st.sampled_from(
    [0.7, 1.0, 59.0, 60.0, 90.0, 3600.0, 86400.0]
).map(lambda seconds: Window(seconds=seconds))


@settings(max_examples=150, deadline=None)
@given(windows=st.lists(WINDOWS, min_size=1, max_size=3), moments=st.lists(MOMENTS, min_size=1, max_size=4))
def test_windows_begin_and_end_where_the_algebra_says(server, windows, moments):
    clock = FrozenClock()
    units = (Unit.TOKENS, Unit.CALLS, Unit.USD)
    rows = [
        LimitRow.of(f"agent:{place}", Limit(amount=3, unit=units[place], window=window, warn_at=(50,)))
        for place, window in enumerate(windows)
    ]
    stores = [MemoryStore(clock), make(server, clock)]
    for number, moment in enumerate(moments):
        clock.set_time(moment)
        answers = []
        for store in stores:
            store.register(rows)
            answers.append(store.reserve(Reserve(str(number), tuple(Charge(row.key, 2) for row in rows))))
        assert answers[0] == answers[1]
        assert stores[0].read([row.key for row in rows]) == stores[1].read([row.key for row in rows])
    stores[1].close()


LARGE = st.integers(1, 2**53 - 1)


@settings(max_examples=150, deadline=None)
@given(
    limits=st.lists(LARGE, min_size=2, max_size=3),
    taken=st.floats(0, 1),
    asked=st.lists(LARGE, min_size=3, max_size=3),
)
def test_an_extension_takes_the_same_share_of_amounts_that_a_double_cannot_multiply(server, limits, taken, asked):
    clock = FrozenClock()
    rows = [LimitRow.of(f"agent:{place}", Limit(amount=limit, unit=Unit.USD)) for place, limit in enumerate(limits)]
    stores = [MemoryStore(clock), make(server, clock)]
    answers = []
    for store in stores:
        store.register(rows)
        store.reserve(Reserve("1", tuple(Charge(row.key, max(int(row.limit.amount * taken), 1)) for row in rows), force=True))
        charges = tuple(Charge(row.key, amount) for row, amount in zip(rows, asked, strict=False))
        answers.append((store.extend("1", charges), store.read([row.key for row in rows])))
        answers[-1] += (store.settle("1", Amounts(nanos=asked[0])), store.read([row.key for row in rows]))
    stores[1].close()

    assert answers[0] == answers[1]


AMOUNT = st.integers(0, 12)


class Slices(RuleBasedStateMachine):
    """Accounts of slices and calls in any order: Redis answers what memory answers."""

    def __init__(self, server) -> None:
        super().__init__()
        self.clock = FrozenClock()
        self.stores = [MemoryStore(self.clock), make(server, self.clock)]
        self.ask("register", list(machine.ROWS))

    def ask(self, verb: str, *args):
        answers = [getattr(store, verb)(*args) for store in self.stores]
        assert answers[0] == answers[1], (verb, args, answers)
        return answers[0]

    @rule(
        name=st.sampled_from("xy"),
        used=st.builds(Amounts, AMOUNT, AMOUNT, AMOUNT),
        keep=machine.CHARGES,
        call=machine.CHARGES,
        calls=st.integers(0, 5),
        share=st.integers(1, 3),
    )
    def lease(self, name, used, keep, call, calls, share) -> None:
        self.ask("lease", Account(name, used, keep, call, calls, share))

    @rule(name=st.sampled_from("xyab"), charges=machine.CHARGES)
    def reserve(self, name, charges) -> None:
        self.ask("reserve", Reserve(name, charges))

    @rule(name=st.sampled_from("xyab"), actual=st.builds(Amounts, AMOUNT, AMOUNT, AMOUNT))
    def settle(self, name, actual) -> None:
        self.ask("settle", name, actual)

    @rule(seconds=st.sampled_from([0.5, 1.0, 31.0, 61.0, 3600.0]))
    def advance(self, seconds) -> None:
        self.clock.advance(seconds)

    @invariant()
    def balances_agree(self) -> None:
        self.ask("read", sorted(machine.BY_KEY))

    def teardown(self) -> None:
        self.stores[1].close()


def test_redis_and_memory_give_the_same_slices(server):
    run_state_machine_as_test(lambda: Slices(server), settings=settings(machine.LONG, max_examples=60))


def test_a_slice_that_is_settled_spends_the_calls_that_it_names(server):
    clock = FrozenClock()
    limit_row = LimitRow.of("agent:a", Limit(amount=100, unit=Unit.CALLS))
    for store in (MemoryStore(clock), make(server, clock)):
        store.register([limit_row])
        store.lease(Account("slice", Amounts(), (), (Charge(limit_row.key, 1),), 10))
        store.settle("slice", Amounts(calls=4))
        (balance,) = store.read([limit_row.key])
        store.close()

        assert (balance.spent, balance.held) == (4, 0)

"""What slices are for, and that they never show: every answer is the one that the store behind would have given."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, OnStoreDown, Unit, Window
from agentguard.stores import open_store
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.leased import HORIZON_SECONDS, LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.redis import RedisStore

from .redis_server import PROGRAM

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


def test_a_process_that_ends_gives_back_what_lies_idle(leased, behind):
    for number in range(50):
        call(leased, f"{number}")

    leased.leave("the process")

    assert spent_and_held(behind, TOKENS) == [(200, 0)]


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


def test_another_subject_goes_on_from_its_slice_while_one_is_isolated(leased, behind):
    leased.isolate("agent:b", on=True, by="ada", why="drill")
    for number in range(20):
        call(leased, f"{number}")
    asked = len(behind.asked)
    rows = tuple(CHAIN)
    answers = [leased.reserve(Reserve(f"more-{number}", charges(1, 1, 0), ("agent:a",), rows=rows)) for number in range(3)]

    assert answers == [GRANTED] * 3
    assert len(behind.asked) == asked
    assert leased.reserve(Reserve("b", charges(1, 1, 0), ("agent:b",), rows=rows)).kind is RefusalKind.ISOLATED


def test_a_slice_that_the_store_has_not_heard_of_for_a_horizon_admits_nothing(leased, behind, clock):
    slow = LimitRow.of("agent:slow", Limit(amount=10_000, unit=Unit.TOKENS))
    leased.register([slow])
    for number in range(20):
        leased.reserve(Reserve(f"{number}", (Charge(slow.key, 1),)))
    clock.advance(HORIZON_SECONDS)
    asked = len(behind.asked)

    leased.reserve(Reserve("late", (Charge(slow.key, 1),)))

    assert len(behind.asked) > asked


def test_a_process_that_leases_nothing_listens_to_nobody(behind, leased):
    leased.reserve(Reserve("one", charges()))

    assert not leased._others.are_heard


# --- over a network -------------------------------------------------------------------------------------------------

FAR = LimitRow.of("agent:far", Limit(amount=1000, unit=Unit.TOKENS))
LOCAL = LimitRow.of("agent:local", Limit(amount=1000, unit=Unit.TOKENS, on_store_down=OnStoreDown.LOCAL))
PATIENT = "?timeout=2"


def ask(store, name, amount=1, row=FAR):
    return store.reserve(Reserve(name, (Charge(row.key, amount),)))


def until_it_hears(store, own):
    """A subscription has begun to stand, and what was told over it has been read: either needs the server."""
    told, read = threading.Event(), threading.Event()
    # Whoever watches is told in the order of joining: this one after the store itself.
    watch = store.watch_isolations(lambda: told.is_set() and read.set(), lambda _epoch, _isolation: told.set())
    deadline = time.monotonic() + 10
    with contextlib.closing(watch), contextlib.closing(RedisStore(own.url + PATIENT)) as operator:
        while not own.ask("PUBSUB", "CHANNELS"):  # what is said before nobody hears
            assert time.monotonic() < deadline
            time.sleep(0.005)
        operator.isolate("agent:elsewhere", on=True, by="ada", why="drill")
        assert read.wait(10)
    request = Reserve("isolated", (Charge(FAR.key, 1),), ("agent:elsewhere",))
    assert store.reserve(request).kind is RefusalKind.ISOLATED


def far(own, clock=time):
    store = LeasedStore(RedisStore(own.url + PATIENT), clock)
    store.register([FAR])
    return store


@pytest.mark.needs(PROGRAM)
def test_a_process_that_has_lost_the_store_goes_on_with_what_is_its_own_for_a_horizon(own, clock):
    with contextlib.closing(far(own, clock)) as store:
        for number in range(10):
            ask(store, f"before-{number}")
        until_it_hears(store, own)
        own.kill()
        answers = [ask(store, f"without-{number}") for number in range(2)]
        clock.advance(HORIZON_SECONDS)
        with pytest.raises(StoreUnavailable):
            ask(store, "late")

    assert answers == [GRANTED] * 2


@pytest.mark.needs(PROGRAM)
def test_a_limit_that_may_be_counted_locally_is_so_when_its_slice_is_used_up(own):
    with contextlib.closing(open_store(own.url + PATIENT)) as store:
        store.register([LOCAL])
        for number in range(10):
            ask(store, f"before-{number}", row=LOCAL)
        store.sweep()
        (balance,) = store.read([LOCAL.key])
        own.kill()
        names = [f"without-{number}" for number in range(300)]
        admitted = [name for name in names if isinstance(ask(store, name, row=LOCAL), Granted)]
        settled = [store.settle(name, Amounts(1)).first for name in admitted]

    taken = len(admitted)
    assert balance.spent + balance.held == 10
    assert all(settled)
    assert 99 <= taken <= 99 + 125  # a tenth of the 990 that were left, and what lay in the slice: at most an eighth


@pytest.mark.needs(PROGRAM)
def test_nothing_is_admitted_beyond_a_limit_when_the_store_loses_its_memory(own):
    with contextlib.closing(far(own)) as one, contextlib.closing(far(own)) as other:
        granted = 0
        until = time.monotonic() + 30
        for number in range(100_000):
            if number == 150:
                own.ask("FLUSHALL")
            for store in (one, other):
                granted += isinstance(ask(store, f"{id(store)}-{number}"), Granted)
            if number % 50 == 0:
                one.sweep(), other.sweep()
            if granted >= FAR.limit.amount or time.monotonic() > until:
                break
            if number > 150:
                with contextlib.suppress(StoreUnavailable):
                    one.register([FAR]), other.register([FAR])
        late = [ask(store, f"late-{number}") for number in range(20) for store in (one, other)]
        (balance,) = one.read([FAR.key])

    assert granted == FAR.limit.amount
    assert not any(isinstance(answer, Granted) for answer in late)
    assert (balance.spent + balance.held, balance.amount) == (1000, 1000)


@pytest.mark.needs(PROGRAM)
def test_tasks_are_admitted_from_slices_and_exactly_as_many_as_the_limit_lets(own):
    async def crowd(store, name, calls):
        granted = 0
        for number in range(calls):
            granted += isinstance(await store.areserve(Reserve(f"{name}-{number}", (Charge(FAR.key, 1),))), Granted)
        return granted

    def trips():
        return own.client().info("commandstats")["cmdstat_evalsha"]["calls"]

    async def crowds(store):
        before = trips()
        granted = sum(await asyncio.gather(*(crowd(store, name, 15) for name in range(32))))
        assert (granted, trips() - before < 240) == (480, True)
        granted += sum(await asyncio.gather(*(crowd(store, name, 25) for name in range(32, 64))))
        await store.store.aclose()
        return granted

    with contextlib.closing(far(own)) as store:
        granted = asyncio.run(crowds(store))
        (balance,) = store.read([FAR.key])

    assert granted == 1000
    assert (balance.spent, balance.held) == (0, 1000)


@pytest.mark.needs(PROGRAM)
def test_tasks_that_are_cancelled_while_they_ask_hold_nothing(own):
    async def cancelled(store):
        for turn in range(20):
            asking = [
                asyncio.ensure_future(store.areserve(Reserve(f"{turn}-{name}", (Charge(FAR.key, 1),)))) for name in range(8)
            ]
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            if turn % 2:
                await asyncio.sleep(0.002)
            for task in asking:
                task.cancel()
            for answer, name in zip(await asyncio.gather(*asking, return_exceptions=True), range(8), strict=True):
                if isinstance(answer, Granted):
                    store.settle(f"{turn}-{name}", Amounts())
        await store.store.aclose()

    with contextlib.closing(far(own)) as store:
        asyncio.run(cancelled(store))
        until = time.monotonic() + 10
        while (balance := store.read([FAR.key])[0]).held and time.monotonic() < until:
            time.sleep(0.02)

    assert (balance.spent, balance.held) == (0, 0)


def test_what_is_told_while_balances_are_read_is_counted_once(clock):
    class Interrupted(MemoryStore):
        """A store that is slow to say what it has read."""

        meanwhile = None

        def read(self, keys):
            found = super().read(keys)
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            return found

    behind = Interrupted(clock)
    with contextlib.closing(LeasedStore(behind, clock)) as leased:
        leased.register(CHAIN)
        for number in range(20):
            call(leased, f"{number}")
        before = spent_and_held(leased, *CHAIN)
        behind.meanwhile = functools.partial(leased.leave, leased.me)  # gives back what lies idle
        during = spent_and_held(leased, *CHAIN)

    assert behind.meanwhile is None
    assert before == during == [(80, 0), (40, 0), (20, 0), (80, 0)]


def test_what_was_used_is_told_again_when_the_telling_was_interrupted(clock):
    class Interrupted(MemoryStore):
        is_interrupted = False

        def lease(self, account):
            if self.is_interrupted:
                raise KeyboardInterrupt
            return super().lease(account)

    behind = Interrupted(clock)
    with contextlib.closing(LeasedStore(behind, clock)) as leased:
        leased.register(CHAIN)
        for number in range(20):
            call(leased, f"{number}")
        clock.advance(HORIZON_SECONDS)
        behind.is_interrupted = True
        with pytest.raises(KeyboardInterrupt):
            leased.sweep()
        behind.is_interrupted = False
        leased.sweep()

        assert spent_and_held(behind, *CHAIN) == [(80, 0), (40, 0), (20, 0), (80, 0)]


def test_a_first_slice_whose_answer_was_lost_strands_nothing(clock):
    class Loses(MemoryStore):
        loses_answers = False

        def lease(self, account):
            answer = super().lease(account)
            if self.loses_answers:
                raise StoreUnavailable("no answer in time")
            return answer

    behind = Loses(clock)
    with contextlib.closing(LeasedStore(behind, clock)) as leased:
        leased.register(CHAIN)
        call(leased, "1")
        behind.loses_answers = True
        with pytest.raises(StoreUnavailable):
            leased.reserve(Reserve("2", charges()))
        stranded = spent_and_held(behind, TOKENS)
        behind.loses_answers = False

        leased.sweep()

        assert stranded[0][1] > 0
        assert spent_and_held(behind, *CHAIN) == [(4, 0), (2, 0), (1, 0), (4, 0)]


def test_a_clock_that_is_set_back_keeps_nothing_from_being_told(clock):
    with contextlib.closing(LeasedStore(MemoryStore(clock), clock)) as leased:
        leased.register([FLEET])
        for number in range(20):
            leased.reserve(Reserve(f"{number}", (Charge(FLEET.key, 10),)))
            leased.settle(f"{number}", Amounts(4))
        clock.set_time(clock.time() - 3600)

        leased.sweep()

        assert leased.store.read([FLEET.key])[0].spent == 80

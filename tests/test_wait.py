"""A call that would rather wait for a window to be over than be refused: `wait=`, `agentguard.waiting()`, `limits.wait`."""

from __future__ import annotations

import asyncio
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentguard
from agentguard import AgentIsolated, BudgetExceeded, Guard, HTTPCall, LLMCall, Policy, RateLimited, propagate
from agentguard.audit.schema import record_of
from agentguard.changes import Changes
from agentguard.events import CallAdmitted, CallDenied
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import FrozenClock

CALL = HTTPCall.to("GET", "http://127.0.0.1/")
MINUTE = {"limit": "2 calls", "every": "minute"}


class CountingStore(MemoryStore):
    """A store that knows how often it was asked."""

    def __init__(self, clock):
        super().__init__(clock)
        self.clock = clock
        self.requests = []

    def reserve(self, request):
        self.requests.append(request)
        return super().reserve(request)

    @property
    def asked(self):
        return len(self.requests)


class Clock(FrozenClock):
    """A clock that wakes who waits when it is moved, as time itself would."""

    guard = None

    def advance(self, seconds):
        super().advance(seconds)
        self.guard.orders.announce()

    def set_time(self, time):
        super().set_time(time)
        self.guard.orders.announce()


def chat(max_tokens):
    return LLMCall("chat", "openai", "gpt-5", CALL.target, max_output_tokens=max_tokens)


def policy(*budgets, **more):
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}, "budgets": list(budgets)}
    return Policy.from_mapping({"agents": [worker], **more})


@pytest.fixture
def guard_of():
    made = []

    def make(*budgets, store=None, clock=None, document=None, **more):
        clock = clock or Clock()
        one = Guard(document or policy(*budgets, **more), store=store or CountingStore(clock), clock=clock)
        clock.guard = one
        one.events = []
        one.observe(one.events.append)
        made.append(one)
        return one

    yield make
    for one in made:
        one.clock.advance(10_000)  # a test that fails leaves nobody waiting
        one.close()


@pytest.fixture
def pool():
    pool = ThreadPoolExecutor(32)
    yield pool
    pool.shutdown(wait=False)


def told(guard, kind):
    guard.flush()
    return [event for event in guard.events if type(event) is kind]


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


async def auntil(condition):
    while not condition():  # noqa: ASYNC110 - it comes true in other tasks and threads
        await asyncio.sleep(0.001)


def use_up(guard, calls=2):
    for _ in range(calls):
        guard.begin(CALL).settle()


def is_settled(guard):
    return guard.orders.waiting == guard.changes.waiting == 0 and not guard.open_calls


# --- waiting for a window ----------------------------------------------------------------------------------------------


def test_a_call_waits_until_its_window_is_over(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)
    guard.clock.advance(50)

    waiting = pool.submit(guard.begin, CALL, wait=10)
    until(lambda: guard.orders.waiting)
    guard.clock.advance(9.5)
    with pytest.raises(TimeoutError):
        waiting.result(0.1)
    guard.clock.advance(0.5)
    waiting.result(30).settle()

    assert [event.waited for event in told(guard, CallAdmitted)] == [0, 0, 10]
    assert is_settled(guard)


def test_a_rate_is_waited_for_too(guard_of, pool):
    guard = guard_of({"limit": "2_requests_per_minute"})
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=61)
    until(lambda: guard.orders.waiting)
    guard.clock.advance(61)

    waiting.result(30).settle()


def test_a_task_waits_without_blocking_its_loop(guard_of):
    guard = guard_of(MINUTE)
    use_up(guard)

    async def main():
        async def call():
            async with guard.aadmit(CALL, wait=60):
                pass

        waiting = asyncio.create_task(call())
        await auntil(lambda: guard.orders.waiting)
        guard.clock.advance(60)
        await asyncio.wait_for(waiting, 30)

    asyncio.run(main())

    assert [event.waited for event in told(guard, CallAdmitted)] == [0, 0, 60]
    assert is_settled(guard)


def test_a_real_window_is_waited_for_by_the_real_clock():
    guard = Guard(policy({"limit": "1 calls", "every": "300ms"}))
    started = time.monotonic()
    guard.begin(CALL).settle()

    with guard.admit(CALL, wait=30):
        took = time.monotonic() - started

    assert took >= 0.29
    guard.close()


def test_what_no_wait_would_mend_is_refused_at_once_with_the_same_facts(guard_of):
    guard = guard_of(MINUTE)
    use_up(guard)
    guard.clock.advance(50)

    with pytest.raises(BudgetExceeded) as at_once:
        guard.begin(CALL)
    with pytest.raises(BudgetExceeded) as after_all:
        guard.begin(CALL, wait=9.9)

    assert after_all.value.decision == at_once.value.decision
    assert after_all.value.decision.facts.retry_after == 10
    assert is_settled(guard)


@pytest.mark.parametrize("never", [{"limit": "2 calls"}, {"limit": "2 calls", "every": "hour"}])
def test_a_limit_that_will_not_mend_outranks_one_that_will(guard_of, never):
    guard = guard_of({"limit": "2_requests_per_second"}, never)
    use_up(guard)

    with pytest.raises(BudgetExceeded) as refused:
        guard.begin(CALL, wait=5)

    assert refused.value.rule == "budgets[1]"
    assert refused.value.decision.facts.waited == 0


def test_a_call_that_is_too_large_for_its_limit_never_waits(guard_of):
    guard = guard_of({"limit": "100 tokens", "every": "minute"})

    with pytest.raises(BudgetExceeded) as refused:
        guard.begin(chat(500), wait=1000)

    assert refused.value.resets_at is None
    assert is_settled(guard)


def test_a_call_waits_on_when_others_were_faster_and_no_longer_than_it_was_told(guard_of, pool):
    guard = guard_of({"limit": "1 calls", "every": "minute"})
    use_up(guard, 1)

    waiting = pool.submit(guard.begin, CALL, wait=100)
    until(lambda: guard.orders.waiting)
    with guard.orders._condition:  # nobody wakes before the window has been taken
        FrozenClock.advance(guard.clock, 60)
        use_up(guard, 1)
    guard.orders.announce()

    with pytest.raises(
        BudgetExceeded, match=r"It has waited for 60\.0 s\."
    ) as refused:  # the next minute is 60 s away, 40 are left
        waiting.result(30)
    assert refused.value.decision.facts.waited == 60
    assert refused.value.decision.facts.retry_after == 60
    assert pickle.loads(pickle.dumps(refused.value)).decision == refused.value.decision
    assert is_settled(guard)


def test_a_wall_clock_that_is_set_back_prolongs_no_wait(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.clock.set_time(guard.clock.time() - 3600)
    FrozenClock.advance(guard.clock, 60)
    guard.orders.announce()

    with pytest.raises(BudgetExceeded):
        waiting.result(30)


def test_a_store_whose_clock_is_behind_is_not_asked_in_a_busy_loop(guard_of, pool):
    store = CountingStore(FrozenClock())
    clock = Clock(store.clock.time() + 100)  # to us, every window of the store is over
    guard = guard_of(MINUTE, store=store, clock=clock)
    use_up(guard)
    started = time.monotonic()

    waiting = pool.submit(guard.begin, CALL, wait=1)
    until(lambda: store.asked >= 6)
    took = time.monotonic() - started
    clock.advance(1)

    with pytest.raises(BudgetExceeded):
        waiting.result(30)
    assert took >= 3 * 0.05  # asked at once, and then three times


# --- many who wait -----------------------------------------------------------------------------------------------------


def test_threads_that_wait_for_one_window_ask_once_each_time_it_is_over(guard_of, pool):
    guard = guard_of({"limit": "5 calls", "every": "minute"})
    use_up(guard, 5)

    waiting = [pool.submit(guard.begin, CALL, wait=1000) for _ in range(20)]
    until(lambda: guard.orders.waiting == 20)
    asked = []
    for left in (15, 10, 5, 0):
        before = guard.store.asked
        guard.clock.advance(60)
        until(lambda left=left: guard.orders.waiting == left)
        until(lambda left=left, before=before: guard.store.asked - before == left + 5)
        asked.append(guard.store.asked - before)

    assert asked == [20, 15, 10, 5]
    assert sorted(event.waited for event in told(guard, CallAdmitted)[5:]) == [60] * 5 + [120] * 5 + [180] * 5 + [240] * 5
    for one in waiting:
        one.result(30).settle()
    assert is_settled(guard)


def test_tasks_that_wait_for_one_window_ask_once_each_time_it_is_over(guard_of):
    guard = guard_of({"limit": "30 calls", "every": "minute"})
    use_up(guard, 30)
    asked = []

    async def main():
        waiting = [asyncio.create_task(guard.abegin(CALL, wait=1000)) for _ in range(100)]
        await auntil(lambda: guard.orders.waiting == 100)
        for left in (70, 40, 10, 0):
            before = guard.store.asked
            guard.clock.advance(60)
            await auntil(lambda left=left: guard.orders.waiting == left)
            await asyncio.sleep(0.1)
            asked.append(guard.store.asked - before)
        for one in waiting:
            (await one).settle()

    asyncio.run(asyncio.wait_for(main(), 60))

    assert asked == [100, 70, 40, 10]
    assert is_settled(guard)


@pytest.mark.parametrize("backend", ["memory", "leased", "sqlite"])
def test_a_rate_is_kept_by_all_who_wait_for_it(backend, pool, tmp_path):
    store = SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else MemoryStore()
    guard = Guard(policy({"limit": "4 calls", "every": "300ms"}), store=LeasedStore(store) if backend == "leased" else store)
    started = time.monotonic()

    for one in [pool.submit(guard.begin, CALL, wait=30) for _ in range(16)]:
        one.result(30).settle()

    assert time.monotonic() - started >= 3 * 0.29  # the last four are in the fourth window at the earliest
    guard.close()


def test_settlements_of_others_wake_nobody_to_ask(guard_of, pool):
    guard = guard_of({"limit": "2 calls", "every": "minute", "per": "session"})

    def in_session(name):
        with agentguard.session(name):
            return guard.begin(CALL, wait=60)

    for _ in range(2):
        in_session("a").settle()
    waiting = pool.submit(in_session, "a")
    until(lambda: guard.orders.waiting)
    before = guard.store.asked
    for number in range(50):
        in_session(f"other-{number}").settle()

    assert guard.store.asked - before == 50
    guard.clock.advance(60)
    waiting.result(30).settle()


# --- what ends a wait --------------------------------------------------------------------------------------------------


def test_an_isolation_ends_the_wait_of_a_thread_at_once(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.isolate("worker", by="ops", why="drill")

    with pytest.raises(AgentIsolated):
        waiting.result(30)
    assert is_settled(guard)


def test_an_isolation_by_another_process_ends_the_wait_of_one_that_has_never_made_a_call(guard_of, pool, tmp_path):
    clock = Clock()
    filled = guard_of(MINUTE, store=SqliteStore(tmp_path / "ledger.sqlite", clock), clock=clock)
    use_up(filled)
    guard = guard_of(MINUTE, store=SqliteStore(tmp_path / "ledger.sqlite", clock), clock=clock)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    filled.isolate("worker", by="ops", why="drill")

    with pytest.raises(AgentIsolated):
        waiting.result(30)


def test_an_isolation_ends_the_wait_of_a_task_at_once(guard_of):
    guard = guard_of(MINUTE)
    use_up(guard)

    async def main():
        waiting = asyncio.create_task(guard.abegin(CALL, wait=60))
        await auntil(lambda: guard.orders.waiting)
        await asyncio.to_thread(guard.isolate, "worker", by="ops", why="drill")
        with pytest.raises(AgentIsolated):
            await asyncio.wait_for(waiting, 30)

    asyncio.run(main())


def test_the_isolation_of_somebody_else_does_not(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.isolate("session:42", by="ops", why="drill")
    guard.clock.advance(60)

    waiting.result(30).settle()


def test_a_policy_that_is_adopted_judges_who_waits_anew(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.adopt(policy({"limit": "3 calls", "every": "minute"}))
    waiting.result(30).settle()
    refused = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.adopt(policy({"limit": "3 calls", "every": "minute"}, mode="report"))

    refused.result(30).settle()
    assert [balance.spent for _, balance in guard.usage()] == [4]


@pytest.mark.parametrize("budget", [MINUTE, {"limit": "2 concurrent_calls"}])
def test_who_waits_does_not_bring_back_the_limit_of_the_policy_before(guard_of, pool, budget):
    guard = guard_of(budget, limits={"wait": "60s"})
    held = [guard.begin(CALL) for _ in range(2)]

    waiting = pool.submit(guard.begin, CALL)
    until(lambda: guard.orders.waiting)
    lower = {**budget, "limit": budget["limit"].replace("2", "1")}
    guard.adopt(policy(lower, limits={"wait": "60s"}))
    time.sleep(0.2)

    assert [balance.amount for _, balance in guard.usage()] == [1]
    for one in held:
        one.settle()
    guard.clock.advance(60)
    waiting.result(30).settle()


def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing(guard_of):
    guard = guard_of(MINUTE)
    use_up(guard)

    async def main():
        waiting = [asyncio.create_task(guard.abegin(CALL, wait=60)) for _ in range(5)]
        await auntil(lambda: guard.orders.waiting == 5)
        for one in waiting:
            one.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in ended)
        assert is_settled(guard)

    asyncio.run(main())

    assert guard.orders._wake_loops == {}
    assert [(balance.spent, balance.held) for _, balance in guard.usage()] == [(2, 0)]


def test_a_thread_that_is_interrupted_while_it_waits_leaves_nothing(guard_of):
    guard = guard_of(MINUTE)
    use_up(guard)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            guard.begin(CALL, wait=60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert is_settled(guard)
    assert [(balance.spent, balance.held) for _, balance in guard.usage()] == [(2, 0)]


# --- who says how long -------------------------------------------------------------------------------------------------


def test_the_policy_says_how_long(guard_of, pool):
    guard = guard_of(MINUTE, limits={"wait": "60s"})
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL)
    until(lambda: guard.orders.waiting)
    guard.clock.advance(60)

    waiting.result(30).settle()


def test_a_block_says_how_long_and_a_call_outranks_it(guard_of, pool):
    guard = guard_of(MINUTE, limits={"wait": "60s"})
    use_up(guard)

    with agentguard.waiting(0), pytest.raises(BudgetExceeded):
        guard.begin(CALL)
    with agentguard.waiting(60), agentguard.waiting(0):
        waiting = pool.submit(propagate(guard.begin), CALL, wait=60)
    until(lambda: guard.orders.waiting)
    with agentguard.waiting(60), pytest.raises(BudgetExceeded):
        guard.begin(CALL, wait=0)
    guard.clock.advance(60)

    waiting.result(30).settle()


def test_a_block_goes_with_its_context_into_tasks_and_threads(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    async def main():
        with agentguard.waiting(60):
            tasks = [asyncio.create_task(guard.abegin(CALL)), asyncio.create_task(asyncio.to_thread(guard.begin, CALL))]
        await auntil(lambda: guard.orders.waiting == 2)
        with pytest.raises(BudgetExceeded):
            guard.begin(CALL)
        guard.clock.advance(60)
        for one in await asyncio.wait_for(asyncio.gather(*tasks), 30):
            one.settle()

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
def test_a_wait_is_bounded(seconds):
    with pytest.raises(ValueError, match="bounded"), agentguard.waiting(seconds):
        pass


def test_a_wait_bounds_what_a_call_waits_for_others_too(guard_of, pool):
    guard = guard_of({"limit": "1 concurrent_calls"})
    held = pool.submit(guard.begin, CALL).result(30)
    started = time.monotonic()

    with agentguard.waiting(0), pytest.raises(RateLimited):
        guard.begin(CALL)

    assert time.monotonic() - started < 15  # of the 30 of `limits.contention_wait`
    held.settle()
    assert is_settled(guard)


def test_what_this_thread_holds_is_waited_for_only_until_its_window_is_over(guard_of, pool):
    guard = guard_of({"limit": "1000 tokens", "every": "minute"})

    def both():
        first = guard.begin(chat(800))
        with pytest.raises(BudgetExceeded):
            guard.begin(chat(800), wait=59)
        return first, guard.begin(chat(800), wait=60)

    waiting = pool.submit(both)
    until(lambda: guard.orders.waiting)
    guard.clock.advance(60)

    for one in waiting.result(30):
        one.settle()


def test_in_report_mode_nobody_waits(guard_of):
    guard = guard_of(MINUTE, mode="report", limits={"wait": "60s"})
    use_up(guard)

    guard.begin(CALL, wait=60).settle()

    assert [event.enforced for event in told(guard, CallDenied)] == [False]
    assert [event.waited for event in told(guard, CallAdmitted)] == [0, 0, 0]


def test_check_waits_for_nothing(guard_of):
    guard = guard_of(MINUTE, limits={"wait": "60s"})
    use_up(guard)

    assert not guard.check(CALL).allowed
    assert is_settled(guard)


def test_the_record_says_how_long_a_call_has_waited(guard_of, pool):
    guard = guard_of(MINUTE)
    use_up(guard)

    waiting = pool.submit(guard.begin, CALL, wait=60)
    until(lambda: guard.orders.waiting)
    guard.clock.advance(60)
    waiting.result(30).settle()

    records = [record_of(event) for event in told(guard, CallAdmitted)]
    assert [record.get("waited_us") for record in records] == [None, None, 60_000_000]


# --- the law -----------------------------------------------------------------------------------------------------------


class Passing(Changes):
    """Time passes as soon as somebody waits for it."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock

    def wait(self, seen, seconds):
        assert seconds > 0
        self._clock.advance(seconds)


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from(["minute", "hour", "45s", "10m"]),
    gaps=st.lists(st.integers(0, 100), min_size=1, max_size=4),
    wait=st.integers(0, 1000),
)
def test_a_lone_caller_is_served_if_and_only_if_its_wait_is_long_enough(window, gaps, wait):
    clock = FrozenClock()
    store = CountingStore(clock)
    with closing(Guard(policy({"limit": f"{len(gaps)} calls", "every": window}), store=store, clock=clock)) as guard:
        guard.orders = Passing(clock)
        for gap in gaps:
            guard.begin(CALL).settle()
            clock.advance(gap)
        try:
            guard.begin(CALL).settle()
            return  # an earlier window was over already
        except (BudgetExceeded, RateLimited) as refused:
            due = refused.decision.facts.retry_after
        started, asked = clock.monotonic(), store.asked

        try:
            guard.begin(CALL, wait=wait).settle()
            is_served = True
        except (BudgetExceeded, RateLimited):
            is_served = False

        took = clock.monotonic() - started
        assert is_served is (due <= wait)
        assert took == pytest.approx(due if is_served else 0)
        assert store.asked - asked == (2 if is_served else 1)

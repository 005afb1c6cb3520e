"""The guard itself, without any SDK: check, admit, settle, wait, isolate, adopt, tell."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from agentguard import (
    AgentIsolated,
    BudgetExceeded,
    EgressDenied,
    Guard,
    HTTPCall,
    LLMCall,
    Policy,
    PolicyError,
    RateLimited,
    StoreUnavailable,
    ToolCall,
    Usage,
)
from agentguard.core.call import Target
from agentguard.events import (
    BudgetThresholdCrossed,
    CallAdmitted,
    CallDenied,
    CallSettled,
    EstimateBreached,
    PolicyLoaded,
    SubjectIsolated,
)
from agentguard.stores.memory import MemoryStore
from agentguard.testing import FrozenClock

HERE = Target("http", "127.0.0.1", 80, "/v1/chat/completions")


def call(max_tokens=100, **more):
    return LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=max_tokens, **more)


def policy(*budgets, **more):
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}}
    listed = [{"limit": budget} if isinstance(budget, str) else budget for budget in budgets]
    return Policy.from_mapping({"agents": [worker | {"budgets": listed}]} | more)


@pytest.fixture
def guard_of():
    made = []

    def make(*budgets, store=None, clock=None, document=None, **more):
        one = Guard(document or policy(*budgets, **more), store=store, **({} if clock is None else {"clock": clock}))
        one.events = []
        one.observe(one.events.append)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def told(guard, kind):
    guard.flush()
    return [event for event in guard.events if type(event) is kind]


def balance(guard):
    [(_, balance)] = guard.usage()
    return balance.spent, balance.held


def use(guard, tokens=10, **more):
    with guard.admit(call(**more)) as admission:
        admission.settle(Usage(0, tokens))


# --- asking and admitting ----------------------------------------------------------------------------------------------


def test_check_says_what_would_be_decided_and_takes_nothing(guard_of):
    guard = guard_of("1000 tokens", "1 concurrent_calls")

    assert guard.check(call()).allowed
    assert not guard.check(call(5000)).allowed
    assert guard.check(HTTPCall.to("GET", "http://evil.example/")).rule == "external_calls.allowed_domains"

    assert {balance.held for _, balance in guard.usage()} == {0}
    assert told(guard, CallDenied) == []


def test_check_and_admit_agree(guard_of):
    guard = guard_of("1000 tokens")
    with guard.admit(call(700)):
        asked = guard.check(call(700))
        with pytest.raises(BudgetExceeded) as refused:
            guard.begin(call(700))

    assert asked == refused.value.decision


def test_a_call_is_held_while_it_runs_and_charged_when_it_ends(guard_of):
    guard = guard_of("1000 tokens")

    with guard.admit(call(100)) as admission:
        held = balance(guard)[1]
        admission.settle(Usage(20, 30))

    assert held == 109
    assert balance(guard) == (50, 0)
    [admitted], [settled] = told(guard, CallAdmitted), told(guard, CallSettled)
    assert (admitted.id, admitted.tokens) == (settled.id, 109)
    assert (settled.outcome, settled.usage.total_tokens, settled.reserved_tokens) == ("complete", 50, 109)


def test_a_call_that_was_never_sent_costs_nothing(guard_of):
    guard = guard_of("1000 tokens")

    with guard.admit(call()):
        pass
    with pytest.raises(ZeroDivisionError), guard.admit(call()):
        raise ZeroDivisionError

    assert balance(guard) == (0, 0)
    assert [event.outcome for event in told(guard, CallSettled)] == ["complete", "error"]


def test_a_call_settles_once(guard_of):
    guard = guard_of("1000 tokens")

    with guard.admit(call()) as admission:
        admission.settle(Usage(1, 1))
        admission.settle(Usage(500, 500))
        admission.settle_later(Usage(500, 500))
    guard.ledger.settle_ended()

    assert balance(guard) == (2, 0)
    assert len(told(guard, CallSettled)) == 1


def test_many_threads_that_settle_one_call_settle_it_once(guard_of):
    guard = guard_of("1000 tokens")
    admission = guard.begin(call())
    barrier = threading.Barrier(8)

    def settle():
        barrier.wait()
        admission.settle(Usage(1, 1))

    threads = [threading.Thread(target=settle) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert balance(guard) == (2, 0)
    assert len(told(guard, CallSettled)) == 1


def test_aadmit_does_what_admit_does(guard_of):
    guard = guard_of("1000 tokens")

    async def main():
        async with guard.aadmit(call()) as admission:
            admission.settle(Usage(20, 30))
        with pytest.raises(BudgetExceeded):
            async with guard.aadmit(call(5000)):
                pass

    asyncio.run(main())

    assert balance(guard) == (50, 0)


def test_a_report_beyond_the_reservation_is_charged_and_told(guard_of):
    guard = guard_of("1000 tokens")

    use(guard, tokens=700)

    assert balance(guard) == (700, 0)
    [breached] = told(guard, EstimateBreached)
    assert (breached.reserved_tokens, breached.used_tokens) == (109, 700)


def test_what_a_provider_reports_teaches_the_next_estimate(guard_of):
    guard = guard_of("100000 tokens")
    text = call(100, input_bytes=3000)
    first = guard.begin(text)
    first.settle(Usage(750, 50))

    second = guard.begin(text)

    assert first.estimate.input_tokens > 1000
    assert 750 <= second.estimate.input_tokens < 1000
    second.settle(Usage(750, 50))


def test_an_output_bound_is_written_where_the_request_has_none(guard_of):
    guard = guard_of("1000 tokens")

    with guard.admit(call(None)) as admission:
        assert 900 < admission.written_bound <= 991
        assert balance(guard) == (0, 9 + admission.written_bound)


def test_without_a_limit_nothing_is_written(guard_of):
    guard = guard_of()

    with guard.admit(call(None)) as admission:
        assert admission.written_bound is None


@pytest.mark.parametrize(("unbounded", "written"), [("write", 991), ("assume", None)])
def test_the_policy_says_what_becomes_of_an_unbounded_request(guard_of, unbounded, written):
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "budgets": [{"limit": "1000 tokens"}]}
    llm = {"unbounded_output": unbounded, "max_output_tokens": 991}
    guard = guard_of(document=Policy.from_mapping({"agents": [worker | {"llm": llm}]}))

    with guard.admit(call(None)) as admission:
        assert admission.written_bound == written
        assert balance(guard) == (0, 1000)


def test_an_unbounded_request_may_be_refused(guard_of):
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "budgets": [{"limit": "1000 tokens"}]}
    guard = guard_of(document=Policy.from_mapping({"agents": [worker | {"llm": {"unbounded_output": "deny"}}]}))

    with pytest.raises(BudgetExceeded, match="carries no bound on its output") as denied:
        guard.begin(call(None))

    assert denied.value.rule == "llm.unbounded_output"
    assert "max_tokens" in denied.value.remedy


def test_a_model_without_a_price_is_refused_where_money_is_limited(guard_of):
    guard = guard_of("$5.00")

    with pytest.raises(BudgetExceeded, match="nobody prices this model"):
        guard.begin(call()._replace(model="no-such-model-anywhere"))


def test_every_limit_is_taken_or_none(guard_of):
    guard = guard_of("10000 tokens", "1 calls", "5 concurrent_calls")

    use(guard)
    with pytest.raises(BudgetExceeded):
        guard.begin(call())

    assert {row.limit.unit.value: (balance.spent, balance.held) for row, balance in guard.usage()} == {
        "tokens": (10, 0),
        "calls": (1, 0),
        "concurrent_calls": (0, 0),
    }


def test_a_limit_over_llm_calls_does_not_count_others(guard_of):
    guard = guard_of({"limit": "1 calls", "over": "llm"}, {"limit": "2 calls", "over": "external"})

    use(guard)
    for _ in range(2):
        with guard.admit(HTTPCall("GET", HERE)):
            pass

    with pytest.raises(BudgetExceeded):
        guard.begin(call())
    with pytest.raises(BudgetExceeded):
        guard.begin(HTTPCall("GET", HERE))


def test_a_rate_lets_go_again_when_its_window_has_passed(guard_of):
    clock = FrozenClock()
    guard = guard_of("2_requests_per_minute", clock=clock)
    use(guard)
    use(guard)

    with pytest.raises(RateLimited) as limited:
        use(guard)
    clock.advance(limited.value.retry_after)
    use(guard)

    assert 59 <= limited.value.retry_after <= 61
    assert len(told(guard, CallAdmitted)) == 3


def test_a_soft_step_is_told_once(guard_of):
    guard = guard_of({"limit": "1000 tokens", "warn_at": ["50%", "80%"]})

    for tokens in (400, 200, 100, 150):
        use(guard, tokens=tokens)

    assert [event.crossed.percent for event in told(guard, BudgetThresholdCrossed)] == [50, 80]


# --- isolation ---------------------------------------------------------------------------------------------------------


def test_isolation_is_known_to_every_guard_of_the_store(guard_of):
    store = MemoryStore()
    one, other = guard_of(store=store), guard_of(store=store)

    one.isolate("agent:worker", by="on call", why="a drill")

    with pytest.raises(AgentIsolated):
        other.begin(call())
    [told_one] = told(one, SubjectIsolated)
    assert (told_one.subject, told_one.on, told_one.by, told_one.why) == ("agent:worker", True, "on call", "a drill")


def test_isolation_stops_tools_and_other_calls_too(guard_of):
    guard = guard_of()
    guard.isolate("agent:worker", by="on call", why="a drill")

    for one in (call(), HTTPCall("GET", HERE), ToolCall("search")):
        with pytest.raises(AgentIsolated):
            guard.begin(one)


# --- the policy --------------------------------------------------------------------------------------------------------


def test_a_policy_that_is_adopted_rules_the_next_call_and_keeps_the_counters(guard_of):
    guard = guard_of("1000 tokens")
    use(guard, tokens=600)

    guard.adopt(policy("500 tokens"))
    with pytest.raises(BudgetExceeded):
        guard.begin(call())
    guard.adopt(policy("2000 tokens"))
    use(guard, tokens=100)

    assert balance(guard) == (700, 0)
    assert len(told(guard, PolicyLoaded)) == 2


def test_a_policy_that_drops_the_agent_is_not_adopted(guard_of):
    guard = Guard(policy(), agent="worker")
    other = Policy.from_mapping({"agents": [{"name": "other"}]})

    with pytest.raises(PolicyError, match="agent 'worker' is not among 'other'"):
        guard.adopt(other)

    assert guard.policy.agent("worker") is not None
    guard.close()


def test_an_enforcing_policy_names_an_agent():
    with pytest.raises(PolicyError, match="names at least one agent"):
        Guard(Policy())


def test_an_agent_that_the_policy_does_not_know_is_refused_at_once():
    with pytest.raises(PolicyError, match="agent 'nobody' is not among 'worker'"):
        Guard(policy(), agent="nobody")


def test_in_report_mode_a_call_beyond_its_budget_goes_and_is_counted(guard_of):
    guard = guard_of("100 tokens", mode="report")

    use(guard, tokens=300)
    use(guard, tokens=300)

    assert balance(guard) == (600, 0)
    [denied] = told(guard, CallDenied)[:1]
    assert (denied.enforced, denied.decision.allowed) == (False, False)


# --- the store ---------------------------------------------------------------------------------------------------------


class Down(MemoryStore):
    """A store that gives no answer while it is down."""

    is_down = False

    def _answers(self):
        if self.is_down:
            raise StoreUnavailable("no answer")

    def reserve(self, request):
        self._answers()
        return super().reserve(request)

    try_reserve = reserve

    def read(self, keys):
        self._answers()
        return super().read(keys)

    def settle(self, id, actual):
        self._answers()
        return super().settle(id, actual)


def test_a_store_that_is_down_stops_calls_of_hard_limits(guard_of):
    store = Down()
    guard = guard_of("1000 tokens", store=store)
    store.is_down = True

    with pytest.raises(StoreUnavailable):
        guard.begin(call())


def test_a_store_that_is_down_lets_calls_of_open_limits_pass(guard_of):
    store = Down()
    guard = guard_of({"limit": "1000 tokens", "on_store_down": "open"}, store=store)
    store.is_down = True

    with guard.admit(call()) as admission:
        admission.settle(Usage(1, 1))


@pytest.mark.parametrize("max_tokens", [100, None])
def test_a_store_that_is_down_stops_nobody_in_report_mode_and_that_is_said_once(guard_of, caplog, max_tokens):
    store = Down()
    guard = guard_of("1000 tokens", store=store, mode="report")
    store.is_down = True

    for _ in range(3):
        with guard.admit(call(max_tokens)) as admission:
            admission.settle(Usage(1, 1))

    assert [record.message.count("uncounted") for record in caplog.records].count(1) == 1


def test_a_settlement_that_a_store_could_not_take_is_made_when_it_is_back(guard_of):
    store = Down()
    guard = guard_of("1000 tokens", store=store)
    admission = guard.begin(call())
    store.is_down = True

    admission.settle(Usage(20, 30))
    store.is_down = False
    until(lambda: balance(guard) == (50, 0))

    assert len(told(guard, CallSettled)) == 1


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


# --- observers ---------------------------------------------------------------------------------------------------------


def test_an_observer_that_fails_breaks_nothing_and_is_logged_once(guard_of, caplog):
    guard = guard_of("1000 tokens")
    seen = []

    def faulty(event):
        raise ZeroDivisionError

    guard.observe(faulty, seen.append)
    use(guard)
    use(guard)

    assert len(told(guard, CallSettled)) == 2
    assert len([event for event in seen if type(event) is CallSettled]) == 2
    assert [record.name for record in caplog.records] == ["agentguard"]


def test_a_slow_observer_does_not_hold_up_a_call(guard_of):
    guard = guard_of("1000 tokens")
    goes_on = threading.Event()
    guard.observe(lambda event: goes_on.wait(60) and None)
    started = time.monotonic()

    use(guard)

    assert time.monotonic() - started < 15
    goes_on.set()


def test_events_are_told_in_their_order(guard_of):
    guard = guard_of("1000 tokens")
    for _ in range(20):
        use(guard, tokens=1)
    guard.flush()

    kinds = [type(event) for event in guard.events if type(event) in {CallAdmitted, CallSettled}]
    assert kinds == [CallAdmitted, CallSettled] * 20


def test_close_tells_what_is_queued_and_twice_is_once(guard_of):
    guard = guard_of("1000 tokens")
    guard.begin(call()).settle_later(Usage(1, 1))

    guard.close()
    guard.close()

    assert [type(event) for event in guard.events if type(event) is CallSettled] == [CallSettled]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_goes_on_by_itself(guard_of):
    guard = guard_of("1000 tokens")
    use(guard, tokens=100)
    mine = guard.begin(call())

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            use(guard, tokens=50)
            status = 0 if balance(guard) == (259, 0) and guard.flush() else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)

    mine.settle(Usage(0, 10))
    assert os.waitstatus_to_exitcode(status) == 0
    assert balance(guard) == (110, 0)


def test_calls_go_on_where_no_thread_can_be_started(guard_of, monkeypatch):
    def cannot_start(self):
        raise RuntimeError("can't start new thread")

    guard = guard_of("1000 tokens")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", cannot_start)
        use(guard, tokens=50)

    assert guard.flush()
    assert balance(guard) == (50, 0)
    guard.join()
    assert [thread.name for thread in threading.enumerate()].count("agentguard") >= 1


def test_a_guard_in_scope_is_the_innermost(guard_of):
    from agentguard import NotInstrumented, current_guard

    outer, inner = guard_of(), guard_of()

    with outer:
        with inner:
            assert current_guard() is inner
        assert current_guard() is outer
    with pytest.raises(NotInstrumented):
        current_guard()


def test_the_first_refusal_outranks_the_counters(guard_of):
    guard = guard_of("10 tokens")

    with pytest.raises(EgressDenied):
        guard.begin(call(5000)._replace(target=HERE._replace(host="evil.example")))

"""What is left, for output bounds that have to be written: read seldom far from a limit, and closely near one."""

from __future__ import annotations

import threading

import pytest

from agentguard import BudgetExceeded, Guard, LLMCall, Policy, Usage
from agentguard.core.call import Target
from agentguard.lefts import OLD_SECONDS
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import FrozenClock

HERE = Target("http", "127.0.0.1", 80, "/v1/chat/completions")
UNBOUNDED = LLMCall("chat", "openai", "gpt-5", HERE)
CAP = 1000


def policy(limit, **more):
    worker = {
        "name": "worker",
        "external_calls": {"allowed_domains": ["127.0.0.1"]},
        "llm": {"max_output_tokens": CAP},
        "budgets": [{"limit": f"{limit} tokens"}],
    }
    return Policy.from_mapping({"agents": [worker]} | more)


class Counted:
    """A store that counts how often it is read."""

    def __init__(self, store):
        self.store = store
        self.reads = 0

    def read(self, keys):
        self.reads += 1
        return self.store.read(keys)

    def __getattr__(self, name):
        return getattr(self.store, name)


@pytest.fixture
def clock():
    return FrozenClock()


@pytest.fixture
def guards(tmp_path, clock):
    """Guards of two processes, as it were, on one ledger."""
    made = []

    def make(limit, **more):
        guard = Guard(policy(limit, **more), store=Counted(SqliteStore(tmp_path / "ledger.sqlite", clock)), clock=clock)
        made.append(guard)
        return guard

    yield make
    for guard in made:
        guard.close()


def use(guard, tokens=10, wait=None):
    with guard.admit(UNBOUNDED, wait=wait) as admission:
        admission.settle(Usage(0, tokens))
        return admission.estimate.written_bound


def test_far_from_a_limit_what_is_left_is_read_once_a_second(guards, clock):
    guard = guards(1_000_000)

    assert [use(guard) for _ in range(50)] == [CAP] * 50
    assert guard.store.reads == 1

    clock.advance(OLD_SECONDS)
    use(guard)
    assert guard.store.reads == 2


def test_near_a_limit_it_is_read_for_every_call_and_the_bound_is_what_is_left(guards):
    guard = guards(3 * CAP)

    bounds = [use(guard, 700) for _ in range(4)]

    assert guard.store.reads >= 4
    assert bounds == [
        CAP,
        CAP,
        CAP,
        3 * CAP - 3 * 700 - guard.estimator.input_tokens(UNBOUNDED, guard.policy.agents[0].llm.bound),
    ]


def test_what_another_process_has_used_meanwhile_makes_the_bound_smaller_and_refuses_nobody(guards):
    one, other = guards(20 * CAP), guards(20 * CAP)
    assert use(one) == CAP
    with other.admit(LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=19 * CAP)) as admission:
        admission.settle(Usage(0, 19 * CAP + 500))

    bound = use(one)

    assert 256 <= bound < 500


def test_what_another_process_holds_makes_the_bound_smaller_rather_than_the_call_wait(guards):
    one, other = guards(20 * CAP), guards(20 * CAP)
    use(one)

    with other.admit(LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=19 * CAP + 500)):
        bound = use(one, wait=0)

    assert 256 <= bound < 500


def test_a_limit_that_is_used_up_refuses_after_one_more_look(guards):
    one, other = guards(20 * CAP), guards(20 * CAP)
    use(one)
    with other.admit(LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=19 * CAP)) as admission:
        admission.settle(Usage(0, 20 * CAP))
    reads = one.store.reads

    with pytest.raises(BudgetExceeded):
        use(one)

    assert one.store.reads - reads <= 2


def test_in_report_mode_it_is_read_for_every_call(guards):
    guard = guards(1_000_000, mode="report")
    for _ in range(5):
        use(guard)

    assert guard.store.reads == 5


def test_calls_that_ask_for_all_that_is_left_at_once_are_all_served(guards):
    """Each waits for the others, and takes what they have left, though it was less than it had read."""
    guard = guards(CAP - 200)
    together = threading.Barrier(8)
    bounds, refused = [], []

    def call():
        together.wait()
        try:
            bounds.append(use(guard, 5))
        except BudgetExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert refused == []
    assert len(bounds) == 8

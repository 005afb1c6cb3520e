"""The guard's way to its store when that is slow, gives no answer, or gives one that is lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from agentguard import Guard, HTTPCall, LLMCall, Policy, StoreUnavailable, Usage, session
from agentguard.core.call import Target
from agentguard.events import CallSettled
from agentguard.stores.memory import MemoryStore

CALL = LLMCall("chat", "openai", "gpt-5", Target("http", "127.0.0.1", 80, "/v1/chat/completions"), max_output_tokens=100)
POLICY = Policy.from_mapping(
    {
        "agents": [
            {
                "name": "worker",
                "external_calls": {"allowed_domains": ["127.0.0.1"]},
                "llm": {},
                "budgets": [{"limit": "1000 tokens"}],
            }
        ],
    }
)


class Shaky(MemoryStore):
    """A store that has whoever asks wait, and can be down: before it has done what it was asked, or after."""

    may_block = True

    def __init__(self) -> None:
        super().__init__()
        self.is_down = self.loses_answers = False
        self.reserved, self.may_answer, self.may_settle = threading.Event(), threading.Event(), threading.Event()
        self.may_answer.set()
        self.may_settle.set()
        self.settling: list[str] = []

    def reserve(self, request):
        if self.is_down:
            raise StoreUnavailable("down")
        answer = super().reserve(request)
        self.reserved.set()
        assert self.may_answer.wait(10)
        if self.loses_answers:
            raise StoreUnavailable("no answer in time")
        return answer

    def try_reserve(self, request):
        return None

    def settle(self, id, actual):
        self.settling.append(id)
        assert self.may_settle.wait(10)
        if self.is_down:
            raise StoreUnavailable("down")
        return super().settle(id, actual)

    def try_settle(self, id, actual):
        return None

    @property
    def counted(self):
        ((_, balance),) = self.rows()
        return balance.spent, balance.held


@pytest.fixture
def store():
    return Shaky()


@pytest.fixture
def guard(store):
    with contextlib.closing(Guard(POLICY, store=store)) as made:
        yield made
        store.is_down = store.loses_answers = False
        store.may_settle.set()


def test_what_a_refused_call_holds_since_its_answer_was_lost_is_given_back(guard, store):
    store.loses_answers = True
    with pytest.raises(StoreUnavailable):
        guard.begin(CALL)
    stranded = store.counted
    store.loses_answers = False

    guard.ledger.settle_again()

    assert stranded[1] > 0
    assert store.counted == (0, 0)


def test_what_a_cancelled_task_holds_is_given_back_though_the_store_was_down_at_that_moment(guard, store):
    store.may_answer.clear()

    async def cancel():
        task = asyncio.create_task(guard.abegin(CALL))
        await asyncio.to_thread(store.reserved.wait, 10)
        store.is_down = True
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.may_answer.set()

    asyncio.run(cancel())  # its end waits for the threads
    stranded = store.counted
    store.is_down = False
    guard.ledger.settle_again()

    assert stranded[1] > 0
    assert store.counted == (0, 0)


def test_an_event_loop_goes_on_while_ended_calls_wait_for_the_store(guard, store):
    async def ask_after_many_have_ended():
        for _ in range(3):
            (await guard.abegin(CALL)).settle_later(Usage(10, 10))
        store.may_settle.clear()
        asking = asyncio.create_task(guard.abegin(CALL))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not asking.done()
        store.may_settle.set()
        (await asking).settle(Usage(10, 10))

    asyncio.run(ask_after_many_have_ended())
    guard.flush()

    assert store.counted == (80, 0)


def test_a_decision_waits_for_one_ended_call_at_most_when_the_store_is_down(guard, store):
    for admitted in [guard.begin(CALL) for _ in range(5)]:
        admitted.settle_later(Usage(10, 10))
    guard.flush()
    store.settling.clear()
    open_calls = [guard.begin(CALL) for _ in range(5)]
    store.is_down = True
    guard.worker.is_woken = True  # it sleeps: the decision finds the endings
    for admitted in open_calls:
        admitted.settle_later(Usage(10, 10))

    with pytest.raises(StoreUnavailable):
        guard.begin(CALL)

    assert len(store.settling) == 1
    store.is_down = False
    guard.ledger.settle_again()
    guard.ledger.settle_ended()
    assert store.counted == (200, 0)


def test_a_call_that_waits_for_room_gets_it_though_the_store_cannot_be_swept(store):
    class Unswept(MemoryStore):
        def sweep(self):
            raise StoreUnavailable("down")

    with contextlib.closing(Guard(POLICY, store=Unswept())) as guard:
        large = CALL._replace(max_output_tokens=900)
        first = guard.begin(large)
        threading.Timer(0.1, lambda: first.settle(Usage(10, 10))).start()
        waiting = threading.Thread(target=lambda: guard.begin(large, wait=10).settle(Usage(10, 10)))
        waiting.start()
        waiting.join(10)

        assert sum(balance.spent for _, balance in guard.usage()) == 40


def test_a_forked_child_settles_nothing_of_its_parents(guard, store):
    events = []
    guard.observe(events.append)
    admitted = guard.begin(CALL)
    store.is_down = True
    admitted.settle(Usage(10, 10))
    store.is_down = False

    guard.restart()  # what a child does
    guard.ledger.settle_again()
    guard.flush()

    assert not [event for event in events if isinstance(event, CallSettled)]


def test_sessions_without_end_leave_no_trace_in_a_guard(monkeypatch):
    monkeypatch.setattr("agentguard.in_force._MAX_REGISTERED", 50)
    agent = {
        "name": "worker",
        "external_calls": {"allowed_domains": ["127.0.0.1"]},
        "budgets": [{"limit": "9 calls", "per": "session"}],
    }
    with contextlib.closing(Guard(Policy.from_mapping({"agents": [agent]}))) as guard:
        for number in range(200):
            with session(f"s-{number}"), guard.admit(HTTPCall.to("GET", "http://127.0.0.1/")):
                pass

        assert len(guard.in_force._registered) <= 51
        assert len(guard.usage()) == 200

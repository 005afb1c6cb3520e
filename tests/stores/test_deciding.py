"""A task that is cancelled while a thread decides for it holds nothing, whichever of the two comes last."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind
from agentguard.policy.model import Limit, Unit
from agentguard.stores.base import GRANTED, Reserve
from agentguard.stores.deciding import Deciding
from agentguard.stores.memory import MemoryStore

TOKENS = LimitRow.of("agent:a", Limit(amount=10, unit=Unit.TOKENS))
REQUEST = Reserve("1", (Charge(TOKENS.key, 10),))


class Slow:
    """A store whose decisions begin and end when the test says so."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.store.register([TOKENS])
        self.began, self.may_end, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.given_back: list[str] = []

    def reserve(self, request):
        self.began.set()
        assert self.may_end.wait(10)
        answer = self.store.reserve(request)
        self.ended.set()
        return answer

    def settle(self, id, actual):
        self.given_back.append(id)
        return self.store.settle(id, actual)

    @property
    def held(self) -> int:
        return self.store.read([TOKENS.key])[0].held


async def cancelled(task: asyncio.Task) -> bool:
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.fixture
def slow():
    return Slow()


def test_the_answer_is_the_stores(slow):
    slow.may_end.set()

    async def ask_twice():
        first = await Deciding(slow.reserve, slow.settle, REQUEST).in_thread()
        return first, await Deciding(slow.reserve, slow.settle, REQUEST._replace(id="2")).in_thread()

    first, second = asyncio.run(ask_twice())

    assert first is GRANTED
    assert second.kind is RefusalKind.CONTENDED
    assert (slow.held, slow.given_back) == (10, [])


def test_what_is_granted_after_its_task_was_cancelled_is_given_back(slow):
    async def cancel_before_the_answer():
        task = asyncio.create_task(Deciding(slow.reserve, slow.settle, REQUEST).in_thread())
        await asyncio.to_thread(slow.began.wait, 10)
        assert await cancelled(task)
        slow.may_end.set()

    asyncio.run(cancel_before_the_answer())  # its end waits for the threads

    assert slow.ended.is_set()
    assert (slow.held, slow.given_back) == (0, ["1"])


def test_what_was_granted_before_its_task_was_cancelled_is_given_back(slow):
    async def cancel_between_answer_and_task():
        task = asyncio.create_task(Deciding(slow.reserve, slow.settle, REQUEST).in_thread())
        await asyncio.sleep(0)
        slow.may_end.set()
        assert slow.ended.wait(10)  # in the loop's own thread, so that the task does not hear of it
        assert await cancelled(task)

    asyncio.run(cancel_between_answer_and_task())

    assert (slow.held, slow.given_back) == (0, ["1"])


def test_a_refusal_that_nobody_waits_for_gives_nothing_back(slow):
    slow.store.reserve(REQUEST._replace(id="other"))

    async def cancel_before_the_answer():
        task = asyncio.create_task(Deciding(slow.reserve, slow.settle, REQUEST).in_thread())
        await asyncio.to_thread(slow.began.wait, 10)
        assert await cancelled(task)
        slow.may_end.set()

    asyncio.run(cancel_before_the_answer())

    assert (slow.held, slow.given_back) == (10, [])
    assert slow.store.settle("other", Amounts()).first

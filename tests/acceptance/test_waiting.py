"""What is spent refuses at once; what others merely hold is waited for, and never for oneself."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest

from agentguard import BudgetExceeded, RateLimited
from agentguard.events import CallSettled
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import Reply

HELLO = [{"role": "user", "content": "hello"}]
AT_ONCE = 60.0
"""Seconds. Below what a call would wait for, above what a refusal takes on the busiest machine: the collector is asked first."""

LONG_WAIT = {"contention_wait": "100s"}


def create(client, max_tokens=500, **more):
    return client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=max_tokens, **more)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


async def auntil(condition):
    while not condition():  # noqa: ASYNC110 - it comes true in a thread of the server
        await asyncio.sleep(0.001)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(20) as pool:
        yield pool


@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_call_waits_for_what_another_thread_holds_and_is_woken_by_its_settlement(
    store, provider, guarded, openai_client, pool, tmp_path
):
    one = guarded("1000 tokens", store=None if store == "memory" else SqliteStore(tmp_path / "ledger.sqlite"))
    answers = threading.Event()
    provider.reply_next(Reply(hold=answers, output_tokens=20))

    first = pool.submit(create, openai_client, 800)
    until(lambda: provider.in_flight)
    second = pool.submit(create, openai_client, 800)
    until(lambda: one.guard.changes.waiting)
    assert provider.calls == 1
    answers.set()

    first.result(25)
    second.result(25)
    assert provider.calls == 2
    assert one.spent() == provider.tokens


def test_a_call_waits_for_what_another_task_holds(provider, guarded):
    one = guarded("1000 tokens")
    answers = threading.Event()
    provider.reply_next(Reply(hold=answers, output_tokens=20))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            first = asyncio.create_task(create(client, 800))
            await auntil(lambda: provider.in_flight)
            second = asyncio.create_task(create(client, 800))
            await auntil(lambda: one.guard.changes.waiting)
            assert provider.calls == 1
            answers.set()
            await asyncio.wait_for(asyncio.gather(first, second), 25)

    asyncio.run(main())

    assert one.spent() == provider.tokens


HOLDER = """
import sys
from agentguard import Guard, LLMCall, Policy, Usage
from agentguard.core.call import Target
from agentguard.stores.sqlite import SqliteStore

agent = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}, "budgets": [{"limit": "1000 tokens"}]}
guard = Guard(Policy.from_mapping({"agents": [agent]}), store=SqliteStore(sys.argv[1]))
call = LLMCall("chat", "openai", "gpt-5", Target("http", "127.0.0.1", 80, "/v1/chat/completions"), max_output_tokens=800)
with guard.admit(call) as admission:
    print("holds", flush=True)
    sys.stdin.readline()
    admission.settle(Usage(10, 10))
guard.close()
"""


def test_a_call_waits_for_what_another_process_holds(provider, guarded, openai_client, pool, tmp_path):
    ledger = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-c", HOLDER, str(ledger)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holds\n"
        one = guarded("1000 tokens", store=SqliteStore(ledger))

        waiting = pool.submit(create, openai_client, 800)
        until(lambda: one.guard.changes.waiting)
        assert provider.calls == 0
        holder.stdin.write("\n")
        holder.stdin.flush()
        waiting.result(25)

    assert provider.calls == 1
    assert one.spent() == provider.tokens + 20


def test_a_call_that_waits_too_long_is_refused(provider, guarded, openai_client, pool):
    guarded("1000 tokens", limits={"contention_wait": "0.2s"})
    answers = threading.Event()
    provider.reply(Reply(hold=answers))
    first = pool.submit(create, openai_client, 800)
    until(lambda: provider.in_flight)
    started = time.monotonic()

    with pytest.raises(BudgetExceeded, match="held by calls in flight") as refused:
        create(openai_client, 800)

    assert 0.2 <= time.monotonic() - started < AT_ONCE
    assert refused.value.held > 800
    answers.set()
    first.result(25)
    assert provider.calls == 1


def test_a_task_that_waits_too_long_is_refused(provider, guarded):
    guarded("1000 tokens", limits={"contention_wait": "0.2s"})
    answers = threading.Event()
    provider.reply(Reply(hold=answers))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            first = asyncio.create_task(create(client, 800))
            await auntil(lambda: provider.in_flight)
            with pytest.raises(BudgetExceeded):
                await create(client, 800)
            answers.set()
            await first

    asyncio.run(main())

    assert provider.calls == 1


def test_what_is_spent_refuses_at_once_even_while_others_hold(provider, guarded, openai_client, pool):
    guarded("1000 tokens", limits=LONG_WAIT)
    create(openai_client, 500)
    provider.reply(Reply(output_tokens=500))
    create(openai_client, 500)
    answers = threading.Event()
    provider.reply(Reply(hold=answers))
    holder = pool.submit(create, openai_client, 200)
    until(lambda: provider.in_flight)
    started = time.monotonic()

    with pytest.raises(BudgetExceeded):
        create(openai_client, 600)

    assert time.monotonic() - started < AT_ONCE
    answers.set()
    holder.result(25)


def test_nobody_waits_for_a_stream_of_the_same_thread(provider, guarded, openai_client):
    one = guarded("1000 tokens", limits=LONG_WAIT)
    provider.reply(Reply(output_tokens=20))

    with create(openai_client, 800, stream=True):
        started = time.monotonic()
        with pytest.raises(BudgetExceeded):
            create(openai_client, 800)
        assert time.monotonic() - started < AT_ONCE

    create(openai_client, 800)
    assert provider.calls == 2
    assert one.spent() <= 1000


def test_nobody_waits_for_a_stream_of_the_same_task(provider, guarded):
    guarded("1000 tokens", limits=LONG_WAIT)

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            stream = await create(client, 800, stream=True)
            started = time.monotonic()
            with pytest.raises(BudgetExceeded):
                await create(client, 800)
            took = time.monotonic() - started
            await stream.close()
            return took

    assert asyncio.run(main()) < AT_ONCE


def test_a_sync_call_inside_of_a_running_loop_does_not_wait_for_the_loops_tasks(provider, guarded, openai_client):
    guarded("1000 tokens", limits=LONG_WAIT)
    answers = threading.Event()
    provider.reply(Reply(hold=answers))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            task = asyncio.create_task(create(client, 800))
            await auntil(lambda: provider.in_flight)
            started = time.monotonic()
            with pytest.raises(BudgetExceeded):
                create(openai_client, 800)
            took = time.monotonic() - started
            answers.set()
            await task
            return took

    assert asyncio.run(main()) < AT_ONCE


def test_a_stream_that_a_bare_break_has_left_does_not_stand_in_the_way(provider, guarded, openai_client):
    one = guarded("1000 tokens", limits=LONG_WAIT)
    provider.reply(Reply(output_tokens=20))

    for _ in range(5):
        started = time.monotonic()
        for _chunk in create(openai_client, 800, stream=True):
            break
        assert time.monotonic() - started < AT_ONCE

    assert provider.calls == 5
    gc.collect()
    one.settle()


def test_async_streams_that_a_bare_break_has_left_do_not_stand_in_the_way(provider, guarded):
    guarded("1000 tokens", limits=LONG_WAIT)
    provider.reply(Reply(output_tokens=20))

    async def main():
        async with anthropic.AsyncAnthropic(base_url=provider.base_url, api_key="sk-test") as client:
            for _ in range(5):
                stream = await client.messages.create(model="claude-sonnet-5", messages=HELLO, max_tokens=800, stream=True)
                async for _event in stream:
                    break
                del stream

    asyncio.run(asyncio.wait_for(main(), 90))  # a wait for one of them would take longer

    assert provider.calls == 5


def test_a_limit_on_calls_at_once_lets_everybody_through_in_turn(provider, guarded, openai_client, pool):
    one = guarded("2 concurrent_calls")
    seen = []
    provider.reply(lambda request: seen.append(provider.in_flight) or Reply(delay=0.002))

    for future in [pool.submit(create, openai_client) for _ in range(12)]:
        future.result(25)

    assert provider.calls == 12
    assert max(seen) <= 2
    assert len(one.told(CallSettled)) == 12


def test_a_limit_on_calls_at_once_lets_every_task_through_in_turn(provider, guarded):
    guarded("2 concurrent_calls")
    seen = []
    provider.reply(lambda request: seen.append(provider.in_flight) or Reply(delay=0.002))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            await asyncio.wait_for(asyncio.gather(*(create(client) for _ in range(12))), 25)

    asyncio.run(main())

    assert provider.calls == 12
    assert max(seen) <= 2


def test_a_limit_on_calls_at_once_that_is_waited_for_too_long_is_a_rate_limit(provider, guarded, openai_client, pool):
    guarded("1 concurrent_calls", limits={"contention_wait": "0.1s"})
    answers = threading.Event()
    provider.reply(Reply(hold=answers))
    first = pool.submit(create, openai_client)
    until(lambda: provider.in_flight)

    with pytest.raises(RateLimited, match="1 call at once"):
        create(openai_client)

    answers.set()
    first.result(25)
    assert provider.calls == 1


def test_a_task_that_is_cancelled_while_it_waits_holds_nothing(provider, guarded):
    one = guarded("1000 tokens")
    answers = threading.Event()
    provider.reply(Reply(hold=answers))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            first = asyncio.create_task(create(client, 800))
            await auntil(lambda: provider.in_flight)
            second = asyncio.create_task(create(client, 800))
            await auntil(lambda: one.guard.changes.waiting)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            answers.set()
            await first

    asyncio.run(main())

    assert one.spent() == provider.tokens
    assert one.guard.changes.waiting == 0

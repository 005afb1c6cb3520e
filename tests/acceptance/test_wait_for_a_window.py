"""Code that calls through an SDK waits for its rate, when it has said that it would rather."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import agentguard
from agentguard import RateLimited
from agentguard.events import CallAdmitted

HELLO = [{"role": "user", "content": "hello"}]
RATE = {"limit": "2 calls", "every": "500ms"}
"""What was made comes back 500 ms later, and by a sixtieth of that at most after it."""


def create(client):
    return client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=50)


def waits(one):
    return [event.waited for event in one.told(CallAdmitted)]


def test_calls_through_a_client_wait_for_their_rate(provider, guarded, openai_client):
    one = guarded(RATE)
    started = time.monotonic()

    with agentguard.waiting(30):
        for _ in range(5):
            create(openai_client)

    assert time.monotonic() - started >= 0.99  # the fifth is in the third window at the earliest
    assert provider.calls == 5
    assert sum(waits(one)) <= time.monotonic() - started


def test_calls_of_threads_and_tasks_wait_for_their_rate_by_the_policy(provider, guarded, openai_client):
    one = guarded(RATE, limits={"wait": "30s"})

    async def tasks():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            await asyncio.gather(*(create(client) for _ in range(4)))

    with ThreadPoolExecutor(5) as pool:
        threads = [pool.submit(create, openai_client) for _ in range(4)]
        asyncio.run(tasks())
        for future in threads:
            future.result(30)

    assert provider.calls == 8
    assert len(waits(one)) == 8


def test_a_call_that_would_wait_too_long_is_refused_at_once_and_not_sent(provider, guarded, openai_client):
    guarded({"limit": "1_requests_per_hour"}, limits={"wait": "30s"})
    create(openai_client)
    started = time.monotonic()

    with pytest.raises(RateLimited) as refused:
        create(openai_client)

    assert time.monotonic() - started < 15
    assert refused.value.retry_after > 3000
    assert provider.calls == 1

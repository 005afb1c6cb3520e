"""anthropic: usage in two parts, caches, and the middleware that guards one client without patching."""

from __future__ import annotations

import asyncio

import anthropic
import pytest

from agentguard import BudgetExceeded, EgressDenied
from agentguard.core.call import HTTPCall
from agentguard.integrations.anthropic import GuardMiddleware
from agentguard.testing import Reply, text_of

ASK = {"model": "claude-sonnet-5", "messages": [{"role": "user", "content": text_of(50)}], "max_tokens": 100}


@pytest.fixture
def client(provider):
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test") as client:
        yield client


def test_cached_input_is_part_of_the_input(provider, client, guarded):
    provider.reply(Reply(input_tokens=500, cached_tokens=300, cache_write_tokens=100, output_tokens=50))

    client.messages.create(**ASK)
    list(client.messages.create(**ASK, stream=True))

    assert [settled.usage.total_tokens for settled in guarded.llm_calls] == [550, 550]
    assert {(settled.usage.cache_read_tokens, settled.usage.cache_write_tokens) for settled in guarded.llm_calls} == {(300, 100)}
    assert guarded.spent == provider.tokens


def test_a_stream_that_is_left_is_charged_its_reported_input(provider, client, guarded):
    provider.reply(Reply(input_tokens=5000, output_tokens=100, chunks=50, chunk_delay=0.003))

    with client.messages.stream(**ASK) as stream:
        for number, _ in enumerate(stream.text_stream):
            if number == 10:
                break

    assert guarded.spent == pytest.approx(provider.tokens, rel=0.1)
    assert guarded.llm_calls[0].outcome == "abandoned"


def test_counting_tokens_is_no_llm_call(provider, client, guarded):
    client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])

    assert [type(settled.call) for settled in guarded.settled] == [HTTPCall]
    assert guarded.spent == 0


def test_a_request_with_its_bound_arrives_unchanged(provider, client, guarded):
    client.messages.create(**ASK, system="be brief", metadata={"user_id": "u1"})

    assert provider.requests[0].json == ASK | {"system": "be brief", "metadata": {"user_id": "u1"}}


# --- the middleware ----------------------------------------------------------------------------------------------------


@pytest.fixture
def guard(guard_with):
    """A guard that stands on no client."""
    one = guard_with(tokens=1000)
    one.seams.remove()
    return one


def test_the_middleware_guards_its_client(provider, guard):
    middleware = GuardMiddleware(guard.guard, provider.base_url)

    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test", middleware=[middleware]) as client:
        client.messages.create(**ASK)
        list(client.messages.create(**ASK, stream=True))
        with client.messages.stream(**ASK) as stream:
            stream.get_final_message()
        with pytest.raises(BudgetExceeded):
            client.messages.create(**ASK | {"max_tokens": 5000})

    assert provider.calls == len(guard.llm_calls) == 3
    assert guard.spent == provider.tokens


def test_the_middleware_guards_an_async_client(provider, guard):
    middleware = GuardMiddleware(guard.guard, provider.base_url)

    async def main():
        async with anthropic.AsyncAnthropic(base_url=provider.base_url, api_key="sk-test", middleware=[middleware]) as client:
            await client.messages.create(**ASK)
            async for _ in await client.messages.create(**ASK, stream=True):
                pass
            with pytest.raises(BudgetExceeded):
                await client.messages.create(**ASK | {"max_tokens": 5000})

    asyncio.run(main())

    assert provider.calls == 2
    assert guard.spent == provider.tokens


def test_the_middleware_refuses_a_host_once(recorder, guard):
    middleware = GuardMiddleware(guard.guard, recorder.base_url)

    with (
        anthropic.Anthropic(base_url=recorder.base_url, api_key="sk-test", middleware=[middleware]) as client,
        pytest.raises(EgressDenied),
    ):
        client.messages.create(**ASK)

    assert recorder.calls == 0
    assert len(guard.denied) == 1


def test_the_middleware_under_seams_of_the_same_guard_counts_once(provider, guard_with):
    one = guard_with(tokens=1000)
    middleware = GuardMiddleware(one.guard, provider.base_url)

    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test", middleware=[middleware]) as client:
        client.messages.create(**ASK)
        list(client.messages.create(**ASK, stream=True))

    assert len(one.llm_calls) == provider.calls == 2
    assert one.spent == provider.tokens

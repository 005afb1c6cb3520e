"""One call, however many attempts the SDK makes of it; and what a call costs that got no answer."""

from __future__ import annotations

import asyncio
import socket
import threading

import anthropic
import openai
import pytest

from agentguard import BudgetExceeded
from agentguard.events import CallAdmitted, CallDenied, CallSettled
from agentguard.testing import Reply, text_of

MESSAGES = [{"role": "user", "content": text_of(100)}]
INPUT = 147
"""What is reserved for this prompt, before anything was learned: a third of its bytes, role and format included."""


def by_openai(url, **options):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", **options) as client:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES, max_tokens=100)


def by_openai_stream(url, **options):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", **options) as client:
        list(client.chat.completions.create(model="gpt-5", messages=MESSAGES, max_tokens=100, stream=True))


def by_anthropic(url, **options):
    with anthropic.Anthropic(base_url=url, api_key="sk-test", **options) as client:
        client.messages.create(model="claude-sonnet-5", messages=MESSAGES, max_tokens=100)


def by_async_openai(url, **options):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", **options) as client:
            await client.chat.completions.create(model="gpt-5", messages=MESSAGES, max_tokens=100)

    asyncio.run(main())


def by_async_anthropic(url, **options):
    async def main():
        async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", **options) as client:
            await client.messages.create(model="claude-sonnet-5", messages=MESSAGES, max_tokens=100)

    asyncio.run(main())


SURFACES = pytest.mark.parametrize("call", [by_openai, by_openai_stream, by_anthropic, by_async_openai, by_async_anthropic])
BOTH = pytest.mark.parametrize("call", [by_openai, by_async_anthropic])
NO_ANSWER = (openai.APIConnectionError, anthropic.APIConnectionError, openai.InternalServerError, anthropic.InternalServerError)


def settled(one):
    one.settle()
    [event] = one.told(CallSettled)
    assert len(one.told(CallAdmitted)) == 1
    return event


@pytest.mark.parametrize("status", [500, 429])
@SURFACES
def test_two_failures_and_a_success_are_one_call_of_three_attempts(call, status, provider, guarded):
    one = guarded("10000 tokens", "10 calls")
    provider.reply_next(Reply(status=status, retry_after=0.001, fail_times=2, output_tokens=50))

    call(provider.base_url)

    assert provider.calls == 3
    assert [attempt.status for attempt in settled(one).attempts] == [status, status, 200]
    assert one.spent("calls") == 1
    assert one.spent() == provider.tokens == 150


@SURFACES
def test_a_call_that_fails_for_good_costs_nothing_and_gives_back_what_it_held(call, provider, guarded):
    one = guarded("10000 tokens", "10 calls")
    provider.reply(Reply(status=500, retry_after=0.001))

    with pytest.raises((openai.InternalServerError, anthropic.InternalServerError)):
        call(provider.base_url)

    assert provider.calls == 3
    assert [attempt.status for attempt in settled(one).attempts] == [500, 500, 500]
    assert settled(one).outcome == "error"
    assert (one.spent("calls"), one.spent()) == (1, 0)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@BOTH
def test_a_call_that_the_provider_refuses_costs_nothing(call, status, provider, guarded):
    one = guarded("10000 tokens")
    provider.reply(Reply(status=status))

    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
        call(provider.base_url)

    assert provider.calls == 1
    assert one.spent() == 0


AMBIGUOUS = pytest.mark.parametrize(("ambiguous", "once"), [("estimate", INPUT + 100), ("input", INPUT), ("nothing", 0)])


@AMBIGUOUS
@SURFACES
def test_a_dropped_connection_is_charged_as_the_policy_says(call, ambiguous, once, provider, guarded):
    one = guarded("10000 tokens", llm={"ambiguous": ambiguous})
    provider.reply(Reply(drop_connection=True))

    with pytest.raises(NO_ANSWER):
        call(provider.base_url, max_retries=0)

    assert provider.calls == 1
    assert one.spent() == once
    assert settled(one).usage.estimated == (ambiguous != "nothing")


@AMBIGUOUS
@BOTH
def test_a_timeout_is_charged_as_the_policy_says(call, ambiguous, once, provider, guarded):
    one = guarded("10000 tokens", llm={"ambiguous": ambiguous})
    provider.reply(Reply(hold=threading.Event()))

    with pytest.raises(NO_ANSWER):
        call(provider.base_url, max_retries=0, timeout=(30, 0.05, 30, 30))

    assert one.spent() == once


@AMBIGUOUS
@BOTH
def test_each_attempt_without_an_answer_may_have_been_billed(call, ambiguous, once, provider, guarded):
    one = guarded("10000 tokens", llm={"ambiguous": ambiguous})
    provider.reply_next(Reply(status=504, retry_after=0.001, fail_times=2, output_tokens=50))

    call(provider.base_url)

    again = 0 if ambiguous == "nothing" else 2 * INPUT
    assert provider.calls == 3
    assert one.spent() == provider.tokens + again


@BOTH
def test_a_retry_that_cannot_be_paid_for_is_not_sent(call, provider, guarded):
    one = guarded("250 tokens")
    provider.reply(Reply(status=504, retry_after=0.001))

    with pytest.raises(BudgetExceeded):
        call(provider.base_url)

    assert provider.calls == 1
    assert one.spent() <= 250
    assert len(one.told(CallDenied)) == 1
    assert len(one.told(CallSettled)) == 1


@SURFACES
def test_a_connection_that_is_refused_costs_nothing(call, guarded):
    one = guarded("10000 tokens", "10 calls")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(NO_ANSWER):
        call(f"http://127.0.0.1:{port}", max_retries=0)

    assert [attempt.was_sent for attempt in settled(one).attempts] == [False]
    assert (one.spent("calls"), one.spent()) == (1, 0)


@pytest.mark.parametrize("where", ["before the answer", "in the stream"])
def test_a_cancelled_call_is_charged_what_may_have_been_used(where, provider, guarded):
    one = guarded("10000 tokens")
    provider.reply(Reply(hold=threading.Event()))
    streams = where == "in the stream"
    opened = []

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            task = asyncio.create_task(consume(client))
            while not provider.in_flight or (streams and not opened):  # noqa: ASYNC110 - one is set by the server
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    async def consume(client):
        answer = await client.chat.completions.create(model="gpt-5", messages=MESSAGES, max_tokens=100, stream=streams)
        opened.append(answer)
        return [chunk async for chunk in answer]

    asyncio.run(main())

    assert settled(one).outcome == "cancelled"
    assert one.spent() == (INPUT if streams else INPUT + 100)

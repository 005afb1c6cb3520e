"""A stream is metered as it flows, cut when its budget ends, and charged however it ends."""

from __future__ import annotations

import asyncio
import gc
import re
from contextlib import ExitStack, asynccontextmanager, contextmanager

import anthropic
import httpx
import httpx2
import openai
import pytest

from agentguard import AgentIsolated, BudgetExceeded
from agentguard.events import CallDenied, CallSettled
from agentguard.testing import Provider, Reply, text_of

MESSAGES = [{"role": "user", "content": text_of(100)}]
CHAT = {"model": "gpt-4.1", "messages": MESSAGES, "stream": True}
CLAUDE = {"model": "claude-sonnet-5", "messages": MESSAGES, "stream": True}
RESPONSE = {"model": "gpt-5", "input": text_of(100), "stream": True}
COMPLETION = {"model": "davinci", "prompt": text_of(100), "stream": True}

CHUNK = 100
OVERRUN = Reply(output_tokens=5000, ignore_max_tokens=True, chunks=5000 // CHUNK, chunk_delay=0.03)
"""A provider that does not care for max_tokens."""


@contextmanager
def chat(url, **more):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        yield client.chat.completions.create(**CHAT, **more)


@contextmanager
def completions(url, **more):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        yield client.completions.create(**COMPLETION, **more)


@contextmanager
def responses(url, max_tokens=None):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        yield client.responses.create(**RESPONSE, max_output_tokens=max_tokens)


@contextmanager
def legacy_chat(url, **more):
    with httpx.Client() as http, openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", http_client=http) as client:
        yield client.chat.completions.create(**CHAT, **more)


@contextmanager
def messages(url, max_tokens=20_000):
    with anthropic.Anthropic(base_url=url, api_key="sk-test") as client:
        yield client.messages.create(**CLAUDE, max_tokens=max_tokens)


@contextmanager
def bare_httpx2(url, **more):
    with httpx2.Client() as client, client.stream("POST", f"{url}/v1/chat/completions", json=CHAT | more) as response:
        yield (line for line in response.iter_lines() if line)


@asynccontextmanager
async def achat(url, **more):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        yield await client.chat.completions.create(**CHAT, **more)


@asynccontextmanager
async def aresponses(url, max_tokens=None):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        yield await client.responses.create(**RESPONSE, max_output_tokens=max_tokens)


@asynccontextmanager
async def amessages(url, max_tokens=20_000):
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-test") as client:
        yield await client.messages.create(**CLAUDE, max_tokens=max_tokens)


SYNC = [chat, completions, responses, legacy_chat, messages, bare_httpx2]
SDK = [chat, completions, responses, legacy_chat, messages]
ASYNC = [achat, aresponses, amessages]
SURFACE = pytest.mark.parametrize("opened", SYNC)
SDK_SURFACE = pytest.mark.parametrize("opened", SDK)
ASYNC_SURFACE = pytest.mark.parametrize("opened", ASYNC)


def settled(one):
    """The one settlement of the one call."""
    one.settle()
    [event] = one.told(CallSettled)
    return event


# --- cut ---------------------------------------------------------------------------------------------------------------


def test_without_a_guard_the_provider_streams_all_it_likes(provider):
    provider.reply(Reply(output_tokens=5000, ignore_max_tokens=True, chunks=50))

    with chat(provider.base_url, max_tokens=1000) as stream:
        list(stream)

    assert provider.output_tokens == 5000


@SURFACE
def test_a_stream_that_outgrows_the_budget_is_cut_within_a_chunk_of_the_limit(opened, provider, guarded):
    one = guarded("2000 tokens")
    provider.reply(OVERRUN)

    with opened(provider.base_url, max_tokens=1000) as stream, pytest.raises(BudgetExceeded) as cut:
        list(stream)

    assert provider.wait_idle()
    assert provider.requests[0].client_disconnected
    assert 2000 - CHUNK <= provider.tokens <= 2000 + 2 * CHUNK
    assert cut.value.limit == 2000
    assert settled(one).outcome == "cut"
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)
    with pytest.raises(BudgetExceeded), opened(provider.base_url, max_tokens=1000):
        pass
    assert provider.calls == 1


@ASYNC_SURFACE
def test_an_async_stream_that_outgrows_the_budget_is_cut_within_a_chunk_of_the_limit(opened, provider, guarded):
    one = guarded("2000 tokens")
    provider.reply(OVERRUN)

    async def main():
        async with opened(provider.base_url, max_tokens=1000) as stream:
            with pytest.raises(BudgetExceeded):
                async for _ in stream:
                    pass
        with pytest.raises(BudgetExceeded):
            async with opened(provider.base_url, max_tokens=1000):
                pass

    asyncio.run(main())

    assert provider.wait_idle()
    assert provider.calls == 1
    assert 2000 - CHUNK <= provider.tokens <= 2000 + 2 * CHUNK
    assert settled(one).outcome == "cut"
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)


def test_a_stream_may_use_the_budget_to_its_last_token(provider, guarded):
    one = guarded("2000 tokens")
    provider.reply(Reply(output_tokens=1850, ignore_max_tokens=True, chunks=185))

    with chat(provider.base_url, max_tokens=100) as stream:
        list(stream)

    assert settled(one).outcome == "complete"
    assert one.spent() == provider.tokens == 1950


def test_streams_that_outgrow_one_budget_together_are_cut_together(provider, guarded):
    one = guarded("3000 tokens")
    provider.reply(OVERRUN)

    with ExitStack() as stack:
        streams = [iter(stack.enter_context(chat(provider.base_url, max_tokens=500))) for _ in range(2)]
        while streams:
            stream = streams.pop(0)
            try:
                next(stream)
            except BudgetExceeded:
                continue
            streams.append(stream)

    assert provider.wait_idle()
    assert 3000 - 2 * CHUNK <= provider.tokens <= 3000 + 8 * CHUNK
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)
    assert len(one.told(CallSettled)) == len(one.told(CallDenied)) == 2


def test_a_limit_per_call_cuts_its_stream(provider, guarded):
    one = guarded({"limit": "1000 tokens", "per": "call"})
    provider.reply(OVERRUN)

    with chat(provider.base_url, max_tokens=500) as stream, pytest.raises(BudgetExceeded, match="a call may use"):
        list(stream)

    assert provider.wait_idle()
    assert provider.tokens <= 1000 + 2 * CHUNK
    assert settled(one).outcome == "cut"


def test_a_budget_in_money_cuts_a_stream(provider, guarded):
    prices = {"gpt-4.1": {"input": "$1", "output": "$10"}}
    one = guarded("$0.0201", llm={"prices": prices})
    provider.reply(OVERRUN)

    with chat(provider.base_url, max_tokens=500) as stream, pytest.raises(BudgetExceeded, match=r"\$"):
        list(stream)

    assert provider.wait_idle()
    assert 1900 <= provider.output_tokens <= 2000 + 2 * CHUNK
    assert one.spent("usd") == pytest.approx(20_100_000, rel=0.1)


@SURFACE
def test_isolation_cuts_a_stream_midway(opened, provider, guarded):
    one = guarded("100000 tokens")
    provider.reply(OVERRUN)

    with opened(provider.base_url, max_tokens=6000) as stream:
        take(stream, 5)
        one.guard.isolate("agent:worker", by="on call", why="a drill")
        with pytest.raises(AgentIsolated) as cut:
            list(stream)

    assert provider.wait_idle()
    assert provider.output_tokens <= 9 * CHUNK
    assert "isolated" in str(cut.value)
    assert settled(one).outcome == "cut"
    with pytest.raises(AgentIsolated), opened(provider.base_url, max_tokens=6000):
        pass
    assert provider.calls == 1


@ASYNC_SURFACE
def test_isolation_cuts_an_async_stream_midway(opened, provider, guarded):
    one = guarded("100000 tokens")
    provider.reply(OVERRUN)

    async def main():
        async with opened(provider.base_url, max_tokens=6000) as stream:
            await atake(stream, 5)
            one.guard.isolate("agent:worker", by="on call", why="a drill")
            with pytest.raises(AgentIsolated):
                await atake(stream, 1000)

    asyncio.run(main())

    assert provider.wait_idle()
    assert provider.output_tokens <= 9 * CHUNK
    assert settled(one).outcome == "cut"


# --- left early --------------------------------------------------------------------------------------------------------

LONG = Reply(output_tokens=1500, chunks=75, chunk_delay=0.015)


def take(stream, count=35):
    for number, _ in enumerate(stream, 1):
        if number == count:
            break


def leave_by_break_and_del(stream):
    take(stream)
    del stream
    gc.collect()


def leave_by_close(stream):
    take(stream)
    stream.close()


def leave_by_with(stream):
    with stream:
        take(stream)


def leave_by_exception(stream):
    def consume():
        with stream:
            take(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()


def leave_by_dropping_a_generator(stream):
    def texts(stream):
        yield from stream

    take(texts(stream))
    del stream
    gc.collect()


LEAVING = [leave_by_break_and_del, leave_by_close, leave_by_with, leave_by_exception, leave_by_dropping_a_generator]


@pytest.fixture
def quick_collector():
    """What exists already is not looked at, so that the server does not send on for as long as a collection takes."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Box:
    """Hands a stream over, and keeps no reference."""

    def __init__(self, stream):
        self.stream = stream

    def take(self):
        stream, self.stream = self.stream, None
        return stream


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("opened", [chat, legacy_chat, messages])
def test_leaving_a_stream_is_charged_what_was_sent(opened, leave, provider, guarded, quick_collector):
    one = guarded("100000 tokens")
    provider.reply(LONG)

    clients = opened(provider.base_url, max_tokens=2000)
    leave(clients.__enter__())
    assert settled(one).outcome in {"abandoned", "complete"}
    gc.collect()
    assert provider.wait_idle()

    assert provider.requests[0].client_disconnected
    assert provider.output_tokens < 1400
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)
    assert settled(one).usage.estimated
    clients.__exit__(None, None, None)


async def aleave_by_break_and_del(stream):
    await atake(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0)


async def aleave_by_close(stream):
    await atake(stream)
    await stream.close()


async def aleave_by_with(stream):
    async with stream:
        await atake(stream)


async def aleave_by_cancel_in_the_body(stream):
    async def consume():
        await atake(stream)
        asyncio.current_task().cancel()
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(consume())


async def aleave_by_cancel_while_waiting(stream):
    reached = asyncio.Event()

    async def consume():
        await atake(stream, reached=reached)

    task = asyncio.create_task(consume())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def atake(stream, count=35, reached=None):
    number = 0
    async for _ in stream:
        number += 1
        if number == count:
            if reached is None:
                break
            reached.set()


ALEAVING = [
    aleave_by_break_and_del,
    aleave_by_close,
    aleave_by_with,
    aleave_by_cancel_in_the_body,
    aleave_by_cancel_while_waiting,
]


@pytest.mark.parametrize("leave", ALEAVING)
@pytest.mark.parametrize("opened", [achat, amessages])
def test_leaving_an_async_stream_is_charged_what_was_sent(opened, leave, provider, guarded, quick_collector):
    one = guarded("100000 tokens")
    provider.reply(LONG)

    async def main():
        async with opened(provider.base_url, max_tokens=2000) as stream:
            box = Box(stream)
            del stream
            await leave(box.take())
            gc.collect()
            await asyncio.sleep(0.01)

    asyncio.run(main())
    gc.collect()

    assert provider.wait_idle()
    assert provider.requests[0].client_disconnected
    assert provider.output_tokens < 1400
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)
    assert settled(one).outcome in {"abandoned", "cancelled"}


def test_a_stream_that_nobody_reads_is_charged_its_input(provider, guarded):
    one = guarded("100000 tokens")
    provider.reply(Reply(output_tokens=2000, chunks=100, chunk_delay=0.5))

    with chat(provider.base_url) as stream:
        stream.close()

    assert provider.wait_idle()
    assert 100 <= one.spent() <= 250
    assert settled(one).outcome == "abandoned"


# --- what the caller sees ----------------------------------------------------------------------------------------------


@pytest.fixture
def twin():
    """A second provider, which has answered nothing yet either: its ids are the same."""
    with Provider() as provider:
        yield provider


def plain(chunk):
    """A chunk without the moments at which it was made, and without the null that says that another chunk will carry usage."""
    text = chunk if isinstance(chunk, str) else chunk.model_dump_json()
    return re.sub(r'"(created|created_at|completed_at)":[0-9.]+', "", text).replace(',"usage":null', "")


@pytest.mark.parametrize("gzip", [False, True])
@SURFACE
def test_the_chunks_are_those_without_a_guard(opened, gzip, provider, twin, guarded):
    reply = Reply(text=text_of(40), gzip=gzip)
    provider.reply(reply)
    twin.reply(reply)
    with opened(provider.base_url, max_tokens=200) as stream:
        bare = [plain(chunk) for chunk in stream]

    one = guarded("100000 tokens")
    with opened(twin.base_url, max_tokens=200) as stream:
        seen = [plain(chunk) for chunk in stream]

    assert seen == bare
    assert settled(one).usage.total_tokens == twin.tokens == one.spent()
    assert not settled(one).usage.estimated


@pytest.mark.parametrize("opened", [chat, completions])
def test_who_asked_for_usage_gets_it(opened, provider, guarded):
    guarded("100000 tokens")

    with opened(provider.base_url, max_tokens=200, stream_options={"include_usage": True}) as stream:
        last = list(stream)[-1]

    assert last.usage.total_tokens == provider.tokens


@pytest.mark.parametrize("gzip", [False, True])
def test_the_bytes_are_those_without_a_guard(gzip, provider, twin, guarded):
    def read(url):
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test") as client,
            client.chat.completions.with_streaming_response.create(**CHAT) as response,
        ):
            return b"".join(response.iter_bytes())

    for one in provider, twin:
        one.reply(Reply(text=text_of(40), gzip=gzip))
    bare = read(provider.base_url)

    guarded("100000 tokens")
    seen = read(twin.base_url)

    assert twin.requests[0].json["stream_options"] == {"include_usage": True}
    assert plain(seen.decode()) == plain(bare.decode())


def test_a_policy_may_leave_streams_unasked(provider, guarded):
    one = guarded("100000 tokens", llm={"include_usage": False})

    with chat(provider.base_url, max_tokens=200) as stream:
        list(stream)

    assert "stream_options" not in provider.requests[0].json
    assert settled(one).usage.estimated
    assert one.spent() == pytest.approx(provider.tokens, rel=0.5)


def test_a_gzipped_answer_is_counted(provider, guarded, openai_client):
    one = guarded("100000 tokens")
    provider.reply(Reply(output_tokens=300, gzip=True))

    raw = openai_client.chat.completions.with_raw_response.create(model="gpt-5", messages=MESSAGES)

    assert raw.headers["content-encoding"] == "gzip"
    assert raw.parse().usage.total_tokens == one.spent() == provider.tokens


# --- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abruptly", [True, False])
@SDK_SURFACE
def test_a_stream_that_breaks_off_is_charged_what_was_sent(opened, abruptly, provider, guarded):
    one = guarded("100000 tokens")
    provider.reply(Reply(output_tokens=1000, chunks=100, truncate_after=60, truncate_abruptly=abruptly))

    with opened(provider.base_url, max_tokens=2000) as stream:
        try:
            list(stream)
        except (httpx.HTTPError, httpx2.HTTPError, openai.APIError, anthropic.APIError) as error:
            broke = error
        else:
            broke = None

    assert (broke is not None) or not abruptly
    assert provider.output_tokens == 600
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)
    assert settled(one).outcome == ("error" if abruptly else "complete")


@SDK_SURFACE
def test_an_error_inside_a_stream_is_the_sdks_own_and_charged(opened, provider, guarded):
    one = guarded("100000 tokens")
    provider.reply(Reply(output_tokens=1000, chunks=100, truncate_after=60, error_code="server_error", text=None))

    with opened(provider.base_url, max_tokens=2000) as stream, pytest.raises((openai.APIError, anthropic.APIError)):
        list(stream)

    assert provider.calls == 1
    assert settled(one).outcome == "error"
    assert one.spent() == pytest.approx(provider.tokens, rel=0.1)

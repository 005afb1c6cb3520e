"""What an isolation does to calls that are on their way: streams that stall, results that are awaited, waiting calls."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
import urllib.request

import aiohttp
import httpx2
import openai
import pytest
import requests

from agentguard import tool
from agentguard.core.call import HTTPCall, ToolCall
from agentguard.errors import AgentIsolated
from agentguard.testing import Reply

STREAM = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 400, "stream": True}
STALLED = Reply(output_tokens=200, chunk_delay=30.0)
"""One chunk, and then nothing for longer than any test waits."""

SOON = 20.0
"""Seconds. Below the 30 that anything here would wait otherwise, above what a cut takes on the busiest machine."""


@pytest.fixture
def url(provider):
    return provider.url("/v1/chat/completions")


def asked(url, body):
    return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})


def read_by_urllib(provider, has_begun):
    with urllib.request.urlopen(asked(provider.url("/v1/chat/completions"), STREAM), timeout=30) as response:
        for _ in response:
            has_begun.set()


def read_by_requests(provider, has_begun):
    with requests.post(provider.url("/v1/chat/completions"), json=STREAM, stream=True, timeout=30) as response:
        for _ in response.iter_lines():
            has_begun.set()


def read_by_httpx(provider, has_begun):
    with httpx2.stream("POST", provider.url("/v1/chat/completions"), json=STREAM, timeout=30) as response:
        for _ in response.iter_lines():
            has_begun.set()


def read_by_openai(provider, has_begun):
    for _ in openai.OpenAI(base_url=provider.url("/v1"), api_key="x", timeout=30).chat.completions.create(**STREAM):
        has_begun.set()


def read_by_async_openai(provider, has_begun):
    async def read():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="x", timeout=30) as client:
            async for _ in await client.chat.completions.create(**STREAM):
                has_begun.set()

    asyncio.run(read())


def read_by_aiohttp(provider, has_begun):
    async def read():
        async with (
            aiohttp.ClientSession() as session,
            session.post(provider.url("/v1/chat/completions"), json=STREAM) as response,
        ):
            async for _ in response.content:
                has_begun.set()

    asyncio.run(read())


def read_by_uvloop(provider, has_begun):
    uvloop = pytest.importorskip("uvloop")

    async def read():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="x", timeout=30) as client:
            async for _ in await client.chat.completions.create(**STREAM):
                has_begun.set()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(read())


READERS = [
    read_by_urllib, read_by_requests, read_by_httpx, read_by_openai, read_by_async_openai, read_by_aiohttp, read_by_uvloop,
]  # fmt: skip


class Reading(threading.Thread):
    """A stream that is read in a thread, and what the reader met."""

    def __init__(self, read, provider):
        super().__init__(daemon=True)
        self.has_begun = threading.Event()
        self.met: Exception | None = None
        self._run = lambda: read(provider, self.has_begun)
        self.start()

    def run(self):
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - what it met is what is asserted on
            self.met = error


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__.removeprefix("read_by_"))
def test_a_stream_that_is_stalled_in_a_read_ends_at_once_when_its_agent_is_isolated(guarded, provider, read):
    provider.reply(STALLED)
    reading = Reading(read, provider)
    assert reading.has_begun.wait(SOON)

    guarded.guard.isolate("agent:bot", by="ada", why="drill")
    reading.join(SOON)

    assert not reading.is_alive()
    assert isinstance(reading.met, AgentIsolated), reading.met
    (settled,) = guarded.llm_calls
    assert (settled.outcome, settled.decision.reason) == ("cut", "isolated")
    assert guarded.spent > 0
    assert guarded.held == 0


def read_tls_by_requests(url, verify, has_begun):
    with requests.post(url, json=STREAM, stream=True, timeout=30, verify=str(verify)) as response:
        for _ in response.iter_lines():
            has_begun.set()


def read_tls_by_httpx(url, verify, has_begun):
    context = ssl.create_default_context(cafile=verify)
    with httpx2.stream("POST", url, json=STREAM, timeout=30, verify=context) as response:
        for _ in response.iter_lines():
            has_begun.set()


def read_tls_by_aiohttp(url, verify, has_begun):
    async def read():
        context = ssl.create_default_context(cafile=verify)
        async with aiohttp.ClientSession() as session, session.post(url, json=STREAM, ssl=context) as response:
            async for _ in response.content:
                has_begun.set()

    asyncio.run(read())


@pytest.mark.parametrize("read", [read_tls_by_requests, read_tls_by_httpx, read_tls_by_aiohttp])
def test_a_stalled_stream_over_tls_ends_too(guarded, provider, tls, certificate, read):
    provider.reply(STALLED)
    url = f"https://127.0.0.1:{tls}/v1/chat/completions"
    reading = Reading(lambda _, has_begun: read(url, certificate, has_begun), provider)
    assert reading.has_begun.wait(SOON)

    guarded.guard.isolate("agent:bot", by="ada", why="drill")
    reading.join(SOON)

    assert isinstance(reading.met, AgentIsolated), reading.met


def test_five_streams_end_and_a_client_that_is_built_afterwards_is_refused(guarded, provider, url):
    provider.reply(STALLED)
    readings = [Reading(read, provider) for read in READERS[:5]]
    assert all(reading.has_begun.wait(SOON) for reading in readings)

    guarded.guard.isolate("agent:bot", by="ada", why="drill")
    for reading in readings:
        reading.join(SOON)

    assert all(isinstance(reading.met, AgentIsolated) for reading in readings)
    with pytest.raises(AgentIsolated):
        openai.OpenAI(base_url=provider.url("/v1"), api_key="x").models.list()
    with pytest.raises(AgentIsolated):
        urllib.request.urlopen(url, timeout=30)
    assert provider.calls == 5


def test_a_stream_of_an_agent_that_was_restored_meanwhile_stays_cut(guarded, provider):
    provider.reply(STALLED)
    reading = Reading(read_by_requests, provider)
    assert reading.has_begun.wait(SOON)

    guarded.guard.isolate("agent:bot", by="ada", why="drill")
    guarded.guard.restore("agent:bot", by="ada")
    reading.join(SOON)

    assert isinstance(reading.met, AgentIsolated)


@pytest.mark.parametrize("client", ["openai", "requests", "urllib", "httpx2"])
def test_the_result_of_a_call_in_flight_is_withheld_and_charged(guarded, provider, url, client):
    answers = threading.Event()
    provider.reply(Reply(output_tokens=7, hold=answers))
    plain = {**STREAM, "stream": False}
    send = {
        "openai": lambda: openai.OpenAI(base_url=provider.url("/v1"), api_key="x", max_retries=0).chat.completions.create(
            **plain
        ),
        "requests": lambda: requests.post(url, json=plain, timeout=30).json(),
        "urllib": lambda: urllib.request.urlopen(asked(url, plain), timeout=30).read(),
        "httpx2": lambda: httpx2.post(url, json=plain),
    }[client]

    def isolate():
        while not provider.in_flight:
            time.sleep(0.001)
        guarded.guard.isolate("agent:bot", by="ada", why="drill")
        answers.set()

    threading.Thread(target=isolate, daemon=True).start()
    with pytest.raises(AgentIsolated):
        send()

    assert provider.calls == 1
    assert guarded.held == 0
    assert guarded.spent > 0


def test_a_call_that_waits_for_others_wakes_and_is_refused(guard_with):
    guarded = guard_with(budgets=[{"limit": "1 concurrent_calls"}])
    has_begun, met = threading.Event(), []

    def wait():
        has_begun.set()
        try:
            guarded.guard.begin(HTTPCall.to("GET", "http://127.0.0.1:1/"))
        except AgentIsolated:
            met.append(time.monotonic())

    holding = guarded.guard.begin(HTTPCall.to("GET", "http://127.0.0.1:1/"))
    waiting = threading.Thread(target=wait)
    waiting.start()
    assert has_begun.wait(SOON)
    while not guarded.guard.changes.waiting:
        time.sleep(0.001)
    began = time.monotonic()
    guarded.guard.isolate("agent:bot", by="ada", why="drill")
    waiting.join(SOON)
    holding.settle()

    assert met
    assert met[0] - began < SOON


def test_llm_only_stops_calls_to_models_and_nothing_else(guarded, provider, url):
    guarded.guard.isolate("bot", by="ada", why="drill", mode="llm-only")

    with pytest.raises(AgentIsolated, match=r"agent:bot is isolated \(llm-only\)"):
        requests.post(url, json=STREAM, timeout=30)
    assert requests.get(provider.url("/anything"), timeout=30).status_code in {200, 404}
    guarded.guard.begin(ToolCall("search")).settle()


def test_the_result_of_a_tool_that_ran_meanwhile_is_withheld(guarded):
    ran = []

    @tool
    def work():
        guarded.guard.isolate("agent:bot", by="ada", why="drill")
        ran.append(True)
        return "result"

    with guarded.guard, pytest.raises(AgentIsolated):
        work()

    assert ran

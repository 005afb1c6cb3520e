"""Two guards on the call path of one process: each counts every call once."""

from __future__ import annotations

import asyncio

import aiohttp
import httpx2
import openai
import pytest
import requests
import urllib3

from agentguard.testing import text_of

CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text_of(50)}], "max_tokens": 100}


def by_openai(provider, stream):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
        answer = client.chat.completions.create(**CHAT, stream=stream)
        return list(answer) if stream else answer


def by_async_openai(provider, stream):
    async def ask():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            answer = await client.chat.completions.create(**CHAT, stream=stream)
            return [event async for event in answer] if stream else answer

    return asyncio.run(ask())


def by_httpx2(provider, stream):
    return httpx2.post(provider.url("/v1/chat/completions"), json=CHAT | {"stream": stream}).text


def by_requests(provider, stream):
    return requests.post(provider.url("/v1/chat/completions"), json=CHAT | {"stream": stream}, timeout=30).text


def by_urllib3(provider, stream):
    return urllib3.request("POST", provider.url("/v1/chat/completions"), json=CHAT | {"stream": stream}).data


def by_aiohttp(provider, stream):
    async def ask():
        url = provider.url("/v1/chat/completions")
        async with aiohttp.ClientSession() as session, session.post(url, json=CHAT | {"stream": stream}) as response:
            return await response.text()

    return asyncio.run(ask())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [by_openai, by_async_openai, by_httpx2, by_requests, by_urllib3, by_aiohttp])
def test_each_guard_charges_a_call_once(provider, guard_with, ask, stream):
    one, other = guard_with(), guard_with()

    assert ask(provider, stream)

    assert (one.spent, other.spent) == (provider.tokens, provider.tokens)
    assert (one.balance("calls"), other.balance("calls")) == ((1, 0), (1, 0))

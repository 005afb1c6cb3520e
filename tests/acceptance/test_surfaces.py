"""Every way of calling an LLM is seen, counted once, and refused when the budget is gone.

A surface builds its client, and returns what makes one call with it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3
from pydantic import BaseModel

from agentguard import BudgetExceeded
from agentguard.core.call import LLMCall
from agentguard.events import CallAdmitted, CallSettled
from agentguard.integrations.registry import integrations
from agentguard.testing import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

MESSAGES: list[Any] = [{"role": "user", "content": text_of(100)}]
CHAT: dict[str, Any] = {"model": "gpt-5", "messages": MESSAGES, "max_tokens": 200}
CLAUDE: dict[str, Any] = {"model": "claude-sonnet-5", "messages": MESSAGES, "max_tokens": 200}
RESPONSE: dict[str, Any] = {"model": "gpt-5", "input": text_of(100), "max_output_tokens": 200}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


class City(BaseModel):
    name: str
    people: int


class Entry(NamedTuple):
    """One surface.

    Attributes:
        build: Makes the client; returns what makes the call.
        library: The integration that it takes.
    """

    build: Any
    library: str


SURFACES: dict[str, Entry] = {}


def surface(library: str) -> Callable[[Any], Any]:
    def add(build: Any) -> Any:
        SURFACES[f"{library}-{build.__name__}"] = Entry(build, library)
        return build

    return add


def run(call: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], object]:
    return lambda: asyncio.run(call())


def openai_at(url: str, stack: ExitStack, **options: Any) -> openai.OpenAI:
    return stack.enter_context(openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", **options))


def aopenai_at(url: str, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test", **options)


def anthropic_at(url: str, stack: ExitStack, **options: Any) -> anthropic.Anthropic:
    return stack.enter_context(anthropic.Anthropic(base_url=url, api_key="sk-test", **options))


def aanthropic_at(url: str, **options: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", **options)


# --- openai, sync ------------------------------------------------------------------------------------------------------


@surface("openai")
def create(url, stack):
    client = openai_at(url, stack)
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def create_with_tools(url, stack):
    client = openai_at(url, stack)
    return lambda: client.chat.completions.create(**CHAT, tools=[TOOL])


@surface("openai")
def stream(url, stack):
    client = openai_at(url, stack)
    return lambda: list(client.chat.completions.create(**CHAT, stream=True))


@surface("openai")
def stream_that_asks_for_usage(url, stack):
    client = openai_at(url, stack)
    return lambda: list(client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))


@surface("openai")
def stream_helper(url, stack):
    client = openai_at(url, stack)

    def call():
        with client.chat.completions.stream(**CHAT) as stream:
            stream.until_done()

    return call


@surface("openai")
def parse(url, stack):
    client = openai_at(url, stack)
    return lambda: client.chat.completions.parse(**CHAT, response_format=City)


@surface("openai")
def raw_response(url, stack):
    client = openai_at(url, stack)
    return lambda: client.chat.completions.with_raw_response.create(**CHAT).parse()


@surface("openai")
def raw_response_of_a_stream(url, stack):
    client = openai_at(url, stack)
    return lambda: list(client.chat.completions.with_raw_response.create(**CHAT, stream=True).parse())


@surface("openai")
def streaming_response(url, stack):
    client = openai_at(url, stack)

    def call():
        with client.chat.completions.with_streaming_response.create(**CHAT) as response:
            response.parse()

    return call


@surface("openai")
def streaming_response_of_a_stream(url, stack):
    client = openai_at(url, stack)

    def call():
        with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
            list(response.iter_lines())

    return call


@surface("openai")
def responses(url, stack):
    client = openai_at(url, stack)
    return lambda: client.responses.create(**RESPONSE)


@surface("openai")
def responses_stream(url, stack):
    client = openai_at(url, stack)
    return lambda: list(client.responses.create(**RESPONSE, stream=True))


@surface("openai")
def responses_stream_helper(url, stack):
    client = openai_at(url, stack)

    def call():
        with client.responses.stream(**RESPONSE) as stream:
            stream.get_final_response()

    return call


@surface("openai")
def responses_parse(url, stack):
    client = openai_at(url, stack)
    return lambda: client.responses.parse(**RESPONSE, text_format=City)


@surface("openai")
def embeddings(url, stack):
    client = openai_at(url, stack)
    return lambda: client.embeddings.create(model="text-embedding-3-small", input=[text_of(50), text_of(60)])


@surface("openai")
def legacy_completions(url, stack):
    client = openai_at(url, stack)
    return lambda: client.completions.create(model="davinci", prompt=text_of(100), max_tokens=200)


@surface("openai")
def legacy_completions_stream(url, stack):
    client = openai_at(url, stack)
    return lambda: list(client.completions.create(model="davinci", prompt=text_of(100), max_tokens=200, stream=True))


@surface("openai")
def post(url, stack):
    client = openai_at(url, stack)
    return lambda: client.post("/chat/completions", cast_to=object, body=CHAT)


@surface("openai")
def extra_body(url, stack):
    client = openai_at(url, stack)
    return lambda: client.post("/chat/completions", cast_to=object, body={"model": "gpt-5"}, options={"extra_json": CHAT})


@surface("openai")
def bound_method(url, stack):
    return _bound(openai_at(url, stack).chat.completions.create, CHAT)


@surface("openai")
def bound_raw_method(url, stack):
    return _bound(openai_at(url, stack).chat.completions.with_raw_response.create, CHAT)


def _bound(create: Any, request: dict[str, Any]) -> Callable[[], object]:
    return lambda: create(**request)


@surface("openai")
def with_options(url, stack):
    client = openai_at(url, stack).with_options(max_retries=0)
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def azure(url, stack):
    client = stack.enter_context(openai.AzureOpenAI(azure_endpoint=url, api_key="sk-azure", api_version="2025-01-01"))
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def custom_http_client(url, stack):
    client = openai_at(url, stack, http_client=stack.enter_context(httpx2.Client(headers={"x-own": "1"})))
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def custom_transport(url, stack):
    class Transport(httpx2.BaseTransport):
        def __init__(self):
            self.wrapped = httpx2.HTTPTransport()

        def handle_request(self, request):
            return self.wrapped.handle_request(request)

        def close(self):
            self.wrapped.close()

    client = openai_at(url, stack, http_client=stack.enter_context(httpx2.Client(transport=Transport())))
    return lambda: list(client.chat.completions.create(**CHAT, stream=True))


@surface("openai")
def subclassed_http_client(url, stack):
    class Client(httpx2.Client):
        def send(self, request, **kwargs):
            return super().send(request, **kwargs)

    client = openai_at(url, stack, http_client=stack.enter_context(Client()))
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def legacy_httpx_client(url, stack):
    client = openai_at(url, stack, http_client=stack.enter_context(httpx.Client()))
    return lambda: client.chat.completions.create(**CHAT)


@surface("openai")
def legacy_httpx_client_stream(url, stack):
    client = openai_at(url, stack, http_client=stack.enter_context(httpx.Client()))
    return lambda: list(client.chat.completions.create(**CHAT, stream=True))


@surface("openai")
def module_level_client(url, stack):
    openai._reset_client()
    openai.base_url, openai.api_key, openai.http_client = f"{url}/v1", "sk-test", stack.enter_context(httpx2.Client())

    @stack.callback
    def restore():
        openai._reset_client()
        openai.base_url = openai.api_key = openai.http_client = None

    return lambda: openai.chat.completions.create(**CHAT)


# --- openai, async -----------------------------------------------------------------------------------------------------


def _aopenai(call: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, object]]) -> Any:
    """A surface of the async client, which lives in the loop that it is used in."""

    def build(url, stack):
        async def main():
            async with aopenai_at(url) as client:
                await call(client)

        return run(main)

    build.__name__ = call.__name__
    return surface("openai")(build)


@_aopenai
async def async_create(client):
    await client.chat.completions.create(**CHAT)


@_aopenai
async def async_stream(client):
    async for _ in await client.chat.completions.create(**CHAT, stream=True):
        pass


@_aopenai
async def async_stream_helper(client):
    async with client.chat.completions.stream(**CHAT) as stream:
        await stream.until_done()


@_aopenai
async def async_parse(client):
    await client.chat.completions.parse(**CHAT, response_format=City)


@_aopenai
async def async_raw_response(client):
    (await client.chat.completions.with_raw_response.create(**CHAT)).parse()


@_aopenai
async def async_streaming_response(client):
    async with client.chat.completions.with_streaming_response.create(**CHAT) as response:
        await response.parse()


@_aopenai
async def async_streaming_response_of_a_stream(client):
    async with client.chat.completions.with_streaming_response.create(**CHAT, stream=True) as response:
        async for _ in response.iter_lines():
            pass


@_aopenai
async def async_responses(client):
    await client.responses.create(**RESPONSE)


@_aopenai
async def async_responses_stream(client):
    async for _ in await client.responses.create(**RESPONSE, stream=True):
        pass


@_aopenai
async def async_responses_parse(client):
    await client.responses.parse(**RESPONSE, text_format=City)


@_aopenai
async def async_embeddings(client):
    await client.embeddings.create(model="text-embedding-3-small", input=text_of(50))


@_aopenai
async def async_legacy_completions(client):
    await client.completions.create(model="davinci", prompt=text_of(100), max_tokens=200)


@_aopenai
async def async_post(client):
    await client.post("/chat/completions", cast_to=object, body=CHAT)


@surface("openai")
def async_client_built_in_no_loop(url, stack):
    client = aopenai_at(url)

    async def main():
        async with client:
            await client.chat.completions.create(**CHAT)

    return run(main)


@surface("openai")
def async_legacy_httpx_client(url, stack):
    async def main():
        async with httpx.AsyncClient() as http_client, aopenai_at(url, http_client=http_client) as client:
            async for _ in await client.chat.completions.create(**CHAT, stream=True):
                pass

    return run(main)


@surface("openai")
def async_azure(url, stack):
    async def main():
        async with openai.AsyncAzureOpenAI(azure_endpoint=url, api_key="sk-azure", api_version="2025-01-01") as client:
            await client.chat.completions.create(**CHAT)

    return run(main)


@surface("openai")
def async_over_aiohttp(url, stack):
    async def main():
        async with openai.DefaultAioHttpClient() as http_client, aopenai_at(url, http_client=http_client) as client:
            await client.chat.completions.create(**CHAT)

    return run(main)


@surface("openai")
def async_stream_over_aiohttp(url, stack):
    async def main():
        async with openai.DefaultAioHttpClient() as http_client, aopenai_at(url, http_client=http_client) as client:
            async for _ in await client.chat.completions.create(**CHAT, stream=True):
                pass

    return run(main)


# --- anthropic, sync ---------------------------------------------------------------------------------------------------


@surface("anthropic")
def messages(url, stack):
    client = anthropic_at(url, stack)
    return lambda: client.messages.create(**CLAUDE)


@surface("anthropic")
def messages_stream(url, stack):
    client = anthropic_at(url, stack)
    return lambda: list(client.messages.create(**CLAUDE, stream=True))


@surface("anthropic")
def messages_stream_helper(url, stack):
    client = anthropic_at(url, stack)

    def call():
        with client.messages.stream(**CLAUDE) as stream:
            stream.get_final_message()

    return call


@surface("anthropic")
def messages_text_stream(url, stack):
    client = anthropic_at(url, stack)

    def call():
        with client.messages.stream(**CLAUDE) as stream:
            list(stream.text_stream)

    return call


@surface("anthropic")
def messages_raw_response(url, stack):
    client = anthropic_at(url, stack)
    return lambda: client.messages.with_raw_response.create(**CLAUDE).parse()


@surface("anthropic")
def messages_streaming_response(url, stack):
    client = anthropic_at(url, stack)

    def call():
        with client.messages.with_streaming_response.create(**CLAUDE) as response:
            response.read()

    return call


@surface("anthropic")
def beta_messages(url, stack):
    client = anthropic_at(url, stack)
    return lambda: client.beta.messages.create(**CLAUDE)


@surface("anthropic")
def beta_stream_helper(url, stack):
    client = anthropic_at(url, stack)

    def call():
        with client.beta.messages.stream(**CLAUDE) as stream:
            stream.until_done()

    return call


@surface("anthropic")
def beta_tool_runner(url, stack):
    client = anthropic_at(url, stack)

    @anthropic.beta_tool
    def search(query: str) -> str:
        """Search."""
        return query

    return lambda: client.beta.messages.tool_runner(**CLAUDE, tools=[search]).until_done()


@surface("anthropic")
def messages_post(url, stack):
    client = anthropic_at(url, stack)
    return lambda: client.post("/v1/messages", cast_to=object, body=CLAUDE)


@surface("anthropic")
def messages_bound_method(url, stack):
    return _bound(anthropic_at(url, stack).messages.create, CLAUDE)


@surface("anthropic")
def messages_with_options(url, stack):
    client = anthropic_at(url, stack).with_options(max_retries=0)
    return lambda: client.messages.create(**CLAUDE)


@surface("anthropic")
def messages_custom_http_client(url, stack):
    client = anthropic_at(url, stack, http_client=stack.enter_context(httpx2.Client()))
    return lambda: client.messages.create(**CLAUDE)


# --- anthropic, async --------------------------------------------------------------------------------------------------


def _aanthropic(call: Callable[[anthropic.AsyncAnthropic], Coroutine[Any, Any, object]]) -> Any:
    def build(url, stack):
        async def main():
            async with aanthropic_at(url) as client:
                await call(client)

        return run(main)

    build.__name__ = call.__name__
    return surface("anthropic")(build)


@_aanthropic
async def async_messages(client):
    await client.messages.create(**CLAUDE)


@_aanthropic
async def async_messages_stream(client):
    async for _ in await client.messages.create(**CLAUDE, stream=True):
        pass


@_aanthropic
async def async_messages_stream_helper(client):
    async with client.messages.stream(**CLAUDE) as stream:
        await stream.get_final_message()


@_aanthropic
async def async_beta_messages(client):
    await client.beta.messages.create(**CLAUDE)


@_aanthropic
async def async_messages_raw_response(client):
    await (await client.messages.with_raw_response.create(**CLAUDE)).parse()


@surface("anthropic")
def async_messages_over_aiohttp(url, stack):
    async def main():
        async with anthropic.DefaultAioHttpClient() as http_client, aanthropic_at(url, http_client=http_client) as client:
            await client.messages.create(**CLAUDE)

    return run(main)


# --- bare HTTP ---------------------------------------------------------------------------------------------------------

_HTTPX = {"httpx": httpx, "httpx2": httpx2}


def _httpx_surfaces(library: str) -> None:  # noqa: C901 - six ways of one library
    module: Any = _HTTPX[library]

    @surface(library)
    def post(url, stack):
        client = stack.enter_context(module.Client())
        return lambda: client.post(f"{url}/v1/chat/completions", json=CHAT).json()

    @surface(library)
    def post_stream(url, stack):
        client = stack.enter_context(module.Client())

        def call():
            with client.stream("POST", f"{url}/v1/chat/completions", json=CHAT | {"stream": True}) as response:
                list(response.iter_lines())

        return call

    @surface(library)
    def post_stream_unstreamed(url, stack):
        client = stack.enter_context(module.Client())
        return lambda: client.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}).text

    @surface(library)
    def top_level_function(url, stack):
        return lambda: module.post(f"{url}/v1/messages", json=CLAUDE).json()

    @surface(library)
    def async_post(url, stack):
        async def main():
            async with module.AsyncClient() as client:
                (await client.post(f"{url}/v1/chat/completions", json=CHAT)).json()

        return run(main)

    @surface(library)
    def async_post_stream(url, stack):
        async def main():
            request = {"json": CLAUDE | {"stream": True}}
            async with module.AsyncClient() as client, client.stream("POST", f"{url}/v1/messages", **request) as response:
                async for _ in response.aiter_lines():
                    pass

        return run(main)


_httpx_surfaces("httpx")
_httpx_surfaces("httpx2")


@surface("requests")
def session_post(url, stack):
    session = stack.enter_context(requests.Session())
    return lambda: session.post(f"{url}/v1/chat/completions", json=CHAT, timeout=10).json()


@surface("requests")
def session_stream(url, stack):
    session = stack.enter_context(requests.Session())

    def call():
        with session.post(f"{url}/v1/chat/completions", json=CHAT | {"stream": True}, stream=True, timeout=10) as response:
            list(response.iter_lines())

    return call


@surface("requests")
def requests_post(url, stack):
    return lambda: requests.post(f"{url}/v1/messages", json=CLAUDE, timeout=10).json()


@surface("urllib3")
def pool_request(url, stack):
    pool = stack.enter_context(urllib3.PoolManager())
    return lambda: pool.request("POST", f"{url}/v1/chat/completions", json=CHAT).json()


@surface("urllib3")
def pool_stream(url, stack):
    pool = stack.enter_context(urllib3.PoolManager())

    def call():
        response = pool.request("POST", f"{url}/v1/messages", json=CLAUDE | {"stream": True}, preload_content=False)
        list(response.stream())
        response.release_conn()

    return call


@surface("python")
def urlopen(url, stack):
    def call():
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(CHAT).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            json.loads(response.read())

    return call


@surface("python")
def http_connection(url, stack):
    def call():
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(CHAT), {"content-type": "application/json"})
            json.loads(connection.getresponse().read())
        finally:
            connection.close()

    return call


@surface("aiohttp")
def aiohttp_post(url, stack):
    async def main():
        async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=CHAT) as response:
            await response.json()

    return run(main)


@surface("aiohttp")
def aiohttp_stream(url, stack):
    async def main():
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/messages", json=CLAUDE | {"stream": True}) as response,
        ):
            async for _ in response.content:
                pass

    return run(main)


# --- the tests -------------------------------------------------------------------------------------------------------

EACH = pytest.mark.parametrize("entry", SURFACES.values(), ids=SURFACES)
REGISTERED = {one.library for one in integrations(lambda module: None)}


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _is_registered(entry):
    if entry.library not in REGISTERED:
        pytest.xfail(f"agentguard has no integration of {entry.library}")


@EACH
def test_without_a_guard_the_call_reaches_the_provider(entry, provider, stack):
    entry.build(provider.base_url, stack)()

    assert provider.calls == 1


@pytest.mark.parametrize("built", ["before", "after"])
@EACH
def test_the_call_is_counted_once(entry, built, provider, stack, guarded):
    call = entry.build(provider.base_url, stack) if built == "before" else None
    one = guarded("100000 tokens")
    call = call or entry.build(provider.base_url, stack)

    call()

    assert provider.calls == 1
    assert one.spent() == provider.tokens
    assert [event.call.operation for event in one.told(CallAdmitted) if isinstance(event.call, LLMCall)] == [
        event.call.operation for event in one.told(CallSettled)
    ]
    [settled] = one.told(CallSettled)
    assert (settled.outcome, settled.usage.total_tokens, settled.usage.estimated) == ("complete", provider.tokens, False)
    assert [attempt.status for attempt in settled.attempts] == [200]


@EACH
def test_the_call_is_refused_when_the_budget_is_gone(entry, provider, stack, guarded):
    call = entry.build(provider.base_url, stack)
    one = guarded("10 tokens")

    with pytest.raises(BudgetExceeded):
        call()

    assert provider.requests == []
    assert one.spent() == 0

"""openai: what the provider gets, what the caller gets, and what a client keeps of us."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import openai
import pytest
import requests
import urllib3

from agentguard import BudgetExceeded, ToolDenied
from agentguard.core.call import HTTPCall
from agentguard.testing import Reply, ToolCall, text_of

CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text_of(50)}]}


@pytest.fixture
def client(provider):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
        yield client


def test_the_model_decides_how_the_bound_is_spelled(provider, client, guard_with):
    guard_with(tokens=10_000)

    client.chat.completions.create(**CHAT)
    client.chat.completions.create(**CHAT | {"model": "gpt-5"})
    client.responses.create(model="gpt-5", input="hello")

    bodies = [request.json for request in provider.requests]
    assert [set(body) - {"model", "messages", "input"} for body in bodies] == [
        {"max_tokens"},
        {"max_completion_tokens"},
        {"max_output_tokens"},
    ]


def test_a_bound_of_ones_own_is_left_alone(provider, client, guarded):
    client.chat.completions.create(**CHAT, max_tokens=7)

    assert provider.requests[0].json["max_tokens"] == 7
    assert guarded.spent == provider.tokens


def test_options_of_the_call_are_kept(provider, client, guarded):
    client.chat.completions.create(
        **CHAT, extra_headers={"x-own": "1"}, extra_query={"q": "2"}, extra_body={"own": {"deep": [1]}}, timeout=5
    )

    [request] = provider.requests
    assert (request.headers["x-own"], request.query, request.json["own"]) == ("1", {"q": ["2"]}, {"deep": [1]})
    assert guarded.spent == provider.tokens


def test_a_bound_in_extra_body_is_the_bound(provider, client, guard_with):
    one = guard_with(tokens=1000)

    client.chat.completions.create(**CHAT, extra_body={"max_tokens": 30})
    with pytest.raises(BudgetExceeded):
        client.chat.completions.create(**CHAT, max_tokens=10, extra_body={"max_tokens": 5000})

    assert provider.requests[0].json["max_tokens"] == 30
    assert one.spent == provider.tokens


def test_what_the_caller_passed_is_not_changed(provider, client, guarded):
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "gpt-4.1", "messages": messages, "stream": True}
    options = {"include_usage": False}

    list(client.chat.completions.create(model="gpt-4.1", messages=messages, stream=True, stream_options=options))
    client.post("/chat/completions", cast_to=httpx2.Response, body=body)

    assert messages == [{"role": "user", "content": "hello"}]
    assert body == {"model": "gpt-4.1", "messages": messages, "stream": True}
    assert options == {"include_usage": False}


def test_calls_that_are_no_llm_calls_are_counted_as_others(provider, client, guarded):
    client.models.list()

    assert [type(settled.call) for settled in guarded.settled] == [HTTPCall]
    assert (guarded.spent, guarded.balance("calls")) == (0, (1, 0))


def test_each_choice_is_reserved(provider, client, guard_with):
    guard_with(tokens=1000)

    client.chat.completions.create(**CHAT, n=3, max_tokens=200)
    with pytest.raises(BudgetExceeded) as refused:
        client.chat.completions.create(**CHAT, n=5, max_tokens=200)

    assert refused.value.requested > 1000


def test_cached_and_reasoning_tokens_are_counted_once(provider, client, guarded):
    provider.reply(Reply(output_tokens=100, reasoning_tokens=60, input_tokens=500, cached_tokens=400))

    client.chat.completions.create(**CHAT)

    [settled] = guarded.llm_calls
    assert (settled.usage.total_tokens, settled.usage.reasoning_tokens, settled.usage.cache_read_tokens) == (600, 60, 400)
    assert guarded.spent == provider.tokens == 600


def test_an_answer_without_usage_is_charged_an_estimate(provider, client, guarded):
    provider.reply(Reply(output_tokens=100, usage=False))

    client.chat.completions.create(**CHAT, max_tokens=200)

    [settled] = guarded.llm_calls
    assert settled.usage.estimated
    assert guarded.spent == pytest.approx(provider.tokens, rel=0.3)


def test_a_client_is_free_to_go(provider, guarded):
    http = httpx2.Client()
    client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", http_client=http)
    client.chat.completions.create(**CHAT)
    http.close()
    gone = weakref.ref(client)

    del client
    gc.collect()

    assert gone() is None


def test_a_client_may_change_its_base_url(provider, recorder, client, guarded):
    from agentguard import EgressDenied

    client.chat.completions.create(**CHAT)
    client.base_url = f"{recorder.base_url}/v1/"
    with pytest.raises(EgressDenied):
        client.chat.completions.create(**CHAT)

    assert recorder.calls == 0


def test_an_absolute_url_is_judged_as_it_is(recorder, client, guarded):
    from agentguard import EgressDenied

    with pytest.raises(EgressDenied):
        client.post(recorder.url("/v1/chat/completions"), cast_to=object, body=CHAT)

    assert recorder.calls == 0


def test_many_calls_on_one_async_client_do_not_mix(provider, guarded):
    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            await asyncio.gather(*(client.chat.completions.create(**CHAT, max_tokens=tokens) for tokens in range(1, 21)))

    asyncio.run(main())

    assert sorted(settled.usage.output_tokens for settled in guarded.llm_calls) == sorted(min(n, 16) for n in range(1, 21))
    assert guarded.spent == provider.tokens


# --- what is sent on the way of a call -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "get", [httpx2.get, requests.get, partial(urllib3.request, "GET")], ids=["httpx2", "requests", "urllib3"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_is_fetched_on_the_way_is_not_taken_for_the_answer(provider, guarded, get, stream):
    def fetch_token():
        assert get(provider.url("/v1/models")).json()["object"] == "list"
        return "sk-fetched"

    with openai.OpenAI(base_url=provider.url("/v1"), api_key=fetch_token) as client:
        answer = client.chat.completions.create(**CHAT, max_tokens=100, stream=stream)
        if stream:
            list(answer)

    [settled] = guarded.llm_calls
    assert not settled.usage.estimated
    assert [attempt.target.path for attempt in settled.attempts] == ["/v1/models", "/v1/chat/completions"]
    assert guarded.spent == provider.tokens


def test_tools_are_judged_though_a_token_was_fetched_on_the_way(provider, guard_with):
    guard_with(tools={"allowed": ["search"], "proposed": "deny"})
    provider.reply(Reply(tool_calls=[ToolCall(name="delete_all")]))

    def fetch_token():
        httpx2.get(provider.url("/v1/models"))
        return "sk-fetched"

    with openai.OpenAI(base_url=provider.url("/v1"), api_key=fetch_token) as client, pytest.raises(ToolDenied):
        client.chat.completions.create(**CHAT)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_body_that_the_caller_has_serialised_is_an_llm_call_that_is_charged(provider, guarded, is_async):
    async def post():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            await client.post("/chat/completions", cast_to=object, content=body)

    body = json.dumps(CHAT | {"max_tokens": 20}).encode()
    if is_async:
        asyncio.run(post())
    else:
        with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            client.post("/chat/completions", cast_to=object, content=body)

    assert len(guarded.llm_calls) == 1
    assert guarded.spent == provider.tokens


class BreaksOff(BaseHTTPRequestHandler):
    """Answers a first request with half of its answer, and the next with all of it."""

    protocol_version = "HTTP/1.1"
    answer = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4.1",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}],
            "usage": {"prompt_tokens": 50, "completion_tokens": 3, "total_tokens": 53},
        }
    ).encode()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer[:20] if self.server.asked == 1 else self.answer)
        self.close_connection = True

    def log_message(self, *args):
        """Say nothing."""


def test_an_answer_that_broke_off_and_was_asked_for_again_is_charged_too(guarded):
    with HTTPServer(("127.0.0.1", 0), BreaksOff) as server:
        server.asked = 0
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="sk-test") as client:
            client.chat.completions.create(**CHAT, max_tokens=20)
        server.shutdown()
        serving.join()

    [settled] = guarded.llm_calls
    assert server.asked == len(settled.attempts) == 2
    assert settled.usage.estimated
    assert guarded.spent > 53 + 50

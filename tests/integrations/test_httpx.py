"""httpx and httpx2, sync and async: every hop is judged, every LLM call is metered, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextvars
import gzip
import json

import httpx
import httpx2
import openai
import pytest

from agentguard import BudgetExceeded, EgressDenied, Guard, HTTPCall, LLMCall
from agentguard.context import own_traffic
from agentguard.integrations.httpx import AsyncGuardTransport, GuardTransport
from agentguard.testing import Recorder, Reply, text_of

CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text_of(50)}]}
LIBRARIES = pytest.mark.parametrize("library", [httpx, httpx2])


def chat(provider):
    return provider.url("/v1/chat/completions")


# --- what stays as it is -----------------------------------------------------------------------------------------------


@LIBRARIES
def test_a_call_that_is_no_llm_call_passes_unchanged_and_is_counted(library, provider, guarded):
    with library.Client(headers={"x-own": "1"}) as client:
        response = client.put(
            provider.url("/data?x=1"), content=b"\x00\xff", headers={"content-type": "application/octet-stream"}
        )

    [request] = provider.requests
    assert (request.method, request.body, request.headers["x-own"], request.query) == ("PUT", b"\x00\xff", "1", {"x": ["1"]})
    assert response.status_code == 404
    [settled] = guarded.settled
    assert isinstance(settled.call, HTTPCall)
    assert guarded.balance("calls") == (1, 0)
    assert guarded.spent == 0


@LIBRARIES
@pytest.mark.parametrize(
    "body", [b"", b"not json", b"[1, 2]", b'{"model": "gpt-5"}', b'{"messages": 3', "ü".encode("latin-1"), b"[" * 100_000]
)
def test_a_body_that_is_no_llm_request_passes_as_it_is(library, guarded, body):
    with Recorder() as server, library.Client() as client:
        client.post(server.url("/v1/chat/completions"), content=body, headers={"content-type": "application/json"})

        assert server.requests[0].body == body
    assert guarded.llm_calls == []


@LIBRARIES
def test_a_request_with_a_bound_of_its_own_arrives_byte_for_byte(library, provider, guarded):
    body = b'{ "max_tokens": 20,  "model":"gpt-4.1","messages":[{"role":"user","content":"h\\u00fc"}]}'

    with library.Client() as client:
        client.post(chat(provider), content=body, headers={"content-type": "application/json"})

    assert provider.requests[0].body == body
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_a_request_without_a_bound_gets_one_and_keeps_the_rest(library, provider, guard_with):
    guard_with(tokens=1000)

    with library.Client() as client:
        client.post(chat(provider), json=CHAT | {"temperature": 0.5, "metadata": {"ü": "é"}}, headers={"x-own": "1"})

    [request] = provider.requests
    written = request.json.pop("max_tokens")
    assert request.json == CHAT | {"temperature": 0.5, "metadata": {"ü": "é"}}
    assert 0 < written < 1000
    assert request.headers["x-own"] == "1"
    assert request.headers["content-length"] == str(len(request.body))


@LIBRARIES
def test_a_request_body_that_is_a_generator_is_read_once_and_sent(library, provider, guarded):
    def chunks():
        whole = json.dumps(CHAT | {"max_tokens": 20}).encode()
        yield whole[:10]
        yield whole[10:]

    with library.Client() as client:
        client.post(chat(provider), content=chunks(), headers={"content-type": "application/json"})

    assert provider.requests[0].json == CHAT | {"max_tokens": 20}
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_the_response_has_what_it_has_without_a_guard(library, provider, guarded):
    with library.Client() as client:
        with client.stream("POST", chat(provider), json=CHAT | {"stream": True}) as streamed:
            streamed.read()
        whole = client.post(chat(provider), json=CHAT)

    for response in (streamed, whole):
        assert response.elapsed.total_seconds() > 0
        assert response.http_version == "HTTP/1.1"
        assert response.is_closed
        assert response.num_bytes_downloaded > 0
    assert isinstance(streamed.stream, library.SyncByteStream)


@LIBRARIES
def test_event_hooks_and_authentication_still_run(library, provider, guarded):
    seen = []

    with library.Client(
        auth=("me", "secret"), event_hooks={"response": [lambda response: seen.append(response.status_code)]}
    ) as client:
        client.post(chat(provider), json=CHAT | {"max_tokens": 20})

    assert seen == [200]
    assert provider.requests[0].headers["authorization"].startswith("Basic ")
    assert guarded.spent == provider.tokens


@LIBRARIES
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_hook_fetches_on_the_way_is_not_taken_for_the_answer(library, provider, guarded, stream):
    def fetch_token(request):
        library.get(provider.url("/v1/models"))

    with library.Client(event_hooks={"request": [fetch_token]}) as client:
        client.post(chat(provider), json=CHAT | {"max_tokens": 20, "stream": stream})

    [settled] = guarded.settled
    assert not settled.usage.estimated
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_a_compressed_request_is_read(library, provider, guard_with):
    one = guard_with(tokens=10)

    with library.Client() as client, pytest.raises(BudgetExceeded):
        client.post(chat(provider), content=gzip.compress(json.dumps(CHAT).encode()), headers={"content-encoding": "gzip"})

    assert provider.requests == []
    assert one.spent == 0


@LIBRARIES
def test_a_compressed_request_that_is_given_a_bound_is_no_longer_compressed(library, provider, guard_with):
    one = guard_with(tokens=1000)

    with library.Client() as client:
        client.post(
            chat(provider),
            content=gzip.compress(json.dumps(CHAT).encode()),
            headers={"content-encoding": "gzip", "content-type": "application/json"},
        )

    [request] = provider.requests
    assert "content-encoding" not in request.headers
    assert request.json["max_tokens"] > 0
    assert one.spent == provider.tokens


@LIBRARIES
def test_an_upload_that_streams_is_not_read_ahead(library, guarded):
    async def upload():
        has_begun = asyncio.Event()

        async def serve(reader, writer):
            await reader.readuntil(b"first")
            has_begun.set()
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            writer.close()

        async def pieces():
            yield b"first"
            await asyncio.wait_for(has_begun.wait(), 30)
            yield b"second"

        async with await asyncio.start_server(serve, "127.0.0.1") as server, library.AsyncClient() as client:
            port = server.sockets[0].getsockname()[1]
            return await client.post(f"http://127.0.0.1:{port}/upload", content=pieces())

    response = asyncio.run(upload())

    assert response.status_code == 204
    assert guarded.balance("calls") == (1, 0)


@LIBRARIES
def test_a_request_whose_coroutine_is_dropped_gives_back_what_it_held(library, guarded):
    async def drop_one():
        has_begun = asyncio.Event()

        class Stalled(library.AsyncBaseTransport):
            async def handle_async_request(self, request):
                has_begun.set()
                await asyncio.Event().wait()

        async with library.AsyncClient(transport=Stalled()) as client:
            task = asyncio.create_task(client.post("http://127.0.0.1/v1/chat/completions", json=CHAT))
            await has_begun.wait()
            contextvars.copy_context().run(task.get_coro().close)  # as the collector does, wherever it runs
            task.cancel()
            with pytest.raises(RuntimeError, match="already awaited"):
                await task

    asyncio.run(drop_one())

    assert guarded.held == 0


@LIBRARIES
def test_a_proxy_that_a_transport_was_given_is_judged(library, recorder, guarded):
    transport = library.HTTPTransport(proxy=library.Proxy(recorder.url("/")))

    with library.Client(transport=transport) as client, pytest.raises(EgressDenied, match=r"127\.0\.0\.2"):
        client.get("http://127.0.0.1:9/data")

    assert recorder.requests == []


@LIBRARIES
def test_a_mock_transport_is_metered_too(library, guarded):
    answer = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}}
    transport = library.MockTransport(lambda request: library.Response(200, json=answer))

    with library.Client(transport=transport) as client:
        response = client.post("http://127.0.0.1/v1/chat/completions", json=CHAT)

    assert response.json() == answer
    assert guarded.spent == 12


@LIBRARIES
def test_a_mock_transport_is_denied_too(library, guard_with):
    guard_with()
    transport = library.MockTransport(lambda request: pytest.fail("it was sent"))

    with library.Client(transport=transport) as client, pytest.raises(EgressDenied):
        client.get("http://evil.example/")


@LIBRARIES
def test_redirects_are_hops_of_one_call(library, provider, guarded):
    provider.redirect("/a", to=provider.url("/b"))
    provider.redirect("/b", to=provider.url("/v1/models"))

    with library.Client(follow_redirects=True) as client:
        response = client.get(provider.url("/a"))

    assert (response.status_code, len(response.history)) == (200, 2)
    [settled] = guarded.settled
    assert [attempt.target.path for attempt in settled.attempts] == ["/a", "/b", "/v1/models"]
    assert guarded.balance("calls") == (1, 0)


@LIBRARIES
@pytest.mark.parametrize("is_async", [False, True])
def test_a_redirect_into_an_llm_path_is_an_llm_call_that_is_charged(library, provider, guarded, is_async):
    provider.redirect("/start", to=chat(provider))

    async def post():
        async with library.AsyncClient(follow_redirects=True) as client:
            await client.post(provider.url("/start"), json=CHAT | {"max_tokens": 20})

    if is_async:
        asyncio.run(post())
    else:
        with library.Client(follow_redirects=True) as client:
            client.post(provider.url("/start"), json=CHAT | {"max_tokens": 20})

    assert (provider.calls, len(guarded.llm_calls)) == (1, 1)
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_a_redirected_llm_call_is_charged_once(library, provider, guarded):
    provider.redirect("/old/chat/completions", to=chat(provider))

    with library.Client(follow_redirects=True) as client:
        client.post(provider.url("/old/chat/completions"), json=CHAT | {"max_tokens": 20})

    assert len(guarded.llm_calls) == 1
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_our_own_traffic_is_no_call(library, provider, recorder, guarded):
    with library.Client() as client, own_traffic():
        client.get(recorder.url("/collect"))

    assert recorder.calls == 1
    assert guarded.settled == []


@LIBRARIES
def test_a_url_with_credentials_or_case_or_a_dot_is_the_same_host(library, provider, guarded):
    with library.Client() as client:
        client.get(f"http://user:pass@127.0.0.1:{provider.port}/x")
        with pytest.raises(EgressDenied):
            client.get("http://127.0.0.1.evil.example/x")
        with pytest.raises(EgressDenied):
            client.get(f"http://127.0.0.1:{provider.port}@evil.example/x")

    assert provider.requests == ["/x"]


# --- without patching --------------------------------------------------------------------------------------------------


@pytest.fixture
def guard(guard_with):
    """A guard that stands on no client."""
    one = guard_with(tokens=1000)
    one.seams.remove()
    return one


@LIBRARIES
def test_a_guard_transport_guards_its_own_client_alone(library, provider, recorder, guard):
    with library.Client(transport=GuardTransport(guard.guard)) as client, library.Client() as free:
        client.post(chat(provider), json=CHAT | {"max_tokens": 20})
        with pytest.raises(EgressDenied):
            client.get(recorder.url("/steal"))
        assert recorder.calls == 0
        free.get(recorder.url("/fine"))

    assert recorder.calls == 1
    assert guard.spent == provider.tokens


@LIBRARIES
def test_a_guard_transport_judges_each_redirect(library, provider, recorder, guard):
    provider.redirect("/start", to=recorder.url("/steal"))

    with library.Client(transport=GuardTransport(guard.guard), follow_redirects=True) as client, pytest.raises(EgressDenied):
        client.get(provider.url("/start"))

    assert provider.requests == ["/start"]
    assert recorder.calls == 0


@LIBRARIES
def test_a_guard_transport_may_stand_on_another_one(library, guard):
    inner = library.MockTransport(lambda request: library.Response(204))

    with library.Client(transport=GuardTransport(guard.guard, inner)) as client:
        assert client.get("http://127.0.0.1/x").status_code == 204


@LIBRARIES
def test_an_async_guard_transport_guards_its_own_client(library, provider, recorder, guard):
    async def main():
        async with library.AsyncClient(transport=AsyncGuardTransport(guard.guard)) as client:
            await client.post(chat(provider), json=CHAT | {"max_tokens": 20})
            async with client.stream("POST", chat(provider), json=CHAT | {"stream": True, "max_tokens": 20}) as response:
                async for _ in response.aiter_lines():
                    pass
            with pytest.raises(EgressDenied):
                await client.get(recorder.url("/steal"))

    asyncio.run(main())

    assert recorder.calls == 0
    assert guard.spent == provider.tokens


def test_an_sdk_over_a_guard_transport_is_budgeted(provider, guard):
    with (
        httpx2.Client(transport=GuardTransport(guard.guard)) as http,
        openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", http_client=http) as client,
    ):
        client.chat.completions.create(**CHAT, max_tokens=20)
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**CHAT, max_tokens=5000)

    assert provider.calls == 1
    assert guard.spent == provider.tokens


def test_a_guard_transport_under_the_same_guard_counts_once(provider, guard_with):
    one = guard_with(tokens=1000)

    with (
        httpx2.Client(transport=GuardTransport(one.guard)) as http,
        openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", http_client=http) as client,
    ):
        client.chat.completions.create(**CHAT, max_tokens=20)
        list(client.chat.completions.create(**CHAT, max_tokens=20, stream=True))

    assert len(one.llm_calls) == provider.calls == 2
    assert [len(call.attempts) for call in one.llm_calls] == [1, 1]
    assert one.spent == provider.tokens


def test_a_guard_transport_of_another_guard_counts_for_it_too(provider, guard_with):
    one = guard_with(tokens=1000)
    other = Guard(one.guard.policy)

    with (
        httpx2.Client(transport=GuardTransport(other)) as http,
        openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", http_client=http) as client,
    ):
        client.chat.completions.create(**CHAT, max_tokens=20)
        list(client.chat.completions.create(**CHAT, max_tokens=20, stream=True))

    assert one.spent == provider.tokens
    assert sum(balance.spent for row, balance in other.usage() if row.limit.unit == "tokens") == provider.tokens
    other.close()


# --- streams -----------------------------------------------------------------------------------------------------------


@LIBRARIES
def test_a_streamed_response_that_is_read_whole_is_charged_what_it_used(library, provider, guarded):
    provider.reply(Reply(output_tokens=100))

    with library.Client() as client, client.stream("POST", chat(provider), json=CHAT) as response:
        response.read()

    assert response.json()["usage"]["completion_tokens"] == 100
    assert guarded.spent == provider.tokens


@LIBRARIES
def test_a_streamed_response_that_is_not_read_is_charged_all_the_same(library, provider, guarded):
    provider.reply(Reply(output_tokens=100))

    with library.Client() as client, client.stream("POST", chat(provider), json=CHAT | {"max_tokens": 100}):
        pass

    [settled] = guarded.llm_calls
    assert isinstance(settled.call, LLMCall)
    assert guarded.spent >= provider.tokens
    assert guarded.held == 0


@LIBRARIES
def test_a_hook_that_reads_the_stream_first_takes_nothing_from_the_count(library, provider, guarded):
    with library.Client(event_hooks={"response": [lambda response: response.read()]}) as client:
        response = client.send(client.build_request("POST", chat(provider), json=CHAT | {"stream": True}), stream=True)

    assert "[DONE]" in response.text
    assert guarded.spent == provider.tokens

"""aiohttp against real servers: one call per request of a session, whatever happens inside of it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import ssl

import aiohttp
import openai
import pytest
import pytest_asyncio
from aiohttp import payload

from agentguard.context import own_traffic
from agentguard.core.call import HTTPCall
from agentguard.errors import AgentIsolated, BudgetExceeded, EgressDenied
from agentguard.testing import Recorder, Reply

pytestmark = pytest.mark.asyncio

CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 100}
STREAM = {**CHAT, "stream": True}
JSON = {"Content-Type": "application/json"}
LONG = Reply(output_tokens=400, chunks=100, chunk_delay=0.005, ignore_max_tokens=True)


@pytest.fixture
def url(provider):
    return provider.url("/v1/chat/completions")


@pytest_asyncio.fixture
async def session():
    async with aiohttp.ClientSession() as session:
        yield session


async def in_pieces(content):
    yield content[:9]
    yield content[9:]


def as_json(body):
    return {"json": body}


def as_bytes(body):
    return {"data": json.dumps(body).encode(), "headers": JSON}


def as_text(body):
    return {"data": json.dumps(body), "headers": JSON}


def as_file(body):
    return {"data": io.BytesIO(json.dumps(body).encode()), "headers": JSON}


def as_generator(body):
    return {"data": in_pieces(json.dumps(body).encode()), "headers": JSON}


def as_payload(body):
    return {"data": payload.BytesPayload(json.dumps(body).encode()), "headers": JSON}


def as_json_payload(body):
    return {"data": payload.JsonPayload(body)}


BODIES = [as_json, as_bytes, as_text, as_file, as_generator, as_payload, as_json_payload]


@pytest.mark.parametrize("body", BODIES)
async def test_an_llm_call_is_charged_once_for_what_the_provider_says_it_used(guarded, provider, session, url, body):
    async with session.post(url, **body(CHAT)) as response:
        answer = await response.json()

    assert isinstance(response, aiohttp.ClientResponse)
    assert answer["usage"]["total_tokens"] == provider.tokens
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert provider.requests[0].json == CHAT
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [200]


@pytest.mark.parametrize("body", BODIES)
async def test_a_call_without_budget_leaves_nothing(guard_with, provider, session, url, body):
    guarded = guard_with(tokens=5)

    with pytest.raises(BudgetExceeded):
        await session.post(url, **body(CHAT))

    assert provider.calls == 0
    assert guarded.balance() == (0, 0)
    guarded.is_on = False
    async with session.post(url, **body(CHAT)) as response:
        assert response.status == 200


@pytest.mark.parametrize("body", BODIES)
async def test_a_body_without_a_bound_gets_one_and_its_length_fits(guarded, provider, session, url, body):
    async with session.post(url, **body({"model": "gpt-5", "messages": CHAT["messages"]})) as response:
        await response.read()

    [request] = provider.requests
    assert request.json["max_completion_tokens"] == 16384
    assert request.headers["content-type"] == "application/json"
    assert request.headers.get("content-length", str(len(request.body))) == str(len(request.body))


async def test_a_content_length_of_the_caller_is_corrected(guarded, provider, session, url):
    content = json.dumps({"model": "gpt-5", "messages": CHAT["messages"]}).encode()

    async with session.post(url, data=content, headers={**JSON, "Content-Length": str(len(content))}) as response:
        assert response.status == 200

    assert provider.requests[0].json["max_completion_tokens"] == 16384


async def whole(response):
    return await response.read()


async def by_lines(response):
    return b"".join([line async for line in response.content])


async def by_readline(response):
    pieces = []
    while line := await response.content.readline():
        pieces.append(line)
    return b"".join(pieces)


async def by_any(response):
    return b"".join([piece async for piece in response.content.iter_any()])


async def by_chunked(response):
    return b"".join([piece async for piece in response.content.iter_chunked(7)])


async def by_chunks(response):
    return b"".join([piece async for piece, _ in response.content.iter_chunks()])


async def by_until(response):
    pieces = []
    while piece := await response.content.readuntil(b"\n\n"):
        pieces.append(piece)
    return b"".join(pieces)


async def by_amount(response):
    pieces = []
    while piece := await response.content.read(11):
        pieces.append(piece)
    return b"".join(pieces)


async def by_exactly(response):
    pieces = []
    try:
        while True:
            pieces.append(await response.content.readexactly(13))
    except asyncio.IncompleteReadError as error:
        return b"".join([*pieces, error.partial])


async def until_at_eof(response):
    pieces = []
    while not response.content.at_eof():
        pieces.append(await response.content.readany())
    return b"".join(pieces)


async def without_waiting(response):
    await response.content.wait_eof()
    return response.content.read_nowait()


READS = [
    whole, by_lines, by_readline, by_any, by_chunked, by_chunks, by_until, by_amount, by_exactly, until_at_eof, without_waiting,
]  # fmt: skip


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("read", READS)
async def test_a_stream_reads_as_without_a_guard_and_is_charged_as_the_provider_counts(
    guarded, provider, session, url, read, gzip
):
    provider.reply(Reply(text="A line of words that is long enough.", gzip=gzip))
    async with session.post(url, json=STREAM) as response:
        assert isinstance(response.content, aiohttp.StreamReader)
        content = await read(response)
    used = provider.tokens
    guarded.is_on = False
    async with session.post(url, json=STREAM) as response:
        expected = await read(response)

    assert _events(content) == _events(expected)
    assert guarded.balance() == (used, 0)
    assert guarded.llm_calls[0].usage.estimated is False
    assert guarded.llm_calls[0].outcome == "complete"


@pytest.mark.parametrize("read", READS)
async def test_an_answer_that_is_no_stream_settles_however_it_is_read(guarded, provider, session, url, read):
    async with session.post(url, json=CHAT) as response:
        content = await read(response)

    assert json.loads(content)["usage"]["total_tokens"] == provider.tokens
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.llm_calls[0].outcome == "complete"


def _events(content):
    events = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.startswith(b"data: ")]
    parsed = [event if event == b"[DONE]" else json.loads(event) for event in events]
    return [event if isinstance(event, bytes) else (event["choices"], event.get("usage")) for event in parsed]


async def test_the_ends_of_http_chunks_are_told_as_without_a_guard(guarded, provider, session, url):
    provider.reply(Reply(chunk_delay=0.001))
    asked = {**STREAM, "stream_options": {"include_usage": True}}
    async with session.post(url, json=asked) as response:
        ends = [end async for _, end in response.content.iter_chunks()]
    guarded.is_on = False
    async with session.post(url, json=asked) as response:
        expected = [end async for _, end in response.content.iter_chunks()]

    assert ends.count(True) == expected.count(True) > 10


async def test_a_compressed_stream_that_is_not_undone_is_metered_all_the_same(guarded, provider, url):
    provider.reply(Reply(gzip=True))
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        async with session.post(url, json=STREAM) as response:
            hidden = await response.read()
            assert "content-encoding" not in response.headers
        async with session.post(url, json={**STREAM, "stream_options": {"include_usage": True}}) as response:
            packed = await response.read()
            assert response.headers["content-encoding"] == "gzip"

    assert hidden.endswith(b"data: [DONE]\n\n")
    assert packed.startswith(b"\x1f\x8b")
    assert guarded.balance() == (provider.tokens, 0)


@pytest.mark.parametrize("read", [whole, by_lines, by_any, by_chunks, by_amount])
async def test_a_stream_that_outgrows_its_budget_is_cut_and_the_server_stops(guard_with, provider, session, url, read):
    guarded = guard_with(tokens=160)
    provider.reply(LONG)

    with pytest.raises(BudgetExceeded) as cut:
        async with session.post(url, json=STREAM) as response:
            await read(response)

    assert not isinstance(cut.value, (OSError, aiohttp.ClientError))
    assert await asyncio.to_thread(provider.wait_idle)
    assert provider.calls == 1
    assert provider.requests[0].client_disconnected
    assert provider.tokens < 250
    assert (guarded.held, guarded.llm_calls[0].outcome) == (0, "cut")


async def test_without_a_guard_that_stream_runs_to_its_end(provider, session, url):
    provider.reply(LONG)

    async with session.post(url, json=STREAM) as response:
        assert b"[DONE]" in await response.read()

    assert provider.output_tokens == 400


async def leave_by_close(response):
    await response.content.readline()
    response.close()


async def leave_by_release(response):
    await response.content.readline()
    response.release()


async def leave_by_with(response):
    async with response:
        async for _ in response.content:
            break


async def leave_by_cancel(response):
    async def consume():
        async with response:
            await response.content.readuntil(b"never", max_size=100_000)

    task = asyncio.create_task(consume())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_release, leave_by_with, leave_by_cancel])
async def test_a_stream_that_is_left_settles_once(guarded, provider, session, url, leave):
    provider.reply(Reply(output_tokens=1000, chunk_delay=0.01))
    response = await session.post(url, json=STREAM)

    await leave(response)

    assert await asyncio.to_thread(provider.wait_idle)
    assert guarded.held == 0
    assert [call.outcome for call in guarded.llm_calls] == ["abandoned"]
    assert guarded.spent > 0


async def test_a_stream_that_nobody_holds_settles_once(guarded, provider, session, url):
    provider.reply(Reply(output_tokens=20))
    response = await session.post(url, json=STREAM)
    await response.content.readline()
    del response
    for _ in range(500):
        await asyncio.sleep(0.01)
        gc.collect()
        if guarded.held == 0:
            break
    gc.collect()

    assert guarded.held == 0
    assert len(guarded.llm_calls) == 1


async def test_a_read_that_is_given_up_does_not_end_the_stream(guarded, provider, session, url):
    provider.reply(Reply(first_token_delay=1))

    async with session.post(url, json=STREAM) as response:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(response.content.readuntil(b"never", max_size=100_000), 0.05)
        rest = await response.read()

    assert rest.endswith(b"data: [DONE]\n\n")
    assert guarded.balance() == (provider.tokens, 0)


async def test_a_call_that_is_cancelled_before_its_answer_is_charged(guarded, provider, session, url):
    provider.reply(Reply(delay=5))
    task = asyncio.create_task(session.post(url, json=CHAT)._coro)
    while not provider.in_flight:  # noqa: ASYNC110 - it comes true in a thread of the server
        await asyncio.sleep(0.001)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert guarded.held == 0
    assert guarded.llm_calls[0].outcome == "cancelled"
    assert guarded.spent >= 100


async def test_a_whole_answer_that_is_never_read_is_charged_as_reserved(guarded, provider, session, url):
    (await session.post(url, json=CHAT)).close()

    assert guarded.held == 0
    assert guarded.spent >= provider.tokens


async def test_a_stream_that_breaks_off_raises_what_aiohttp_raises(guarded, provider, session, url):
    provider.reply(Reply(output_tokens=40, truncate_after=3))

    with pytest.raises(aiohttp.ClientPayloadError):
        async with session.post(url, json=STREAM) as response:
            await response.read()

    assert guarded.held == 0
    assert guarded.llm_calls[0].outcome == "error"
    assert guarded.spent > 0


async def test_a_redirect_is_a_hop_of_the_same_call(guarded, provider, session, url):
    provider.redirect("/start/v1/chat/completions", to=url)

    async with session.post(provider.url("/start/v1/chat/completions"), json=CHAT) as response:
        await response.read()

    assert [one.status for one in response.history] == [307]
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [307, 200]


async def test_a_redirect_to_an_unlisted_host_is_denied_before_the_second_request(guarded, provider, recorder, session):
    provider.redirect("/start", to=recorder.url("/steal"))

    with pytest.raises(EgressDenied):
        await session.get(provider.url("/start"))

    assert recorder.requests == []
    assert recorder._connections == {}
    guarded.is_on = False
    async with session.get(provider.url("/start")) as response:
        assert await response.text() == "ok"


async def test_a_redirect_into_an_llm_path_is_an_llm_call_that_is_charged(guarded, provider, session, url):
    provider.redirect("/start", to=url)

    async with session.post(provider.url("/start"), json=STREAM) as response:
        assert b"[DONE]" in await response.read()

    assert guarded.balance() == (provider.tokens, 0)
    assert len(guarded.llm_calls) == 1


async def test_a_session_built_before_the_guard_is_guarded_on_every_hop(provider, recorder, session, url, guard_with):
    async with session.get(recorder.url("/before")) as response:
        await response.read()
    guarded = guard_with()
    provider.redirect("/start", to=recorder.url("/steal"))

    with pytest.raises(EgressDenied):
        await session.get(recorder.url("/after"))
    with pytest.raises(EgressDenied):
        await session.get(provider.url("/start"))
    async with session.post(url, json=CHAT) as response:
        await response.read()

    assert recorder.requests == ["/before"]
    assert guarded.balance() == (provider.tokens, 0)


async def test_a_middleware_of_the_user_keeps_its_place_and_what_it_sends_is_judged(guarded, provider, recorder, url):
    seen = []

    async def astray(request, handler):
        seen.append(str(request.url))
        request.url = request.url.with_host("127.0.0.2").with_port(recorder.port)
        return await handler(request)

    async def retry(request, handler):
        response = await handler(request)
        return response if response.status == 200 else await handler(request)

    async with aiohttp.ClientSession(middlewares=(astray,)) as session:
        with pytest.raises(EgressDenied):
            await session.get(provider.url("/x"))
    provider.reply(Reply(status=503, fail_times=1))
    async with aiohttp.ClientSession(middlewares=(retry,)) as session, session.post(url, json=CHAT) as response:
        await response.read()

    assert seen == [provider.url("/x")]
    assert recorder.requests == []
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [503, 200]
    assert guarded.balance() == (provider.tokens, 0)


async def test_a_middleware_that_reads_the_answer_does_not_hide_it_from_the_meter(guarded, provider, url):
    async def reading(request, handler):
        response = await handler(request)
        await response.read()
        return response

    async with aiohttp.ClientSession(middlewares=(reading,)) as session:
        async with session.post(url, json=CHAT) as response:
            assert (await response.json())["usage"]
        async with session.post(url, json=STREAM) as response:
            assert b'"choices":[]' not in (await response.read()).replace(b" ", b"")

    assert guarded.balance() == (provider.tokens, 0)


async def test_a_proxy_is_judged_like_the_host_behind_it(guarded, provider, recorder, session, monkeypatch):
    with pytest.raises(EgressDenied):
        await session.get(provider.url("/x"), proxy=recorder.base_url)
    monkeypatch.setenv("http_proxy", recorder.base_url)
    monkeypatch.setenv("no_proxy", "")
    async with aiohttp.ClientSession(trust_env=True) as trusting:
        with pytest.raises(EgressDenied):
            await trusting.get(provider.url("/x"))
    with Recorder() as proxy:
        with pytest.raises(EgressDenied):
            await session.get("http://elsewhere.example/x", proxy=proxy.base_url)
        with pytest.raises(EgressDenied):
            await session.get("https://elsewhere.example/x", proxy=proxy.base_url)
        assert proxy.requests == []

    assert recorder.requests == []
    guarded.is_on = False
    async with session.get(provider.url("/x"), proxy=recorder.base_url) as response:
        assert await response.text() == "ok"


async def test_an_llm_call_through_an_allowed_proxy_is_charged(guarded, provider, session):
    async with session.post("http://127.0.0.1:9/v1/chat/completions", json=CHAT, proxy=provider.base_url) as response:
        await response.read()

    assert guarded.balance() == (provider.tokens, 0)


async def test_a_host_header_or_server_name_that_names_another_host_is_judged(guarded, provider, session):
    with pytest.raises(EgressDenied, match="elsewhere"):
        await session.get(provider.url("/x"), headers={"Host": "elsewhere.example"})
    with pytest.raises(EgressDenied, match="elsewhere"):
        await session.get(f"https://127.0.0.1:{provider.port}/x", server_hostname="elsewhere.example")

    assert provider.requests == []


async def test_an_https_call_is_metered(guarded, provider, session, tls, certificate):
    context = ssl.create_default_context(cafile=str(certificate))

    async with session.post(f"https://127.0.0.1:{tls}/v1/chat/completions", json=STREAM, ssl=context) as response:
        assert b"[DONE]" in await response.read()

    assert guarded.balance() == (provider.tokens, 0)


async def test_a_websocket_handshake_is_judged(guarded, recorder, session):
    with pytest.raises(EgressDenied):
        await session.ws_connect(recorder.url("/ws"))

    assert recorder.requests == []


async def test_another_http_call_is_charged_once_and_its_attempt_is_noted(guarded, provider, session):
    async with session.get(provider.url("/v1/models")) as response:
        await response.read()

    [call] = guarded.settled
    assert isinstance(call.call, HTTPCall)
    assert guarded.balance("calls") == (1, 0)
    [attempt] = call.attempts
    assert (attempt.method, attempt.status, attempt.was_sent) == ("GET", 200, True)
    assert call.started <= attempt.started <= attempt.ended <= call.at


async def test_a_connection_that_is_refused_costs_nothing(guarded, provider, session, url):
    provider.close()

    with pytest.raises(aiohttp.ClientConnectorError):
        await session.post(url, json=CHAT)

    assert guarded.balance() == (0, 0)
    assert guarded.llm_calls[0].attempts[-1].was_sent is False


async def test_an_answer_that_never_comes_is_charged_as_if_it_had(guarded, provider, session, url):
    provider.reply(Reply(drop_connection=True))

    with pytest.raises(aiohttp.ServerDisconnectedError):
        await session.post(url, json=CHAT)

    assert guarded.held == 0
    assert guarded.spent >= 100


async def test_of_fifty_tasks_no_call_too_many_is_admitted(guard_with, provider, session, url):
    guarded = guard_with(budgets=[{"limit": "10 calls"}])

    async def one():
        async with session.post(url, json=CHAT) as response:
            await response.read()

    results = await asyncio.gather(*(one() for _ in range(50)), return_exceptions=True)

    assert sum(result is None for result in results) == 10
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 40
    assert provider.calls == 10
    assert guarded.held == 0


async def test_an_sdk_over_aiohttp_is_charged_once(guarded, provider):
    if int(openai.__version__.partition(".")[0]) < 3:
        pytest.importorskip("httpx_aiohttp")
    async with (
        openai.DefaultAioHttpClient() as http_client,
        openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="x", http_client=http_client) as client,
    ):
        async for _ in await client.chat.completions.create(**STREAM):
            pass

    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert len(guarded.llm_calls[0].attempts) == 1


async def test_isolating_the_agent_cuts_a_stream_that_flows(guarded, provider, session, url):
    provider.reply(Reply(output_tokens=200, chunk_delay=0.01))

    async with session.post(url, json=STREAM) as response:
        await response.content.readline()
        guarded.guard.isolate("agent:bot", by="operator", why="test")
        with pytest.raises(AgentIsolated):
            await response.read()

    assert await asyncio.to_thread(provider.wait_idle)
    assert provider.requests[0].client_disconnected
    assert guarded.held == 0


async def test_traffic_of_agentguard_itself_is_no_call(guarded, recorder, session):
    with own_traffic():
        async with session.get(recorder.url("/v1/traces")) as response:
            assert await response.text() == "ok"

    assert guarded.settled == []


async def test_removing_the_seam_restores_the_function_by_identity(guard_with):
    before = aiohttp.ClientSession.__dict__["_request"]
    guarded = guard_with()

    guarded.seams.remove()

    assert aiohttp.ClientSession.__dict__["_request"] is before

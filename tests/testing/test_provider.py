"""Scripts of the provider, and the truth it tells about what it did."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentguard.testing import Provider, Reply, ToolCall, count_tokens, text_of


def ask(provider, *, key="sk-test", **fields):
    """One chat request; the status and the parsed body, or the raw one of a stream."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]} | fields
    connection = http.client.HTTPConnection(provider.host, provider.port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    return response.status, content if fields.get("stream") else json.loads(content)


def open_stream(provider, **fields):
    """A socket on which a stream has been asked for."""
    body = json.dumps({"model": "m", "messages": [], "stream": True} | fields).encode()
    client = socket.create_connection((provider.host, provider.port), timeout=10)
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return client


def text(answer):
    return answer[1]["choices"][0]["message"]["content"]


def test_the_same_request_gets_the_same_reply_from_any_provider(provider):
    with Provider() as other:
        assert text(ask(provider)) == text(ask(other))


def test_output_is_the_smaller_of_script_and_bound(provider):
    provider.reply(Reply(output_tokens=50))

    free, bounded = ask(provider), ask(provider, max_tokens=20)

    assert (count_tokens(text(free)), count_tokens(text(bounded))) == (50, 20)
    assert free[1]["usage"]["completion_tokens"] == 50
    assert bounded[1]["usage"]["completion_tokens"] == 20


def test_a_model_that_ignores_its_bound_exceeds_it(provider):
    provider.reply(Reply(output_tokens=50, ignore_max_tokens=True))

    assert ask(provider, max_tokens=20)[1]["usage"]["completion_tokens"] == 50


def test_usage_may_differ_from_the_text(provider):
    provider.reply(Reply(text="Hi.", output_tokens=500, input_tokens=900, reasoning_tokens=400, cached_tokens=800))

    usage = ask(provider)[1]["usage"]

    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (900, 500)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 400
    assert usage["prompt_tokens_details"]["cached_tokens"] == 800
    assert provider.tokens == 1_400


def test_a_tool_call_that_does_not_fit_is_left_out(provider):
    provider.reply(Reply(text="Hm.", tool_calls=[ToolCall(name="search", arguments={"query": "x" * 100})]))

    _, answer = ask(provider, max_tokens=5)

    assert answer["choices"][0]["finish_reason"] == "length"
    assert "tool_calls" not in answer["choices"][0]["message"]


def test_queued_replies_are_given_once_and_in_order(provider):
    provider.reply(Reply(text="default"))
    provider.reply_next(Reply(text="first"), Reply(text="second"))

    assert [text(ask(provider)) for _ in range(3)] == ["first", "second", "default"]


def test_a_reply_can_be_made_for_each_request(provider):
    provider.reply(lambda request: Reply(text=request.json["messages"][0]["content"].upper()))

    assert text(ask(provider)) == "HELLO"


def test_a_function_may_look_at_what_the_provider_recorded(provider):
    provider.reply(lambda _: Reply(text=str(len(provider.requests))))

    assert text(ask(provider)) == "1"


def test_failures_end_after_the_given_times(provider):
    provider.reply(Reply(text="well", status=500, fail_times=2))

    assert [ask(provider)[0] for _ in range(4)] == [500, 500, 200, 200]


def test_a_queued_failure_without_times_happens_once(provider):
    provider.reply_next(Reply(status=503))

    assert [ask(provider)[0] for _ in range(2)] == [503, 200]


def test_a_dropped_connection_has_no_answer(provider):
    provider.reply_next(Reply(drop_connection=True))

    with pytest.raises(http.client.RemoteDisconnected):
        ask(provider)

    assert (provider.calls, provider.served, provider.requests[0].status) == (1, 0, None)


def test_a_revoked_key_is_refused_and_takes_no_reply(provider):
    provider.reply_next(Reply(text="first"))
    provider.revoked_keys.add("sk-stolen")

    status, answer = ask(provider, key="sk-stolen")

    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert text(ask(provider)) == "first"


def test_only_accepted_keys_pass_when_there_are_any(provider):
    provider.accepted_keys = {"sk-good"}

    assert [ask(provider, key=key)[0] for key in ("sk-good", "sk-other")] == [200, 401]


def test_headers_can_be_scripted(provider):
    provider.reply(Reply(status=500, headers={"x-should-retry": "false"}))

    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(provider.url("/v1/responses"), b'{"model": "m"}')

    assert raised.value.headers["x-should-retry"] == "false"
    raised.value.close()


def test_chunks_divide_a_text_without_losing_any_of_it_or_its_tokens(provider):
    provider.reply(Reply(text=text_of(10), chunks=3))

    _, stream = ask(provider, stream=True)

    assert provider.requests[0].chunks_sent == 3
    assert provider.output_tokens == 10
    pieces = [json.loads(line[6:]) for line in stream.decode().split("\n\n") if line and "[DONE]" not in line]
    assert "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces) == text_of(10)


def test_a_truncated_stream_counts_what_it_sent(provider):
    provider.reply(Reply(output_tokens=10, truncate_after=4))

    with pytest.raises(http.client.IncompleteRead):
        ask(provider, stream=True)

    record = provider.requests[0]
    assert (record.chunks_sent, record.output_tokens_sent, record.finished) == (4, 4, False)
    assert not record.client_disconnected
    assert provider.output_tokens == 4


def test_a_stream_can_end_early_and_properly(provider):
    provider.reply(Reply(output_tokens=10, truncate_after=4, truncate_abruptly=False))

    _, stream = ask(provider, stream=True)

    assert stream.count(b'"content":') == 5
    assert b"[DONE]" not in stream


def test_whoever_has_read_the_end_finds_it_counted(provider):
    for expected in range(1, 200):
        ask(provider, stream=expected % 2 == 0)

        assert provider.output_tokens == 16 * expected
        assert provider.requests[-1].finished


def test_a_paced_stream_stops_within_a_chunk_of_the_client_hanging_up(provider):
    provider.reply(Reply(output_tokens=1_000, chunk_delay=0.02))
    client = open_stream(provider)
    received = b""
    while received.count(b'"content":') < 4:
        received += client.recv(4096)
    client.close()

    assert provider.wait_idle(10)

    record = provider.requests[0]
    assert record.client_disconnected
    assert not record.finished
    assert 3 <= record.chunks_sent <= 5
    assert record.output_tokens_sent == record.chunks_sent == provider.output_tokens


def test_a_client_that_gives_up_during_the_delay_is_noticed(provider):
    provider.reply(Reply(delay=30))
    client = open_stream(provider)
    while not provider.requests:
        time.sleep(0.001)
    client.close()

    assert provider.wait_idle(10)
    assert provider.requests[0].client_disconnected
    assert provider.tokens == 0


def test_a_client_that_reads_nothing_is_not_waited_for_when_it_leaves(provider):
    provider.reply(Reply(output_tokens=100_000))
    client = open_stream(provider)
    while not provider.requests or not provider.requests[0].chunks_sent:
        time.sleep(0.001)
    client.close()

    assert provider.wait_idle(5)
    record = provider.requests[0]
    assert record.client_disconnected
    assert record.output_tokens_sent == record.chunks_sent < 100_000


def test_delays_are_kept(provider):
    provider.reply(Reply(output_tokens=3, delay=0.05, first_token_delay=0.05, chunk_delay=0.05))
    started = time.monotonic()

    ask(provider, stream=True)

    assert time.monotonic() - started >= 0.2


def test_held_replies_come_when_they_are_let_go(provider):
    gate = threading.Event()
    provider.reply(Reply(hold=gate))
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, provider, stream=stream) for stream in (False, True, False)]
        while provider.in_flight < 3:
            time.sleep(0.001)
        assert not provider.wait_idle(0.05)

        gate.set()

        assert [future.result()[0] for future in asked] == [200, 200, 200]


def test_every_call_of_many_threads_is_counted(provider):
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda _: ask(provider), range(200)))

    assert (provider.calls, provider.served, provider.tokens) == (200, 200, 200 * 18)
    assert len(provider.requests) == 200


def test_a_record_holds_the_request_as_it_came(provider):
    before = time.time()

    ask(provider, key="sk-seen")

    record = provider.requests[0]
    assert (record.method, record.path, record.status) == ("POST", "/v1/chat/completions", 200)
    assert record.headers["authorization"] == "Bearer sk-seen"
    assert record.json["model"] == "m"
    assert json.loads(record.body) == record.json
    assert before <= record.time <= time.time()
    assert record.bytes_sent > 0
    assert record == "/v1/chat/completions"


def test_clear_forgets_what_was_and_what_was_queued(provider):
    ask(provider)
    provider.reply_next(Reply(text="queued"))

    provider.clear()

    assert (provider.requests, provider.calls, provider.tokens) == ([], 0, 0)
    assert text(ask(provider)) != "queued"


def test_kept_requests_are_bounded_and_counters_are_not():
    with Provider(keep=2) as provider:
        for _ in range(5):
            ask(provider)

        assert (len(provider.requests), provider.calls) == (2, 5)


def start(*arguments):
    command = [sys.executable, "-m", "agentguard.testing.provider", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def fetch(url, data=None):
    with urllib.request.urlopen(url, data) as response:
        return json.load(response)


def test_a_provider_in_a_process_of_its_own_tells_and_takes_orders():
    process, url = start("--reply", '{"output_tokens": 7}')
    try:
        fetch(f"{url}/v1/responses", b'{"model": "m", "input": "hello"}')
        while (stats := fetch(f"{url}/_/stats"))["in_flight"]:  # it goes on for a moment after its client has read the end
            time.sleep(0.001)
        requests = fetch(f"{url}/_/requests")
        fetch(f"{url}/_/reply", b'{"tool_calls": [{"name": "search", "arguments": {"q": "x"}}]}')
        answer = fetch(f"{url}/v1/responses", b'{"model": "m"}')
        cleared = fetch(f"{url}/_/clear", b"")
    finally:
        process.terminate()
        process.communicate(timeout=10)

    assert (stats["calls"], stats["tokens"], stats["in_flight"]) == (1, 9, 0)
    assert (requests[0]["path"], requests[0]["output_tokens_sent"]) == ("/v1/responses", 7)
    assert answer["output"][0]["name"] == "search"
    assert cleared["requests"] == 0
    assert process.returncode == 0

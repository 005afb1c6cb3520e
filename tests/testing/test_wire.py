"""What a plain HTTP client reads, byte for byte."""

from __future__ import annotations

import http.client
import json

import pytest

from agentguard.testing import Reply


@pytest.fixture
def connection(provider):
    connection = http.client.HTTPConnection(provider.host, provider.port)
    yield connection
    connection.close()


def post(connection, path, **body):
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    return response, response.read()


def datas(body):
    """The data of each server-sent event."""
    return [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]


def test_a_chat_stream_is_role_then_content_then_finish_then_done(connection):
    response, body = post(connection, "/v1/chat/completions", model="m", messages=[], stream=True, max_tokens=1)

    *chunks, done = datas(body)
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert len(choices[1]["delta"]["content"]) == 4
    assert (choices[2]["delta"], choices[2]["finish_reason"]) == ({}, "length")
    assert all("usage" not in json.loads(chunk) for chunk in chunks)
    assert done == b"[DONE]"
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_usage_chunk_comes_before_done_when_asked_for(connection):
    options = {"include_usage": True}

    _, body = post(connection, "/v1/chat/completions", model="m", messages=[], stream=True, stream_options=options)

    *chunks, usage, _ = [json.loads(data) if data != b"[DONE]" else data for data in datas(body)]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 16)


def test_anthropic_events_are_named_and_end_without_done(connection):
    ask = {"model": "m", "messages": [], "max_tokens": 1, "stream": True}

    _, body = post(connection, "/proxy/v1/messages", **ask)

    names = [line.removeprefix(b"event: ") for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert names == [json.loads(data)["type"].encode() for data in datas(body)]
    assert names[0] == b"message_start"
    assert names[-1] == b"message_stop"
    assert b"DONE" not in body


def test_any_prefix_leads_to_the_same_endpoint(provider, connection):
    response, _ = post(connection, "/some/gateway/v7/chat/completions?debug=1", model="m", messages=[])

    assert response.status == 200
    assert provider.requests[0].query == {"debug": ["1"]}


def test_an_unknown_path_is_404_and_no_call(provider, connection):
    response, body = post(connection, "/v1/nothing", model="m")

    assert response.status == 404
    assert json.loads(body)["error"]["message"] == "Invalid URL (POST /v1/nothing)"
    assert provider.calls == 0


def test_a_body_that_is_no_json_is_a_bad_request(connection):
    connection.request("POST", "/v1/responses", "{")

    assert connection.getresponse().status == 400


def test_usage_can_be_left_out(provider, connection):
    provider.reply(Reply(usage=False))

    _, chat = post(connection, "/v1/chat/completions", model="m", messages=[])
    _, message = post(connection, "/v1/messages", model="m", messages=[], max_tokens=9)

    assert "usage" not in json.loads(chat)
    assert "usage" not in json.loads(message)
    assert provider.output_tokens == 16 + 9


def test_a_request_in_chunks_is_put_together(provider, connection):
    body = iter([b'{"model": "m", ', b'"messages": []}'])

    connection.request("POST", "/v1/chat/completions", body, {"transfer-encoding": "chunked"}, encode_chunked=True)

    assert connection.getresponse().status == 200
    assert provider.requests[0].json == {"model": "m", "messages": []}


def test_a_connection_is_kept_open_until_the_client_asks_to_close_it(connection):
    kept, _ = post(connection, "/v1/responses", model="m", input="hi")
    socket_of_first = connection.sock
    post(connection, "/v1/responses", model="m", input="hi")
    connection.request("POST", "/v1/responses", '{"model": "m"}', {"connection": "close"})
    connection.getresponse().read()

    assert not kept.will_close
    assert connection.sock is socket_of_first
    assert socket_of_first.recv(1) == b""


def test_an_expected_continue_is_sent(provider):
    connection = http.client.HTTPConnection(provider.host, provider.port)
    connection.request("POST", "/v1/responses", headers={"expect": "100-continue", "content-length": "14"})
    assert connection.sock.recv(100).startswith(b"HTTP/1.1 100 Continue")
    connection.send(b'{"model": "m"}')

    assert connection.getresponse().status == 200
    connection.close()

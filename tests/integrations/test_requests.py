"""requests against real servers: one call per `Session.send`, whatever happens inside of it."""

from __future__ import annotations

import gc
import io
import json
import pickle
import threading

import pytest
import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter

from agentguard.context import own_traffic
from agentguard.core.call import HTTPCall
from agentguard.errors import AgentIsolated, BudgetExceeded, Denied, EgressDenied
from agentguard.testing import Recorder, Reply

# A stream that is left to the collector is what some of these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 100}
STREAM = {**CHAT, "stream": True}
LONG = Reply(output_tokens=400, chunks=100, chunk_delay=0.005, ignore_max_tokens=True)


@pytest.fixture
def url(provider):
    return provider.url("/v1/chat/completions")


def as_bytes(url):
    return requests.post(url, data=json.dumps(CHAT).encode(), timeout=10)


def as_text(url):
    return requests.post(url, data=json.dumps(CHAT), timeout=10)


def as_json(url):
    return requests.post(url, json=CHAT, timeout=10)


def as_file(url):
    return requests.post(url, data=io.BytesIO(json.dumps(CHAT).encode()), timeout=10)


def as_generator(url):
    return requests.post(url, data=(piece.encode() for piece in (json.dumps(CHAT)[:20], json.dumps(CHAT)[20:])), timeout=10)


def through_session_send(url):
    with requests.Session() as session:
        return session.send(requests.Request("POST", url, json=CHAT).prepare())


BODIES = [as_bytes, as_text, as_json, as_file, as_generator, through_session_send]


@pytest.mark.parametrize("post", BODIES)
def test_an_llm_call_is_charged_once_for_what_the_provider_says_it_used(guarded, provider, url, post):
    response = post(url)

    assert response.json()["usage"]["total_tokens"] == provider.tokens
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert len(guarded.llm_calls) == 1


@pytest.mark.parametrize("post", BODIES)
def test_a_call_without_budget_leaves_nothing(guard_with, provider, url, post):
    guarded = guard_with(tokens=5)

    with pytest.raises(BudgetExceeded):
        post(url)

    assert provider.calls == 0
    assert guarded.balance() == (0, 0)
    guarded.is_on = False
    assert post(url).status_code == 200


@pytest.mark.parametrize("post", BODIES)
def test_the_bytes_that_arrive_are_those_of_an_unguarded_call(guarded, provider, url, post):
    post(url)
    guarded.is_on = False
    post(url)

    with_guard, without = provider.requests
    assert with_guard.json == without.json == CHAT
    assert with_guard.headers.keys() - {"content-length"} == without.headers.keys() - {"content-length", "transfer-encoding"}


def test_a_body_without_a_bound_gets_one_and_its_length_fits(guarded, provider, url):
    unbounded = {"model": "gpt-5", "messages": CHAT["messages"]}

    requests.post(url, json=unbounded, timeout=10)
    requests.post(url, data=iter([json.dumps(unbounded).encode()]), timeout=10)

    for request in provider.requests:
        assert request.json["max_completion_tokens"] == 16384
        assert request.headers["content-length"] == str(len(request.body))
        assert "transfer-encoding" not in request.headers


def test_the_prepared_request_of_the_caller_is_left_as_it_was(guarded, url):
    prepared = requests.Request("POST", url, json={"model": "gpt-5", "messages": CHAT["messages"]}).prepare()
    body = prepared.body

    requests.Session().send(prepared)

    assert prepared.body == body


def whole(response):
    return response.content


def by_lines(response):
    return b"\n".join(response.iter_lines())


def by_content(response):
    return b"".join(response.iter_content(chunk_size=None))


def by_small_content(response):
    return b"".join(response.iter_content(chunk_size=7))


def iterated(response):
    return b"".join(response)


def by_raw_stream(response):
    return b"".join(response.raw.stream(32, decode_content=True))


def by_raw_read(response):
    pieces = []
    while piece := response.raw.read(50, decode_content=True):
        pieces.append(piece)
    return b"".join(pieces)


def by_raw_chunks(response):
    return b"".join(response.raw.read_chunked(decode_content=True))


def by_raw_lines(response):
    return b"".join(response.raw)


WAYS = [whole, by_lines, by_content, by_small_content, iterated, by_raw_stream, by_raw_read, by_raw_chunks, by_raw_lines]


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("read", WAYS)
def test_a_stream_reads_as_without_a_guard_and_is_charged_as_the_provider_counts(guarded, provider, url, read, gzip):
    provider.reply(Reply(text="A line of words that is long enough.", gzip=gzip))
    with requests.post(url, json=STREAM, stream=True, timeout=10) as response:
        assert isinstance(response, requests.Response)
        assert isinstance(response.raw, urllib3.HTTPResponse)
        content = read(response)
    used = provider.tokens
    guarded.is_on = False
    with requests.post(url, json=STREAM, stream=True, timeout=10) as response:
        expected = read(response)

    assert _events(content) == _events(expected)
    assert guarded.balance() == (used, 0)
    assert guarded.llm_calls[0].usage.estimated is False
    assert provider.requests[0].json["stream_options"] == {"include_usage": True}


def _events(content):
    events = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.startswith(b"data: ")]
    parsed = [event if event == b"[DONE]" else json.loads(event) for event in events]
    return [event if isinstance(event, bytes) else (event["choices"], event.get("usage")) for event in parsed]


def test_a_streamed_body_that_is_read_whole_is_metered_too(guarded, provider, url):
    response = requests.post(url, json=STREAM, timeout=10)

    assert b"[DONE]" in response.content
    assert guarded.balance() == (provider.tokens, 0)
    assert pickle.loads(pickle.dumps(response)).content == response.content


def test_a_stream_that_outgrows_its_budget_is_cut_and_the_server_stops(guard_with, provider, url):
    guarded = guard_with(tokens=160)
    provider.reply(LONG)

    with pytest.raises(BudgetExceeded), requests.post(url, json=STREAM, stream=True, timeout=10) as response:
        for _ in response.iter_lines():
            pass

    assert provider.wait_idle()
    assert provider.calls == 1
    assert provider.requests[0].client_disconnected
    assert provider.tokens < 250
    assert guarded.held == 0
    assert guarded.llm_calls[0].outcome == "cut"


def test_without_a_guard_that_stream_runs_to_its_end(provider, url):
    provider.reply(LONG)

    response = requests.post(url, json=STREAM, timeout=10)

    assert b"[DONE]" in response.content
    assert provider.output_tokens == 400


def test_a_cut_is_not_retried_by_an_adapter_that_retries_everything(guard_with, provider, url):
    guard_with(tokens=160)
    provider.reply(LONG)
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=urllib3.Retry(5, allowed_methods=None, backoff_factor=0)))

    with pytest.raises(BudgetExceeded) as cut:
        session.post(url, json=STREAM, timeout=10)

    assert not isinstance(cut.value, OSError)
    assert provider.calls == 1


def leave_by_break(response):
    for _ in response.iter_lines():
        break
    response.close()


def leave_by_with(response):
    with response:
        next(response.iter_lines())


def leave_without_reading(response):
    response.close()


def leave_to_the_collector(response):
    next(response.iter_content(1))
    response.cycle = response


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_with, leave_without_reading, leave_to_the_collector])
def test_a_stream_that_is_left_settles_once(guarded, provider, url, leave):
    provider.reply(Reply(output_tokens=60, chunk_delay=0.01))
    response = requests.post(url, json=STREAM, stream=True, timeout=10)

    leave(response)
    del response
    gc.collect()

    assert provider.wait_idle()
    assert guarded.held == 0
    assert [call.outcome for call in guarded.llm_calls] == ["abandoned"]
    assert guarded.balance("calls") == (1, 0)


def test_a_whole_answer_that_is_never_read_is_charged_as_reserved(guarded, provider, url):
    requests.post(url, json=CHAT, stream=True, timeout=10).close()

    assert guarded.held == 0
    assert guarded.spent >= provider.tokens


def test_a_stream_that_breaks_off_raises_what_requests_raises_and_is_charged(guarded, provider, url):
    provider.reply(Reply(output_tokens=40, truncate_after=3))

    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(url, json=STREAM, timeout=10)

    assert guarded.held == 0
    assert guarded.llm_calls[0].outcome == "error"
    assert guarded.spent > 0


def test_a_redirect_is_a_hop_of_the_same_call(guarded, provider, url):
    provider.redirect("/start/v1/chat/completions", to=url)

    response = requests.post(provider.url("/start/v1/chat/completions"), json=CHAT, timeout=10)

    assert response.status_code == 200
    assert [r.status_code for r in response.history] == [307]
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [307, 200]


def test_a_redirect_to_an_unlisted_host_is_denied_before_the_second_request(guarded, provider, recorder):
    provider.redirect("/start", to=recorder.url("/steal"))

    with pytest.raises(EgressDenied) as denied:
        requests.get(provider.url("/start"), timeout=10)

    assert denied.value.decision.rule == "external_calls.allowed_domains"
    assert recorder.requests == []
    guarded.is_on = False
    assert requests.get(provider.url("/start"), timeout=10).text == "ok"


def test_a_redirect_into_an_llm_path_is_an_llm_call_that_is_charged(guarded, provider, url):
    provider.redirect("/start", to=url)

    requests.post(provider.url("/start"), json=CHAT, timeout=10)

    assert guarded.balance() == (provider.tokens, 0)
    assert len(guarded.llm_calls) == 1


def test_a_body_that_is_not_in_the_encoding_that_it_names_is_the_servers_to_refuse(guarded, provider, url):
    headers = {"content-encoding": "gzip", "content-type": "application/json"}

    requests.post(url, data=b"not compressed", headers=headers, timeout=10)

    assert provider.requests[0].body == b"not compressed"
    assert guarded.balance("calls") == (1, 0)


def test_an_unlisted_host_gets_no_connection(guarded, recorder):
    with pytest.raises(EgressDenied):
        requests.get(recorder.url("/x"), timeout=10)

    assert recorder.requests == []
    assert guarded.balance("calls") == (0, 0)


def test_a_session_built_before_the_guard_is_guarded(provider, recorder, url, guard_with):
    with requests.Session() as session:
        session.get(recorder.url("/before"), timeout=10)
        guarded = guard_with()

        with pytest.raises(EgressDenied):
            session.get(recorder.url("/after"), timeout=10)
        session.post(url, json=CHAT, timeout=10)

    assert recorder.requests == ["/before"]
    assert guarded.balance() == (provider.tokens, 0)


def test_a_host_header_that_names_another_host_is_judged(guarded, provider):
    with pytest.raises(EgressDenied, match="elsewhere"):
        requests.get(provider.url("/x"), headers={"Host": "elsewhere.example"}, timeout=10)

    assert provider.requests == []


def test_a_proxy_is_judged_like_the_host_behind_it(guarded, provider, recorder):
    with pytest.raises(EgressDenied):
        requests.get(provider.url("/x"), proxies={"http": recorder.base_url}, timeout=10)

    assert recorder.requests == []
    guarded.is_on = False
    assert requests.get(provider.url("/x"), proxies={"http": recorder.base_url}, timeout=10).text == "ok"


def test_a_proxy_of_the_environment_is_judged(guarded, provider, recorder, monkeypatch):
    monkeypatch.setenv("http_proxy", recorder.base_url)
    monkeypatch.setenv("no_proxy", "")

    with pytest.raises(EgressDenied):
        requests.get(provider.url("/x"), timeout=10)

    assert recorder.requests == []


def test_the_host_behind_an_allowed_proxy_is_judged(guarded):
    with Recorder() as proxy:
        with pytest.raises(EgressDenied):
            requests.get("http://elsewhere.example/x", proxies={"http": proxy.base_url}, timeout=10)
        with pytest.raises(EgressDenied):
            requests.get("https://elsewhere.example/x", proxies={"https": proxy.base_url}, timeout=10)

        assert proxy.requests == []


def test_an_llm_call_through_an_allowed_proxy_is_charged(guarded, provider):
    requests.post("http://127.0.0.1:9/v1/chat/completions", json=CHAT, proxies={"http": provider.base_url}, timeout=10)

    assert guarded.balance() == (provider.tokens, 0)


def test_another_http_call_is_charged_once_and_its_attempt_is_noted(guarded, provider):
    requests.get(provider.url("/v1/models"), timeout=10)

    call = guarded.settled[0]
    assert isinstance(call.call, HTTPCall)
    assert guarded.balance("calls") == (1, 0)
    [attempt] = call.attempts
    assert (attempt.method, attempt.status, attempt.was_sent) == ("GET", 200, True)
    assert call.started <= attempt.started <= attempt.ended <= call.at


def test_retries_are_attempts_of_one_call(guarded, provider, url):
    provider.reply(Reply(status=503, fail_times=2))
    session = requests.Session()
    session.mount(
        "http://", HTTPAdapter(max_retries=urllib3.Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0))
    )

    session.post(url, json=CHAT, timeout=10)

    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [503, 503, 200]
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)


def test_a_connection_that_is_refused_costs_nothing(guarded, provider, url):
    provider.close()

    with pytest.raises(requests.ConnectionError):
        requests.post(url, json=CHAT, timeout=10)

    assert guarded.balance() == (0, 0)
    assert guarded.llm_calls[0].attempts[-1].was_sent is False


def test_an_answer_that_never_comes_is_charged_as_if_it_had(guarded, provider, url):
    provider.reply(Reply(drop_connection=True))

    with pytest.raises(requests.ConnectionError):
        requests.post(url, json=CHAT, timeout=10)

    assert guarded.held == 0
    assert guarded.spent >= 100


class Canned(BaseAdapter):
    """An adapter that answers by itself, as requests_mock does."""

    def __init__(self, body, content_type):
        super().__init__()
        self.body = body
        self.content_type = content_type
        self.sent = []

    def send(self, request, stream=False, timeout=None, verify=True, cert=None, proxies=None):
        self.sent.append(request)
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(self.body), status=200, headers={"Content-Type": self.content_type}, preload_content=False
        )
        return HTTPAdapter().build_response(request, raw)

    def close(self):
        pass


ANSWER = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
).encode()
EVENTS = b"".join(
    b"data: " + event + b"\n\n"
    for event in (
        b'{"id":"1","choices":[{"index":0,"delta":{"content":"Hi"}}]}',
        b'{"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}',
        b"[DONE]",
    )
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "kind", "asked"), [(ANSWER, "application/json", CHAT), (EVENTS, "text/event-stream", STREAM)])
def test_an_adapter_of_the_user_is_metered_like_the_network(guarded, url, stream, body, kind, asked):
    session = requests.Session()
    session.mount("http://", adapter := Canned(body, kind))

    response = session.post(url, json=asked, stream=stream)
    content = response.content

    assert guarded.balance() == (12, 0)
    assert len(adapter.sent) == 1
    assert b"Hi" in content
    assert (b'"choices":[]' in content) is False


def test_an_adapter_of_the_user_is_judged_and_never_asked_for_what_is_denied(guarded):
    session = requests.Session()
    session.mount("mock://", adapter := Canned(b"{}", "application/json"))

    with pytest.raises(EgressDenied):
        session.get("mock://elsewhere.example/x")

    assert adapter.sent == []


def test_isolating_the_agent_cuts_a_stream_that_flows(guarded, provider, url):
    provider.reply(Reply(output_tokens=200, chunk_delay=0.01))

    with requests.post(url, json=STREAM, stream=True, timeout=10) as response:
        lines = response.iter_lines()
        next(lines)
        guarded.guard.isolate("agent:bot", by="operator", why="test")
        with pytest.raises(AgentIsolated):
            list(lines)

    assert provider.wait_idle()
    assert provider.requests[0].client_disconnected
    assert guarded.held == 0


def test_of_fifty_threads_no_call_too_many_is_admitted(guard_with, provider, url):
    guarded = guard_with(budgets=[{"limit": "10 calls"}])
    results = []

    def one():
        try:
            results.append(requests.post(url, json=CHAT, timeout=10).status_code)
        except BudgetExceeded as refused:
            results.append(refused)

    threads = [threading.Thread(target=one) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results.count(200) == 10
    assert len(results) == 50
    assert provider.calls == 10
    assert guarded.held == 0


def test_a_stream_that_the_collector_frees_under_the_store_s_lock_does_not_wait_for_it(guarded, provider, url):
    response = requests.post(url, json=STREAM, stream=True, timeout=10)
    next(response.iter_content(1))
    response.cycle = response
    del response

    with guarded.guard.store._lock:
        gc.collect()

    assert guarded.held == 0
    assert [call.outcome for call in guarded.llm_calls] == ["abandoned"]


def test_in_report_mode_a_refusal_is_told_once_and_refuses_nothing(guard_with, provider, recorder):
    guarded = guard_with(mode="report")
    provider.redirect("/start", to=recorder.url("/elsewhere"))

    assert requests.get(recorder.url("/x"), timeout=10).text == "ok"
    assert requests.get(provider.url("/start"), timeout=10).text == "ok"

    assert recorder.requests == ["/x", "/elsewhere"]
    assert [denied.enforced for denied in guarded.denied] == [False, False]


def test_every_seam_stands(guarded):
    standing = {status.seam: status.state for status in guarded.seams.status()}

    assert standing["requests.sessions:Session.send"] == "hooked"
    assert standing["urllib3.poolmanager:PoolManager.urlopen"] == "hooked"
    assert standing["urllib3.connectionpool:HTTPConnectionPool.urlopen"] == "hooked"
    assert standing["http.client:HTTPConnection.endheaders"] == "hooked"
    assert standing["http.client:HTTPConnection.getresponse"] == "hooked"
    assert standing["urllib.request:OpenerDirector.open"] in {"hooked", "waiting"}


def test_traffic_of_agentguard_itself_is_no_call(guarded, recorder):
    with own_traffic():
        assert requests.get(recorder.url("/v1/traces"), timeout=10).text == "ok"

    assert guarded.settled == []


def test_an_https_call_is_metered(guarded, provider, tls, certificate):
    response = requests.post(f"https://127.0.0.1:{tls}/v1/chat/completions", json=STREAM, verify=str(certificate), timeout=10)

    assert b"[DONE]" in response.content
    assert guarded.balance() == (provider.tokens, 0)


def test_an_https_host_that_is_denied_sees_no_handshake(guarded, recorder):
    with pytest.raises(EgressDenied):
        requests.get(f"https://127.0.0.2:{recorder.port}/", timeout=10)

    assert recorder._connections == {}


def test_a_denial_is_raised_as_it_is(guarded, recorder):
    with pytest.raises(Denied) as denied:
        requests.get(recorder.url("/x"), timeout=10)

    assert not isinstance(denied.value, (OSError, requests.RequestException))
    assert isinstance(pickle.loads(pickle.dumps(denied.value)), EgressDenied)


def test_removing_the_seams_restores_the_functions_by_identity(guard_with):
    before = requests.Session.__dict__["send"]
    guarded = guard_with()
    assert requests.Session.__dict__["send"] is not before

    guarded.seams.remove()

    assert requests.Session.__dict__["send"] is before

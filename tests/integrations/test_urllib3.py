"""urllib3 against real servers: one call per `urlopen` of the user, redirects and retries inside."""

from __future__ import annotations

import gc
import io
import json

import pytest
import urllib3

from agentguard.errors import BudgetExceeded, EgressDenied
from agentguard.testing import Recorder, Reply

# A stream that is left to the collector, and a connection that nobody closes, are what some of these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 100}
STREAM = {**CHAT, "stream": True}
JSON = {"Content-Type": "application/json"}
LONG = Reply(output_tokens=400, chunks=100, chunk_delay=0.005, ignore_max_tokens=True)


@pytest.fixture
def url(provider):
    return provider.url("/v1/chat/completions")


@pytest.fixture
def manager():
    with urllib3.PoolManager() as manager:
        yield manager


def module_request(provider, body, **kwargs):
    return urllib3.request("POST", provider.url("/v1/chat/completions"), json=body, **kwargs)


def manager_request(provider, body, **kwargs):
    return urllib3.PoolManager().request("POST", provider.url("/v1/chat/completions"), json=body, **kwargs)


def manager_urlopen(provider, body, **kwargs):
    url = provider.url("/v1/chat/completions")
    return urllib3.PoolManager().urlopen("POST", url, body=json.dumps(body), headers=JSON, **kwargs)


def pool_urlopen(provider, body, **kwargs):
    pool = urllib3.HTTPConnectionPool("127.0.0.1", provider.port)
    return pool.urlopen("POST", "/v1/chat/completions", json.dumps(body).encode(), JSON, **kwargs)


def pool_request(provider, body, **kwargs):
    pool = urllib3.connection_from_url(provider.base_url)
    return pool.request("POST", "/v1/chat/completions", body=io.BytesIO(json.dumps(body).encode()), headers=JSON, **kwargs)


def with_iterator(provider, body, **kwargs):
    url = provider.url("/v1/chat/completions")
    return urllib3.PoolManager().request("POST", url, body=iter([json.dumps(body).encode()]), headers=JSON, **kwargs)


def bare_connection(provider, body, **kwargs):
    conn = urllib3.connection.HTTPConnection("127.0.0.1", provider.port)
    conn.request("POST", "/v1/chat/completions", body=json.dumps(body).encode(), headers=JSON, **kwargs)
    response = conn.getresponse()
    response.conn = conn
    return response


ENTRIES = [module_request, manager_request, manager_urlopen, pool_urlopen, pool_request, with_iterator, bare_connection]


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("post", ENTRIES)
def test_an_llm_call_is_charged_once_for_what_the_provider_says_it_used(guarded, provider, post, preload):
    response = post(provider, CHAT, preload_content=preload)

    assert isinstance(response, urllib3.HTTPResponse)
    assert json.loads(response.data)["usage"]["total_tokens"] == provider.tokens
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [200]


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("post", ENTRIES)
def test_a_stream_is_charged_as_the_provider_counts_and_its_usage_event_is_hidden(guarded, provider, post, preload):
    content = post(provider, STREAM, preload_content=preload).data

    assert content.endswith(b"data: [DONE]\n\n")
    assert b'"choices":[]' not in content.replace(b" ", b"")
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.llm_calls[0].usage.estimated is False


@pytest.mark.parametrize("post", ENTRIES)
def test_a_call_without_budget_leaves_nothing(guard_with, provider, post):
    guarded = guard_with(tokens=5)

    with pytest.raises(BudgetExceeded):
        post(provider, CHAT)

    assert provider.calls == 0
    guarded.is_on = False
    assert post(provider, CHAT).status == 200


@pytest.mark.parametrize("post", ENTRIES)
def test_a_body_without_a_bound_gets_one_and_its_length_fits(guarded, provider, post):
    post(provider, {"model": "gpt-5", "messages": CHAT["messages"]})

    [request] = provider.requests
    assert request.json["max_completion_tokens"] == 16384
    assert request.headers["content-length"] == str(len(request.body))


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize("post", ENTRIES)
def test_a_stream_that_outgrows_its_budget_is_cut_after_one_attempt(guard_with, provider, post, preload):
    guarded = guard_with(tokens=160)
    provider.reply(LONG)
    retries = {} if post is bare_connection else {"retries": urllib3.Retry(5, allowed_methods=None, backoff_factor=0)}

    with pytest.raises(BudgetExceeded):
        post(provider, STREAM, preload_content=preload, **retries).read()

    assert provider.wait_idle()
    assert provider.calls == 1
    assert provider.requests[0].client_disconnected
    assert provider.tokens < 250
    assert (guarded.held, guarded.llm_calls[0].outcome) == (0, "cut")


def test_without_a_guard_that_stream_runs_to_its_end(provider):
    provider.reply(LONG)

    module_request(provider, STREAM)

    assert provider.output_tokens == 400


def by_stream(response):
    return b"".join(response.stream())


def by_small_stream(response):
    return b"".join(response.stream(5))


def by_read(response):
    return response.read()


def by_amount(response):
    return b"".join(iter(lambda: response.read(11), b""))


def by_read1(response):
    if not hasattr(response, "read1"):
        pytest.skip("urllib3 2.0 has no read1")
    return b"".join(iter(response.read1, b""))


def by_readinto(response):
    buffer, pieces = bytearray(13), []
    while size := response.readinto(buffer):
        pieces.append(bytes(buffer[:size]))
    return b"".join(pieces)


def by_chunks(response):
    return b"".join(response.read_chunked())


def by_iteration(response):
    return b"".join(response)


def by_text_wrapper(response):
    response.auto_close = False
    return io.TextIOWrapper(response).read().encode()


READS = [by_stream, by_small_stream, by_read, by_amount, by_read1, by_readinto, by_chunks, by_iteration, by_text_wrapper]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_gives_the_whole_stream_and_settles(guarded, provider, manager, url, read, packed):
    provider.reply(Reply(gzip=packed))
    headers = {"Accept-Encoding": "gzip"} if packed else {}

    response = manager.request("POST", url, json=STREAM, headers={**JSON, **headers}, preload_content=False)
    content = read(response)

    assert content.endswith(b"data: [DONE]\n\n")
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.llm_calls[0].outcome == "complete"


@pytest.mark.parametrize("packed", [False, True])
def test_a_compressed_stream_whose_usage_the_caller_asked_for_arrives_as_it_was_sent(guarded, provider, manager, url, packed):
    provider.reply(Reply(gzip=True))
    asked = {**STREAM, "stream_options": {"include_usage": True}}

    response = manager.request(
        "POST", url, json=asked, headers={**JSON, "Accept-Encoding": "gzip"}, decode_content=not packed, preload_content=False
    )
    content = response.read()

    assert response.headers["content-encoding"] == "gzip"
    assert content.startswith(b"\x1f\x8b") is packed
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.llm_calls[0].usage.estimated is False


def test_the_connection_goes_back_to_the_pool_after_a_metered_stream(guarded, provider):
    pool = urllib3.HTTPConnectionPool("127.0.0.1", provider.port, maxsize=1)
    for _ in range(3):
        pool.request("POST", "/v1/chat/completions", json=STREAM)
        by_stream(pool.request("POST", "/v1/chat/completions", json=STREAM, preload_content=False))

    assert pool.num_connections == 1
    assert guarded.balance() == (provider.tokens, 0)


def leave_by_close(response):
    next(response.stream())
    response.close()


def leave_by_with(response):
    with response:
        response.read(5)


def leave_by_release(response):
    response.drain_conn()
    response.release_conn()


def leave_to_the_collector(response):
    response.read(5)
    response.cycle = response


@pytest.mark.parametrize("leave", [leave_by_close, leave_by_with, leave_by_release, leave_to_the_collector])
def test_a_stream_that_is_left_settles_once(guarded, provider, url, leave):
    provider.reply(Reply(output_tokens=60, chunk_delay=0.005))
    response = urllib3.PoolManager().request("POST", url, json=STREAM, preload_content=False)

    leave(response)
    del response
    gc.collect()

    assert provider.wait_idle()
    assert guarded.held == 0
    assert len(guarded.llm_calls) == 1
    assert guarded.spent > 0


def test_a_redirect_is_a_hop_of_the_same_call(guarded, provider, manager, url):
    provider.redirect("/start/v1/chat/completions", to=url)

    manager.request("POST", provider.url("/start/v1/chat/completions"), json=CHAT)

    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [307, 200]


def test_a_redirect_to_an_unlisted_host_is_denied_before_the_second_request(guarded, provider, recorder, manager):
    provider.redirect("/start", to=recorder.url("/steal"))

    with pytest.raises(EgressDenied):
        manager.request("GET", provider.url("/start"))

    assert recorder.requests == []
    guarded.is_on = False
    assert manager.request("GET", provider.url("/start")).data == b"ok"


def test_a_redirect_into_an_llm_path_is_an_llm_call_that_is_charged(guarded, provider, manager, url):
    provider.redirect("/start", to=url)

    manager.request("POST", provider.url("/start"), json=CHAT)

    assert guarded.balance() == (provider.tokens, 0)


def test_retries_are_attempts_of_one_call(guarded, provider, url):
    provider.reply(Reply(status=503, fail_times=2))
    manager = urllib3.PoolManager(retries=urllib3.Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0))

    manager.request("POST", url, json=CHAT)

    assert [attempt.status for attempt in guarded.llm_calls[0].attempts] == [503, 503, 200]
    assert guarded.balance() == (provider.tokens, 0)


def test_a_retry_after_a_lost_answer_holds_the_input_once_more(guarded, provider, url):
    provider.reply(Reply(drop_connection=True, fail_times=1))
    manager = urllib3.PoolManager(retries=urllib3.Retry(3, allowed_methods=None, backoff_factor=0))

    manager.request("POST", url, json=CHAT)

    call = guarded.llm_calls[0]
    assert [attempt.status for attempt in call.attempts] == [None, 200]
    assert call.usage.input_tokens > provider.input_tokens
    assert call.usage.estimated


def test_a_pool_built_before_the_guard_is_guarded(provider, recorder, guard_with):
    pool = urllib3.HTTPConnectionPool("127.0.0.2", recorder.port)
    pool.request("GET", "/before")
    guard_with()

    with pytest.raises(EgressDenied):
        pool.request("GET", "/after")

    assert recorder.requests == ["/before"]


def test_a_refused_hop_opens_no_connection(guarded, recorder):
    pool = urllib3.HTTPConnectionPool("127.0.0.2", recorder.port)

    with pytest.raises(EgressDenied):
        pool.request("GET", "/x")
    with pytest.raises(EgressDenied):
        urllib3.connection.HTTPConnection("127.0.0.2", recorder.port).connect()

    assert pool.num_connections == 0
    assert recorder._connections == {}


def test_a_proxy_is_judged_like_the_host_behind_it(guarded, provider, recorder):
    denied_proxy = urllib3.ProxyManager(recorder.base_url)
    with pytest.raises(EgressDenied):
        denied_proxy.request("GET", provider.url("/x"))
    with pytest.raises(EgressDenied):
        denied_proxy.request("GET", f"https://127.0.0.1:{provider.port}/x")

    with Recorder() as proxy:
        allowed_proxy = urllib3.ProxyManager(proxy.base_url)
        with pytest.raises(EgressDenied):
            allowed_proxy.request("GET", "http://elsewhere.example/x")
        with pytest.raises(EgressDenied):
            allowed_proxy.request("GET", "https://elsewhere.example/x")
        assert proxy.requests == []
        guarded.is_on = False
        assert allowed_proxy.request("GET", "http://elsewhere.example/x").data == b"ok"

    assert recorder.requests == []


def test_an_llm_call_through_an_allowed_proxy_is_charged(guarded, provider):
    urllib3.ProxyManager(provider.base_url).request("POST", "http://127.0.0.1:9/v1/chat/completions", json=CHAT)

    assert guarded.balance() == (provider.tokens, 0)


def test_a_host_header_or_server_name_that_names_another_host_is_judged(guarded, provider, manager, certificate):
    with pytest.raises(EgressDenied, match="elsewhere"):
        manager.request("GET", provider.url("/x"), headers={"Host": "elsewhere.example"})
    with pytest.raises(EgressDenied, match="elsewhere"):
        urllib3.HTTPSConnectionPool("127.0.0.1", provider.port, server_hostname="elsewhere.example").request("GET", "/x")

    assert provider.requests == []


def test_an_https_call_is_metered_and_cut(guard_with, provider, tls, certificate):
    guarded = guard_with(tokens=220)
    manager = urllib3.PoolManager(ca_certs=str(certificate))
    secure = f"https://127.0.0.1:{tls}/v1/chat/completions"
    manager.request("POST", secure, json=STREAM)
    assert guarded.balance() == (provider.tokens, 0)
    provider.reply(LONG)

    with pytest.raises(BudgetExceeded):
        manager.request("POST", secure, json=STREAM)

    assert provider.wait_idle()
    assert provider.requests[-1].client_disconnected


def test_another_http_call_is_charged_once_and_its_attempt_is_noted(guarded, provider, manager):
    manager.request("GET", provider.url("/v1/models"))

    [call] = guarded.settled
    assert guarded.balance("calls") == (1, 0)
    assert [(attempt.method, attempt.status) for attempt in call.attempts] == [("GET", 200)]


def test_removing_the_seams_restores_the_functions_by_identity(guard_with):
    owners = (urllib3.PoolManager, urllib3.HTTPConnectionPool)
    before = [owner.__dict__["urlopen"] for owner in owners]
    guarded = guard_with()

    guarded.seams.remove()

    assert all(owner.__dict__["urlopen"] is function for owner, function in zip(owners, before, strict=True))

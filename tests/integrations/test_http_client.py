"""http.client and urllib.request against real servers."""

from __future__ import annotations

import gc
import http.client
import io
import json
import ssl
import urllib.error
import urllib.request

import pytest

from agentguard.context import own_traffic
from agentguard.core.call import HTTPCall
from agentguard.errors import BudgetExceeded, EgressDenied, RateLimited
from agentguard.testing import Recorder, Reply

# A stream that is left to the collector, and a connection that nobody closes, are what some of these tests are about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PATH = "/v1/chat/completions"
CHAT = {"model": "gpt-5", "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 100}
STREAM = {**CHAT, "stream": True}
JSON = {"Content-Type": "application/json"}
LONG = Reply(output_tokens=400, chunks=100, chunk_delay=0.005, ignore_max_tokens=True)


def connected(provider):
    return http.client.HTTPConnection("127.0.0.1", provider.port, timeout=10)


def answered(conn):
    response = conn.getresponse()
    response.conn = conn  # a connection that is freed closes its socket
    return response


def request_bytes(provider, body):
    conn = connected(provider)
    conn.request("POST", PATH, json.dumps(body).encode(), JSON)
    return answered(conn)


def request_text(provider, body):
    conn = connected(provider)
    conn.request("POST", PATH, json.dumps(body), JSON)
    return answered(conn)


def request_file(provider, body):
    conn = connected(provider)
    conn.request("POST", PATH, io.BytesIO(json.dumps(body).encode()), JSON)
    return answered(conn)


def request_iterator(provider, body):
    conn = connected(provider)
    text = json.dumps(body).encode()
    conn.request("POST", PATH, iter([text[:9], text[9:]]), JSON)
    return answered(conn)


def by_hand(provider, body):
    conn = connected(provider)
    content = json.dumps(body).encode()
    conn.putrequest("POST", PATH)
    conn.putheader("Content-Type", "application/json")
    conn.putheader("Content-Length", str(len(content)))
    conn.endheaders()
    conn.send(content[:7])
    conn.send(content[7:])
    return answered(conn)


def by_hand_in_chunks(provider, body):
    conn = connected(provider)
    conn.putrequest("POST", PATH)
    conn.putheader("Transfer-Encoding", "chunked")
    conn.endheaders()
    for piece in (json.dumps(body).encode()[:11], json.dumps(body).encode()[11:]):
        conn.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    conn.send(b"0\r\n\r\n")
    return answered(conn)


def by_endheaders(provider, body):
    conn = connected(provider)
    content = json.dumps(body).encode()
    conn.putrequest("POST", PATH)
    conn.putheader("Content-Length", str(len(content)))
    conn.endheaders(content)
    return answered(conn)


def after_connect(provider, body):
    conn = connected(provider)
    conn.connect()
    conn.request("POST", PATH, json.dumps(body), JSON)
    return answered(conn)


def urlopen_request(provider, body):
    return urllib.request.urlopen(urllib.request.Request(provider.url(PATH), json.dumps(body).encode(), JSON), timeout=10)


def urlopen_url(provider, body):
    return urllib.request.urlopen(provider.url(PATH), json.dumps(body).encode(), timeout=10)


def urlopen_iterator(provider, body):
    request = urllib.request.Request(provider.url(PATH), iter([json.dumps(body).encode()]), JSON)
    return urllib.request.urlopen(request, timeout=10)


def own_opener(provider, body):
    return urllib.request.build_opener().open(provider.url(PATH), json.dumps(body).encode(), 10)


BARE = [request_bytes, request_text, request_file, request_iterator, by_hand, by_hand_in_chunks, by_endheaders, after_connect]
URLLIB = [urlopen_request, urlopen_url, urlopen_iterator, own_opener]


@pytest.mark.parametrize("post", BARE + URLLIB)
def test_an_llm_call_is_charged_once_for_what_the_provider_says_it_used(guarded, provider, post):
    response = post(provider, CHAT)

    assert isinstance(response, http.client.HTTPResponse)
    assert json.load(response)["usage"]["total_tokens"] == provider.tokens
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.balance("calls") == (1, 0)
    [attempt] = guarded.llm_calls[0].attempts
    assert (attempt.status, attempt.was_sent, attempt.error) == (200, True, "")


@pytest.mark.parametrize("post", BARE + URLLIB)
def test_a_call_without_budget_leaves_nothing(guard_with, provider, post):
    guarded = guard_with(tokens=5)

    with pytest.raises(BudgetExceeded):
        post(provider, CHAT)

    assert provider.requests == []
    assert guarded.balance() == (0, 0)
    guarded.is_on = False
    assert post(provider, CHAT).status == 200


@pytest.mark.parametrize("post", BARE + URLLIB)
def test_a_body_without_a_bound_gets_one_and_its_length_fits(guarded, provider, post):
    post(provider, {"model": "gpt-5", "messages": CHAT["messages"]}).read()

    [request] = provider.requests
    assert request.json["max_completion_tokens"] == 16384
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("post", BARE + URLLIB)
def test_a_stream_that_outgrows_its_budget_is_cut_and_the_server_stops(guard_with, provider, post):
    guarded = guard_with(tokens=160)
    provider.reply(LONG)

    with pytest.raises(BudgetExceeded):
        post(provider, STREAM).read()

    assert provider.wait_idle()
    assert provider.calls == 1
    assert provider.requests[0].client_disconnected
    assert provider.tokens < 250
    assert (guarded.held, guarded.llm_calls[0].outcome) == (0, "cut")


def test_without_a_guard_that_stream_runs_to_its_end(provider):
    provider.reply(LONG)

    assert b"[DONE]" in request_bytes(provider, STREAM).read()
    assert provider.output_tokens == 400


def by_read(response):
    return response.read()


def by_amount(response):
    return b"".join(iter(lambda: response.read(17), b""))


def by_read1(response):
    return b"".join(iter(lambda: response.read1(20), b""))


def by_readinto(response):
    buffer, pieces = bytearray(19), []
    while size := response.readinto(buffer):
        pieces.append(bytes(buffer[:size]))
    return b"".join(pieces)


def by_readline(response):
    return b"".join(iter(response.readline, b""))


def by_readlines(response):
    return b"".join(response.readlines())


def by_iteration(response):
    return b"".join(response)


def by_peek(response):
    pieces = []
    while response.peek(1):
        pieces.append(response.read1(9))
    return b"".join(pieces)


def by_text_wrapper(response):
    return io.TextIOWrapper(response, newline="").read().encode()


READS = [by_read, by_amount, by_read1, by_readinto, by_readline, by_readlines, by_iteration, by_peek, by_text_wrapper]


@pytest.mark.parametrize("post", [request_bytes, urlopen_request])
@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_gives_the_whole_stream_without_the_hidden_event(guarded, provider, post, read):
    content = read(post(provider, STREAM))

    assert content.endswith(b"data: [DONE]\n\n")
    assert b'"choices":[]' not in content.replace(b" ", b"")
    assert guarded.balance() == (provider.tokens, 0)
    assert guarded.llm_calls[0].usage.estimated is False
    assert guarded.llm_calls[0].outcome == "complete"


def test_the_connection_can_be_used_again_after_a_metered_response(guarded, provider):
    conn = connected(provider)
    for body in (STREAM, CHAT, STREAM):
        conn.request("POST", PATH, json.dumps(body), JSON)
        conn.getresponse().read()
    sock = conn.sock
    conn.request("GET", "/v1/models")
    conn.getresponse().read()

    assert conn.sock is sock
    assert guarded.balance() == (provider.tokens, 0)
    assert len(guarded.llm_calls) == 3


def test_the_connection_can_be_used_again_after_a_refusal(guard_with, provider):
    guard_with(tokens=100)
    conn = connected(provider)
    with pytest.raises(BudgetExceeded):
        conn.request("POST", PATH, json.dumps({**CHAT, "max_tokens": 5000}), JSON)

    conn.request("GET", "/v1/models")

    assert conn.getresponse().status == 200
    assert provider.requests == ["/v1/models"]


def test_a_compressed_stream_is_handed_on_decoded_when_an_event_is_hidden(guarded, provider):
    provider.reply(Reply(gzip=True))
    conn = connected(provider)

    conn.request("POST", PATH, json.dumps(STREAM), {**JSON, "Accept-Encoding": "gzip"})
    response = conn.getresponse()

    assert response.getheader("Content-Encoding") is None
    assert response.read().endswith(b"data: [DONE]\n\n")
    assert guarded.balance() == (provider.tokens, 0)


def leave_by_close(response):
    response.read(5)
    response.close()


def leave_by_with(response):
    with response:
        response.readline()


def leave_to_the_collector(response):
    response.read(5)
    response.cycle = response


@pytest.mark.parametrize("post", [request_bytes, urlopen_request])
@pytest.mark.parametrize("leave", [leave_by_close, leave_by_with, leave_to_the_collector])
def test_a_stream_that_is_left_settles_once(guarded, provider, post, leave):
    provider.reply(Reply(output_tokens=60, chunk_delay=0.005))
    response = post(provider, STREAM)

    leave(response)
    del response
    gc.collect()

    assert provider.wait_idle()
    assert guarded.held == 0
    assert [call.outcome for call in guarded.llm_calls] == ["abandoned"]
    assert guarded.spent > 0


def leave_the_connection(conn):
    conn.close()


def free_the_connection(conn):
    del conn
    gc.collect()


@pytest.mark.parametrize("leave", [leave_the_connection, free_the_connection])
def test_a_request_whose_answer_nobody_asks_for_is_charged(guarded, provider, leave):
    conn = connected(provider)
    conn.request("POST", PATH, json.dumps(CHAT), JSON)

    leave(conn)
    del conn
    gc.collect()

    assert guarded.held == 0
    assert guarded.spent >= 100


@pytest.mark.parametrize("post", [request_bytes, urlopen_request])
def test_a_stream_that_breaks_off_raises_what_the_library_raises(guarded, provider, post):
    provider.reply(Reply(output_tokens=40, truncate_after=3))

    with pytest.raises(http.client.IncompleteRead):
        post(provider, STREAM).read()

    assert guarded.held == 0
    assert guarded.llm_calls[0].outcome == "error"
    assert guarded.spent > 0


def test_a_body_that_breaks_off_is_charged_as_reserved(guarded):
    with Recorder(body=b'{"choices": [', headers={"content-type": "application/json", "connection": "close"}) as server:
        response = request_bytes(server, CHAT)
        response.length = None
        assert response.read() == b'{"choices": ['

    assert guarded.held == 0
    assert guarded.spent >= 100


def test_a_stream_in_an_encoding_that_nobody_can_undo_here_is_charged_as_reserved(guarded):
    with Recorder(body=b"\xff\x06sNaPpY", headers={"content-type": "text/event-stream", "content-encoding": "snappy"}) as server:
        assert request_bytes(server, STREAM).read() == b"\xff\x06sNaPpY"

    assert guarded.held == 0
    assert guarded.spent >= 100


def test_a_redirect_is_a_hop_of_the_same_call(guarded, provider):
    provider.redirect("/start", to=provider.url("/v1/models"), status=302)

    assert urllib.request.urlopen(provider.url("/start"), timeout=10).status == 200

    [call] = guarded.settled
    assert guarded.balance("calls") == (1, 0)
    assert [attempt.status for attempt in call.attempts] == [302, 200]


def test_a_redirect_to_an_unlisted_host_is_denied_before_the_second_request(guarded, provider, recorder):
    provider.redirect("/start", to=recorder.url("/steal"), status=302)

    with pytest.raises(EgressDenied):
        urllib.request.urlopen(provider.url("/start"), timeout=10)

    assert recorder.requests == []
    guarded.is_on = False
    assert urllib.request.urlopen(provider.url("/start"), timeout=10).read() == b"ok"


def test_an_unlisted_host_gets_no_connection(guarded, recorder):
    for reach in (
        lambda: http.client.HTTPConnection("127.0.0.2", recorder.port).request("GET", "/x"),
        lambda: http.client.HTTPConnection("127.0.0.2", recorder.port).connect(),
        lambda: http.client.HTTPSConnection("127.0.0.2", recorder.port).request("GET", "/x"),
        lambda: http.client.HTTPSConnection("127.0.0.2", recorder.port).connect(),
        lambda: urllib.request.urlopen(recorder.url("/x")),
        lambda: urllib.request.urlopen(f"https://127.0.0.2:{recorder.port}/x"),
        lambda: urllib.request.urlopen(f"ftp://127.0.0.2:{recorder.port}/x"),
        lambda: urllib.request.urlretrieve(recorder.url("/x")),
    ):
        with pytest.raises(EgressDenied):
            reach()

    assert recorder.requests == []
    assert recorder._connections == {}
    assert len(guarded.denied) == 8
    guarded.is_on = False
    assert urllib.request.urlopen(recorder.url("/x")).read() == b"ok"


def test_a_tunnel_is_judged_at_both_of_its_ends(guarded, recorder):
    through_denied = http.client.HTTPSConnection("127.0.0.2", recorder.port)
    through_denied.set_tunnel("127.0.0.1", 443)
    with pytest.raises(EgressDenied):
        through_denied.request("GET", "/x")

    with Recorder() as proxy:
        to_denied = http.client.HTTPSConnection("127.0.0.1", proxy.port)
        to_denied.set_tunnel("elsewhere.example", 443)
        with pytest.raises(EgressDenied):
            to_denied.request("GET", "/x")
        with pytest.raises(EgressDenied):
            to_denied.connect()
        assert proxy.requests == []

        allowed = http.client.HTTPConnection("127.0.0.1", proxy.port)
        allowed.set_tunnel("127.0.0.1", 80)
        allowed.request("GET", "/inside")
        assert allowed.getresponse().read() == b"ok"
        assert [request.method for request in proxy.requests] == ["CONNECT", "GET"]

    assert recorder.requests == []


def test_a_proxy_of_urllib_is_judged_like_the_host_behind_it(guarded, provider, recorder, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    for scheme in ("http", "https"):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({scheme: recorder.base_url}))
        with pytest.raises(EgressDenied):
            opener.open(f"{scheme}://127.0.0.1:{provider.port}/x", timeout=10)

    assert recorder.requests == []
    guarded.is_on = False
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": recorder.base_url}))
    assert opener.open(provider.url("/x"), timeout=10).read() == b"ok"


def test_an_llm_call_through_an_allowed_proxy_is_charged(guarded, provider):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": provider.base_url}))

    opener.open(urllib.request.Request(f"http://127.0.0.1:9{PATH}", json.dumps(CHAT).encode(), JSON), timeout=10).read()

    assert guarded.balance() == (provider.tokens, 0)


def test_a_host_header_that_names_another_host_is_judged(guarded, provider):
    with pytest.raises(EgressDenied, match="elsewhere"):
        connected(provider).request("GET", "/x", headers={"Host": "elsewhere.example"})
    with pytest.raises(EgressDenied, match="elsewhere"):
        urllib.request.urlopen(urllib.request.Request(provider.url("/x"), headers={"Host": "elsewhere.example"}))

    assert provider.requests == []


def test_a_connection_made_before_the_guard_is_guarded(provider, recorder, guard_with):
    conn = http.client.HTTPConnection("127.0.0.2", recorder.port)
    conn.request("GET", "/before")
    conn.getresponse().read()
    guard_with()

    with pytest.raises(EgressDenied):
        conn.request("GET", "/after")

    assert recorder.requests == ["/before"]


def test_an_https_call_is_metered(guarded, provider, tls, certificate):
    context = ssl.create_default_context(cafile=str(certificate))
    conn = http.client.HTTPSConnection("127.0.0.1", tls, context=context)
    conn.request("POST", PATH, json.dumps(STREAM), JSON)

    assert b"[DONE]" in conn.getresponse().read()
    assert urllib.request.urlopen(f"https://127.0.0.1:{tls}{PATH}", json.dumps(CHAT).encode(), context=context).status == 200
    gc.collect()
    assert guarded.balance()[1] == 0
    assert len(guarded.llm_calls) == 2


def test_another_http_call_is_charged_once_and_its_attempt_is_noted(guarded, provider):
    connected(provider).request("GET", "/v1/models")
    conn = connected(provider)
    conn.request("GET", "/v1/models?key=secret")
    conn.getresponse().read()

    call = next(call for call in guarded.settled if call.outcome == "complete")
    assert isinstance(call.call, HTTPCall)
    [attempt] = call.attempts
    assert (attempt.method, attempt.status, attempt.target.path) == ("GET", 200, "/v1/models")
    assert call.started <= attempt.started <= attempt.ended <= call.at


def test_calls_are_counted_and_the_one_too_many_is_refused(guard_with, provider):
    guard_with(security={"api_keys": {"rate_limit": "2_requests_per_hour"}})
    for _ in range(2):
        urllib.request.urlopen(provider.url("/v1/models")).read()

    with pytest.raises(RateLimited):
        urllib.request.urlopen(provider.url("/v1/models"))

    assert provider.calls == 0
    assert len(provider.requests) == 2


def test_a_connection_that_is_refused_costs_nothing(guarded, provider):
    provider.close()

    with pytest.raises(ConnectionRefusedError):
        connected(provider).request("POST", PATH, json.dumps(CHAT), JSON)
    with pytest.raises(urllib.error.URLError):
        urlopen_request(provider, CHAT)

    assert guarded.balance() == (0, 0)
    assert [call.attempts[-1].was_sent for call in guarded.llm_calls] == [False, False]


def test_an_error_of_the_provider_costs_nothing(guarded, provider):
    provider.reply(Reply(status=429))

    with pytest.raises(urllib.error.HTTPError):
        urlopen_request(provider, CHAT)
    assert request_bytes(provider, CHAT).status == 429

    assert guarded.balance() == (0, 0)


def test_files_and_data_urls_are_no_calls(guarded, tmp_path):
    (tmp_path / "x").write_text("here")

    assert urllib.request.urlopen((tmp_path / "x").as_uri()).read() == b"here"
    assert urllib.request.urlopen("data:,here").read() == b"here"
    assert guarded.settled == []


def test_traffic_of_agentguard_itself_is_no_call(guarded, recorder):
    with own_traffic():
        assert urllib.request.urlopen(recorder.url("/v1/traces")).read() == b"ok"
        conn = http.client.HTTPConnection("127.0.0.2", recorder.port)
        conn.request("POST", PATH, b"{}")
        assert conn.getresponse().read() == b"ok"

    assert guarded.settled == []


def test_a_large_upload_elsewhere_is_not_held_back(guarded, recorder, provider):
    conn = connected(provider)
    conn.putrequest("POST", "/upload")
    conn.putheader("Content-Length", "6")
    conn.endheaders()
    assert conn.sock is not None
    conn.send(b"abc")
    conn.send(b"def")
    conn.getresponse().read()

    assert provider.requests[0].body == b"abcdef"


def test_removing_the_seams_restores_the_functions_by_identity(guard_with):
    owners = {
        http.client.HTTPConnection: ("endheaders", "send", "getresponse", "connect", "close"),
        urllib.request.OpenerDirector: ("open",),
    }
    before = {(owner, name): owner.__dict__[name] for owner, names in owners.items() for name in names}
    guarded = guard_with()
    assert all(owner.__dict__[name] is not function for (owner, name), function in before.items())

    guarded.seams.remove()

    assert all(owner.__dict__[name] is function for (owner, name), function in before.items())

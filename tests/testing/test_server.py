from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.error
import urllib.request

import pytest

from agentguard.testing import Provider, Recorder, Reply


def get(url):
    with urllib.request.urlopen(url) as response:
        return response.status, response.read()


def test_a_recorder_answers_anything_and_remembers_it(recorder):
    connection = http.client.HTTPConnection(recorder.host, recorder.port)
    for method in ("GET", "POST", "DELETE", "HEAD", "BREW"):
        connection.request(method, f"/{method.lower()}")
        assert connection.getresponse().read() == (b"" if method == "HEAD" else b"ok")
    connection.close()

    assert recorder.requests == ["/get", "/post", "/delete", "/head", "/brew"]
    assert recorder.calls == 5


def test_a_recorder_listens_on_the_loopback_address_it_was_given():
    with Recorder("127.0.0.3") as recorder:
        assert recorder.base_url == f"http://127.0.0.3:{recorder.port}"
        assert get(recorder.url("x")) == (200, b"ok")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_no_other_address_is_bound(host):
    with pytest.raises(ValueError, match="loopback"):
        Recorder(host)


def test_ipv6_loopback_works_where_there_is_one():
    try:
        recorder = Recorder("::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with recorder:
        assert get(recorder.url("/x")) == (200, b"ok")


def test_a_redirect_leads_from_one_server_to_the_next(provider, recorder):
    provider.redirect("/start", to=recorder.url("/steal"), status=302)

    get(provider.url("/start"))

    assert provider.requests == ["/start"]
    assert recorder.requests == ["/steal"]


def test_a_recorder_as_a_proxy_plays_the_far_side(recorder):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": recorder.base_url}))
    opener.open("http://paste.example/x").close()
    tunnel = http.client.HTTPConnection(recorder.host, recorder.port)
    tunnel.set_tunnel("paste.example", 443)
    tunnel.request("POST", "/inside", b"loot")
    tunnel.getresponse().read()
    tunnel.close()

    assert [(record.method, record.host) for record in recorder.requests] == [
        ("GET", "paste.example"),
        ("CONNECT", "paste.example:443"),
        ("POST", "paste.example:443"),
    ]
    assert recorder.requests[2].body == b"loot"


def test_closing_hangs_up_ends_all_threads_and_frees_the_port():
    before = threading.active_count()
    provider = Provider()
    provider.reply(Reply(delay=60))
    idle = socket.create_connection((provider.host, provider.port))
    waiting = socket.create_connection((provider.host, provider.port))
    waiting.sendall(b'POST /v1/responses HTTP/1.1\r\ncontent-length: 14\r\n\r\n{"model": "m"}')
    while not provider.in_flight:
        pass

    provider.close()

    assert (idle.recv(1), waiting.recv(1)) == (b"", b"")
    assert threading.active_count() == before
    assert not provider.requests[0].client_disconnected
    for client in (idle, waiting):
        client.close()
    with Recorder(port=provider.port) as successor:
        assert get(successor.base_url) == (200, b"ok")


def test_closing_twice_is_fine(provider):
    provider.close()
    provider.close()


def test_what_is_no_http_is_hung_up_on(recorder):
    with socket.create_connection((recorder.host, recorder.port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""

    assert recorder.wait_idle()
    assert recorder.calls == 0


def test_pipelined_requests_are_answered_in_order(provider):
    provider.reply(Reply(delay=0.01))
    with socket.create_connection((provider.host, provider.port), timeout=5) as client:
        one = b'POST /v1/responses HTTP/1.1\r\ncontent-length: 14\r\n\r\n{"model": "m"}'
        client.sendall(one * 3)
        received = b""
        while received.count(b"HTTP/1.1 200 OK") < 3:
            received += client.recv(65536)

    assert provider.calls == 3

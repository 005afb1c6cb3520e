"""The upgrade of a WebSocket is a call, judged before anything is connected."""

import asyncio
import contextlib
import http
import socket
import threading

import pytest
import websockets
from websockets.asyncio.client import connect as aconnect
from websockets.sync.client import connect
from websockets.sync.server import serve

from agentguard import EgressDenied

HOST = "127.0.0.1"


class Echo:
    """A WebSocket server on loopback, and what it was asked for."""

    def __init__(self, host=HOST):
        self.paths, self.redirect = [], None
        self._server = serve(self._echo, host, 0, process_request=self._request)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path="/", host=HOST):
        return f"ws://{host}:{self.port}{path}"

    def _request(self, connection, request):
        self.paths.append(request.path)
        if self.redirect is None or request.path != "/moved":
            return None
        response = connection.respond(http.HTTPStatus.FOUND, "")
        response.headers["Location"] = self.redirect
        return response

    def _echo(self, connection):
        for message in connection:
            connection.send(message)

    def close(self):
        self._server.shutdown()


@pytest.fixture
def echo():
    with contextlib.closing(Echo()) as server:
        yield server


def call_sync(url, **options):
    with connect(url, legacy=False, **options) as connection:
        connection.send("hello")
        return connection.recv()


def call_async(url, **options):
    async def call():
        async with aconnect(url, **options) as connection:
            await connection.send("hello")
            return await connection.recv()

    return asyncio.run(call())


both = pytest.mark.parametrize("call", [call_sync, call_async], ids=["sync", "asyncio"])


@both
def test_an_upgrade_is_one_call_with_its_status(call, echo, guarded):
    assert call(echo.url("/chat")) == "hello"

    (settled,) = guarded.settled
    assert (settled.call.method, settled.call.target.scheme, settled.call.target.path) == ("GET", "ws", "/chat")
    assert [attempt.status for attempt in settled.attempts] == [101]
    assert guarded.balance("calls") == (1, 0)


@both
def test_a_host_that_is_not_allowed_gets_no_connection(call, guarded):
    with socket.create_server(("127.0.0.2", 0)) as listener:
        listener.settimeout(0.2)

        with pytest.raises(EgressDenied) as denied:
            call(f"ws://127.0.0.2:{listener.getsockname()[1]}/")

        with pytest.raises(TimeoutError):
            listener.accept()
    assert denied.value.rule == "external_calls.allowed_domains"
    assert len(guarded.denied) == 1


@both
def test_a_redirect_to_another_host_is_refused(call, echo, guarded):
    echo.redirect = echo.url("/steal", "127.0.0.2")

    with pytest.raises(EgressDenied):
        call(echo.url("/moved"))

    assert echo.paths == ["/moved"]


@both
def test_a_proxy_is_judged_too(call, echo, guarded):
    with pytest.raises(EgressDenied) as denied:
        call(echo.url(), proxy="http://127.0.0.3:3128")

    assert "127.0.0.3" in str(denied.value)
    assert echo.paths == []


@both
def test_a_target_behind_an_allowed_proxy_is_judged_too(call, guarded):
    with socket.create_server((HOST, 0)) as proxy:
        proxy.settimeout(0.2)

        with pytest.raises(EgressDenied):
            call("ws://evil.example/", proxy=f"http://{HOST}:{proxy.getsockname()[1]}")

        with pytest.raises(TimeoutError):
            proxy.accept()


@both
def test_a_host_header_of_another_host_is_refused(call, echo, guarded):
    with pytest.raises(EgressDenied):
        call(echo.url(), additional_headers={"Host": "evil.example"})

    assert echo.paths == []


@both
def test_in_report_mode_it_goes_and_is_told_once(call, echo, guard_with):
    reporting = guard_with(mode="report", external_calls={"allowed_domains": ["api.ourservice.com"]})

    assert call(echo.url()) == "hello"

    assert [event.enforced for event in reporting.denied] == [False]


@both
def test_an_upgrade_that_the_server_refuses_is_a_call_all_the_same(call, guarded, provider):
    with pytest.raises(websockets.exceptions.InvalidHandshake):
        call(provider.url("/v1/models").replace("http:", "ws:"))

    assert [settled.outcome for settled in guarded.settled] == ["error"]

"""Real HTTP servers on loopback: what they share, and one that answers everything and remembers it."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Final

from agentguard.testing._http import ClientGoneError, Connection, MalformedRequestError, head, wants_close

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from agentguard.testing.records import RecordedRequest

_BACKLOG = 4096
_CLOSE_SECONDS: Final = 10.0


class LoopbackServer(ABC):
    """A threading HTTP/1.1 server that keeps the ground truth of what reached it.

    It listens from construction on and until `close()`, or the end of its `with` block.

    Args:
        host: A loopback address, such as 127.0.0.2 or ::1.
        port: 0 takes any free one.
        keep: How many requests to remember; None keeps all. Counters count all in any case.

    Raises:
        ValueError: `host` is not a loopback address.
        OSError: The address cannot be bound.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, keep: int | None = None) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            message = f"a server for tests listens on loopback addresses only, not on {host!r}"
            raise ValueError(message)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._redirects: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._recorded: deque[RecordedRequest] = deque(maxlen=keep)
        self._request_count = 0
        self._in_flight = 0
        self._idle = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._connections: dict[threading.Thread, Connection] = {}
        # A pair, not a connection to ourselves: the guard under test may forbid that one.
        self._wake, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, name=f"{type(self).__name__}:{self.port}", daemon=True)
        self._acceptor.start()

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def url(self, path: str) -> str:
        """The full URL of a path."""
        return self.base_url + "/" + path.removeprefix("/")

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests that arrived, oldest first. Each equals its path: `server.requests == ["/start"]`."""
        with self._lock:
            return list(self._recorded)

    @property
    def calls(self) -> int:
        """How many requests arrived."""
        return self._request_count

    @property
    def in_flight(self) -> int:
        """How many requests wait for their answer, or for the rest of it."""
        return self._in_flight

    def redirect(self, path: str, *, to: str, status: int = 307) -> None:
        """Answer every request for a path, whatever its method, with a redirect."""
        self._redirects[path] = (status, to)

    def clear(self) -> None:
        """Forget the requests and start counting at zero. What is in flight is not counted any more."""
        with self._lock:
            self._recorded.clear()
            self._request_count = 0

    def wait_idle(self, timeout: float = 5.0) -> bool:
        """Wait until every request that was read has been dealt with.

        Args:
            timeout: Seconds to wait at most.

        Returns:
            False when there was still one in flight at the end.
        """
        with self._idle:
            return self._idle.wait_for(lambda: self._in_flight == 0, timeout)

    def close(self) -> None:
        """Hang up on every client and wait for the server's threads to end. Closing twice is fine."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.send(b"\0")
        self._acceptor.join(_CLOSE_SECONDS)
        with self._lock:
            open_connections = dict(self._connections)
        for connection in open_connections.values():
            connection.shut()
        for thread in open_connections:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_SECONDS)
        for ours in (self._listener, self._wake, self._woken):
            ours.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.base_url}: {self._request_count} requests>"

    @abstractmethod
    def _respond(self, request: RecordedRequest, connection: Connection) -> bool:
        """Answer one request. False: this was the last one of the connection.

        Raises:
            ClientGoneError: The client hung up before the answer was complete.
        """

    def _is_control(self, request: RecordedRequest) -> bool:
        """Whether a request is about this server, and no part of what is being tested."""
        return False

    def _record(self, request: RecordedRequest) -> None:
        """Remember one request; called with the lock held."""
        self._recorded.append(request)
        self._request_count += 1

    def _send(
        self, request: RecordedRequest, connection: Connection, status: int, headers: Mapping[str, str], body: bytes
    ) -> bool:
        """Send a whole answer in one write. Always true: the connection can go on."""
        content = head(status, headers, len(body)) + (b"" if request.method == "HEAD" else body)
        request.status = status
        request.bytes_sent, request.finished = len(content), True
        try:
            connection.send(content)
        except ClientGoneError:
            request.bytes_sent, request.finished = 0, False
            raise
        return True

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                selector.select()
                if self._closing.is_set():
                    return
                self._accept_one()

    def _accept_one(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            time.sleep(0.01)  # the client left at once, or there is no file descriptor to be had just now
            return
        connection = Connection(client, self._closing)
        thread = threading.Thread(target=self._serve, args=(connection,), name=self._acceptor.name, daemon=True)
        with self._lock:
            self._connections[thread] = connection
        thread.start()

    def _serve(self, connection: Connection) -> None:
        try:
            while self._serve_one(connection):
                pass
        except (ClientGoneError, MalformedRequestError):
            return  # what was lost is written down in the record
        finally:
            connection.close()
            with self._lock:
                del self._connections[threading.current_thread()]

    def _serve_one(self, connection: Connection) -> bool:
        request = connection.read_request()
        is_control = self._is_control(request)
        with self._lock:
            self._in_flight += 1
            if not is_control:
                self._record(request)
        try:
            goes_on = self._redirected(request, connection) or self._respond(request, connection)
        except ClientGoneError:
            request.client_disconnected = not self._closing.is_set()
            raise
        finally:
            with self._idle:
                self._in_flight -= 1
                self._idle.notify_all()
        return goes_on and not wants_close(request)

    def _redirected(self, request: RecordedRequest, connection: Connection) -> bool:
        redirect = self._redirects.get(request.path)
        if redirect is None:
            return False
        status, location = redirect
        return self._send(request, connection, status, {"location": location}, b"")


class Recorder(LoopbackServer):
    """A server that gives the same answer to any method on any path and remembers who came.

    It plays an allowed API, or an attacker who must end up with nothing.
    As a proxy it plays every origin itself: `CONNECT` is granted and what follows in the tunnel is recorded too.

    Args:
        host: A loopback address.
        port: 0 takes any free one.
        status: Of every answer.
        body: Of every answer.
        headers: Of every answer.
        delay: Seconds before every answer.
        keep: How many requests to remember; None keeps all.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        status: int = 200,
        body: bytes = b"ok",
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        keep: int | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers: dict[str, str] = dict(headers or {"content-type": "text/plain"})
        self.delay = delay
        super().__init__(host, port, keep=keep)

    def _respond(self, request: RecordedRequest, connection: Connection) -> bool:
        if self.delay:
            connection.wait(self.delay)
        if request.method == "CONNECT":
            return self._open_tunnel(request, connection)
        return self._send(request, connection, self.status, self.headers, self.body)

    def _open_tunnel(self, request: RecordedRequest, connection: Connection) -> bool:
        request.status, request.finished = 200, True
        connection.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return True

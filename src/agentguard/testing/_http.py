"""One HTTP/1.1 connection of a loopback server: requests in, bytes out.

By hand rather than `http.server`, which reads headers with the email parser (55 us for 14 of them, against 6 us here)
and writes head and body apart; benchmarks run through this server.
"""

from __future__ import annotations

import socket
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from agentguard.testing.records import RecordedRequest

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

_RECEIVE_BYTES = 1 << 16
_END_OF_HEAD = b"\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Site is overloaded"}

END_OF_CHUNKS = b"0\r\n\r\n"


class ClientGoneError(Exception):
    """The client closed the connection."""


class MalformedRequestError(Exception):
    """What the client sent is not HTTP/1.1."""


class Connection:
    """A keep-alive connection as the server sees it."""

    def __init__(self, client: socket.socket, closing: threading.Event) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = client
        self._closing = closing
        self._received = bytearray()

    def read_request(self) -> RecordedRequest:
        """Wait for the next request.

        Raises:
            ClientGoneError: The client closed the connection, in the middle of a request or not.
            MalformedRequestError: Neither a request nor an end.
        """
        head = self._read_until(_END_OF_HEAD).decode("latin-1").split("\r\n")
        try:
            method, target, version = head[0].split(" ")
        except ValueError:
            raise MalformedRequestError(head[0]) from None
        headers = _read_headers(head[1:])
        if headers.get("expect", "").lower() == "100-continue":
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._read_body(headers)
        return RecordedRequest(method.upper(), target, version=version, headers=headers, body=body, time=time.time())

    def send(self, content: bytes) -> None:
        """Write all of it at once.

        Raises:
            ClientGoneError: The client closed the connection.
        """
        try:
            self._socket.sendall(content)
        except OSError as error:
            raise ClientGoneError from error

    def wait(self, seconds: float) -> None:
        """Let time pass, but not longer than the client stays.

        Raises:
            ClientGoneError: The client hung up before or meanwhile, or this server is closing.
        """
        deadline = time.monotonic() + seconds
        if not self._received:
            self._watch_for_end(seconds)
        if self._closing.wait(max(0.0, deadline - time.monotonic())):
            raise ClientGoneError

    def hold(self, event: threading.Event) -> None:
        """Wait for the event, but not longer than the client stays.

        Raises:
            ClientGoneError: The client hung up meanwhile, or this server is closing.
        """
        while not event.wait(0.005):
            self.wait(0)

    def shut(self) -> None:
        """End the conversation; whoever waits for the other side, here or there, wakes up."""
        try:
            # Not only close(): a forked child may hold the same connection open, and recv() in another thread
            # sleeps on until the connection is shut.
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the client was faster

    def close(self) -> None:
        """Shut, and give the file descriptor back. Only for the thread that reads."""
        self.shut()
        self._socket.close()

    def _watch_for_end(self, seconds: float) -> None:
        try:
            self._socket.settimeout(seconds)
            if not self._socket.recv(1, socket.MSG_PEEK):
                raise ClientGoneError
        except (TimeoutError, BlockingIOError):
            return
        except OSError as error:
            raise ClientGoneError from error
        finally:
            self._socket.settimeout(None)

    def _receive(self) -> None:
        try:
            received = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise ClientGoneError from error
        if not received:
            raise ClientGoneError
        self._received += received

    def _read_until(self, end: bytes) -> bytes:
        searched = 0
        while (found := self._received.find(end, searched)) < 0:
            searched = max(0, len(self._received) - len(end) + 1)
            self._receive()
        return self._take(found, skip=len(end))

    def _read_exactly(self, count: int, *, skip: int = 0) -> bytes:
        while len(self._received) < count + skip:
            self._receive()
        return self._take(count, skip=skip)

    def _take(self, count: int, *, skip: int) -> bytes:
        taken = bytes(self._received[:count])
        del self._received[: count + skip]
        return taken

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        try:
            if "chunked" in headers.get("transfer-encoding", ""):
                return self._read_chunks()
            return self._read_exactly(int(headers.get("content-length", 0)))
        except ValueError as error:
            raise MalformedRequestError(str(error)) from None

    def _read_chunks(self) -> bytes:
        body = bytearray()
        while size := int(self._read_until(b"\r\n").partition(b";")[0], 16):
            body += self._read_exactly(size, skip=2)
        while self._read_until(b"\r\n"):
            pass  # trailers
        return bytes(body)


def _read_headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        value = value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def head(status: int, headers: Mapping[str, str], length: int | None) -> bytes:
    """The head of an answer.

    Args:
        status: HTTP status.
        headers: Without those that frame the body.
        length: Bytes of the body; None says that it comes in chunks.
    """
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n{lines}{framing}\r\n\r\n".encode("latin-1")


def chunk(content: bytes) -> bytes:
    """Content framed as one chunk of a chunked body; nothing for nothing, as an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(content), content) if content else b""


def wants_close(request: RecordedRequest) -> bool:
    """Whether the client asked for the connection to be closed after the answer."""
    asked = request.headers.get("connection", "").lower()
    if request.method == "CONNECT":  # http.client of Python 3.11 opens tunnels in HTTP/1.0
        return False
    return "close" in asked or (request.version == "HTTP/1.0" and "keep-alive" not in asked)

"""http.client, the floor that urllib, urllib3, requests and botocore stand on.

Every request of these passes `HTTPConnection.endheaders`, and every response `getresponse`: here each attempt is noted, and
here the responses of LLM calls are metered, whoever asked for them. For a bare `HTTPConnection` this is also the logical call.

A metered response stays what it is. Only the file that it reads from is another one: it undoes HTTP's chunks, meters what is
in them, and makes chunks of it again, so all that reads from the response (urllib3 reads past its methods) works as before.
"""

from __future__ import annotations

import io
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentguard.admission import Admission, InProgress, outcome_of
from agentguard.core.call import LLMCall, Target
from agentguard.events import Attempt
from agentguard.integrations._calls import (
    REWRITTEN_HEADERS,
    Body,
    Judging,
    as_bytes,
    begin_or_none,
    is_in_hand,
    is_judged,
    is_own_traffic,
    judge_connection,
    other_hosts,
    own_meter_for,
    part_of,
    prepare_attempt,
    rewritten,
    to_json,
)
from agentguard.integrations._decoding import decoder
from agentguard.integrations._files import MeteredBody
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.integrations.urllib import HOOKS as URLLIB_HOOKS
from agentguard.wire import could_be

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from agentguard.guard import Guard
    from agentguard.integrations._calls import Reading
    from agentguard.integrations._seam import Resolve, Wrapper

_EXCHANGE = "_agentguard_exchange"
"""Where a connection keeps the request that is on its way."""

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_CHUNKS = b"0\r\n\r\n"


class _Head:
    """The head of a request, as `putrequest` and `putheader` have written it down."""

    def __init__(self, lines: list[bytes]) -> None:
        method, _, rest = lines[0].decode("latin-1").partition(" ")
        self.method = method
        self.url = rest.rpartition(" ")[0] or rest
        fields = (line.decode("latin-1").partition(":") for line in lines[1:] if line)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        self.path = (urlsplit(self.url).path if "://" in self.url else self.url.partition("?")[0]) or "/"

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in HTTP's chunks."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


class _Exchange:
    """One request on one connection, until its answer begins. It ends once: answered, failed, or given up.

    Attributes:
        admitted: The call that it belongs to; None while it is held back.
        owns: Whether it is a logical call of its own.
        held: What was to be sent, held back until the whole request can be read.
        was_sent: Whether any of it has left.
        started: When it was admitted, in Unix seconds.
    """

    def __init__(self, guard: Guard, head: _Head, targets: tuple[Target, ...]) -> None:
        self.guard = guard
        self.head = head
        self.targets = targets
        self.admitted: Admission | None = None
        self.owns = False
        self.held: bytearray | None = None
        self.was_sent = False
        self.is_connecting = False
        self.started = 0.0
        self._is_over = False

    def around(self) -> AbstractContextManager[object]:
        """Makes its call the current one, for one frame."""
        return InProgress(self.admitted) if self.owns and self.admitted is not None else nullcontext()

    def end(self, status: int | None = None, error: BaseException | None = None) -> None:
        """Note the attempt. Takes no lock, so that it may run in a finalizer."""
        admitted = self.admitted
        if self._is_over or admitted is None:
            return
        self._is_over = True
        name = "" if error is None else type(error).__name__
        now = self.guard.clock.time()
        admitted.attempts.append(Attempt(self.head.method, self.targets[0], self.started, now, status, name, self.was_sent))
        if self.owns and status is None:
            admitted.settle_later(outcome="abandoned" if error is None else outcome_of(error), error=name)

    def __del__(self) -> None:
        self.end()

    @property
    def is_held(self) -> bool:
        """Whether it is still held back."""
        return self.held is not None

    @property
    def is_complete(self) -> bool:
        """Whether all of a request that is held back is there."""
        head, _, body = bytes(self.held or b"").partition(_END_OF_HEAD)
        if self.head.is_chunked:
            return body.endswith(_END_OF_CHUNKS)
        length = self.head.headers.get("content-length", "")
        return head != b"" and (not length.isdigit() or len(body) >= int(length))


def _targets(conn: Any, head: _Head | None) -> Iterator[Target]:
    """What a request on a connection touches: first where it goes, then its proxy and whomever its headers name."""
    scheme = "https" if conn.default_port == 443 else "http"
    path = "/" if head is None else head.path
    host, port = conn.host.strip("[]"), conn.port
    if conn._tunnel_host:
        target = Target(scheme, conn._tunnel_host.strip("[]"), conn._tunnel_port or conn.default_port, path)
        others = [Target("http", host, port, "/")]
    elif head is not None and "://" in head.url:
        target = Target.of(head.url)
        others = [] if (target.host, target.port) == (host, port) else [Target("http", host, port, "/")]
    else:
        target, others = Target(scheme, host, port, path), []
    yield target
    yield from others
    yield from other_hosts(target, None if head is None else head.headers.get("host"), getattr(conn, "server_hostname", None))


def _endheaders(resolve: Resolve) -> Wrapper:
    def endheaders(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or is_own_traffic() or not conn._buffer:
            return wrapped(*args, **kwargs)
        try:
            exchange = _begun(guard, conn)
        except Exception:  # noted, and raised on
            _forget(conn)
            raise
        if exchange is None:
            return wrapped(*args, **kwargs)
        conn.__dict__[_EXCHANGE] = exchange
        if exchange.held is not None:
            answer = wrapped(*args, **kwargs)  # what it sends is held back
            has_body = (args[0] if args else kwargs.get("message_body")) is not None
            if exchange.is_held and (has_body or exchange.is_complete):
                _release(conn, exchange)
            return answer
        return _sending(exchange, lambda: wrapped(*args, **kwargs))

    return endheaders


def _begun(guard: Guard, conn: Any) -> _Exchange | None:
    """The exchange that begins: admitted, or held back to be read first. None when a seam above sends it, and it may go."""
    head = _Head(conn._buffer)
    targets = tuple(_targets(conn, head))
    current = begin_or_none(guard)
    if current is not None and current.in_hop:
        with Judging(current, *targets):
            return None
    exchange = _Exchange(guard, head, targets)
    is_known = current is not None and (isinstance(current.call, LLMCall) or is_in_hand(current, targets[0]))
    if not is_known and head.method == "POST" and could_be(head.path):
        exchange.held = bytearray()
        return exchange
    _admit(exchange, current or part_of(guard, head.method, targets[0], lambda: None))
    return exchange


def _admit(exchange: _Exchange, part: Admission | Reading) -> None:
    """Admit an exchange, as a call of its own or as one more attempt of the call in progress."""
    exchange.owns = not isinstance(part, Admission)
    admitted = part if isinstance(part, Admission) else exchange.guard.begin(part.call)
    with InProgress(admitted) if exchange.owns else nullcontext(), Judging(admitted, *exchange.targets):
        prepare_attempt(admitted)
    exchange.admitted, exchange.started = admitted, exchange.guard.clock.time()


def _release(conn: Any, exchange: _Exchange) -> None:
    """Read a request that was held back, admit it, and send it."""
    raw, exchange.held = bytes(exchange.held or b""), None
    lines, _, body = raw.partition(_END_OF_HEAD)
    if exchange.head.is_chunked:
        body = _unchunked(body)
    whole = Body(body, exchange.head.headers.get("content-encoding"))
    try:
        part = part_of(exchange.guard, exchange.head.method, exchange.targets[0], whole.read)
        _admit(exchange, part)
    except Exception:  # noted, and raised on
        _forget(conn)
        raise
    changed = None if isinstance(part, Admission) or exchange.admitted is None else rewritten(exchange.admitted, part)
    if changed is not None:
        content = to_json(changed)
        kept = [line for line in lines.split(b"\r\n") if _name(line) not in REWRITTEN_HEADERS]
        raw = b"\r\n".join([*kept, b"Content-Length: %d" % len(content)]) + _END_OF_HEAD + content
    _sending(exchange, lambda: conn.send(raw))


def _name(line: bytes) -> str:
    return line.partition(b":")[0].strip().lower().decode("latin-1")


def _sending(exchange: _Exchange, send: Callable[[], Any]) -> Any:
    try:
        with exchange.around():
            return send()
    except (BrokenPipeError, ConnectionResetError):
        raise  # the server may have answered already: urllib3 goes on to read that
    except BaseException as error:
        exchange.end(error=error)
        raise


def _forget(conn: Any) -> None:
    """Make a connection usable again after a request that was refused."""
    conn.__dict__.pop(_EXCHANGE, None)
    conn._buffer.clear()
    conn.close()


def _unchunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        try:
            length = int(size.partition(b";")[0], 16)
        except ValueError:
            break
        if not length:
            break
        pieces.append(body[:length])
        body = body[length + 2 :]
    return b"".join(pieces)


def _send(_resolve: Resolve) -> Wrapper:
    def send(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exchange: _Exchange | None = conn.__dict__.get(_EXCHANGE)
        if exchange is None or exchange.is_connecting:
            return wrapped(*args, **kwargs)
        if exchange.held is not None:
            exchange.held += _piece(conn, args[0] if args else kwargs["data"])
            if exchange.is_complete and _END_OF_HEAD in exchange.held and _has_body(exchange):
                _release(conn, exchange)
            return None
        if conn.sock is None and conn.auto_open:
            exchange.is_connecting = True
            try:
                conn.connect()
            finally:
                exchange.is_connecting = False
        exchange.was_sent = True
        return wrapped(*args, **kwargs)

    return send


def _has_body(exchange: _Exchange) -> bool:
    """Whether the head announces a body. Without one, `endheaders` knows when the request is complete."""
    return exchange.head.is_chunked or "content-length" in exchange.head.headers


def _piece(conn: Any, data: Any) -> bytes:
    """What `send` would put on the wire."""
    if hasattr(data, "read"):
        return b"".join(conn._read_readable(data))
    try:
        return bytes(memoryview(data))
    except TypeError:
        return b"".join(map(as_bytes, data))


def _getresponse(_resolve: Resolve) -> Wrapper:
    def getresponse(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exchange: _Exchange | None = conn.__dict__.get(_EXCHANGE)
        if exchange is None:
            return wrapped(*args, **kwargs)
        if exchange.held is not None:
            _release(conn, exchange)
        conn.__dict__.pop(_EXCHANGE, None)
        try:
            response = wrapped(*args, **kwargs)
        except BaseException as error:  # noted, and raised on
            exchange.end(error=error)
            raise
        exchange.end(response.status)
        admitted = exchange.admitted
        if admitted is not None:
            _meter(conn, response, admitted)
            if exchange.owns and not admitted.is_streaming:
                admitted.finish()
        return response

    return getresponse


def _meter(conn: Any, response: Any, admitted: Admission) -> None:
    """Put a meter into the response of an LLM call."""
    if not 200 <= response.status < 300:
        return
    http_client = sys.modules["http.client"]
    if not isinstance(response, http_client.HTTPResponse) or response.fp is None or response.length == 0:
        return
    headers = response.headers
    encoding = headers.get("content-encoding", "")
    sock = (
        getattr(getattr(response.fp, "raw", None), "_sock", None) or conn.sock
    )  # of a connection that ends, only the file is left
    meter = own_meter_for(admitted, headers.get("content-type", ""), encoding, sock)
    if meter is None:
        return
    inner = http_client.HTTPResponse.__new__(http_client.HTTPResponse)
    inner.__dict__.update(response.__dict__)
    if admitted.hides_usage:  # what is handed on is shorter than what came, and decoded
        response.length = None
        del headers["content-length"]
        if decoder(encoding) is not None:
            del headers["content-encoding"]

    def read(size: int) -> bytes:
        piece: bytes = inner.read1(size)
        if not piece and inner.length:
            raise http_client.IncompleteRead(piece, inner.length)
        return piece

    def hang_up() -> None:
        if sock is not None:
            sock.close()

    body = MeteredBody(
        read,
        inner.close,
        meter,
        is_chunked=response.chunked,
        is_over=lambda: inner.fp is None or inner.length == 0,
        hang_up=hang_up,
        broken=(http_client.IncompleteRead,),
        fileno=inner.fileno,
    )
    response.fp = io.BufferedReader(body)


def _connect(resolve: Resolve) -> Wrapper:
    def connect(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is not None and not is_own_traffic() and _EXCHANGE not in conn.__dict__:
            judge_ahead(guard, conn)
        return wrapped(*args, **kwargs)

    return connect


def judge_ahead(guard: Guard, conn: Any) -> None:
    """Judge a connection that is opened before its request is known. Raises `Denied`."""
    targets = tuple(_targets(conn, None))
    current = begin_or_none(guard)
    if current is None:
        judge_connection(guard, *targets)
        return
    with Judging(current, *(target for target in targets if not is_judged(current, target))):
        pass


def _close(_resolve: Resolve) -> Wrapper:
    def close(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exchange: _Exchange | None = conn.__dict__.pop(_EXCHANGE, None)
        if exchange is not None:
            exchange.end()
        return wrapped(*args, **kwargs)

    return close


def _hook(name: str, wrap: Callable[[Resolve], Wrapper], *parameters: str) -> Hook:
    return Hook(Seam("http.client", f"HTTPConnection.{name}", parameters), wrap)


PYTHON = Integration(
    "python",
    (
        *URLLIB_HOOKS,
        _hook("endheaders", _endheaders, "message_body"),
        _hook("send", _send, "data"),
        _hook("getresponse", _getresponse),
        _hook("connect", _connect),
        _hook("close", _close),
    ),
)

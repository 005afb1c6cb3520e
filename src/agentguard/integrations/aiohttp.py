"""aiohttp: `ClientSession._request` is one logical call; a middleware inside of it is there for every hop.

The middleware is given with each request, behind those of the user, so it holds for sessions that were built earlier.
"""

from __future__ import annotations

import functools
import sys
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agentguard.admission import Admission, InProgress
from agentguard.core.call import HTTPCall, Target
from agentguard.integrations._calls import (
    FRAMING_HEADERS,
    REWRITTEN_HEADERS,
    Body,
    Hop,
    Judging,
    as_bytes,
    begin_or_none,
    is_own_traffic,
    judge_connection,
    other_hosts,
    own_meter_for,
    part_of,
    prepare_attempt,
    read_answer,
    rewritten,
    to_json,
)
from agentguard.integrations._decoding import decoder
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.wire import could_be

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from agentguard.guard import Guard
    from agentguard.integrations._calls import Reading
    from agentguard.integrations._seam import Resolve, Wrapper
    from agentguard.metering import Meter

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def _request(resolve: Resolve) -> Wrapper:
    async def request(wrapped: Callable[..., Any], session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or is_own_traffic():
            return await wrapped(*args, **kwargs)
        asked = {**dict(zip(("method", "str_or_url"), args, strict=False)), **kwargs}
        given = asked.get("middlewares")
        wanted = asked.get("auto_decompress")
        is_decoded = session._auto_decompress if wanted is None else wanted
        asked["middlewares"] = (*(session._middlewares if given is None else given), functools.partial(_hop, guard, is_decoded))
        target = _target_asked(session, asked)
        if target is None:
            return await wrapped(**asked)
        method = asked["method"].upper()
        body = await _read(session, asked) if method == "POST" and could_be(target.path) else Body(None)
        part = part_of(guard, method, target, body.read)
        if isinstance(part, Admission):
            return await wrapped(**_asking(asked, body.replacement))
        admitted = await guard.abegin(part.call)
        with InProgress(admitted):
            changed = rewritten(admitted, part)
            asked = _asking(asked, body.replacement) if changed is None else _rewritten(asked, changed)
            response = await wrapped(**asked)
            _meter(admitted, response, is_decoded=is_decoded)
        if not admitted.is_streaming:
            admitted.finish()
        return response

    return request


async def _hop(guard: Guard, is_decoded: bool, request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """Send one hop: judged before its connection is looked for, noted when its head has come."""
    target = _target_of(request.url)
    admitted = begin_or_none(guard)
    if admitted is None:  # its call is over: a middleware of the user sends something on its own
        judge_connection(guard, target, *_others(request, target))
        return await send(request)
    if isinstance(admitted.call, HTTPCall) and request.method == "POST" and could_be(target.path):
        body = Body(await request.body.as_bytes() if request.body else b"", request.headers.get("Content-Encoding"))
        part = part_of(guard, request.method, target, body.read)
        if not isinstance(part, Admission):
            return await _send_llm(guard, part, request, send, is_decoded=is_decoded)
    return await _send(admitted, request, target, send)


async def _send_llm(
    guard: Guard, reading: Reading, request: Any, send: Callable[[Any], Awaitable[Any]], *, is_decoded: bool
) -> Any:
    """Send an LLM request that a call has come to which was none: a redirect has led there."""
    admitted = await guard.abegin(reading.call)
    with InProgress(admitted):
        changed = rewritten(admitted, reading)
        if changed is not None:
            for name in REWRITTEN_HEADERS:
                request.headers.pop(name, None)
            await request.update_body(to_json(changed))
        response = await _send(admitted, request, _target_of(request.url), send)
        _meter(admitted, response, is_decoded=is_decoded)
    if not admitted.is_streaming:
        admitted.finish()
    return response


async def _send(admitted: Admission, request: Any, target: Target, send: Callable[[Any], Awaitable[Any]]) -> Any:
    with Judging(admitted, target, *_others(request, target)):
        if admitted.in_hop:
            return await send(request)
        prepare_attempt(admitted)
        with Hop(admitted, request.method, target) as hop:
            response = await send(request)
            hop.status = response.status
            return response


def _others(request: Any, target: Target) -> tuple[Target, ...]:
    """What a hop touches besides: its proxy, and whomever its Host header and its TLS server name give."""
    proxy = () if request.proxy is None else (_target_of(request.proxy)._replace(path="/"),)
    return (*proxy, *other_hosts(target, request.headers.get("Host"), getattr(request, "server_hostname", None)))


def _target_of(url: Any) -> Target:
    return Target(url.scheme, url.raw_host or "", url.port or _DEFAULT_PORTS.get(url.scheme, 0), url.path or "/")


def _target_asked(session: Any, asked: dict[str, Any]) -> Target | None:
    """Where a request goes first; None for what aiohttp refuses."""
    try:
        url = session._build_url(asked["str_or_url"])
        return _target_of(url) if url.raw_host else None
    except (ValueError, TypeError):
        return None


# --- the request ------------------------------------------------------------------------------------------------------


async def _read(session: Any, asked: dict[str, Any]) -> Body:
    """The body of a request that may be an LLM call's, of any kind that aiohttp takes."""
    encoding = next((value for name, value in _pairs(asked.get("headers")) if name.lower() == "content-encoding"), None)
    content: Any = asked.get("json")
    data: Any = asked.get("data")
    if content is not None:
        try:
            return Body(as_bytes(session._json_serialize(content)))
        except (TypeError, ValueError):
            return Body(None)  # aiohttp says what is wrong with it
    if hasattr(data, "as_bytes"):  # a payload of aiohttp's own
        return Body(await data.as_bytes(), encoding)
    if hasattr(data, "__aiter__"):
        body = Body(b"".join([as_bytes(piece) async for piece in data]), encoding)
        body.replacement = body._read()
        return body
    return Body(None if isinstance(data, dict | list | tuple) else data, encoding)


def _pairs(headers: Any) -> list[tuple[str, str]]:
    if not headers:
        return []
    return [(str(name), str(value)) for name, value in (headers.items() if hasattr(headers, "items") else headers)]


def _asking(asked: dict[str, Any], content: bytes | None, gone: frozenset[str] = FRAMING_HEADERS) -> dict[str, Any]:
    """The arguments to ask with: the caller's own, or with a body of bytes."""
    if content is None:
        return asked
    asked = {**asked, "data": content}
    if pairs := _pairs(asked.get("headers")):
        asked["headers"] = [(name, value) for name, value in pairs if name.lower() not in gone]
    return asked


def _rewritten(asked: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """The arguments with another body, of the kind that the caller gave: the content type follows from it."""
    if asked.get("json") is not None:
        return {**asked, "json": changed}
    content = to_json(changed)
    given: Any = asked.get("data")
    asked = _asking(asked, content, REWRITTEN_HEADERS)
    if isinstance(given, str):
        return {**asked, "data": content.decode()}
    if hasattr(given, "as_bytes"):
        return {**asked, "data": sys.modules["aiohttp.payload"].BytesPayload(content, content_type=given.content_type)}
    return asked


# --- the response -----------------------------------------------------------------------------------------------------


def _meter(admitted: Admission, response: Any, *, is_decoded: bool) -> None:
    """Meter the response of an LLM call: what a middleware has read of it, or its content as it flows."""
    if admitted.family is None or not 200 <= response.status < 300 or admitted.response_taken or admitted.in_hop:
        return
    headers = response.headers
    content_type = headers.get("content-type", "")
    if isinstance(response._body, bytes) and not content_type.lower().startswith("text/event-stream"):
        read_answer(admitted, response.status, response._body)
        return
    encoding = "" if is_decoded else headers.get("content-encoding", "")
    library = sys.modules["aiohttp.streams"]
    if not isinstance(response._body, bytes) and not isinstance(response.content, library.StreamReader):
        return  # without a body
    transport = None if response.connection is None else response.connection.transport
    connection = None if transport is None else transport.get_extra_info("socket")
    meter = own_meter_for(admitted, content_type, encoding, connection)
    if meter is None:
        return
    if isinstance(response._body, bytes):
        response._body = meter.feed(response._body) + meter.end()
        return
    if admitted.hides_usage and decoder(encoding) is not None:
        kept = [(name, value) for name, value in headers.items() if name.lower() != "content-encoding"]
        response._headers = type(headers)(sys.modules["multidict"].CIMultiDict(kept))
        response._cache.pop("headers", None)
    response.content = _reader_class(library)(response.content, meter, response)


class _NoFlow:
    """Stands for the protocol of a reader that holds one piece at a time: there is no flow to control."""

    connected = True

    def pause_reading(self) -> None:
        """Nothing to pause."""

    def resume_reading(self, **_: Any) -> None:
        """Nothing to resume."""


@functools.cache
def _reader_class(library: ModuleType) -> type:  # noqa: C901 - a class of many small methods
    class MeteredReader(library.StreamReader):  # type: ignore[misc, name-defined]  # the library's own base, known at run time
        """The content of a response, metered: what aiohttp's own reader has received is fed to this one, a piece at a time."""

        __slots__ = ("_inner", "_meter", "_response")

        def __init__(self, inner: Any, meter: Meter, response: Any) -> None:
            low, _ = inner.get_read_buffer_limits()
            self._inner = inner
            self._meter = meter
            super().__init__(_NoFlow(), low, timer=inner._timer, loop=inner._loop)
            self._response = weakref.ref(response)
            if inner.exception() is not None:
                super().set_exception(inner.exception())

        async def _wait(self, func_name: str) -> None:
            """Called where there is nothing to read: get the next piece."""
            try:
                piece, ends_chunk = await self._inner.readchunk()
            except Exception as error:  # noted, and raised on
                if self._inner.exception() is not None:
                    self._meter.fail(error)
                raise
            self._take(piece, ends_chunk=ends_chunk, is_end=not piece and not ends_chunk)

        def _take(self, piece: bytes, *, ends_chunk: bool, is_end: bool) -> None:
            if self._http_chunk_splits is None and self._inner._http_chunk_splits is not None:
                self.begin_http_chunk_receiving()
            is_end = is_end or self._inner.at_eof()  # nobody may ask again
            try:
                handed_on = self._meter.feed(piece) if piece else b""
                handed_on += self._meter.end() if is_end else b""
            except BaseException as error:  # noted, and raised on
                super().set_exception(error)
                self._hang_up()
                raise
            if handed_on:
                self.feed_data(handed_on)
            if ends_chunk:
                self.end_http_chunk_receiving()
            if is_end:
                self.feed_eof()

        def _hang_up(self) -> None:
            response = self._response()
            if response is None:
                self._inner._protocol.close()
            else:
                response.close()

        def read_nowait(self, n: int = -1) -> bytes:
            """Read what has been received."""
            if not self._eof:
                if piece := self._inner.read_nowait():
                    self._take(piece, ends_chunk=False, is_end=False)
                self.at_eof()
            return super().read_nowait(n)  # type: ignore[no-any-return]  # the base is known at run time

        def set_exception(self, exc: BaseException, *args: Any) -> None:
            """The response was closed or released, or its connection was lost."""
            super().set_exception(exc, *args)
            if self._inner.exception() is None:
                self._inner.set_exception(exc, *args)
            self._meter.abandon()

        def set_read_chunk_size(self, n: int) -> None:
            super().set_read_chunk_size(n)
            self._inner.set_read_chunk_size(n)

        def on_eof(self, callback: Callable[[], None]) -> None:
            self._inner.on_eof(callback)

        def is_eof(self) -> bool:
            return self._inner.is_eof()  # type: ignore[no-any-return]  # as above

        def at_eof(self) -> bool:
            if not self._eof and not self._buffer and self._inner.at_eof():
                self._take(b"", ends_chunk=False, is_end=True)
            return super().at_eof()  # type: ignore[no-any-return]  # as above

        def exception(self) -> BaseException | None:
            return self._exception or self._inner.exception()  # type: ignore[no-any-return]  # as above

        async def wait_eof(self) -> None:
            await self._inner.wait_eof()

        @property
        def total_raw_bytes(self) -> int:
            return self._inner.total_raw_bytes  # type: ignore[no-any-return]  # as above

        def __del__(self) -> None:
            with suppress(AttributeError):
                self._meter.abandon()

    return MeteredReader


AIOHTTP = Integration(
    "aiohttp",
    (Hook(Seam("aiohttp.client", "ClientSession._request", ("method", "str_or_url", "middlewares")), _request),),
)

"""httpx and httpx2: two libraries of one shape, so one class for both.

`send` is one logical call, redirects and authentication round trips included; `_send_single_request` is one hop.
Both stand on the classes, so they also hold for clients that were built earlier, for custom and mock transports, and
for subclasses. `GuardTransport` and `AsyncGuardTransport` do the same for one client, without patching.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, Self

from agentguard.admission import Admission, InProgress
from agentguard.context import OWN_TRAFFIC
from agentguard.core.call import LLMCall, Target
from agentguard.integrations._calls import (
    REWRITTEN_HEADERS,
    Body,
    Hop,
    Reading,
    begin_or_none,
    is_event_stream,
    judge,
    meter_for,
    part_of,
    read_answer,
    read_request,
    rewritten,
    to_json,
)
from agentguard.integrations._decoding import can_undo
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.wire import could_be

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from types import ModuleType

    from agentguard.guard import Guard
    from agentguard.integrations._seam import Resolve, Wrapper
    from agentguard.metering import Meter

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_TARGETS = 1024


_targets: dict[object, Target] = {}
"""Targets by the parsed form of their URL, a tuple: reading its parts one by one takes six calls of the library."""


def target_of(request: Any) -> Target:
    """Where a request goes: the host of the URL object that the transport will connect to."""
    url = request.url
    parsed = getattr(url, "_uri_reference", None)
    target = _targets.get(parsed)
    if target is None:
        scheme = url.scheme
        target = Target(scheme, url.host, url.port or _DEFAULT_PORTS.get(scheme, 0), url.path)
        if parsed is not None:
            if len(_targets) >= _MAX_TARGETS:
                _targets.clear()
            _targets[parsed] = target
    return target


def others_touched(client: Any, request: Any, target: Target) -> Sequence[Target]:
    """What else a hop touches: its proxy, and a host that its Host header or SNI names instead of the URL's."""
    named = header(request.headers, b"host")
    sni = request.extensions.get("sni_hostname")
    proxy = None if client is None else _proxy_of(client, request)
    if (not named or named == target.host) and sni is None and proxy is None:
        return ()
    others: list[Target] = []
    if named and (host := _without_port(named)).lower() != target.host.lower():
        others.append(target._replace(host=host))
    if isinstance(sni, str) and sni and sni.lower() != target.host.lower():
        others.append(target._replace(host=sni))
    if proxy is not None:
        scheme = proxy.scheme.decode()
        others.append(Target(scheme, proxy.host.decode(), proxy.port or _DEFAULT_PORTS.get(scheme, 1080), "/"))
    return others


def _proxy_of(client: Any, request: Any) -> Any:
    """The URL of the proxy that a client sends a request by, whether it was given to the client or to a transport."""
    transport = client._transport_for_url(request.url) if client._mounts else client._transport
    return getattr(getattr(transport, "_pool", None), "_proxy_url", None)


def header(headers: Any, name: bytes) -> str:
    """A header's value, empty when it is not there. The libraries' own look-up first decodes all headers, to guess how."""
    for key, value in headers.raw:
        if key.lower() == name:
            return str(value, "latin-1")
    return ""


def _without_port(netloc: str) -> str:
    return netloc[1 : netloc.index("]")] if netloc.startswith("[") and "]" in netloc else netloc.partition(":")[0]


def _send(resolve: Resolve) -> Wrapper:
    def send(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or OWN_TRAFFIC.get():
            return wrapped(*args, **kwargs)
        request, streams = args[0] if args else kwargs["request"], kwargs.get("stream", False)
        admitted = begin_or_none(guard)
        if admitted is not None:
            if _is_on_the_way(admitted, client, request):
                return wrapped(*args, **kwargs)
            admitted.response_taken = True
            return finished(admitted, wrapped(*args, **kwargs), streams)
        reading = read_request(request.method, target_of(request), functools.partial(_body, request))
        admitted = guard.begin(reading.call)
        with InProgress(admitted):
            args, kwargs = _with_request(_changed(admitted, reading, request), args, kwargs)
            admitted.sender, admitted.response_taken = client, True
            response = finished(admitted, wrapped(*args, **kwargs), streams)
        if not admitted.is_streaming:
            admitted.finish()
        return response

    return send


def _asend(resolve: Resolve) -> Wrapper:
    async def send(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or OWN_TRAFFIC.get():
            return await wrapped(*args, **kwargs)
        request, streams = args[0] if args else kwargs["request"], kwargs.get("stream", False)
        admitted = begin_or_none(guard)
        if admitted is not None:
            if _is_on_the_way(admitted, client, request):
                return await wrapped(*args, **kwargs)
            admitted.response_taken = True
            return finished(admitted, await wrapped(*args, **kwargs), streams)
        target = target_of(request)
        body = await _abody(request, target)
        reading = read_request(request.method, target, lambda: body)
        admitted = await guard.abegin(reading.call)
        with InProgress(admitted):
            args, kwargs = _with_request(_changed(admitted, reading, request), args, kwargs)
            admitted.sender, admitted.response_taken = client, True
            response = finished(admitted, await wrapped(*args, **kwargs), streams)
        if not admitted.is_streaming:
            admitted.finish()
        return response

    return send


def _is_on_the_way(admitted: Admission, client: Any, request: Any) -> bool:
    """Whether another client sends something while the call is made (a token that it needs): no answer to the call."""
    if admitted.sender is None or admitted.sender is client:
        return False
    return request.method != "POST" or not could_be(request.url.path)


def _body(request: Any) -> bytes | None:
    return Body(request.read(), header(request.headers, b"content-encoding")).read()


async def _abody(request: Any, target: Target) -> bytes | None:
    """The body of a request that may be an LLM call's. No other is read: it may be an upload that has no end."""
    if request.method != "POST" or not could_be(target.path):
        return None
    return Body(await request.aread(), header(request.headers, b"content-encoding")).read()


def _send_single(resolve: Resolve) -> Wrapper:
    def send_single(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or OWN_TRAFFIC.get():
            return wrapped(*args, **kwargs)
        request = args[0] if args else kwargs["request"]
        return send_hop(guard, client, request, wrapped)

    return send_single


def _asend_single(resolve: Resolve) -> Wrapper:
    async def send_single(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or OWN_TRAFFIC.get():
            return await wrapped(*args, **kwargs)
        request = args[0] if args else kwargs["request"]
        return await asend_hop(guard, client, request, wrapped)

    return send_single


def send_hop(guard: Guard, client: Any, request: Any, send: Callable[[Any], Any]) -> Any:
    """Send one hop. Without a call in progress the hop is a call of its own."""
    target = target_of(request)
    part = part_of(guard, request.method, target, functools.partial(_body, request))
    if isinstance(part, Admission):
        return _hop(part, client, request, target, send)
    admitted = guard.begin(part.call)
    with InProgress(admitted):
        response = _hop(admitted, client, _changed(admitted, part, request), target, send)
    if not admitted.is_streaming:
        admitted.finish()
    return response


def _hop(admitted: Admission, client: Any, request: Any, target: Target, send: Callable[[Any], Any]) -> Any:
    judge(admitted, target, others_touched(client, request, target))
    if admitted.in_hop:
        return send(request)
    with Hop(admitted, request.method, target) as hop:
        response = send(request)
        hop.status = response.status_code
    return response if admitted.response_taken else finished(admitted, response, streams=True)


async def asend_hop(guard: Guard, client: Any, request: Any, send: Callable[[Any], Any]) -> Any:
    """Send one hop. Without a call in progress the hop is a call of its own."""
    target = target_of(request)
    current = begin_or_none(guard)
    body = None if current is not None and isinstance(current.call, LLMCall) else await _abody(request, target)
    part = part_of(guard, request.method, target, lambda: body)
    if isinstance(part, Admission):
        return await _ahop(part, client, request, target, send)
    admitted = await guard.abegin(part.call)
    with InProgress(admitted):
        response = await _ahop(admitted, client, _changed(admitted, part, request), target, send)
    if not admitted.is_streaming:
        admitted.finish()
    return response


async def _ahop(admitted: Admission, client: Any, request: Any, target: Target, send: Callable[[Any], Any]) -> Any:
    judge(admitted, target, others_touched(client, request, target))
    if admitted.in_hop:
        return await send(request)
    with Hop(admitted, request.method, target) as hop:
        response = await send(request)
        hop.status = response.status_code
    return response if admitted.response_taken else finished(admitted, response, streams=True)


def finished(admitted: Admission, response: Any, streams: bool) -> Any:
    """Note a response that is complete, or put a meter into the stream of one that is not."""
    if admitted.family is None or response.status_code >= 300 or admitted.is_streaming:
        return response
    body: bytes | None = getattr(response, "_content", None)  # read by the library, or built whole by a mock transport
    is_complete = body is not None
    if body is not None and body.startswith(b"{"):  # no stream of events, whatever its header says
        read_answer(admitted, response.status_code, body)
        return response
    headers = response.headers
    content_type = header(headers, b"content-type")
    if not is_event_stream(content_type) and (is_complete or not streams):
        read_answer(admitted, response.status_code, response.content)
        return response
    encoding = "" if is_complete else header(headers, b"content-encoding")
    network = response.extensions.get("network_stream")
    connection = None if network is None else network.get_extra_info("socket")
    meter = meter_for(admitted, content_type, encoding, connection)
    if meter is None:
        return response
    if is_complete:
        response._content = meter.feed(response.content) + meter.end()
        return response
    if encoding and admitted.hides_usage and can_undo(encoding):
        del headers["content-encoding"]  # what is handed on has been decoded, to take the usage event out
    if admitted.hides_usage and "content-length" in headers:
        del headers["content-length"]
    response.stream = _metered(response, meter)
    return response


def _changed(admitted: Admission, reading: Reading, request: Any) -> Any:
    """The request to send: the caller's own, or a copy with another body."""
    body = rewritten(admitted, reading)
    if body is None:
        return request
    headers = [(name, value) for name, value in request.headers.raw if name.decode("latin-1").lower() not in REWRITTEN_HEADERS]
    return type(request)(request.method, request.url, headers=headers, content=to_json(body), extensions=request.extensions)


def _with_request(request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((request, *args[1:]), kwargs) if args else (args, {**kwargs, "request": request})


class _Metered:
    """What both metered streams share. Forwards what the library reads off its own stream (httpx2 reads `elapsed`)."""

    def __init__(self, stream: Any, meter: Meter) -> None:
        self._stream = stream
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __del__(self) -> None:
        self._meter.abandon()


def _metered(response: Any, meter: Meter) -> Any:
    """The response's stream with a meter in it, as a stream of the same library."""
    stream = response.stream
    is_async = hasattr(stream, "__aiter__") and not hasattr(stream, "__iter__")
    library = sys.modules[type(response).__module__.partition(".")[0]]
    return (_async_class if is_async else _sync_class)(library)(stream, meter)


@functools.cache
def _sync_class(module: ModuleType) -> type:
    class MeteredStream(_Metered, module.SyncByteStream):  # type: ignore[name-defined,misc]  # the library's own base, known at run time
        def __iter__(self) -> Iterator[bytes]:
            meter = self._meter
            try:
                for chunk in self._stream:
                    if handed_on := meter.feed(chunk):
                        yield handed_on
            except GeneratorExit:
                meter.abandon()  # no library reads a stream on after this, and who holds the frame may hold it for long
                raise
            except BaseException as error:  # noted, and raised on
                try:
                    meter.fail(error)
                finally:
                    self._stream.close()
                raise
            if rest := meter.end():
                yield rest

        def close(self) -> None:
            self._stream.close()
            self._meter.abandon()

    return MeteredStream


@functools.cache
def _async_class(module: ModuleType) -> type:
    class AsyncMeteredStream(_Metered, module.AsyncByteStream):  # type: ignore[name-defined,misc]  # as above
        async def __aiter__(self) -> AsyncIterator[bytes]:
            meter = self._meter
            try:
                async for chunk in self._stream:
                    if handed_on := meter.feed(chunk):
                        yield handed_on
            except GeneratorExit:
                meter.abandon()  # no library reads a stream on after this, and who holds the frame may hold it for long
                raise
            except BaseException as error:  # noted, and raised on
                try:
                    meter.fail(error)
                finally:
                    await self._stream.aclose()
                raise
            if rest := meter.end():
                yield rest

        async def aclose(self) -> None:
            await self._stream.aclose()
            self._meter.abandon()

    return AsyncMeteredStream


class GuardTransport:
    """Guards one httpx or httpx2 client, without patching: `httpx2.Client(transport=GuardTransport(guard))`.

    Args:
        guard: Who decides.
        transport: What really sends; None: the library's own `HTTPTransport`.
    """

    def __init__(self, guard: Guard, transport: Any = None) -> None:
        self._guard = guard
        self._transport = transport

    def handle_request(self, request: Any) -> Any:
        """Send one hop. Raises `Denied` before anything leaves."""
        if self._transport is None:
            self._transport = sys.modules[type(request).__module__.partition(".")[0]].HTTPTransport()
        return send_hop(self._guard, None, request, self._transport.handle_request)

    def close(self) -> None:
        """Close the transport that sends."""
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncGuardTransport:
    """`GuardTransport` for an `AsyncClient`."""

    def __init__(self, guard: Guard, transport: Any = None) -> None:
        self._guard = guard
        self._transport = transport

    async def handle_async_request(self, request: Any) -> Any:
        """Send one hop. Raises `Denied` before anything leaves."""
        if self._transport is None:
            self._transport = sys.modules[type(request).__module__.partition(".")[0]].AsyncHTTPTransport()
        return await asend_hop(self._guard, None, request, self._transport.handle_async_request)

    async def aclose(self) -> None:
        """Close the transport that sends."""
        if self._transport is not None:
            await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def _integration(library: str) -> Integration:
    def seam(path: str) -> Seam:
        return Seam(library, path, ("request",))

    return Integration(
        library,
        (
            Hook(seam("Client.send"), _send),
            Hook(seam("Client._send_single_request"), _send_single),
            Hook(seam("AsyncClient.send"), _asend),
            Hook(seam("AsyncClient._send_single_request"), _asend_single),
        ),
    )


HTTPX = _integration("httpx")
HTTPX2 = _integration("httpx2")

"""urllib3: `PoolManager.urlopen` and `HTTPConnectionPool.urlopen`, whichever is outermost, are one logical call.

Both call themselves for redirects and retries, which are attempts of the call in progress. What is sent, and what comes back,
passes `http_client`; here a hop is judged before its connection is opened, proxies included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentguard.admission import Admission, InProgress
from agentguard.core.call import Target
from agentguard.integrations._calls import (
    FRAMING_HEADERS,
    REWRITTEN_HEADERS,
    Body,
    Judging,
    is_own_traffic,
    note_unseen,
    other_hosts,
    own_meter_for,
    part_of,
    read_answer,
    rewritten,
    to_json,
)
from agentguard.integrations._decoding import decoder
from agentguard.integrations._files import metered_file
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.integrations.http_client import judge_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.integrations._seam import Resolve, Wrapper

_DEFAULT_PORTS = {"http": 80, "https": 443}
_POSITIONS = (
    "method", "url", "body", "headers", "retries", "redirect", "assert_same_host", "timeout", "pool_timeout", "release_conn",
    "chunked", "body_pos",
)  # fmt: skip
"""What may be passed to `HTTPConnectionPool.urlopen` by position, as urllib3 itself does."""


def _manager_urlopen(resolve: Resolve) -> Wrapper:
    def urlopen(wrapped: Callable[..., Any], _manager: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = {**dict(zip(("method", "url", "redirect"), args, strict=False)), **kwargs}
        return _urlopen(resolve, wrapped, asked, lambda: _url_target(asked["url"]), lambda _: ())

    return urlopen


def _pool_urlopen(resolve: Resolve) -> Wrapper:
    def urlopen(wrapped: Callable[..., Any], pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        asked = {**dict(zip(_POSITIONS, args, strict=False)), **kwargs}
        url = asked["url"]
        return _urlopen(resolve, wrapped, asked, lambda: _pool_target(pool, url), lambda target: _pool_others(pool, target, url))

    return urlopen


def _urlopen(
    resolve: Resolve,
    wrapped: Callable[..., Any],
    asked: dict[str, Any],
    find_target: Callable[[], Target | None],
    find_others: Callable[[Target], Any],
) -> Any:
    guard = resolve()
    target = None if guard is None or is_own_traffic() else find_target()
    if guard is None or target is None:
        return wrapped(**asked)
    method = asked["method"].upper()
    headers = _named(asked.get("headers"))
    body = Body(asked.get("body"), headers.get("content-encoding"))
    part = part_of(guard, method, target, body.read)
    touched = (target, *find_others(target), *other_hosts(target, headers.get("host")))
    if isinstance(part, Admission):
        with Judging(part, *touched), note_unseen(part, method, target) as seen:
            response = wrapped(**_asking(asked, body.replacement))
            seen.status = response.status
        return response
    admitted = guard.begin(part.call)
    with InProgress(admitted):
        changed = rewritten(admitted, part)
        asked = _asking(asked, body.replacement) if changed is None else _asking(asked, to_json(changed), REWRITTEN_HEADERS)
        with Judging(admitted, *touched), note_unseen(admitted, method, target) as seen:
            response = wrapped(**asked)
            seen.status = response.status
        meter_unseen(admitted, response)
    if not admitted.is_streaming:
        admitted.finish()
    return response


def _url_target(url: str) -> Target | None:
    try:
        return Target.of(url)
    except ValueError:
        return None  # urllib3 says what is wrong with it


def _pool_target(pool: Any, url: str) -> Target | None:
    """Where a pool sends a request: to its own host, or as a proxy's pool to the host of the URL."""
    if "://" in url:
        return _url_target(url)
    port = pool.port or _DEFAULT_PORTS.get(pool.scheme, 0)
    return Target(pool.scheme, pool.host.strip("[]"), port, urlsplit(url).path or "/") if pool.host else None


def _pool_others(pool: Any, target: Target, url: str) -> Iterator[Target]:
    """The proxies and names that a pool touches besides."""
    host = (pool.host or "").strip("[]")
    if "://" in url and host and host.lower() != target.host.lower():
        yield Target(pool.scheme, host, pool.port or _DEFAULT_PORTS.get(pool.scheme, 0), "/")
    proxy = pool.proxy
    if proxy is not None and proxy.host:
        yield Target(proxy.scheme or "http", proxy.host.strip("[]"), proxy.port or _DEFAULT_PORTS.get(proxy.scheme, 80), "/")
    socks = pool.conn_kw.get("_socks_options") or {}
    if socks.get("proxy_host"):
        yield Target("socks", socks["proxy_host"], int(socks.get("proxy_port") or 1080), "/")
    yield from other_hosts(target, None, pool.conn_kw.get("server_hostname"))


def _named(headers: Any) -> dict[str, str]:
    """Headers by their names in lower case."""
    return {_text(name).lower(): _text(value) for name, value in headers.items()} if headers else {}


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _asking(asked: dict[str, Any], content: bytes | None, gone: frozenset[str] = FRAMING_HEADERS) -> dict[str, Any]:
    """The arguments to send with: the caller's own, or with another body."""
    if content is None:
        return asked
    asked = {**asked, "body": content, "chunked": False}
    headers = asked.get("headers")
    if headers:
        asked["headers"] = copied = headers.copy() if hasattr(headers, "copy") else dict(headers)
        for name in list(headers):
            if _text(name).lower() in gone:
                copied.pop(name, None)
    return asked


def meter_unseen(admitted: Admission, response: Any) -> None:
    """Meter an LLM call's response that did not come through http.client: urllib3's HTTP/2, an adapter that answers by itself."""
    if admitted.family is None or admitted.is_streaming or not admitted.is_open or not 200 <= response.status < 300:
        return
    whole = getattr(response, "_body", None)
    source = getattr(response, "_fp", None)
    headers = response.headers
    if isinstance(whole, bytes):
        response._body = metered_whole(admitted, headers.get("content-type", ""), whole)
    elif source is not None and hasattr(source, "read") and not hasattr(source, "fp"):
        encoding = headers.get("content-encoding", "")
        if (meter := own_meter_for(admitted, headers.get("content-type", ""), encoding)) is not None:
            response._fp = metered_file(source, meter)
            if admitted.hides_usage:
                response.length_remaining = None
                if decoder(encoding) is not None:
                    del headers["content-encoding"]


def metered_whole(admitted: Admission, content_type: str, body: bytes) -> bytes:
    """Meter a body that the library has read, and decoded; returns what the caller gets of it."""
    if not content_type.lower().startswith("text/event-stream"):
        read_answer(admitted, 200, body)
        return body
    meter = own_meter_for(admitted, content_type)
    return body if meter is None else meter.feed(body) + meter.end()


def _new_conn(resolve: Resolve) -> Wrapper:
    def new_conn(wrapped: Callable[..., Any], conn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is not None and not is_own_traffic():
            judge_ahead(guard, conn)
        return wrapped(*args, **kwargs)

    return new_conn


URLLIB3 = Integration(
    "urllib3",
    (
        Hook(Seam("urllib3.poolmanager", "PoolManager.urlopen", _POSITIONS[:2]), _manager_urlopen),
        Hook(Seam("urllib3.connectionpool", "HTTPConnectionPool.urlopen", _POSITIONS[:4]), _pool_urlopen),
        Hook(Seam("urllib3.connection", "HTTPConnection._new_conn"), _new_conn),
    ),
)

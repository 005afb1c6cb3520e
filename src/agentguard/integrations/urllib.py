"""urllib.request: `OpenerDirector.open` is one logical call; redirects, proxies and authentication open again inside of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

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
    part_of,
    rewritten,
    to_json,
)
from agentguard.integrations._seam import Hook, Seam

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Resolve, Wrapper

_SCHEMES = frozenset({"http", "https", "ftp"})


def _open(resolve: Resolve) -> Wrapper:
    def open_(wrapped: Callable[..., Any], _opener: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or is_own_traffic():
            return wrapped(*args, **kwargs)
        asked = {**dict(zip(("fullurl", "data", "timeout"), args, strict=False)), **kwargs}
        request = asked["fullurl"]
        target = _target(request)
        if target is None:
            return wrapped(*args, **kwargs)
        method, body = _read(request, asked.get("data"))
        part = part_of(guard, method, target, body.read)
        if isinstance(part, Admission):
            with Judging(part, target, *_others(request, target)):
                return wrapped(**_asking(asked, body.replacement))
        admitted = guard.begin(part.call)
        with InProgress(admitted):
            changed = rewritten(admitted, part)
            asked = _asking(asked, body.replacement if changed is None else to_json(changed), is_changed=changed is not None)
            with Judging(admitted, target, *_others(request, target)), note_unseen(admitted, method, target) as seen:
                response = wrapped(**asked)
                seen.status = getattr(response, "status", None)
        if not admitted.is_streaming:
            admitted.finish()
        return response

    return open_


def _target(request: Any) -> Target | None:
    """Where a request goes; None for what is no network call (`file:`, `data:`) or no URL, which is left to urllib."""
    try:
        target = Target.of(request if isinstance(request, str) else request.full_url)
    except (ValueError, AttributeError):
        return None
    if target.scheme == "ftp" and not target.port:
        target = target._replace(port=21)
    return target if target.scheme in _SCHEMES else None


def _read(request: Any, data: Any) -> tuple[str, Body]:
    """The method and the body: as given to `open`, else as the `Request` has them."""
    encoding = None
    method = ""
    if not isinstance(request, str):
        data = request.data if data is None else data
        encoding = request.get_header("Content-encoding")
        method = getattr(request, "method", None) or ""
    return method or ("GET" if data is None else "POST"), Body(data, encoding)


def _others(request: Any, target: Target) -> tuple[Target, ...]:
    return () if isinstance(request, str) else tuple(other_hosts(target, request.get_header("Host")))


def _asking(asked: dict[str, Any], content: bytes | None, *, is_changed: bool = False) -> dict[str, Any]:
    """The arguments to open with: the caller's own, or with another body. A `Request` of the caller is left as it was."""
    if content is None:
        return asked
    request = asked["fullurl"]
    if isinstance(request, str):
        return {**asked, "data": content}
    request = copy.copy(request)
    gone = REWRITTEN_HEADERS if is_changed else FRAMING_HEADERS
    request.headers = {name: value for name, value in request.headers.items() if name.lower() not in gone}
    request.unredirected_hdrs = {name: value for name, value in request.unredirected_hdrs.items() if name.lower() not in gone}
    request.data = content
    return {**asked, "fullurl": request, "data": None}


HOOKS = (Hook(Seam("urllib.request", "OpenerDirector.open", ("fullurl", "data")), _open),)

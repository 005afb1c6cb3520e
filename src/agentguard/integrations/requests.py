"""requests: `Session.send` is one logical call; the sends inside of it (redirects, hooks) are hops of that call.

What is sent, and what comes back, passes `urllib3` and `http_client`, which judge proxies, note attempts and meter. An adapter
that answers by itself passes only here.
"""

from __future__ import annotations

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
    own_meter_for,
    part_of,
    rewritten,
    to_json,
)
from agentguard.integrations._files import metered_file
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.integrations.urllib3 import meter_unseen, metered_whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Resolve, Wrapper


def _send(resolve: Resolve) -> Wrapper:
    def send(wrapped: Callable[..., Any], _session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        request = args[0] if args else kwargs["request"]
        target = None if guard is None or is_own_traffic() else _target(request)
        if guard is None or target is None:
            return wrapped(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "request"}
        body = Body(request.body, request.headers.get("Content-Encoding"))
        part = part_of(guard, request.method, target, body.read)
        touched = (target, *other_hosts(target, _text(request.headers.get("Host"))))
        if isinstance(part, Admission):
            with Judging(part, *touched), note_unseen(part, request.method, target) as seen:
                response = wrapped(_with_body(request, body.replacement), **kwargs)
                seen.status = response.status_code
            return response
        admitted = guard.begin(part.call)
        with InProgress(admitted):
            changed = rewritten(admitted, part)
            if changed is None:
                request = _with_body(request, body.replacement)
            else:
                request = _with_body(request, to_json(changed), REWRITTEN_HEADERS)
            with Judging(admitted, *touched), note_unseen(admitted, request.method, target) as seen:
                response = wrapped(request, **kwargs)
                seen.status = response.status_code
            _meter_unseen(admitted, response)
        if not admitted.is_streaming:
            admitted.finish()
        return response

    return send


def _target(request: Any) -> Target | None:
    """Where a request goes; None for what requests refuses, and for adapters of schemes without a host (`file:`)."""
    try:
        return Target.of(request.url) if request.method else None
    except (AttributeError, TypeError, ValueError):
        return None


def _text(header: Any) -> str | None:
    return header.decode("latin-1") if isinstance(header, bytes) else header


def _with_body(request: Any, content: bytes | None, gone: frozenset[str] = FRAMING_HEADERS) -> Any:
    """The request to send: the caller's own, or a copy with another body."""
    if content is None:
        return request
    changed = request.copy()
    for name in gone:
        changed.headers.pop(name, None)
    changed.body = content
    changed.headers["Content-Length"] = str(len(content))
    return changed


def _meter_unseen(admitted: Admission, response: Any) -> None:
    """Meter the response of an LLM call whose adapter did not send it through urllib3."""
    if admitted.family is None or admitted.is_streaming or not admitted.is_open or not 200 <= response.status_code < 300:
        return
    content_type, raw = response.headers.get("Content-Type", ""), response.raw
    if isinstance(response._content, bytes):
        response._content = metered_whole(admitted, content_type, response._content)
    elif hasattr(raw, "_fp"):
        meter_unseen(admitted, raw)
    elif hasattr(raw, "read") and (meter := own_meter_for(admitted, content_type)) is not None:
        response.raw = metered_file(raw, meter)


REQUESTS = Integration("requests", (Hook(Seam("requests.sessions", "Session.send", ("request",)), _send),))

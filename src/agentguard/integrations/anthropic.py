"""anthropic: the seam, and `GuardMiddleware` for one client without patching."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from agentguard.admission import InProgress
from agentguard.core.call import Target
from agentguard.integrations._calls import begin_or_none, read_body, rewritten
from agentguard.integrations._sdk import sdk_integration
from agentguard.integrations.httpx import finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.admission import Admission
    from agentguard.guard import Guard
    from agentguard.integrations._calls import Reading
    from agentguard.integrations._seam import Integration

_BASE_URL = "https://api.anthropic.com"


def integrations(verify: Callable[[str], None]) -> tuple[Integration, ...]:
    """The integration of anthropic."""
    from agentguard.integrations.anthropic_tracing import quieten

    return (sdk_integration("anthropic", quieten, verify),)


class GuardMiddleware:
    """Guards one anthropic client through the SDK's own seam: `Anthropic(middleware=[GuardMiddleware(guard)])`.

    It runs once for each attempt, inside the SDK's retries, so each attempt is a call of its own; `instrument()` stands
    outside of them. Needs anthropic 0.125 or newer.

    Args:
        guard: Who decides.
        base_url: Where the client sends to; None: ANTHROPIC_BASE_URL, else the provider's own.
    """

    def __new__(cls, guard: Guard, base_url: str | None = None) -> Any:  # noqa: D102 - an anthropic.Middleware
        from anthropic import Middleware

        base = (base_url or os.environ.get("ANTHROPIC_BASE_URL") or _BASE_URL).rstrip("/")

        def read(request: Any) -> Reading | None:
            return read_body(Target.of(f"{base}{request.url}"), request.json or {})

        class _Guarding(Middleware):
            def handle(self, request: Any, call_next: Any) -> Any:
                reading = read(request)
                if reading is None or begin_or_none(guard) is not None:
                    return call_next(request)
                admitted = guard.begin(reading.call)
                with InProgress(admitted):
                    response = _taken(admitted, call_next(_with(admitted, reading, request)), request)
                if not admitted.is_streaming:
                    admitted.finish()
                return response

            async def handle_async(self, request: Any, call_next: Any) -> Any:
                reading = read(request)
                if reading is None or begin_or_none(guard) is not None:
                    return await call_next(request)
                admitted = await guard.abegin(reading.call)
                with InProgress(admitted):
                    response = _taken(admitted, await call_next(_with(admitted, reading, request)), request)
                if not admitted.is_streaming:
                    admitted.finish()
                return response

        return _Guarding()


def _with(admitted: Admission, reading: Reading, request: Any) -> Any:
    body = rewritten(admitted, reading)
    return request if body is None else request.copy(body=body)


def _taken(admitted: Admission, response: Any, request: Any) -> Any:
    finished(admitted, response.http_response, streams=request.stream)
    return response

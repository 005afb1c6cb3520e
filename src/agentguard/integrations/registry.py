"""Every integration, listed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.integrations import aiohttp, anthropic, http_client, httpx, openai, requests, urllib3, websockets

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Integration


def integrations(verify: Callable[[str], None]) -> tuple[Integration, ...]:
    """All integrations. `verify` is called with the module of an SDK's HTTP client: it sees that the seams below stand."""
    return (
        *openai.integrations(verify),
        *anthropic.integrations(verify),
        httpx.HTTPX,
        httpx.HTTPX2,
        requests.REQUESTS,
        urllib3.URLLIB3,
        http_client.PYTHON,
        aiohttp.AIOHTTP,
        websockets.WEBSOCKETS,
    )

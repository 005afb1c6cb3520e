"""`python -m agentguard.cli._canary`: one call through each installed client, to a provider on loopback.

Runs in a process of its own, so that a client that hangs, crashes or changes global state does not take `doctor` with
it. Prints one JSON object: how the seams stand with every client imported, and for each client whether the guard saw
its call, and whether it refused the one that the policy does not allow.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentguard.cli._libraries import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.events import Event

_KEY = "sk-canary"
_TIMEOUT_SECONDS = 5.0


def _openai(base: str) -> None:
    client = import_module("openai").OpenAI(base_url=f"{base}/v1", api_key=_KEY, max_retries=0, timeout=_TIMEOUT_SECONDS)
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "ping"}], max_completion_tokens=16)


def _anthropic(base: str) -> None:
    client = import_module("anthropic").Anthropic(base_url=base, api_key=_KEY, max_retries=0, timeout=_TIMEOUT_SECONDS)
    client.messages.create(model="claude-sonnet-4-5", messages=[{"role": "user", "content": "ping"}], max_tokens=16)


def _groq(base: str) -> None:
    client = import_module("groq").Groq(base_url=base, api_key=_KEY, max_retries=0, timeout=_TIMEOUT_SECONDS)
    client.chat.completions.create(model="llama-3.3-70b-versatile", messages=[{"role": "user", "content": "ping"}], max_tokens=16)


def _together(base: str) -> None:
    client = import_module("together").Together(base_url=f"{base}/v1", api_key=_KEY, max_retries=0, timeout=_TIMEOUT_SECONDS)
    client.chat.completions.create(model="llama", messages=[{"role": "user", "content": "ping"}], max_tokens=16)


def _httpx(base: str) -> None:
    import_module("httpx").get(f"{base}/v1/models", timeout=_TIMEOUT_SECONDS)


def _httpx2(base: str) -> None:
    import_module("httpx2").get(f"{base}/v1/models", timeout=_TIMEOUT_SECONDS)


def _requests(base: str) -> None:
    import_module("requests").get(f"{base}/v1/models", timeout=_TIMEOUT_SECONDS)


def _urllib3(base: str) -> None:
    import_module("urllib3").request("GET", f"{base}/v1/models", timeout=_TIMEOUT_SECONDS, retries=False)


def _aiohttp(base: str) -> None:
    aiohttp = import_module("aiohttp")

    async def get() -> None:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{base}/v1/models") as response:
            await response.read()

    asyncio.run(get())


def _websockets(base: str) -> None:
    import_module("websockets.asyncio.client")
    with suppress(import_module("websockets.exceptions").InvalidHandshake):  # the provider speaks HTTP only; the call was made
        import_module("websockets.sync.client").connect(
            f"ws{base.removeprefix('http')}/v1/models", open_timeout=_TIMEOUT_SECONDS
        ).close()


def _http_client(base: str) -> None:
    from http.client import HTTPConnection

    connection = HTTPConnection(base.removeprefix("http://"), timeout=_TIMEOUT_SECONDS)
    connection.request("GET", "/v1/models")
    connection.getresponse().read()
    connection.close()


_CANARIES: dict[str, Callable[[str], None]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "groq": _groq,
    "together": _together,
    "httpx": _httpx,
    "httpx2": _httpx2,
    "requests": _requests,
    "urllib3": _urllib3,
    "aiohttp": _aiohttp,
    "websockets": _websockets,
    "python": _http_client,
}
"""By distribution; `python` is the standard library's http.client, which urllib.request uses too."""

_LLM = frozenset({"openai", "anthropic", "groq", "together"})


def main() -> None:
    """Send every canary, and print what came of them."""
    import agentguard
    from agentguard.testing import Provider

    warnings.simplefilter("ignore")  # a client's opinion of a model is not what is asked
    events: list[Event] = []
    with Provider() as provider:
        policy = agentguard.Policy.from_mapping(_policy(provider.url("").removeprefix("http://").strip("/")))
        with agentguard.instrument(policy, store="memory://", observers=[events.append]) as installed:
            found = [
                {"library": library, "version": installed_version(library), **_tried(library, provider, installed.guard, events)}
                for library in _CANARIES
                if installed_version(library)
            ]
            seams = [status._asdict() for status in installed.status()]
    json.dump({"clients": found, "seams": seams}, sys.stdout)


def _policy(authority: str) -> dict[str, Any]:
    hosts = {"allowed_domains": [authority], "blocked_domains": ["*"], "allow_private": True}
    return {"version": 1, "mode": "enforce", "agents": [{"name": "doctor", "external_calls": hosts}]}


def _tried(library: str, provider: Any, guard: Any, events: list[Event]) -> dict[str, Any]:
    """`seen`: as an LLM call, or an HTTP call. `refused`: whether the host that is not allowed was."""
    from agentguard.core.call import LLMCall
    from agentguard.events import CallAdmitted

    canary = _CANARIES[library]
    allowed = provider.url("").rstrip("/")
    events.clear()
    error = _error_of(canary, allowed)
    guard.flush()
    admitted = [event.call for event in events if isinstance(event, CallAdmitted)]
    is_seen = any(isinstance(call, LLMCall) == (library in _LLM) for call in admitted)
    # The same port of another loopback address, where nobody listens: who is not refused is not connected either.
    refusal = _error_of(canary, allowed.replace("127.0.0.1", "127.0.0.2"))
    return {
        "seen": is_seen,
        "refused": refusal is not None and _is_denial(refusal),
        "error": None if error is None else f"{type(error).__name__}: {error}"[:200],
    }


def _error_of(canary: Callable[[str], None], base: str) -> BaseException | None:
    try:
        canary(base)
    except Exception as error:  # noqa: BLE001 - any client, any fault: it is what is reported
        return error
    return None


def _is_denial(error: BaseException | None) -> bool:
    from agentguard.errors import Denied

    while error is not None:
        if isinstance(error, Denied):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main()

"""Where the acts play: the servers, the names that lead to them, the clients, and what the guard said."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from agentguard._default import find_guard
from agentguard.demo.names import resolving
from agentguard.demo.tape import Line
from agentguard.testing.provider import Provider
from agentguard.testing.server import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    import anthropic
    import openai

    from agentguard.demo.tape import Tape
    from agentguard.testing.records import RecordedRequest

SECRET = "sk-live-DEMO-7f3a9c-this-must-not-leave"
"""What the attacker is after. It opens nothing."""

KEY = "sk-demo-opens-nothing"
"""What the clients show to the provider."""


class Stage:
    """The servers of the demo and the clients that talk to them. Lives as long as its `with` block.

    Args:
        tape: What the guard tells; empty when there is no guard.
        pace: Seconds of rest between two steps, so that a spectator can follow.
        folder: Where the stage may write files.
        end_of_scene: Called when everything that belongs together has been told.
        arrived: Called with what the servers have received, at the end of a scene; None where the guard tells.

    Attributes:
        is_guarded: False for the control.
        provider: The model provider, `llm.demo.test`: OpenAI and Anthropic on the wire.
        kb: An API that the policy allows, `kb.demo.test`.
        attacker: `paste.evil.test`, which records whatever arrives.
    """

    def __init__(
        self,
        tape: Tape,
        pace: float,
        folder: Path,
        end_of_scene: Callable[[], None],
        arrived: Callable[[Line], None] | None = None,
    ) -> None:
        self.tape: Tape = tape
        self.folder: Path = folder
        self.is_guarded: bool = arrived is None
        self._pace = pace
        self._end_of_scene = end_of_scene
        self._arrived = arrived
        self._open = ExitStack()
        self.provider: Provider = self._open.enter_context(Provider())
        self.kb: Recorder = self._open.enter_context(
            _recorder("127.0.0.3", body=b'{"title": "Ticket 4711", "text": "It does not start."}')
        )
        self.attacker: Recorder = self._open.enter_context(_recorder("127.0.0.2"))

    def __enter__(self) -> Self:
        names = {"llm.demo.test": self.provider.host, "kb.demo.test": self.kb.host, "paste.evil.test": self.attacker.host}
        self._open.enter_context(resolving(names))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._open.close()

    # --- addresses and clients --------------------------------------------------------------------------------------

    def llm_url(self, path: str = "") -> str:
        """A URL of the provider, by name."""
        return f"http://llm.demo.test:{self.provider.port}{path}"

    def kb_url(self, path: str) -> str:
        """A URL of the allowed API, by name."""
        return f"http://kb.demo.test:{self.kb.port}{path}"

    def evil_url(self, path: str) -> str:
        """A URL of the attacker, by name."""
        return f"http://paste.evil.test:{self.attacker.port}{path}"

    def openai_client(self) -> openai.OpenAI:
        """The published client, pointed at the provider."""
        import openai

        return openai.OpenAI(base_url=self.llm_url("/v1"), api_key=KEY)

    def async_openai_client(self) -> openai.AsyncOpenAI:
        """The same, for asyncio."""
        import openai

        return openai.AsyncOpenAI(base_url=self.llm_url("/v1"), api_key=KEY)

    def anthropic_client(self) -> anthropic.Anthropic:
        """The published client, pointed at the provider."""
        import anthropic

        return anthropic.Anthropic(base_url=self.llm_url(), api_key=KEY)

    # --- time -------------------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Let the spectator follow."""
        time.sleep(self._pace)

    def settle(self) -> None:
        """Wait until the servers have finished and the guard has told everything: only then is it counted."""
        self.provider.wait_idle()
        if guard := find_guard():
            guard.flush()

    def clear(self) -> None:
        """End a scene: what comes next starts with empty logs."""
        self.settle()
        servers = {"llm.demo.test": self.provider, "kb.demo.test": self.kb, "paste.evil.test": self.attacker}
        arrivals = [arrival(name, request) for name, server in servers.items() for request in server.requests]
        if self._arrived is not None:
            for line in sorted(arrivals):
                self._arrived(line)
        self._end_of_scene()
        for server in servers.values():
            server.clear()
        self.tape.clear()


def arrival(name: str, request: RecordedRequest) -> Line:
    """What a server's log says of a request: not who made it."""
    is_loot = name == "paste.evil.test" and carries_secret(request)
    return Line(request.time, "?", request.method, name, "leaked" if is_loot else "arrived", request.path)


def carries_secret(request: RecordedRequest) -> bool:
    """Whether the secret stands anywhere in a request."""
    return SECRET in f"{request.target} {request.headers} {request.body!r}"


def _recorder(host: str, body: bytes = b"ok") -> Recorder:
    """A server on an address of its own; on systems that have one loopback address only, on a port of its own."""
    try:
        return Recorder(host, body=body)
    except OSError:
        return Recorder(body=body)


@contextmanager
def plain_environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Hide the user's own proxies and settings from the demo, which shows what the package does by itself."""
    hidden = [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith(("AGENTGUARD_", "OTEL_"))]
    kept = {name: os.environ.pop(name) for name in hidden}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            del os.environ[name]
        os.environ.update(kept)

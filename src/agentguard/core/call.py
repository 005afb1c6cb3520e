"""What is asked for: an LLM call, another HTTP call, or a tool call; and what it used in the end."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urlsplit

from agentguard.policy.hosts import in_url

DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
"""The port that a scheme means when a URL names none."""


class Usage(NamedTuple):
    """What a call used, in tokens, normalised over providers.

    Attributes:
        input_tokens: All input, cached tokens included (Anthropic reports them apart, OpenAI within).
        output_tokens: All output, reasoning included.
        cache_read_tokens: The part of the input read from a cache.
        cache_write_tokens: The part of the input written to a cache.
        reasoning_tokens: The part of the output that was reasoning.
        estimated: True when the provider reported nothing and we counted what we saw.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        """Input and output together: what a token budget is charged."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()


class Target(NamedTuple):
    """Where a call goes: the host and port that the transport will really connect to."""

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        standard = DEFAULT_PORTS.get(self.scheme) == self.port
        return f"{self.scheme}://{in_url(self.host)}{'' if standard else f':{self.port}'}{self.path}"

    @classmethod
    def of(cls, url: str) -> Target:
        """Read a URL.

        Raises:
            ValueError: The URL names no host, or a port that is none.
        """
        parts = urlsplit(url)
        if not parts.hostname:
            msg = f"{url!r} names no host"
            raise ValueError(msg)
        scheme = parts.scheme or "http"
        return cls(scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(scheme, 0), parts.path or "/")


class LLMCall(NamedTuple):
    """One logical call to a model, however many attempts the SDK makes.

    Attributes:
        operation: OpenTelemetry's word: `chat`, `text_completion`, `embeddings`.
        provider: `openai`, `anthropic`, or another of OpenTelemetry's provider names.
        model: The requested model.
        target: Where it goes.
        stream: Whether the response is streamed.
        input_bytes: UTF-8 bytes of the text that is visible in the request.
        dense_bytes: The part of them in long runs without white space (base64, hashes), which take more tokens a byte.
        opaque_parts: Images, files and audio in the request, whose tokens cannot be counted here.
        input_visible: False when there is input that the request does not show (stored conversations, files, images).
        max_output_tokens: The bound on output that the request carries; None when it carries none.
        choices: How many completions are asked for; each may use the whole output bound.
        request: The request body, for telemetry (parameters only, unless content capture is on). Never written to records.
    """

    operation: str
    provider: str
    model: str
    target: Target
    stream: bool = False
    input_bytes: int = 0
    dense_bytes: int = 0
    opaque_parts: int = 0
    input_visible: bool = True
    max_output_tokens: int | None = None
    choices: int = 1
    request: Any = None

    @property
    def name(self) -> str:
        """What a message and a span call it."""
        return f"{self.operation} {self.model}"


class HTTPCall(NamedTuple):
    """One logical HTTP call that is not an LLM call. Redirects are further hops of it."""

    method: str
    target: Target

    @property
    def name(self) -> str:
        """What a message and a span call it."""
        return f"{self.method} {self.target.host}"

    @classmethod
    def to(cls, method: str, url: str) -> HTTPCall:
        """A call to a URL, as a question to `Guard.check`."""
        return cls(method, Target.of(url))


class ToolCall(NamedTuple):
    """One use of a tool.

    Attributes:
        tool: Its name.
        scope: The permission word that it asks for, if any.
        cost_nanos: What one use costs, in nano-USD.
        arguments: What it is called with; None unless content capture is on. Never written to records.
    """

    tool: str
    scope: str | None = None
    cost_nanos: int = 0
    arguments: Any = None

    @property
    def name(self) -> str:
        """What a message and a span call it."""
        return f"execute_tool {self.tool}"


Call = LLMCall | HTTPCall | ToolCall

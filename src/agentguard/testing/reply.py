"""What the loopback provider is told to answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

DEFAULT_OUTPUT_TOKENS: Final = 16
"""Length of a reply nobody scripted."""

FIRST_ERROR_STATUS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call that the model proposes."""

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict[str, object])
    id: str | None = None
    """Made up when None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One scripted answer; every field has a working default.

    Attributes:
        text: What the model says, or the message of an error. None: words that depend only on the request,
            or the smallest JSON that fits when it asks for a schema.
        output_tokens: Usage to report; without `text` also the length of what is said. None: counted from `text` and
            `tool_calls`, or 16. The request's own bound caps it, and the text with it (a tool call that no longer fits
            is left out).
        input_tokens: Usage to report. None: `agentguard.testing.tokens.input_tokens` of the request.
        cached_tokens: How many of the input tokens were read from a cache.
        cache_write_tokens: How many of the input tokens were written to a cache.
        reasoning_tokens: How many of the output tokens were spent on thoughts that are not shown.
        tool_calls: Tool calls the model proposes, after the text.
        usage: False leaves usage out everywhere, as some compatible servers do.
        ignore_max_tokens: True makes the model exceed the request's own bound.

        delay: Seconds before the first byte of the answer.
        hold: Answer only once this event is set; streams send their head first and hold before the first token.
        first_token_delay: Seconds between a stream's head and its first token.
        chunk_delay: Seconds before every further chunk of a stream. The stream ends when the client hangs up meanwhile.
        chunks: How many chunks a streamed text comes in. None: one for each token.
        truncate_after: The stream breaks off after so many chunks.
        truncate_abruptly: False ends a truncated stream with a proper end of the body instead of a broken connection.

        status: HTTP status; 400 and above answers with the API's error body.
        error_code: The error's code (OpenAI) or type (Anthropic). With status 200 a stream ends with this error, after
            `truncate_after` chunks.
        retry_after: Seconds, sent with an error; parts of a second go into `retry-after-ms`.
        drop_connection: Close the connection instead of answering.
        fail_times: The error, or the dropped connection, happens so many times, and then the reply succeeds.
            None: every time.
        gzip: Compress the body when the client accepts it.
        headers: More headers of the answer.
    """

    text: str | None = None
    output_tokens: int | None = None
    input_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] | list[ToolCall] = ()
    usage: bool = True
    ignore_max_tokens: bool = False

    delay: float = 0.0
    hold: threading.Event | None = None
    first_token_delay: float = 0.0
    chunk_delay: float = 0.0
    chunks: int | None = None
    truncate_after: int | None = None
    truncate_abruptly: bool = True

    status: int = 200
    error_code: str | None = None
    retry_after: float | None = None
    drop_connection: bool = False
    fail_times: int | None = None
    gzip: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_failure(self) -> bool:
        """Whether it says to fail: by an error status or by hanging up."""
        return self.drop_connection or self.status >= FIRST_ERROR_STATUS

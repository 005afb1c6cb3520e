"""What a provider said about a call: usage, identity of the response, and what the model wants to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.wire.fields import identifier, utf8_length

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentguard.core.call import Usage


class Answer(NamedTuple):
    """What a response, or a stream so far, has told.

    Attributes:
        usage: What the provider says the whole call used; None until it has.
        input_usage: What it has said of the input before it knows the output (Anthropic does, when a stream begins).
            For a stream that is abandoned: its output has to be counted.
        response_id: The provider's name for the response.
        response_model: The model that answered.
        finish_reasons: One a choice, in the provider's words.
        tool_calls: Names of the tools that the model proposes to call, in order.
        service_tier: The tier that served it.
        system_fingerprint: The provider's configuration.
        text_bytes: UTF-8 bytes of the generated text, tool calls and reasoning: for counting when no usage came.
    """

    usage: Usage | None = None
    input_usage: Usage | None = None
    response_id: str | None = None
    response_model: str | None = None
    finish_reasons: tuple[str, ...] = ()
    tool_calls: tuple[str, ...] = ()
    service_tier: str | None = None
    system_fingerprint: str | None = None
    text_bytes: int = 0


class Draft:
    """An answer that is still being written.

    Attributes:
        counts: Raw counters of a provider that reports them piecemeal.
        is_done: Its terminal event was seen.
        failed: An error came inside of it.
    """

    __slots__ = (
        "_finish_reasons",
        "_tool_names",
        "counts",
        "failed",
        "input_usage",
        "is_done",
        "response_id",
        "response_model",
        "service_tier",
        "system_fingerprint",
        "text_bytes",
        "usage",
    )

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.input_usage: Usage | None = None
        self.response_id: str | None = None
        self.response_model: str | None = None
        self.service_tier: str | None = None
        self.system_fingerprint: str | None = None
        self.text_bytes: int = 0
        self.counts: dict[str, int] = {}
        self.is_done: bool = False
        self.failed: bool = False
        self._finish_reasons: dict[object, str] = {}
        self._tool_names: dict[object, str] = {}

    def read_head(self, source: Mapping[str, object]) -> None:
        """Take what names the response. Later values win, absent ones leave what is known."""
        self.response_id = identifier(source.get("id")) or self.response_id
        self.response_model = identifier(source.get("model")) or self.response_model
        self.service_tier = identifier(source.get("service_tier")) or self.service_tier
        self.system_fingerprint = identifier(source.get("system_fingerprint")) or self.system_fingerprint

    def finish(self, choice: object, reason: object) -> None:
        """Record why a choice ended."""
        if known := identifier(reason):
            self._finish_reasons[_key(choice)] = known

    def propose(self, call: object, name: object) -> int:
        """Record the name of a tool call, or the next piece of it; returns the bytes that are new."""
        piece = identifier(name)
        if piece is None:
            return 0
        key = _key(call)
        known = self._tool_names.get(key, "")
        if known == piece:  # some servers repeat the name on every delta
            return 0
        self._tool_names[key] = known + piece
        return utf8_length(piece)

    def fail(self) -> None:
        """Record an error that ended it."""
        self.failed = self.is_done = True

    def answer(self) -> Answer:
        """What is known by now."""
        return Answer(
            usage=self.usage,
            input_usage=self.input_usage,
            response_id=self.response_id,
            response_model=self.response_model,
            finish_reasons=tuple(self._finish_reasons.values()),
            tool_calls=tuple(self._tool_names.values()),
            service_tier=self.service_tier,
            system_fingerprint=self.system_fingerprint,
            text_bytes=self.text_bytes,
        )


def _key(value: object) -> object:
    """An index as a sender gave it: it may be anything, hashable or not."""
    return value if isinstance(value, int | str | tuple) else repr(type(value))

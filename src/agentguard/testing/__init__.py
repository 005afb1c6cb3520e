"""Test agents against real servers on loopback: an LLM provider, a recording server, a clock that stands still."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.testing.assertions import Recording, Refusal, assert_denied, assert_spent
    from agentguard.testing.clock import FrozenClock
    from agentguard.testing.provider import Provider
    from agentguard.testing.records import RecordedRequest
    from agentguard.testing.reply import Reply, ToolCall
    from agentguard.testing.server import Recorder
    from agentguard.testing.tokens import count_tokens, text_of

__all__ = [
    "FrozenClock",
    "Provider",
    "RecordedRequest",
    "Recorder",
    "Recording",
    "Refusal",
    "Reply",
    "ToolCall",
    "assert_denied",
    "assert_spent",
    "count_tokens",
    "text_of",
]

# Where each name lives; a new public name is added here, in __all__ and in the imports for type checkers.
_HOMES = {
    "FrozenClock": "clock",
    "Provider": "provider",
    "RecordedRequest": "records",
    "Recorder": "server",
    "Recording": "assertions",
    "Refusal": "assertions",
    "Reply": "reply",
    "ToolCall": "reply",
    "assert_denied": "assertions",
    "assert_spent": "assertions",
    "count_tokens": "tokens",
    "text_of": "tokens",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__

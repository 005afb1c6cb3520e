"""The tokens of the loopback provider: one for every four bytes of UTF-8 text, rounded up, wherever it counts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_PER_TOKEN = 4

_WORDS = (
    "ant bay cat dew elk fig gum hay ice jam key log map net oak pen "
    "red sun tea urn vat web yak zip air bee cup dot eel fox gem hat "
)
_WORD_COUNT = len(_WORDS) // BYTES_PER_TOKEN

_PROMPT_FIELDS = ("system", "instructions", "messages", "input", "prompt")

# What stands under these keys inside a prompt names, links or encodes something; no model reads it as text.
_NOT_TEXT = frozenset(
    {
        *("role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "status", "cache_control"),
        *("image_url", "input_audio", "file", "file_id", "file_data", "file_url", "source", "detail"),
    },
)


def count_tokens(text: str) -> int:
    """Tokens of a text: its UTF-8 bytes divided by four, rounded up."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def text_of(tokens: int, *, seed: int = 0) -> str:
    """A text of exactly so many tokens (`count_tokens` agrees): words of three letters, each with one mark after it.

    Args:
        tokens: How long; zero or less gives an empty text.
        seed: Which word comes first. The same seed gives the same text.
    """
    if tokens <= 0:
        return ""
    first = seed % _WORD_COUNT
    words = _WORDS * (-(-(first + tokens) // _WORD_COUNT))
    start = first * BYTES_PER_TOKEN
    return words[start : start + tokens * BYTES_PER_TOKEN - 1] + "."


def cut(text: str, tokens: int) -> str:
    """The longest beginning of a text that has at most so many tokens and splits no character."""
    return text.encode()[: max(tokens, 0) * BYTES_PER_TOKEN].decode(errors="ignore")


def input_tokens(body: Mapping[str, object]) -> int:
    """Tokens of the prompt in a request body, whichever API it is for.

    Every text in `system`, `instructions`, `messages`, `input` and `prompt` is counted on its own and summed; a number
    there is a token id and counts one. Roles, types, ids, images and files count nothing. `tools` count as their
    compact JSON. So a request with the single message "hello" has `count_tokens("hello")` input tokens.
    """
    total = sum(_tokens_in(body.get(field)) for field in _PROMPT_FIELDS)
    tools = body.get("tools")
    if tools:
        total += count_tokens(json.dumps(tools, separators=(",", ":"), ensure_ascii=False))
    return total


def _tokens_in(value: object) -> int:
    if isinstance(value, str):
        return count_tokens(value)
    if isinstance(value, dict):
        return sum(_tokens_in(part) for key, part in value.items() if key not in _NOT_TEXT)
    if isinstance(value, list | tuple):
        return sum(_tokens_in(part) for part in value)
    return 1 if isinstance(value, int | float) else 0

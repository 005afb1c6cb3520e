"""Which requests are LLM calls: told by path suffix and body shape, whatever the host and the prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentguard.wire.family import Family

_SUFFIXES = ("/completions", "/embeddings", "/responses", "/responses/compact", "/v1/messages")

_PROMPTS = ("prompt", "prompt_embeds")
_INPUTS = ("conversation", "input", "instructions", "previous_response_id", "prompt")


def could_be(path: str) -> bool:
    """Whether a request to this path could be an LLM call: asked of every request before its body is parsed."""
    return _canonical(path).endswith(_SUFFIXES)


def recognise(path: str, body: Mapping[str, object]) -> Family | None:
    """The API family that a request belongs to; None when it is no LLM call.

    A family is imported with the first request of its kind: its regular expressions take milliseconds to compile.
    """
    path = _canonical(path)
    if path.endswith("/completions"):
        return _recognise_completions(path, body)
    if path.endswith("/v1/messages") and "messages" in body:
        from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC_MESSAGES

        return ANTHROPIC_MESSAGES
    if path.endswith(("/responses", "/responses/compact")):
        return _recognise_responses(path, body)
    if path.endswith("/embeddings") and "input" in body:
        from agentguard.wire.openai_embeddings import FAMILY as OPENAI_EMBEDDINGS

        return OPENAI_EMBEDDINGS
    return None


def _recognise_completions(path: str, body: Mapping[str, object]) -> Family | None:
    if "messages" in body:
        from agentguard.wire.openai_chat import FAMILY as OPENAI_CHAT

        return OPENAI_CHAT
    if any(name in body for name in _PROMPTS) or ("model" in body and not path.endswith("/chat/completions")):
        from agentguard.wire.openai_completions import FAMILY as OPENAI_COMPLETIONS

        return OPENAI_COMPLETIONS
    return None


def _recognise_responses(path: str, body: Mapping[str, object]) -> Family | None:
    if not (("model" in body or "prompt" in body) and any(name in body for name in _INPUTS)):
        return None
    from agentguard.wire.openai_responses import COMPACT_FAMILY as OPENAI_RESPONSES_COMPACT
    from agentguard.wire.openai_responses import FAMILY as OPENAI_RESPONSES

    return OPENAI_RESPONSES if path.endswith("/responses") else OPENAI_RESPONSES_COMPACT


def _canonical(path: str) -> str:
    """The path as a server would route it: without query and trailing slash, decoded, in one case."""
    if "?" in path:
        path = path[: path.index("?")]
    if "%" in path:
        path = unquote(path)
    if "//" in path:
        path = "/".join(part for part in path.split("/") if part)
        path = f"/{path}"
    return path.rstrip("/").lower()

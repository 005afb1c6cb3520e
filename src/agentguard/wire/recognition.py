"""Which requests are LLM calls: told by path suffix and body shape, whatever the host and the prefix."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
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
    """The API family that a request belongs to; None when it is no LLM call."""
    path = _canonical(path)
    if path.endswith("/completions"):
        return _recognise_completions(path, body)
    if path.endswith("/v1/messages") and "messages" in body:
        return _family("anthropic_messages")
    if path.endswith(("/responses", "/responses/compact")):
        return _recognise_responses(path, body)
    if path.endswith("/embeddings") and "input" in body:
        return _family("openai_embeddings")
    return None


def _recognise_completions(path: str, body: Mapping[str, object]) -> Family | None:
    if "messages" in body:
        return _family("openai_chat")
    if any(name in body for name in _PROMPTS) or ("model" in body and not path.endswith("/chat/completions")):
        return _family("openai_completions")
    return None


def _recognise_responses(path: str, body: Mapping[str, object]) -> Family | None:
    if not (("model" in body or "prompt" in body) and any(name in body for name in _INPUTS)):
        return None
    return _family("openai_responses", "FAMILY" if path.endswith("/responses") else "COMPACT_FAMILY")


@cache
def _family(module: str, name: str = "FAMILY") -> Family:
    """A family, imported with the first request of its kind: its regular expressions take milliseconds to compile."""
    family: Family = getattr(import_module(f"agentguard.wire.{module}"), name)
    return family


@lru_cache(maxsize=1024)
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

"""Prompts on spans: off, unless the user asks for it by OpenTelemetry's variable or by argument."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from agentguard.otel import semconv as names

if TYPE_CHECKING:
    from agentguard.core.call import LLMCall

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
MAX_BYTES = 65_536
"""Longer content is left out as a whole: half a JSON document is none."""

logger: logging.Logger = logging.getLogger("agentguard")


class Capture(StrEnum):
    """Where content may stand, in the words of the variable. Events with content are not emitted: they are read as off."""

    NO_CONTENT = "NO_CONTENT"
    SPAN_ONLY = "SPAN_ONLY"
    EVENT_ONLY = "EVENT_ONLY"
    SPAN_AND_EVENT = "SPAN_AND_EVENT"


class Content:
    """Captures what is asked, not what is answered: input messages and system instructions, as the conventions shape them."""

    def of_span(self, call: LLMCall) -> dict[str, Any]:
        """The content of a request as attributes: JSON texts."""
        body = call.request
        if not isinstance(body, Mapping):
            return {}
        system = body.get("system", body.get("instructions"))
        asked = body.get("messages", body.get("input", body.get("prompt")))
        found = {names.SYSTEM_INSTRUCTIONS: _parts(system) if system else None, names.INPUT_MESSAGES: _messages(asked)}
        texts = {name: json.dumps(value, ensure_ascii=False, default=lambda _: None) for name, value in found.items() if value}
        return {name: text for name, text in texts.items() if len(text) <= MAX_BYTES}


def content_asked_for(capture: str | None) -> Content | None:
    """What to capture: by argument, else by variable. An unknown word captures nothing, and is told."""
    word = (os.environ.get(VARIABLE, "") if capture is None else capture).strip().upper()
    if word in {Capture.SPAN_ONLY, Capture.SPAN_AND_EVENT}:
        return Content()
    if word and word not in set(Capture):
        logger.warning("agentguard: %s=%r is none of %s; no content is captured", VARIABLE, word, ", ".join(Capture))
    return None


def _messages(asked: object) -> list[dict[str, Any]]:
    if isinstance(asked, str):
        return [{"role": "user", "parts": _parts(asked)}]
    if not isinstance(asked, list):
        return []
    return [
        {"role": str(message.get("role", "user")), "parts": _parts(message.get("content"))}
        if isinstance(message, Mapping)
        else {"role": "user", "parts": _parts(message)}
        for message in asked
    ]


def _parts(content: object) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    if not isinstance(content, list):
        return []
    return [part for one in content if (part := _part(one))]


def _part(part: object) -> dict[str, Any] | None:
    """A text part; of anything else only the kind, since files and images are no reading matter."""
    if isinstance(part, str):
        return {"type": "text", "content": part}
    if not isinstance(part, Mapping):
        return None
    if isinstance(text := part.get("text"), str):
        return {"type": "text", "content": text}
    return {"type": str(part.get("type", "unknown"))}

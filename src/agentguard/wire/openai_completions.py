"""OpenAI's legacy completions: a prompt instead of messages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentguard.wire.answer import Answer, Draft
from agentguard.wire.family import Family, Request
from agentguard.wire.fields import asked, is_on, objects, parse_object, text, utf8_length
from agentguard.wire.measure import measure_body
from agentguard.wire.openai_chat import (
    CHOICE_MEMBER,
    EVENT_END,
    EVENT_START,
    PARAMETERS,
    TEXT,
    is_usage_event,
    model_of,
    observe_head,
    with_usage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN_EVENT = re.compile(
    EVENT_START
    + rb"(?:" + CHOICE_MEMBER + rb', ?)*+"text": ?' + TEXT
    + rb"(?:, ?" + CHOICE_MEMBER + rb")*+"
    + EVENT_END
)  # fmt: skip


def _read(body: Mapping[str, object], path: str) -> Request:
    shown = measure_body(body, PARAMETERS)
    return Request(
        model_of(body, path),
        is_on(body.get("stream")),
        asked(body.get("max_tokens")),
        # best_of are generated and billed, n of them returned; each prompt of a list is answered apart.
        max(asked(body.get("n")) or 1, asked(body.get("best_of")) or 1) * _prompts(body.get("prompt")),
        shown.size,
        shown.dense,
        shown.opaque,
        shown.is_visible,
    )


def _prompts(prompt: object) -> int:
    """A list holds prompts, unless it holds numbers: then it is one prompt as token ids."""
    is_list = isinstance(prompt, list | tuple) and prompt and not isinstance(prompt[0], int)
    return len(prompt) if is_list else 1  # type: ignore[arg-type]  # a list, by the line above


def _with_output_bound(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:  # noqa: ARG001
    return {**body, "max_tokens": tokens}


def _observe(draft: Draft, event: Mapping[str, object]) -> int:
    observe_head(draft, event)
    carried = 0
    for choice in objects(event.get("choices")):
        draft.finish(choice.get("index"), choice.get("finish_reason"))
        carried += utf8_length(text(choice.get("text")) or "")
    draft.text_bytes += carried
    return carried


def _read_response(body: bytes) -> Answer:
    response = parse_object(body)
    if response is None:
        return Answer()
    draft = Draft()
    _observe(draft, response)
    return draft.answer()


FAMILY = Family(
    name="openai_completions",
    operation="text_completion",
    default_provider="openai",
    read=_read,
    with_output_bound=_with_output_bound,
    with_usage=with_usage,
    read_response=_read_response,
    observe=_observe,
    is_usage_event=is_usage_event,
    plain_event=_PLAIN_EVENT,
)

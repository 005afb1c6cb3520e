"""OpenAI's embeddings: input only, nothing is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.core.call import Usage
from agentguard.wire.answer import Answer, Draft
from agentguard.wire.family import Family, Request, as_dict, has_no_usage_event, leaves_usage_alone
from agentguard.wire.fields import count, members, parse_first_object, parse_object
from agentguard.wire.measure import measure_body
from agentguard.wire.openai_chat import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARAMETERS = frozenset({"dimensions", "encoding_format", "model", "user"})

_WORTH_SKIPPING = 65_536
"""A response larger than this is vectors: only its end is parsed."""


def _read(body: Mapping[str, object], path: str) -> Request:
    shown = measure_body(body, _PARAMETERS)
    return Request(model_of(body, path), False, 0, 1, shown.size, shown.dense, shown.opaque, shown.is_visible)


def _without_output(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:  # noqa: ARG001
    return as_dict(body)


def _observe(draft: Draft, event: Mapping[str, object]) -> int:
    draft.read_head(event)
    usage = members(event.get("usage"))
    tokens = count(usage.get("prompt_tokens"))
    if tokens is None:
        tokens = count(usage.get("total_tokens"))
    if tokens is not None:
        draft.usage = Usage(input_tokens=tokens)
    return 0


def _read_response(body: bytes) -> Answer:
    # The key cannot occur inside of a JSON string unescaped, so the last one is a key.
    at = body.rfind(b'"usage"') if len(body) > _WORTH_SKIPPING else -1
    usage = parse_first_object(body[at + 7 :].lstrip(b" \t\r\n:")) if at > 0 else None
    response = parse_object(body) if usage is None else {"usage": usage}
    if response is None:
        return Answer()
    draft = Draft()
    _observe(draft, response)
    return draft.answer()


FAMILY = Family(
    name="openai_embeddings",
    operation="embeddings",
    default_provider="openai",
    read=_read,
    with_output_bound=_without_output,
    with_usage=leaves_usage_alone,
    read_response=_read_response,
    observe=_observe,
    is_usage_event=has_no_usage_event,
)

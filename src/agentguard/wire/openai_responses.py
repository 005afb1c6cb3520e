"""OpenAI's responses, stateful on the provider's side when asked to be."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from agentguard.core.call import Usage
from agentguard.wire.answer import Answer, Draft
from agentguard.wire.family import Family, Request, as_dict, has_no_usage_event, leaves_usage_alone
from agentguard.wire.fields import asked, count, first_count, is_on, members, objects, parse_object, text, utf8_length
from agentguard.wire.measure import are_visible_tools, measure, measure_body
from agentguard.wire.openai_chat import model_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARAMETERS = frozenset(
    {
        "background", "background_options", "context_management", "conversation", "include", "max_output_tokens",
        "max_tool_calls", "metadata", "model", "moderation", "parallel_tool_calls", "previous_response_id",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "store", "stream", "stream_options", "temperature", "tool_choice", "top_logprobs", "top_p",
        "truncation", "user",
    }
)  # fmt: skip
"""Fields that steer the model but are not shown to it."""

_ELSEWHERE = ("conversation", "previous_response_id", "prompt")
"""Fields by which the provider adds input that the request does not show."""

_VISIBLE_TOOLS: frozenset[object] = frozenset({"custom", "function"})

_END = {
    "response.cancelled": False,
    "response.completed": False,
    "response.failed": True,
    "response.incomplete": False,
}
"""Terminal events, and whether they are a failure."""

# What the provider's own tools print is input to the model, and sound is not text.
_NOT_GENERATED = frozenset({"response.audio.delta", "response.shell_call_output_content.delta"})

_CALLED_BY_NAME = frozenset({"custom_tool_call", "function_call"})
_CALLED_BY_TYPE = {
    "apply_patch_call": "apply_patch",
    "computer_call": "computer",
    "local_shell_call": "local_shell",
    "shell_call": "shell",
}
"""Tools that the agent's side runs and the wire gives no name."""

_SCALAR = rb'(?:null|"[^"\\\r\n]*+"|-?[0-9.]++|true|false|\[\])'
_PLAIN_EVENT = re.compile(
    rb"(?:event: ?[a-z_.]++\r?\n)?"
    rb'data: ?\{"type": ?"response\.(?!audio\.delta|shell_call_output)[a-z_.]+\.delta"'
    rb'(?:, ?"(?!delta"|type")[a-z_]++": ?' + _SCALAR + rb')*+, ?"delta": ?"((?:[^"\\\r\n]++|\\[^\r\n])*+)"'
    rb'(?:, ?"(?!delta"|type")[a-z_]++": ?' + _SCALAR + rb")*+\}(?:\n\n|\r\n\r\n)"
)
_DULL_EVENT = re.compile(
    rb'\{"type": ?"response\.(?!(?:created|completed|incomplete|failed|cancelled|output_item\.added|[a-z_.]+\.delta)")[a-z_.]+"'
)


def _read(body: Mapping[str, object], path: str) -> Request:
    shown = measure_body(body, _PARAMETERS)
    sees_all = (
        shown.is_visible
        and all(body.get(name) is None for name in _ELSEWHERE)
        and ("tools" not in body or are_visible_tools(body["tools"], _VISIBLE_TOOLS))
    )
    return Request(
        model_of(body, path),
        is_on(body.get("stream")),
        asked(body.get("max_output_tokens")),
        1,
        shown.size,
        shown.dense,
        shown.opaque,
        sees_all,
    )


def _with_output_bound(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:  # noqa: ARG001
    return {**body, "max_output_tokens": tokens}


def _unbounded(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:  # noqa: ARG001
    return as_dict(body)


def _read_usage(source: object) -> Usage | None:
    usage = members(source)
    read = count(usage.get("input_tokens"))
    written = count(usage.get("output_tokens"))
    total = count(usage.get("total_tokens"))
    if read is None or (written is None and total is None):
        return None
    input_details = members(usage.get("input_tokens_details"))
    return Usage(
        input_tokens=read,
        output_tokens=max(written or 0, (total or 0) - read),
        cache_read_tokens=first_count(input_details, "cached_tokens"),
        cache_write_tokens=first_count(input_details, "cache_write_tokens"),
        reasoning_tokens=first_count(members(usage.get("output_tokens_details")), "reasoning_tokens"),
    )


def _observe(draft: Draft, event: Mapping[str, object]) -> int:
    kind = text(event.get("type")) or ""
    if kind.endswith(".delta"):
        delta = event.get("delta")
        carried = utf8_length(delta) if isinstance(delta, str) and kind not in _NOT_GENERATED else 0
    elif kind == "response.output_item.added":
        carried = _observe_item(draft, event.get("output_index"), members(event.get("item")))
    else:
        carried = 0
        _observe_turn(draft, kind, event)
    draft.text_bytes += carried
    return carried


def _observe_turn(draft: Draft, kind: str, event: Mapping[str, object]) -> None:
    """Beginning, end and error of a stream."""
    if kind == "error" or (not kind and event.get("error")):
        draft.fail()
    if kind == "response.created":
        draft.read_head(members(event.get("response")))
    elif kind in _END:
        _observe_response(draft, members(event.get("response")))
        draft.is_done = True
        draft.failed = draft.failed or _END[kind]


def _observe_response(draft: Draft, response: Mapping[str, object]) -> None:
    """The response as a whole: the body of one that is no stream, or what a stream ends with."""
    draft.read_head(response)
    draft.usage = _read_usage(response.get("usage")) or draft.usage
    reason = members(response.get("incomplete_details")).get("reason")
    draft.finish(0, text(reason) or response.get("status"))
    for index, item in enumerate(objects(response.get("output"))):
        _observe_item(draft, index, item)


def _observe_item(draft: Draft, index: object, item: Mapping[str, object]) -> int:
    """Record the tool that an output item calls; returns the bytes of its name when it is new."""
    kind = text(item.get("type")) or ""
    if kind in _CALLED_BY_NAME:
        return draft.propose(index, item.get("name"))
    return draft.propose(index, _CALLED_BY_TYPE.get(kind))


def _read_response(body: bytes) -> Answer:
    response = parse_object(body)
    if response is None:
        return Answer()
    draft = Draft()
    _observe_response(draft, response)
    draft.text_bytes = sum(_item_length(item) for item in objects(response.get("output")))
    return draft.answer()


def _item_length(item: Mapping[str, object]) -> int:
    """UTF-8 bytes of what the model generated in an output item; a tool's own output is not that."""
    parts = [part.get("text") or part.get("refusal") for name in ("content", "summary") for part in objects(item.get(name))]
    called = [item.get(name) for name in ("name", "arguments", "input", "code", "action", "operation")]
    return measure([part for part in (*parts, *called) if part is not None]).size


FAMILY = Family(
    name="openai_responses",
    operation="chat",
    default_provider="openai",
    read=_read,
    with_output_bound=_with_output_bound,
    with_usage=leaves_usage_alone,
    read_response=_read_response,
    observe=_observe,
    is_usage_event=has_no_usage_event,
    plain_event=_PLAIN_EVENT,
    dull_event=_DULL_EVENT,
)

COMPACT_FAMILY = replace(FAMILY, name="openai_responses_compact", with_output_bound=_unbounded)
"""`/responses/compact`: a call to the model that takes no bound on its output."""

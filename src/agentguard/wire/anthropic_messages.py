"""Anthropic's messages, by Anthropic or by a cloud that keeps the format."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentguard.core.call import Usage
from agentguard.wire.answer import Answer, Draft
from agentguard.wire.family import Family, Request, has_no_usage_event, leaves_usage_alone
from agentguard.wire.fields import asked, count, first_count, identifier, is_on, members, objects, parse_object, text, utf8_length
from agentguard.wire.measure import are_visible_tools, measure, measure_body

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARAMETERS = frozenset(
    {
        "anthropic_version", "betas", "cache_control", "container", "context_management", "diagnostics", "inference_geo",
        "max_tokens", "metadata", "model", "service_tier", "speed", "stop_sequences", "stream", "temperature", "thinking",
        "thread", "tool_choice", "top_k", "top_p", "user_profile_id", "workspace_id",
    }
)  # fmt: skip
"""Fields that steer the model but are not shown to it."""

_ELSEWHERE = ("container", "context_management", "mcp_servers", "thread")
"""Fields by which the provider adds input that the request does not show, or takes further turns on its own."""

_VISIBLE_TOOLS: frozenset[object] = frozenset({None, "custom"})

_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")

_TOOL_PROMPT_BYTES = 1040
"""Any tool makes Anthropic add a system prompt of its own: about 346 tokens on Claude 4, three bytes a token."""

_PLAIN_EVENT = re.compile(
    rb"(?:event: ?content_block_delta\r?\n)?"
    rb'data: ?\{"type": ?"content_block_delta", ?"index": ?[0-9]++, ?"delta": ?\{"type": ?"(?:input_json|text|thinking)_delta", ?'
    rb'"(?:text|thinking|partial_json)": ?"((?:[^"\\\r\n]++|\\[^\r\n])*+)" ?\} *+\} *+(?:\n\n|\r\n\r\n)'
)


def _read(body: Mapping[str, object], path: str) -> Request:  # noqa: ARG001  # the path of a family with models in it
    shown = measure_body(body, _PARAMETERS)
    size = shown.size
    sees_all = shown.is_visible and all(body.get(name) is None for name in _ELSEWHERE)
    if tools := body.get("tools"):
        size += _TOOL_PROMPT_BYTES
        sees_all = sees_all and are_visible_tools(tools, _VISIBLE_TOOLS)
    return Request(
        identifier(body.get("model")) or "",
        is_on(body.get("stream")),
        asked(body.get("max_tokens")),
        1,
        size,
        shown.dense,
        shown.opaque,
        sees_all,
    )


def _with_output_bound(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:  # noqa: ARG001
    return {**body, "max_tokens": tokens}


def _observe(draft: Draft, event: Mapping[str, object]) -> int:
    carried = 0
    match event.get("type"):
        case "content_block_delta":
            carried = _delta_length(members(event.get("delta")))
        case "content_block_start":
            carried = _observe_block(draft, event.get("index"), members(event.get("content_block")))
        case "message_start":
            message = members(event.get("message"))
            draft.read_head(message)
            _observe_usage(draft, message.get("usage"), is_final=False)
        case "message_delta":
            draft.finish(0, members(event.get("delta")).get("stop_reason"))
            _observe_usage(draft, event.get("usage"), is_final=True)
        case "message_stop":
            draft.is_done = True
        case "error":
            draft.fail()
        case _:
            pass  # ping, content_block_stop, and what is invented later
    draft.text_bytes += carried
    return carried


def _delta_length(delta: Mapping[str, object]) -> int:
    return sum(utf8_length(text(delta.get(name)) or "") for name in ("text", "thinking", "partial_json", "content"))


def _observe_block(draft: Draft, index: object, block: Mapping[str, object]) -> int:
    """Record the tool that a content block calls; returns the bytes of generated text that are new."""
    carried = _delta_length(block)
    if block.get("type") == "tool_use":
        carried += draft.propose(index, block.get("name"))
    return carried


def _observe_usage(draft: Draft, source: object, *, is_final: bool) -> None:
    """Add a report of usage to what is known.

    A stream reports in pieces, each cumulative: every counter keeps its highest value, because compatible servers send a
    zero where they have nothing to add.
    """
    usage = members(source)
    draft.service_tier = identifier(usage.get("service_tier")) or draft.service_tier
    # A compaction's tokens are not within the totals (anthropic 2.12, BetaUsage.iterations).
    compactions = [step for step in objects(usage.get("iterations")) if step.get("type") == "compaction"]
    reports = {
        **{name: count(usage.get(name)) for name in (*_INPUT, "output_tokens")},
        "thinking_tokens": count(members(usage.get("output_tokens_details")).get("thinking_tokens")),
        "compaction_input": sum(first_count(step, name) for step in compactions for name in _INPUT),
        "compaction_output": sum(first_count(step, "output_tokens") for step in compactions),
    }
    counts = draft.counts
    for name, value in reports.items():
        if value is not None:
            counts[name] = max(value, counts.get(name, 0))
    if "input_tokens" in counts and "output_tokens" in counts:
        known = _usage_of(counts)
        if is_final:
            draft.usage = known
        else:
            draft.input_usage = known._replace(output_tokens=0, reasoning_tokens=0)


def _usage_of(counts: Mapping[str, int]) -> Usage:
    """Anthropic reports cached input apart from the rest; here the input is all of it."""
    return Usage(
        input_tokens=sum(counts.get(name, 0) for name in _INPUT) + counts["compaction_input"],
        output_tokens=counts["output_tokens"] + counts["compaction_output"],
        cache_read_tokens=counts.get("cache_read_input_tokens", 0),
        cache_write_tokens=counts.get("cache_creation_input_tokens", 0),
        reasoning_tokens=counts.get("thinking_tokens", 0),
    )


def _read_response(body: bytes) -> Answer:
    response = parse_object(body)
    if response is None:
        return Answer()
    draft = Draft()
    draft.read_head(response)
    draft.finish(0, response.get("stop_reason"))
    _observe_usage(draft, response.get("usage"), is_final=True)
    for index, block in enumerate(objects(response.get("content"))):
        draft.text_bytes += _observe_block(draft, index, block)
        if "input" in block:
            draft.text_bytes += measure([block["input"]]).size
    return draft.answer()


FAMILY = Family(
    name="anthropic_messages",
    operation="chat",
    default_provider="anthropic",
    read=_read,
    with_output_bound=_with_output_bound,
    with_usage=leaves_usage_alone,
    read_response=_read_response,
    observe=_observe,
    is_usage_event=has_no_usage_event,
    plain_event=_PLAIN_EVENT,
)

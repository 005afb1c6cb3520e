"""OpenAI's chat completions, and everything that is compatible with them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentguard.core.call import Usage
from agentguard.wire.answer import Answer, Draft
from agentguard.wire.family import Family, Request, as_dict
from agentguard.wire.fields import asked, count, first_count, identifier, is_on, members, objects, parse_object, text, utf8_length
from agentguard.wire.measure import are_visible_tools, measure, measure_body

if TYPE_CHECKING:
    from collections.abc import Mapping

PARAMETERS = frozenset(
    {
        "best_of", "echo", "encoding_format", "frequency_penalty", "function_call", "logit_bias", "logprobs",
        "max_completion_tokens", "max_tokens", "metadata", "modalities", "model", "n", "parallel_tool_calls",
        "presence_penalty", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature",
        "tool_choice", "top_k", "top_logprobs", "top_p", "user", "verbosity",
    }
)  # fmt: skip
"""Fields that steer the model but are not shown to it."""

BOUNDS = ("max_completion_tokens", "max_tokens")

_VISIBLE_TOOLS: frozenset[object] = frozenset({None, "custom", "function"})
_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_REASONING_MODEL = re.compile(r"(?:gpt-5|o1|o3|o4)(?![a-z0-9])")
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/?]+)/", re.IGNORECASE)

# Mistral refuses fields it does not know (422 extra_forbidden) and reports usage on the last content chunk unasked.
_REFUSES_STREAM_OPTIONS = frozenset({"api.mistral.ai", "codestral.mistral.ai"})

_NAMED_NULL = rb'"[a-z_]++": ?null'
_SCALAR = rb'(?:null|"[^"\\\r\n]*+"|-?[0-9.]++|true|false)'
_FLAGS = rb'\{(?:[^{}"\r\n]++|"[a-z_]*+"|\{(?:[^{}"\r\n]++|"[a-z_]*+")*+\})*+\}'
EVENT_START = rb'data: ?\{(?:"(?!choices"|error")[a-z_]++": ?' + _SCALAR + rb', ?)*+"choices": ?\[\{'
EVENT_END = rb'\}\](?:, ?"(?!error")[a-z_]++": ?' + _SCALAR + rb")*+\}(?:\n\n|\r\n\r\n)"
CHOICE_MEMBER = (
    rb'(?:"(?:finish_reason|logprobs|stop_reason|token_ids)": ?null|"index": ?[0-9]++|"content_filter_results": ?'
    + _FLAGS
    + rb")"
)
TEXT = rb'"((?:[^"\\\r\n]++|\\[^\r\n])*+)"'

# One choice, one text, no end and no usage: what nearly every chunk of a stream looks like, whoever serves it.
_PLAIN_EVENT = re.compile(
    EVENT_START
    + rb"(?:" + CHOICE_MEMBER + rb', ?)*+"delta": ?\{'
    + rb'(?:"role": ?"assistant", ?|' + _NAMED_NULL + rb", ?)*+"
    + rb'(?:"(?:content|reasoning_content|reasoning|refusal)": ?|'
    + rb'"tool_calls": ?\[\{"index": ?[0-9]++, ?"function": ?\{"arguments": ?)'
    + TEXT
    + rb'(?:\}\}\]|(?:, ?"role": ?"assistant"|, ?' + _NAMED_NULL + rb")*+)\}"
    + rb"(?:, ?" + CHOICE_MEMBER + rb")*+"
    + EVENT_END
)  # fmt: skip


def model_of(body: Mapping[str, object], path: str) -> str:
    """The requested model. On Azure the deployment in the path decides, whatever the body says."""
    deployment = _DEPLOYMENT.search(path)
    return identifier(deployment[1] if deployment else body.get("model")) or ""


def _read(body: Mapping[str, object], path: str) -> Request:
    shown = measure_body(body, PARAMETERS)
    bounds = [bound for name in BOUNDS if name in body and (bound := asked(body[name])) is not None]
    choices = asked(body.get("n")) if "n" in body else 1
    sees_all = (
        shown.is_visible
        and ("tools" not in body or are_visible_tools(body["tools"], _VISIBLE_TOOLS))
        and body.get("web_search_options") is None
    )
    return Request(
        model_of(body, path),
        is_on(body["stream"]) if "stream" in body else False,
        max(bounds, default=None),
        choices or 1,
        shown.size,
        shown.dense,
        shown.opaque,
        sees_all,
    )


def _with_output_bound(body: Mapping[str, object], tokens: int, host: str) -> dict[str, object]:
    written = [name for name in BOUNDS if body.get(name) is not None]
    return {**body, **dict.fromkeys(written or [_bound_name(body, host)], tokens)}


def _bound_name(body: Mapping[str, object], host: str) -> str:
    """OpenAI's newer models refuse `max_tokens`; most compatible servers know nothing else."""
    host = host.lower().rstrip(".")
    is_openai = host == "api.openai.com" or host.endswith((".api.openai.com", *_AZURE))
    is_reasoning = _REASONING_MODEL.match(text(body.get("model")) or "") is not None
    return "max_completion_tokens" if is_openai or is_reasoning else "max_tokens"


def with_usage(body: Mapping[str, object], host: str = "") -> tuple[dict[str, object], bool]:
    """Ask a stream for its usage. True: the caller did not, so the event that carries it must be hidden."""
    if not is_on(body.get("stream")) or host.lower().rstrip(".") in _REFUSES_STREAM_OPTIONS:
        return as_dict(body), False
    options = members(body.get("stream_options"))
    if is_on(options.get("include_usage")):
        return as_dict(body), False
    return {**body, "stream_options": {**options, "include_usage": True}}, True


def read_usage(source: object) -> Usage | None:
    """Usage as chat and completions report it. Half a usage is none: charging only the input would be wrong silently."""
    usage = members(source)
    prompt = count(usage.get("prompt_tokens"))
    completion = count(usage.get("completion_tokens"))
    total = count(usage.get("total_tokens"))
    if prompt is None or (completion is None and total is None):
        return None
    prompt_details = members(usage.get("prompt_tokens_details"))
    completion_details = members(usage.get("completion_tokens_details"))
    return Usage(
        input_tokens=prompt,
        # xAI's completion_tokens leave out reasoning, its total does not: what the total has beyond the input is output.
        output_tokens=max(completion or 0, (total or 0) - prompt),
        cache_read_tokens=first_count(prompt_details, "cached_tokens") or first_count(usage, "prompt_cache_hit_tokens"),
        cache_write_tokens=first_count(prompt_details, "cache_write_tokens"),
        reasoning_tokens=first_count(completion_details, "reasoning_tokens"),
    )


def observe_head(draft: Draft, event: Mapping[str, object]) -> None:
    """Take what chat and completions say outside of their choices."""
    if event.get("error"):
        draft.fail()
    draft.read_head(event)
    # Groq reports on its last content chunk, in a field of its own, when it was not asked.
    draft.usage = read_usage(event.get("usage")) or read_usage(members(event.get("x_groq")).get("usage")) or draft.usage


def is_usage_event(event: Mapping[str, object]) -> bool:
    """The extra event of `include_usage`. Azure begins with an event without choices too, which carries no usage."""
    return event.get("choices") == [] and bool(members(event.get("usage")))


def _observe_choices(draft: Draft, event: Mapping[str, object], part: str) -> int:
    observe_head(draft, event)
    carried = 0
    for choice in objects(event.get("choices")):
        index = choice.get("index")
        draft.finish(index, choice.get("finish_reason"))
        carried += _observe_message(draft, index, members(choice.get(part)))
    draft.text_bytes += carried
    return carried


def _observe(draft: Draft, event: Mapping[str, object]) -> int:
    return _observe_choices(draft, event, "delta")


def _read_response(body: bytes) -> Answer:
    response = parse_object(body)
    if response is None:
        return Answer()
    draft = Draft()
    _observe_choices(draft, response, "message")
    return draft.answer()


def _observe_message(draft: Draft, choice: object, message: Mapping[str, object]) -> int:
    """A message or a delta of one: the same members."""
    carried = _text_length(message.get("content")) + _text_length(message.get("refusal"))
    # vLLM sends the same reasoning under both names while it renames the field.
    carried += max(_text_length(message.get("reasoning_content")), _text_length(message.get("reasoning")))
    carried += _text_length(members(message.get("audio")).get("transcript"))
    for position, call in enumerate(objects(message.get("tool_calls"))):
        carried += _observe_call(draft, (choice, call.get("index", position)), call.get("function") or call.get("custom"))
    return carried + _observe_call(draft, (choice, "function_call"), message.get("function_call"))


def _observe_call(draft: Draft, key: tuple[object, object], function: object) -> int:
    called = members(function)
    carried = draft.propose(key, called.get("name"))
    for name in ("arguments", "input"):
        carried += _text_length(called.get(name))
    return carried


def _text_length(value: object) -> int:
    """UTF-8 bytes of generated text: a string, or Mistral's list of parts."""
    if isinstance(value, str):
        return utf8_length(value)
    return measure([value]).size if isinstance(value, list | dict) else 0


FAMILY = Family(
    name="openai_chat",
    operation="chat",
    default_provider="openai",
    read=_read,
    with_output_bound=_with_output_bound,
    with_usage=with_usage,
    read_response=_read_response,
    observe=_observe,
    is_usage_event=is_usage_event,
    plain_event=_PLAIN_EVENT,
)

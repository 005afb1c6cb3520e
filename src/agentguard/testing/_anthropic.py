"""The Anthropic family on the wire: messages, count_tokens, models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from agentguard.testing._answer import (
    Answer,
    Ask,
    BadRequestError,
    CallPiece,
    CallStart,
    Json,
    Piece,
    Problem,
    Stream,
    TextPiece,
    pieces_of,
)
from agentguard.testing._json import event, to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.testing._limits import Limits
    from agentguard.testing.records import RecordedRequest

MODELS: Final = ("claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5")


class Anthropic:
    """What all endpoints of the family share: who is asking, headers, errors."""

    stream_type = "text/event-stream; charset=utf-8"

    def key_of(self, request: RecordedRequest) -> str:
        """The API key a request carries, or an empty string."""
        return request.headers.get("x-api-key", "") or request.headers.get("authorization", "").removeprefix("Bearer ")

    def headers(self, request_id: str, limits: Limits) -> dict[str, str]:
        """Headers of every answer."""
        reset = limits.as_instant()
        headers = {
            "content-type": "application/json",
            "anthropic-organization-id": "agentguard-testing",
            "anthropic-ratelimit-requests-limit": str(limits.requests),
            "anthropic-ratelimit-requests-remaining": str(limits.requests_left),
            "anthropic-ratelimit-requests-reset": reset,
            "request-id": request_id,
        }
        for kind in ("tokens", "input-tokens", "output-tokens"):
            headers[f"anthropic-ratelimit-{kind}-limit"] = str(limits.tokens)
            headers[f"anthropic-ratelimit-{kind}-remaining"] = str(limits.tokens_left)
            headers[f"anthropic-ratelimit-{kind}-reset"] = reset
        return headers

    def error(self, status: int, problem: Problem, request_id: str) -> Json:
        """The body of an error."""
        kind, usual_message = _ERRORS.get(status, ("api_error", "Internal server error"))
        error = {"type": problem.code or kind, "message": problem.message or usual_message}
        return {"type": "error", "error": error, "request_id": request_id}

    def error_event(self, problem: Problem, request_id: str) -> bytes:
        """An error inside a stream that began well."""
        return event(self.error(500, problem, request_id), "error")


_ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "Not found"),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes."),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out while processing."),
    529: ("overloaded_error", "Overloaded"),
}


def _body_of(request: RecordedRequest, *required: str) -> Json:
    body = request.json
    if not isinstance(body, dict):
        message = "The request body is not valid JSON"
        raise BadRequestError(message)
    for name in required:
        if body.get(name) is None:
            message = f"{name}: Field required"
            raise BadRequestError(message, param=name)
    return body


class Messages(Anthropic):
    """`*/messages`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = _body_of(request, "model", "messages", "max_tokens")
        output_format = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
        return Ask(
            body=body,
            model=body["model"],
            max_tokens=body["max_tokens"],
            stream=bool(body.get("stream")),
            schema=output_format.get("schema"),
        )

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """The answer as one JSON document."""
        content: list[Json] = [{"type": "text", "text": answer.text}] if answer.text else []
        content += [
            {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": json.loads(call.arguments)}
            for call in answer.calls
        ]
        whole = _message(ask, number) | {"content": content, "stop_reason": _stop_reason(answer)}
        if answer.shows_usage:
            whole["usage"] = _usage(answer, answer.usage.output_tokens)
        return to_bytes(whole)

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """The answer as server-sent events."""
        message = _message(ask, number)
        if answer.shows_usage:
            # The real one counts the first token here already; message_delta then says how many there were in all.
            message["usage"] = _usage(answer, min(1, answer.usage.output_tokens))
        end: Json = {"delta": {"stop_reason": _stop_reason(answer), "stop_sequence": None}}
        if answer.shows_usage:
            end["usage"] = _cumulative_usage(answer)
        return Stream(
            opening=_event("message_start", message=message) + _event("ping"),
            chunks=_blocks(pieces_of(answer)),
            closing=_event("message_delta", **end) + _event("message_stop"),
        )


def _event(name: str, **fields: object) -> bytes:
    return event({"type": name} | fields, name)


def _message(ask: Ask, number: int) -> Json:
    return {
        "id": f"msg_{number:024x}",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_reason(answer: Answer) -> str:
    if answer.is_cut:
        return "max_tokens"
    return "tool_use" if answer.calls else "end_turn"


def _usage(answer: Answer, output_tokens: int) -> Json:
    written = answer.usage.cache_write_tokens
    return _cumulative_usage(answer) | {
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _cumulative_usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        # What a cache held is not part of this API's input_tokens.
        "input_tokens": usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
    }


def _blocks(pieces: list[Piece]) -> Iterator[bytes]:
    """Each piece as its delta, with the start of its block before the first and the stop after the last."""
    index = -1
    for position, piece in enumerate(pieces):
        before = b""
        if position == 0 or isinstance(piece, CallStart):
            index += 1
            before = _event("content_block_start", index=index, content_block=_empty_block(piece))
        following = pieces[position + 1] if position + 1 < len(pieces) else None
        is_last = following is None or isinstance(following, CallStart)
        after = _event("content_block_stop", index=index) if is_last else b""
        yield before + _event("content_block_delta", index=index, delta=_delta(piece)) + after


def _empty_block(piece: Piece) -> Json:
    if isinstance(piece, CallStart):
        return {"type": "tool_use", "id": f"toolu_{piece.call.id}", "name": piece.call.name, "input": {}}
    return {"type": "text", "text": ""}


def _delta(piece: Piece) -> Json:
    if isinstance(piece, TextPiece):
        return {"type": "text_delta", "text": piece.text}
    arguments = piece.arguments if isinstance(piece, CallPiece) else ""
    return {"type": "input_json_delta", "partial_json": arguments}


class CountTokens(Anthropic):
    """`*/messages/count_tokens`."""

    is_call = False

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for; nothing is generated."""
        body = _body_of(request, "model", "messages")
        return Ask(body=body, model=body["model"], max_tokens=0, choices=0, generations=0)

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """How many input tokens the same request would be charged."""
        return to_bytes({"input_tokens": answer.usage.input_tokens})

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """Never asked for."""
        raise NotImplementedError


class Models(Anthropic):
    """`*/models` and `*/models/{id}`, asked with an `anthropic-version` header."""

    is_call = False

    def read(self, request: RecordedRequest) -> Ask:
        """Nothing is generated; the model is the one asked about, or empty for the list."""
        _, _, model = request.path.partition("/models")
        return Ask(body={}, model=model.removeprefix("/"), max_tokens=0, choices=0, generations=0)

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """One model or all of them."""
        if ask.model:
            return to_bytes(_model(ask.model))
        data = [_model(name) for name in MODELS]
        return to_bytes({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]})

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """Never asked for."""
        raise NotImplementedError


def _model(name: str) -> Json:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}

"""OpenAI's responses on the wire."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agentguard.testing._answer import (
    Answer,
    Ask,
    Call,
    CallPiece,
    CallStart,
    Json,
    Piece,
    Stream,
    TextPiece,
    pieces_of,
)
from agentguard.testing._json import event, to_bytes
from agentguard.testing._openai import OpenAI, body_of, model_of

if TYPE_CHECKING:
    from agentguard.testing.records import RecordedRequest


class Responses(OpenAI):
    """`*/responses`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = body_of(request)
        return Ask(
            body=body,
            model=model_of(request, body),
            max_tokens=body.get("max_output_tokens"),
            stream=bool(body.get("stream")),
            schema=((body.get("text") or {}).get("format") or {}).get("schema"),
        )

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """The answer as one JSON document."""
        return to_bytes(_response(ask, answer, number))

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """The answer as server-sent events."""
        return _ResponseStream(ask, answer, number).stream()


def _response(ask: Ask, answer: Answer, number: int) -> Json:
    """A response that is complete, or that its bound ended."""
    status = "incomplete" if answer.is_cut else "completed"
    now = int(time.time())
    return _response_frame(ask, number) | {
        "status": status,
        "completed_at": None if answer.is_cut else now,
        "incomplete_details": {"reason": "max_output_tokens"} if answer.is_cut else None,
        "output": _output_items(answer, number, status),
        "usage": _response_usage(answer) if answer.shows_usage else None,
    }


def _response_frame(ask: Ask, number: int) -> Json:
    body = ask.body
    return {
        "id": f"resp_{number:024x}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _response_usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _output_items(answer: Answer, number: int, status: str) -> list[Json]:
    items = [_message_item(number, answer.text, status)] if answer.text or not answer.calls else []
    return items + [_call_item(call, number, status) for call in answer.calls]


def _text_part(text: str) -> Json:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _message_item(number: int, text: str | None, status: str) -> Json:
    content = [] if text is None else [_text_part(text)]
    return {"id": _message_id(number), "type": "message", "status": status, "content": content, "role": "assistant"}


def _message_id(number: int) -> str:
    return f"msg_{number:024x}"


def _call_item(call: Call, number: int, status: str) -> Json:
    return {
        "id": f"fc_{number:x}_{call.id}",
        "type": "function_call",
        "status": status,
        "arguments": call.arguments,
        "call_id": f"call_{call.id}",
        "name": call.name,
    }


class _ResponseStream:
    """The events of one response; it counts their sequence numbers."""

    def __init__(self, ask: Ask, answer: Answer, number: int) -> None:
        self._ask = ask
        self._answer = answer
        self._number = number
        self._sequence = 0

    def stream(self) -> Stream:
        frame = {"response": _response_frame(self._ask, self._number)}
        opening = self._event("response.created", frame) + self._event("response.in_progress", frame)
        pieces = pieces_of(self._answer)
        # A response without any output still has its message, which then has no deltas.
        has_message = bool(self._answer.text) or not self._answer.calls
        if has_message:
            opening += self._begin_message()
        body = [self._piece(piece, position, pieces) for position, piece in enumerate(pieces)]
        closing = b"" if self._answer.text or not has_message else self._end_message()
        whole = _response(self._ask, self._answer, self._number)
        closing += self._event(f"response.{whole['status']}", {"response": whole})
        return Stream(opening=opening, chunks=iter(body), closing=closing)

    def _event(self, name: str, fields: Json) -> bytes:
        content = {"type": name, "sequence_number": self._sequence} | fields
        self._sequence += 1
        return event(content, name)

    def _piece(self, piece: Piece, position: int, pieces: list[Piece]) -> bytes:
        following = pieces[position + 1] if position + 1 < len(pieces) else None
        if isinstance(piece, TextPiece):
            fields = self._text_place() | {"delta": piece.text, "logprobs": []}
            delta = self._event("response.output_text.delta", fields)
            return delta if isinstance(following, TextPiece) else delta + self._end_message()
        index = piece.index
        if isinstance(piece, CallStart):
            item = _call_item(piece.call, self._number, "in_progress") | {"arguments": ""}
            return self._event("response.output_item.added", {"output_index": self._output_index(index), "item": item})
        fields = self._call_place(index) | {"delta": piece.arguments}
        delta = self._event("response.function_call_arguments.delta", fields)
        return delta if isinstance(following, CallPiece) else delta + self._end_call(index)

    def _begin_message(self) -> bytes:
        item = _message_item(self._number, None, "in_progress")
        return self._event("response.output_item.added", {"output_index": 0, "item": item}) + self._event(
            "response.content_part.added",
            self._text_place() | {"part": _text_part("")},
        )

    def _end_message(self) -> bytes:
        text = self._answer.text
        item = _message_item(self._number, text, self._end_status())
        return (
            self._event("response.output_text.done", self._text_place() | {"text": text, "logprobs": []})
            + self._event("response.content_part.done", self._text_place() | {"part": _text_part(text)})
            + self._event("response.output_item.done", {"output_index": 0, "item": item})
        )

    def _end_call(self, index: int) -> bytes:
        call = self._answer.calls[index]
        place = self._call_place(index)
        item = _call_item(call, self._number, self._end_status())
        done = {"arguments": call.arguments, "name": call.name}
        return self._event("response.function_call_arguments.done", place | done) + self._event(
            "response.output_item.done",
            {"output_index": self._output_index(index), "item": item},
        )

    def _end_status(self) -> str:
        return "incomplete" if self._answer.is_cut else "completed"

    def _text_place(self) -> Json:
        return {"item_id": _message_id(self._number), "output_index": 0, "content_index": 0}

    def _call_place(self, index: int) -> Json:
        item = _call_item(self._answer.calls[index], self._number, "in_progress")
        return {"item_id": item["id"], "output_index": self._output_index(index)}

    def _output_index(self, index: int) -> int:
        return index + (1 if self._answer.text else 0)

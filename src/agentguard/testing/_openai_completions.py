"""OpenAI's chat completions, and the legacy completions, on the wire."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from agentguard.testing._answer import (
    Answer,
    Ask,
    Call,
    CallStart,
    Json,
    Piece,
    Stream,
    TextPiece,
    pieces_of,
)
from agentguard.testing._json import event, to_bytes, to_text
from agentguard.testing._openai import OpenAI, body_of, model_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.testing.records import RecordedRequest

_FINGERPRINT: Final = "fp_agentguard"
_DONE: Final = b"data: [DONE]\n\n"


def _includes_usage(body: Json) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _completion_usage(answer: Answer) -> Json:
    usage = answer.usage
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _finish_reason(answer: Answer) -> str:
    if answer.is_cut:
        return "length"
    return "tool_calls" if answer.calls else "stop"


class Chat(OpenAI):
    """`*/chat/completions`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = body_of(request, "messages")
        bound = body.get("max_completion_tokens")
        choices = body.get("n") or 1
        return Ask(
            body=body,
            model=model_of(request, body),
            max_tokens=body.get("max_tokens") if bound is None else bound,
            choices=choices,
            generations=choices,
            stream=bool(body.get("stream")),
            include_usage=_includes_usage(body),
            schema=((body.get("response_format") or {}).get("json_schema") or {}).get("schema"),
        )

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """The answer as one JSON document."""
        message: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
        if answer.calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [_chat_call(call) for call in answer.calls]
        finish = _finish_reason(answer)
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": finish} for index in range(ask.choices)
        ]
        whole = _chat_head(ask, number, "chat.completion") | {"choices": choices}
        if answer.shows_usage:
            whole["usage"] = _completion_usage(answer)
        return to_bytes(whole | {"service_tier": "default", "system_fingerprint": _FINGERPRINT})

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """The answer as server-sent events."""
        common = _chat_head(ask, number, "chat.completion.chunk")
        common |= {"service_tier": "default", "system_fingerprint": _FINGERPRINT}
        return _completion_stream(ask, answer, common, _ChatChoices())


def _chat_head(ask: Ask, number: int, kind: str) -> Json:
    return {"id": f"chatcmpl-{number:024x}", "object": kind, "created": int(time.time()), "model": ask.model}


def _chat_call(call: Call) -> Json:
    return {"id": f"call_{call.id}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class _ChatChoices:
    """How the choices of a chat chunk look."""

    def opening(self, index: int) -> Json | None:
        return self._choice(index, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, index: int, piece: Piece) -> Json:
        return self._choice(index, self._delta(piece))

    def closing(self, index: int, answer: Answer) -> Json:
        return self._choice(index, {}) | {"finish_reason": _finish_reason(answer)}

    def _choice(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _delta(self, piece: Piece) -> Json:
        if isinstance(piece, TextPiece):
            return {"content": piece.text}
        if isinstance(piece, CallStart):
            call = _chat_call(piece.call)
            call["function"]["arguments"] = ""
            return {"tool_calls": [{"index": piece.index} | call]}
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.arguments}}]}


class _TextChoices:
    """How the choices of a legacy completion chunk look."""

    def opening(self, index: int) -> Json | None:
        return None

    def piece(self, index: int, piece: Piece) -> Json:
        text = piece.text if isinstance(piece, TextPiece) else ""
        return {"text": text, "index": index, "logprobs": None, "finish_reason": None}

    def closing(self, index: int, answer: Answer) -> Json:
        finish = "length" if answer.is_cut else "stop"
        return {"text": "", "index": index, "logprobs": None, "finish_reason": finish}


def _completion_stream(ask: Ask, answer: Answer, common: Json, shape: _ChatChoices | _TextChoices) -> Stream:
    shows_usage = ask.include_usage and answer.shows_usage
    tail: Json = {"usage": None} if shows_usage else {}
    indexes = range(ask.choices)

    def chunks() -> Iterator[bytes]:
        # The fields around the choice never change within a stream, so they are encoded once.
        before, after = (part.encode() for part in to_text(common | {"choices": "|"} | tail).split('"|"'))
        for index in indexes:
            for piece in pieces_of(answer):
                yield b"data: %b[%b]%b\n\n" % (before, to_bytes(shape.piece(index, piece)), after)

    openings = [choice for index in indexes if (choice := shape.opening(index))]
    closings = [event(common | {"choices": [shape.closing(index, answer)]} | tail) for index in indexes]
    if shows_usage:
        closings.append(event(common | {"choices": [], "usage": _completion_usage(answer)}))
    return Stream(
        opening=b"".join(event(common | {"choices": [choice]} | tail) for choice in openings),
        chunks=chunks(),
        closing=b"".join(closings) + _DONE,
    )


class Completions(OpenAI):
    """`*/completions`, the legacy one."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = body_of(request)
        prompt = body.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        choices = body.get("n") or 1
        return Ask(
            body=body,
            model=model_of(request, body),
            max_tokens=body.get("max_tokens"),
            choices=choices * prompts,
            generations=max(choices, body.get("best_of") or 1) * prompts,
            stream=bool(body.get("stream")),
            include_usage=_includes_usage(body),
        )

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """The answer as one JSON document."""
        shape = _TextChoices()
        choices = [shape.closing(index, answer) | {"text": answer.text} for index in range(ask.choices)]
        whole = self._head(ask, number) | {"choices": choices}
        if answer.shows_usage:
            whole["usage"] = _completion_usage(answer)
        return to_bytes(whole)

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """The answer as server-sent events."""
        return _completion_stream(ask, answer, self._head(ask, number), _TextChoices())

    def _head(self, ask: Ask, number: int) -> Json:
        created = int(time.time())
        return {"id": f"cmpl-{number:024x}", "object": "text_completion", "created": created, "model": ask.model}

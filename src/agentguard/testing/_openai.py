"""The OpenAI family on the wire: chat completions, completions, responses, embeddings, models."""

from __future__ import annotations

import base64
import re
import time
from array import array
from typing import TYPE_CHECKING, Final

from agentguard.testing._answer import (
    Answer,
    Ask,
    BadRequestError,
    Call,
    CallPiece,
    CallStart,
    Json,
    Piece,
    Problem,
    Stream,
    TextPiece,
    pieces_of,
)
from agentguard.testing._json import event, to_bytes, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.testing._limits import Limits
    from agentguard.testing.records import RecordedRequest

_FINGERPRINT: Final = "fp_agentguard"
_EMBEDDING_DIMENSIONS: Final = 1536
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")

DONE: Final = b"data: [DONE]\n\n"
MODELS: Final = ("gpt-5", "gpt-5-mini", "gpt-4.1", "gpt-4o", "gpt-4o-mini", "text-embedding-3-small")


class OpenAI:
    """What all endpoints of the family share: who is asking, headers, errors."""

    stream_type = "text/event-stream; charset=utf-8"

    def key_of(self, request: RecordedRequest) -> str:
        """The API key a request carries, or an empty string."""
        return request.headers.get("authorization", "").removeprefix("Bearer ") or request.headers.get("api-key", "")

    def headers(self, request_id: str, limits: Limits) -> dict[str, str]:
        """Headers of every answer."""
        return {
            "content-type": "application/json",
            "openai-organization": "agentguard-testing",
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
            "x-ratelimit-limit-requests": str(limits.requests),
            "x-ratelimit-limit-tokens": str(limits.tokens),
            "x-ratelimit-remaining-requests": str(limits.requests_left),
            "x-ratelimit-remaining-tokens": str(limits.tokens_left),
            "x-ratelimit-reset-requests": limits.as_duration(),
            "x-ratelimit-reset-tokens": limits.as_duration(),
            "x-request-id": request_id,
        }

    def error(self, status: int, problem: Problem, request_id: str) -> Json:
        """The body of an error."""
        kind, usual_code, usual_message = _ERRORS.get(status, ("server_error", None, "The server had an error."))
        error = {"message": problem.message or usual_message, "type": kind, "param": problem.param}
        error["code"] = problem.code or usual_code
        return {"error": error}

    def error_event(self, problem: Problem, request_id: str) -> bytes:
        """An error inside a stream that began well."""
        return event(self.error(500, problem, request_id))


_ERRORS: Final[dict[int, tuple[str, str | None, str]]] = {
    400: ("invalid_request_error", None, "Your request was malformed."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Access denied."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    409: ("invalid_request_error", None, "Conflict."),
    422: ("invalid_request_error", None, "Unprocessable."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", "overloaded", "The engine is currently overloaded, please try again later."),
}


def _body_of(request: RecordedRequest, *required: str) -> Json:
    body = request.json
    if not isinstance(body, dict):
        message = "We could not parse the JSON body of your request."
        raise BadRequestError(message)
    for name in required:
        if body.get(name) is None:
            message = f"Missing required parameter: '{name}'."
            raise BadRequestError(message, param=name)
    return body


def _model_of(request: RecordedRequest, body: Json) -> str:
    model = body.get("model")
    if model is None and (deployment := _DEPLOYMENT.search(request.path)):
        model = deployment[1]
    if not isinstance(model, str):
        message = "you must provide a model parameter"
        raise BadRequestError(message)
    return model


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
        body = _body_of(request, "messages")
        bound = body.get("max_completion_tokens")
        choices = body.get("n") or 1
        return Ask(
            body=body,
            model=_model_of(request, body),
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
        closing=b"".join(closings) + DONE,
    )


class Completions(OpenAI):
    """`*/completions`, the legacy one."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = _body_of(request)
        prompt = body.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        choices = body.get("n") or 1
        return Ask(
            body=body,
            model=_model_of(request, body),
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


class Embeddings(OpenAI):
    """`*/embeddings`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for; nothing is generated."""
        body = _body_of(request, "input")
        return Ask(body=body, model=_model_of(request, body), max_tokens=0, choices=0, generations=0)

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """One vector for each input."""
        inputs = ask.body["input"]
        count = len(inputs) if isinstance(inputs, list) and inputs and not isinstance(inputs[0], int) else 1
        vector = _vector(ask.body.get("dimensions") or _EMBEDDING_DIMENSIONS, ask.body.get("encoding_format"))
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
        whole: Json = {"object": "list", "data": data, "model": ask.model}
        if answer.shows_usage:
            whole["usage"] = {"prompt_tokens": answer.usage.input_tokens, "total_tokens": answer.usage.input_tokens}
        return to_bytes(whole)

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """Never asked for."""
        raise NotImplementedError


def _vector(dimensions: int, encoding: str | None) -> str | list[float]:
    numbers = array("f", [dimensions**-0.5]) * dimensions
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()


class Responses(OpenAI):
    """`*/responses`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for."""
        body = _body_of(request)
        return Ask(
            body=body,
            model=_model_of(request, body),
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


class Models(OpenAI):
    """`*/models` and `*/models/{id}`."""

    is_call = False

    def read(self, request: RecordedRequest) -> Ask:
        """Nothing is generated; the model is the one asked about, or empty for the list."""
        _, _, model = request.path.partition("/models")
        return Ask(body={}, model=model.removeprefix("/"), max_tokens=0, choices=0, generations=0)

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """One model or all of them."""
        if ask.model:
            return to_bytes(_model(ask.model))
        return to_bytes({"object": "list", "data": [_model(name) for name in MODELS]})

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """Never asked for."""
        raise NotImplementedError


def _model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "openai"}

"""The OpenAI family on the wire: what its endpoints share, and those that generate nothing: embeddings and models."""

from __future__ import annotations

import base64
import re
from array import array
from typing import TYPE_CHECKING, Final

from agentguard.testing._answer import (
    Answer,
    Ask,
    BadRequestError,
    Json,
    Problem,
    Stream,
)
from agentguard.testing._json import event, to_bytes

if TYPE_CHECKING:
    from agentguard.testing._limits import Limits
    from agentguard.testing.records import RecordedRequest

_EMBEDDING_DIMENSIONS: Final = 1536
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")

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


def body_of(request: RecordedRequest, *required: str) -> Json:
    """The parsed body of a request.

    Raises:
        BadRequestError: It is no JSON object, or lacks a required parameter.
    """
    body = request.json
    if not isinstance(body, dict):
        message = "We could not parse the JSON body of your request."
        raise BadRequestError(message)
    for name in required:
        if body.get(name) is None:
            message = f"Missing required parameter: '{name}'."
            raise BadRequestError(message, param=name)
    return body


def model_of(request: RecordedRequest, body: Json) -> str:
    """The model a request asks for; Azure has it in the path.

    Raises:
        BadRequestError: It names none.
    """
    model = body.get("model")
    if model is None and (deployment := _DEPLOYMENT.search(request.path)):
        model = deployment[1]
    if not isinstance(model, str):
        message = "you must provide a model parameter"
        raise BadRequestError(message)
    return model


class Embeddings(OpenAI):
    """`*/embeddings`."""

    is_call = True

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for; nothing is generated."""
        body = body_of(request, "input")
        return Ask(body=body, model=model_of(request, body), max_tokens=0, choices=0, generations=0)

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

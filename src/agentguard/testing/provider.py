"""An LLM provider on loopback: OpenAI and Anthropic on the wire, scripted by a test, and it keeps count.

    with Provider() as provider:
        provider.reply(Reply(text="Hello.", output_tokens=40))
        client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test")
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
        assert (provider.calls, provider.tokens) == (1, 41)

On its own, for tests over several processes: `python -m agentguard.testing.provider --port 8080`. Its counters are then
read at `GET /_/stats`, its requests at `GET /_/requests`; `POST /_/reply` scripts it and `POST /_/clear` resets it.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentguard.testing import _anthropic, _openai, _openai_completions, _openai_responses
from agentguard.testing._answer import BadRequestError, Problem
from agentguard.testing._exchange import Api, Exchange
from agentguard.testing._json import to_bytes
from agentguard.testing._served import Served
from agentguard.testing.reply import Reply, ToolCall
from agentguard.testing.server import LoopbackServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.testing._http import Connection
    from agentguard.testing.records import RecordedRequest

Script = Reply | Callable[["RecordedRequest"], Reply]
"""A reply, or a function that makes one for each request."""

_BY_SUFFIX: tuple[tuple[str, Api], ...] = (
    ("/chat/completions", _openai_completions.Chat()),
    ("/completions", _openai_completions.Completions()),
    ("/responses", _openai_responses.Responses()),
    ("/embeddings", _openai.Embeddings()),
    ("/messages", _anthropic.Messages()),
    ("/messages/count_tokens", _anthropic.CountTokens()),
)
_OPENAI_MODELS = _openai.Models()
_ANTHROPIC_MODELS = _anthropic.Models()


def _api_of(request: RecordedRequest) -> Api | None:
    path = request.path.rstrip("/")
    if request.method == "POST":
        return next((api for suffix, api in _BY_SUFFIX if path.endswith(suffix)), None)
    if request.method == "GET" and (path.endswith("/models") or "/models/" in path):
        return _ANTHROPIC_MODELS if "anthropic-version" in request.headers else _OPENAI_MODELS
    return None


class _Scripted:
    """A script and how often it may still fail. Used with the provider's lock held."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self._failures_left = script.fail_times if isinstance(script, Reply) else None

    def fails(self) -> bool:
        """Whether the reply fails this time; of a function's reply only the reply itself can say so."""
        if not isinstance(self.script, Reply) or not self.script.is_failure:
            return False
        if self._failures_left is None:
            return True
        self._failures_left -= 1
        return self._failures_left >= 0

    @property
    def is_counting(self) -> bool:
        """Whether a success is still to follow its failures."""
        return self._failures_left is not None and self._failures_left >= 0


class Provider(LoopbackServer):
    """A real HTTP server on loopback that speaks as OpenAI and Anthropic do.

    It answers `*/chat/completions` (Azure's deployments too), `*/completions`, `*/responses`, `*/embeddings`,
    `*/models`, `*/messages` and `*/messages/count_tokens` under any prefix. Unscripted, it says 16 tokens of words that
    depend on the request alone. A token is four bytes (`agentguard.testing.tokens`).

    Args:
        host: A loopback address, such as 127.0.0.2 or ::1.
        port: 0 takes any free one.
        keep: How many requests to remember; None keeps all. Counters count all in any case.

    Attributes:
        revoked_keys: API keys that get a 401 from now on.
        accepted_keys: When a set, every other key gets a 401. None: any key will do, and none at all.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, keep: int | None = None) -> None:
        self.revoked_keys: set[str] = set()
        self.accepted_keys: set[str] | None = None
        self._default = _Scripted(Reply())
        self._queue: deque[_Scripted] = deque()
        self._number = 0
        self._served = Served()
        super().__init__(host, port, keep=keep)

    def reply(self, script: Script) -> None:
        """Answer every request like this from now on, except where `reply_next` says otherwise."""
        with self._lock:
            self._default = _Scripted(script)

    def reply_next(self, *scripts: Script) -> None:
        """Answer the next LLM calls like this, in this order.

        A reply with `fail_times` stays first in line until it has failed so often and succeeded once.
        """
        with self._lock:
            self._queue.extend(_Scripted(script) for script in scripts)

    @property
    def calls(self) -> int:
        """How many LLM calls arrived, refused and failed ones and every retry included."""
        return self._served.calls

    @property
    def served(self) -> int:
        """How many LLM calls were answered by the model, at least in part."""
        return self._served.served

    @property
    def tokens(self) -> int:
        """Input and output tokens of all answers; of streams what was actually sent."""
        return self._served.tokens

    @property
    def input_tokens(self) -> int:
        """Input tokens of all answers."""
        return self._served.input_tokens

    @property
    def output_tokens(self) -> int:
        """Output tokens of all answers; of streams what was actually sent."""
        return self._served.output_tokens

    def stats(self) -> dict[str, int]:
        """All counters by name, as `GET /_/stats` answers them."""
        return {"requests": self._request_count, "in_flight": self.in_flight} | self._served.totals()

    def clear(self) -> None:
        """Forget requests, counters and queued replies; the default reply and the keys stay."""
        super().clear()
        with self._lock:
            self._queue.clear()
            self._served = Served()  # what is in flight goes on writing into the old one

    def _is_control(self, request: RecordedRequest) -> bool:
        return request.path.startswith("/_/")

    def _respond(self, request: RecordedRequest, connection: Connection) -> bool:
        if self._is_control(request):
            return self._answer_control(request, connection)
        with self._lock:
            self._number += 1
            number = self._number
        api = _api_of(request)
        exchange = Exchange(request, connection, api or _OPENAI_MODELS, self._served, number)
        if api is None:
            message = f"Invalid URL ({request.method} {request.path})"
            return exchange.refuse(404, Problem(message=message, code="unknown_url"))
        if self._refuses_key(api.key_of(request)):
            return exchange.refuse(401, Problem())
        try:
            ask = api.read(request)
        except BadRequestError as error:
            return exchange.refuse(400, Problem(message=str(error), param=error.param))
        reply, fails = self._next_reply(request) if api.is_call else (Reply(), False)
        return exchange.fail(reply) if fails else exchange.answer(ask, reply)

    def _record(self, request: RecordedRequest) -> None:
        super()._record(request)
        api = _api_of(request)
        if api is not None and api.is_call:
            self._served.count_call()

    def _refuses_key(self, key: str) -> bool:
        return key in self.revoked_keys or (self.accepted_keys is not None and key not in self.accepted_keys)

    def _next_reply(self, request: RecordedRequest) -> tuple[Reply, bool]:
        """The reply to a request, and whether it fails."""
        with self._lock:
            scripted = self._queue[0] if self._queue else self._default
            fails = scripted.fails()
            if self._queue and not (fails and scripted.is_counting):
                self._queue.popleft()
        if isinstance(scripted.script, Reply):
            return scripted.script, fails
        # Outside the lock: the function may look at what this provider recorded.
        reply = scripted.script(request)
        return reply, reply.is_failure

    def _answer_control(self, request: RecordedRequest, connection: Connection) -> bool:
        asked = f"{request.method} {request.path}"
        if asked == "GET /_/requests":
            return self._send_json(request, connection, 200, [record.facts() for record in self.requests])
        if asked == "POST /_/clear":
            self.clear()
        elif asked == "POST /_/reply":
            try:
                self.reply(reply_of(request.json))
            except TypeError as error:
                return self._send_json(request, connection, 400, {"error": str(error)})
        elif asked != "GET /_/stats":
            return self._send_json(request, connection, 404, {"error": f"{asked} is not known"})
        stats = self.stats()
        stats["in_flight"] -= 1  # this very request
        return self._send_json(request, connection, 200, stats)

    def _send_json(self, request: RecordedRequest, connection: Connection, status: int, content: object) -> bool:
        return self._send(request, connection, status, {"content-type": "application/json"}, to_bytes(content))


def reply_of(fields: Mapping[str, Any]) -> Reply:
    """A reply from its fields as JSON carries them.

    Raises:
        TypeError: An unknown field.
    """
    known = dict(fields)
    known["tool_calls"] = [ToolCall(**call) for call in known.get("tool_calls", ())]
    return Reply(**known)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the first line of output is the base URL."""
    parser = argparse.ArgumentParser(description="An LLM provider on loopback.")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", default=0, type=int, help="0 takes any free one")
    parser.add_argument("--keep", default=None, type=int, help="how many requests to remember (default: all)")
    parser.add_argument("--reply", default="{}", type=json.loads, help="fields of the default Reply, as JSON")
    options = parser.parse_args(arguments)

    ends = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ends.set())
    with Provider(options.host, options.port, keep=options.keep) as provider:
        provider.reply(reply_of(options.reply))
        print(provider.base_url, flush=True)  # noqa: T201  what whoever started it waits for
        ends.wait()


if __name__ == "__main__":
    main()

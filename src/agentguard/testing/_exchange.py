"""One request to the loopback provider and the way of its answer: paced, cut, compressed, and counted as it leaves."""

from __future__ import annotations

import gzip
import math
import zlib
from typing import TYPE_CHECKING, Protocol

from agentguard.testing._answer import Answer, Ask, Json, Problem, Stream, answer_to, shares_of
from agentguard.testing._http import END_OF_CHUNKS, ClientGoneError, Connection, chunk, head
from agentguard.testing._json import to_bytes
from agentguard.testing._limits import Limits
from agentguard.testing.reply import Reply

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from agentguard.testing._served import Served
    from agentguard.testing.records import RecordedRequest

_GZIP_FORMAT = 31
_OK = 200
_TOO_MANY_REQUESTS = 429


class Api(Protocol):
    """One endpoint of a provider: how its requests are read and its answers written."""

    stream_type: str
    is_call: bool
    """Whether a request is an LLM call, and not a question about models or lengths."""

    def key_of(self, request: RecordedRequest) -> str:
        """The API key a request carries, or an empty string."""
        ...

    def headers(self, request_id: str, limits: Limits) -> dict[str, str]:
        """Headers of every answer."""
        ...

    def error(self, status: int, problem: Problem, request_id: str) -> Json:
        """The body of an error."""
        ...

    def error_event(self, problem: Problem, request_id: str) -> bytes:
        """An error inside a stream that began well."""
        ...

    def read(self, request: RecordedRequest) -> Ask:
        """What a request asks for.

        Raises:
            BadRequestError: The request lacks something the API requires.
        """
        ...

    def whole(self, ask: Ask, answer: Answer, number: int) -> bytes:
        """The answer as one JSON document; `number` makes its ids."""
        ...

    def stream(self, ask: Ask, answer: Answer, number: int) -> Stream:
        """The answer as server-sent events; `number` makes its ids."""
        ...


class Exchange:
    """One request, the API that understands it, and the totals that its answer is counted in."""

    def __init__(self, request: RecordedRequest, connection: Connection, api: Api, served: Served, number: int) -> None:
        self._request = request
        self._connection = connection
        self._api = api
        self._served = served
        self._number = number
        self._request_id = f"req_{number:024x}"

    def refuse(self, status: int, problem: Problem) -> bool:
        """Send an error that nobody scripted. True, as after every answer that leaves the connection usable."""
        return self._send(status, to_bytes(self._api.error(status, problem, self._request_id)), Reply())

    def fail(self, reply: Reply) -> bool:
        """Send a scripted error, or hang up."""
        self._let_time_pass(reply.delay, reply.hold)
        if reply.drop_connection:
            return False
        problem = Problem(message=reply.text, code=reply.error_code)
        return self._send(reply.status, to_bytes(self._api.error(reply.status, problem, self._request_id)), reply)

    def answer(self, ask: Ask, reply: Reply) -> bool:
        """Let the model answer."""
        answer = answer_to(ask, reply, self._request)
        if ask.stream:
            return self._stream(ask, reply, answer)
        self._let_time_pass(reply.delay, reply.hold)
        body = self._api.whole(ask, answer, self._number)
        if self._api.is_call:
            self._served.count_served(self._request, answer.usage.input_tokens)
            self._served.count_output(self._request, answer.usage.output_tokens)
        return self._send(200, body, reply)

    def _send(self, status: int, body: bytes, reply: Reply) -> bool:
        headers = self._headers(status, reply)
        if self._compresses(reply):
            body = gzip.compress(body, mtime=0)
            headers["content-encoding"] = "gzip"
        self._request.status = status
        self._write(head(status, headers, len(body)) + body, is_last=True)
        return True

    def _stream(self, ask: Ask, reply: Reply, answer: Answer) -> bool:
        """Write a streamed answer. False when it was broken off in the middle of its body."""
        self._let_time_pass(reply.delay)
        stream = self._api.stream(ask, answer, self._number)
        headers = self._headers(200, reply) | {"content-type": self._api.stream_type, "cache-control": "no-cache"}
        packing = Packing(compresses=self._compresses(reply))
        if packing.compresses:
            headers["content-encoding"] = "gzip"
        self._request.status = 200
        self._served.count_served(self._request, answer.usage.input_tokens)
        self._write(head(200, headers, None) + packing.pack(stream.opening))

        if not self._write_chunks(stream.chunks, shares_of(answer, ask), reply, packing):
            return self._break_off(reply, packing)
        self._served.count_output(self._request, answer.usage.output_tokens - self._request.output_tokens_sent)
        self._write(packing.pack(stream.closing) + packing.end(), is_last=True)
        return True

    def _write_chunks(self, chunks: Iterator[bytes], shares: list[int], reply: Reply, packing: Packing) -> bool:
        """Write the chunks at their pace. False when the reply says that the stream breaks off before its end."""
        last = reply.truncate_after
        if last is None and reply.error_code is not None:
            last = 0
        sent = 0
        for content, tokens in zip(chunks, shares, strict=True):
            if sent == last:
                return False
            if sent == 0:
                self._let_time_pass(reply.first_token_delay, reply.hold)
            elif reply.chunk_delay:
                self._connection.wait(reply.chunk_delay)
            self._write_chunk(packing.pack(content), tokens)
            sent += 1
        return sent != last

    def _write_chunk(self, content: bytes, tokens: int) -> None:
        self._request.chunks_sent += 1
        self._served.count_output(self._request, tokens)
        try:
            self._write(content)
        except ClientGoneError:
            self._request.chunks_sent -= 1
            self._served.count_output(self._request, -tokens)
            raise

    def _break_off(self, reply: Reply, packing: Packing) -> bool:
        if reply.error_code is not None:
            problem = Problem(message=reply.text, code=reply.error_code)
            error = self._api.error_event(problem, self._request_id)
            self._write(packing.pack(error) + packing.end())
            return True
        if reply.truncate_abruptly:
            return False
        self._write(packing.end())
        return True

    def _write(self, content: bytes, *, is_last: bool = False) -> None:
        """Write bytes, and write them down first: who has read them finds them counted."""
        self._request.bytes_sent += len(content)
        self._request.finished = is_last
        try:
            self._connection.send(content)
        except ClientGoneError:
            self._request.bytes_sent -= len(content)
            self._request.finished = False
            raise

    def _let_time_pass(self, seconds: float, hold: threading.Event | None = None) -> None:
        if seconds:
            self._connection.wait(seconds)
        if hold is not None:
            self._connection.hold(hold)

    def _headers(self, status: int, reply: Reply) -> dict[str, str]:
        is_limited = status == _TOO_MANY_REQUESTS
        usual = Limits()
        limits = Limits(
            requests_left=0 if is_limited else max(0, usual.requests - self._served.calls),
            tokens_left=max(0, usual.tokens - self._served.tokens),
            reset_seconds=math.ceil(reply.retry_after or 1) if is_limited else 0,
        )
        headers = self._api.headers(self._request_id, limits)
        if status != _OK and reply.retry_after is not None:
            headers["retry-after"] = str(math.ceil(reply.retry_after))
            if reply.retry_after % 1:
                headers["retry-after-ms"] = str(math.ceil(reply.retry_after * 1000))
        return headers | dict(reply.headers)

    def _compresses(self, reply: Reply) -> bool:
        return reply.gzip and "gzip" in self._request.headers.get("accept-encoding", "")


class Packing:
    """A body sent in HTTP chunks, compressed as it flows when asked to."""

    def __init__(self, *, compresses: bool) -> None:
        self.compresses = compresses
        self._compressor = zlib.compressobj(wbits=_GZIP_FORMAT)

    def pack(self, content: bytes) -> bytes:
        """Content as one HTTP chunk that the client can read at once."""
        if self.compresses:
            content = self._compressor.compress(content) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        return chunk(content)

    def end(self) -> bytes:
        """What ends the body."""
        rest = self._compressor.flush() if self.compresses else b""
        return chunk(rest) + END_OF_CHUNKS

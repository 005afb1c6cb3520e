"""What a loopback server saw of one request, and what it sent back."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit


class RecordedRequest:
    """One request as it arrived, and the ground truth of its answer.

    It equals its path, so that `provider.requests == ["/start"]` reads as it should.
    A fact about the answer is written down before the bytes that carry it leave, so whoever has read a byte finds it
    counted here.

    Attributes:
        method: In capitals.
        target: As it stood in the request line.
        version: "HTTP/1.1", or what else the request line said.
        path: The target's path, without query.
        host: Whom the client meant to talk to: the authority of the target, else the Host header.
        headers: Lower-case names; repeated ones joined with ", ".
        body: As received, after chunked decoding.
        time: Wall time of the request's last byte, in seconds.
        status: Of the answer; None until there is one.
        bytes_sent: Head and body of the answer.
        chunks_sent: Content chunks of a stream.
        input_tokens: What the answer charged for the prompt; 0 if the request was refused.
        output_tokens_sent: Output tokens that left, whether or not the client stayed.
        finished: The whole answer was sent.
        client_disconnected: The client hung up before that.
    """

    __slots__ = (
        "_json",
        "body",
        "bytes_sent",
        "chunks_sent",
        "client_disconnected",
        "finished",
        "headers",
        "host",
        "input_tokens",
        "method",
        "output_tokens_sent",
        "path",
        "query_string",
        "status",
        "target",
        "time",
        "version",
    )

    def __init__(
        self,
        method: str,
        target: str,
        *,
        version: str,
        headers: dict[str, str],
        body: bytes,
        time: float,
    ) -> None:
        self.method: str = method
        self.version: str = version
        self.target: str = target
        self.headers: dict[str, str] = headers
        self.body: bytes = body
        self.time: float = time
        self.host: str = headers.get("host", "")
        path, _, query_string = target.partition("?")
        self.path: str = path
        self.query_string: str = query_string
        if not target.startswith("/"):
            self._read_target_of_a_proxy(target)
        self.status: int | None = None
        self.bytes_sent: int = 0
        self.chunks_sent: int = 0
        self.input_tokens: int = 0
        self.output_tokens_sent: int = 0
        self.finished: bool = False
        self.client_disconnected: bool = False
        self._json: Any = _UNREAD

    def _read_target_of_a_proxy(self, target: str) -> None:
        if self.method == "CONNECT":
            self.host, self.path = target, target
            return
        url = urlsplit(target)
        self.host, self.path = url.netloc or self.host, url.path or "/"

    @property
    def json(self) -> Any:
        """The parsed body, or None when it is not JSON."""
        if self._json is _UNREAD:
            try:
                self._json = json.loads(self.body)
            except ValueError:
                self._json = None
        return self._json

    @property
    def query(self) -> dict[str, list[str]]:
        """The parsed query of the target."""
        return parse_qs(self.query_string, keep_blank_values=True)

    @property
    def tokens(self) -> int:
        """Input and output tokens served."""
        return self.input_tokens + self.output_tokens_sent

    def facts(self) -> dict[str, object]:
        """All but headers and body, ready for JSON."""
        names = ("method", "path", "host", "time", "status", "bytes_sent", "chunks_sent")
        more = ("input_tokens", "output_tokens_sent", "finished", "client_disconnected")
        return {name: getattr(self, name) for name in names + more}

    def __eq__(self, other: object) -> bool:
        return self.path == other if isinstance(other, str) else self is other

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"<{self.method} {self.path}: {self.status or 'no answer'}>"


_UNREAD = object()

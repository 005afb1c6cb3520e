"""Server-sent events: cutting a byte stream into events without changing a byte, and reading one of them.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html: lines end with LF, CRLF or CR, an event with an
empty line.
"""

from __future__ import annotations

import re

_EMPTY_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")

LONGEST_EVENT = 64 * 1024 * 1024
"""An event that grows beyond this is handed on unread, so that an endless one cannot take the memory of the process."""


class Framing:
    """Cuts chunks into events. The events and what is pending, joined, are the bytes that were fed.

    Attributes:
        pending: The beginning of an event whose end has not come.
    """

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: bytearray = bytearray()

    def feed(self, chunk: bytes, start: int = 0) -> list[bytes]:
        """The events that end in this chunk (read from `start`), each with its empty line."""
        pending = self.pending
        # The three last bytes may be the beginning of an empty line (CR LF CR); all before them is known to hold none.
        search_from = max(0, len(pending) - 3)
        pending += chunk[start:] if start else chunk
        events: list[bytes] = []
        begin = 0
        while end := _end_of_event(pending, search_from):
            events.append(bytes(pending[begin:end]))
            begin = search_from = end
        if len(pending) - begin > LONGEST_EVENT:
            events.append(bytes(pending[begin:]))
            begin = len(pending)
        del pending[:begin]
        return events

    def finish(self) -> bytes:
        """What is pending, at the end of the stream. Nothing is pending afterwards."""
        pending = bytes(self.pending)
        self.pending = bytearray()
        return pending


def _end_of_event(pending: bytearray, start: int) -> int:
    """Where the first empty line after `start` ends; 0 when there is none yet."""
    if b"\r" not in pending:
        at = pending.find(b"\n\n", start)
        return 0 if at < 0 else at + 2
    found = _EMPTY_LINE.search(pending, start)
    if found is None or (found.end() == len(pending) and pending[-1] == 13):
        return 0  # a CR at the very end may be half of a CRLF
    return found.end()


def read_event(event: bytes) -> tuple[bytes, list[bytes]]:
    """The name and the data lines of one event."""
    name = b""
    lines: list[bytes] = []
    for line in event.removeprefix(b"\xef\xbb\xbf").splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            lines.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, lines

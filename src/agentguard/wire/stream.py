"""Metering a stream while it passes: bytes in, the same bytes out, and what they said."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agentguard.wire.answer import Draft
from agentguard.wire.fields import parse_object, unescaped_length
from agentguard.wire.shape import Shape, shape_of
from agentguard.wire.sse import LONGEST_EVENT, Framing, read_event

if TYPE_CHECKING:
    from agentguard.wire.answer import Answer
    from agentguard.wire.family import Family

_STRING = re.compile(rb'(?:[^"\\\r\n]++|\\[^\r\n])*+')
"""The inside of a JSON string, as far as it goes: it ends before a quote or a line end."""

_EVENTS_THAT_NAME_THE_RESPONSE = 4
"""So many events at most are parsed in search of the response's id; some servers send none."""


class StreamScan:
    """Follows one response stream. How the stream is cut into chunks changes nothing of what is found.

    A plain event (it carries text and nothing else) is never parsed: it has the bytes of the plain event before it around its
    text, or the family's regular expression matches it. Every other event is parsed: they are few.

    Args:
        family: The wire format.
        hide_usage: Withhold the event that `Family.with_usage` asked for, and nothing else.

    Attributes:
        output_bytes: UTF-8 bytes of generated text, tool calls and reasoning so far.
        events: Events so far that carried any.
    """

    __slots__ = (
        "_draft",
        "_family",
        "_framing",
        "_hide_usage",
        "_match_plain",
        "_parsed",
        "_shape",
        "_whole",
        "events",
        "output_bytes",
    )

    def __init__(self, family: Family, hide_usage: bool = False) -> None:
        self._family = family
        self._hide_usage = hide_usage
        self._match_plain = None if family.plain_event is None else family.plain_event.match
        self._framing = Framing()
        self._draft = Draft()
        self._shape: Shape | None = None
        self._whole: Answer | None = None
        self._parsed = 0
        self.output_bytes: int = 0
        self.events: int = 0

    @property
    def answer(self) -> Answer:
        """What the stream has told so far."""
        return self._whole or self._draft.answer()._replace(text_bytes=self.output_bytes)

    @property
    def is_done(self) -> bool:
        """Whether the terminal event was seen, or an error."""
        return self._draft.is_done

    @property
    def failed(self) -> bool:
        """Whether the provider reported an error inside of the stream."""
        return self._draft.failed

    def feed(self, chunk: bytes) -> bytes:
        """Take the next chunk; returns the bytes to hand on, the chunk itself unless something is withheld."""
        framing = self._framing
        was_between = not framing.pending
        start = self._count_plain_events(chunk) if was_between else 0
        if start == len(chunk):
            return chunk
        events = framing.feed(chunk, start)
        shown = [event for event in events if not self._is_hidden(event)]
        if not self._hide_usage or (was_between and len(shown) == len(events) and not framing.pending):
            return chunk
        return chunk[:start] + b"".join(shown)

    def finish(self) -> bytes:
        """The stream has ended: read what is pending, and return it if it was withheld."""
        tail = self._framing.finish()
        if tail.lstrip()[:1] == b"{":
            self._read_whole(tail)
        elif tail and self._is_hidden(tail):
            return b""
        return tail if self._hide_usage else b""

    def _count_plain_events(self, chunk: bytes) -> int:
        """Count the plain events that the chunk begins with; returns where they end."""
        at = 0
        while at < len(chunk):
            shape = self._shape
            end = 0 if shape is None else self._count_shaped(chunk, at, shape)
            end = end or self._count_matched(chunk, at)
            if not end:
                break
            at = end
        return at

    def _count_shaped(self, chunk: bytes, at: int, shape: Shape) -> int:
        """Count the event at `at` if it has the shape of the last one; returns its end, or 0."""
        head, neck, tail, end = shape
        if not chunk.startswith(head, at):
            return 0
        begin = at + len(head)
        if neck:
            number = begin
            begin = chunk.find(b",", number)
            if not chunk.startswith(neck, begin) or not chunk[number:begin].isdigit():
                return 0
            begin += len(neck)
        quote = _end_of_string(chunk, begin)
        if not chunk.startswith(tail, quote):
            return 0
        after = quote + len(tail)
        if end:
            after = _end_of_string(chunk, after)
            if not chunk.startswith(end, after):
                return 0
            after += len(end)
        has_escapes = chunk.find(b"\\", begin, quote) >= 0
        self._count(unescaped_length(chunk[begin:quote]) if has_escapes else quote - begin)
        return after

    def _count_matched(self, chunk: bytes, at: int) -> int:
        """Count the event at `at` if it is of the family's plain shape; returns its end, or 0."""
        if self._match_plain is None or (self._draft.response_id is None and self._parsed < _EVENTS_THAT_NAME_THE_RESPONSE):
            return 0
        plain = self._match_plain(chunk, at)
        if plain is None:
            return 0
        self._count(unescaped_length(plain[1]))
        self._shape = shape_of(plain)
        return plain.end()

    def _count(self, text_bytes: int) -> None:
        if text_bytes:
            self.output_bytes += text_bytes
            self.events += 1

    def _is_hidden(self, event: bytes) -> bool:
        """Read one event; returns whether it carries usage and nothing else, and is to be hidden."""
        if self._count_plain_events(event):
            return False
        if len(event) > LONGEST_EVENT:
            return False
        name, lines = read_event(event)
        if name == b"error":
            self._draft.fail()
        if len(lines) < 2:
            return any(self._observe(line) for line in lines)
        joined = b"\n".join(lines)
        if parse_object(joined) is not None:
            return self._observe(joined)
        for line in lines:  # a server that forgets the empty lines between its events
            self._observe(line)
        return False

    def _observe(self, data: bytes) -> bool:
        """Take the data of one event; returns whether it is to be hidden."""
        family = self._family
        if data.startswith(b"[DONE]"):
            self._draft.is_done = True
            return False
        if family.dull_event is not None and family.dull_event.match(data):
            return False
        event = parse_object(data)
        if event is None:
            return False
        self._parsed += 1
        self._count(family.observe(self._draft, event))
        return self._hide_usage and family.is_usage_event(event)

    def _read_whole(self, body: bytes) -> None:
        """Read a body that turned out to be no stream but one JSON document."""
        whole = parse_object(body)
        if whole is None:
            return
        if whole.get("error"):
            self._draft.fail()
        self._whole = self._family.read_response(body)
        self.output_bytes = self._whole.text_bytes


def _end_of_string(data: bytes, start: int) -> int:
    """Where the JSON string ends whose inside begins at `start`."""
    return _STRING.match(data, start).end()  # type: ignore[union-attr]  # it matches the empty string too

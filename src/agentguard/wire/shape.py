"""The plain events of one stream look alike: recognising the next by comparing bytes with the last."""

from __future__ import annotations

import re
from typing import NamedTuple

# What differs between the plain events of a stream besides their text: Responses numbers them, and OpenAI pads them so
# that their length does not tell the text's (`include_obfuscation`, on unless switched off).
_NUMBER = re.compile(rb'(?<="sequence_number":)[0-9]+')
_PADDING = b'"obfuscation":"'


class Shape(NamedTuple):
    """The bytes around the text of a plain event.

    An event with the same bytes in these places means the same but for its text, so it need not be matched, let alone parsed.

    Attributes:
        head: From the beginning to the number, or to the text.
        neck: From behind the number to the text; empty when there is no number.
        tail: From the quote that ends the text to the padding, or to the end.
        end: From the quote that ends the padding to the end; empty when there is no padding.
    """

    head: bytes
    neck: bytes
    tail: bytes
    end: bytes


def shape_of(plain: re.Match[bytes]) -> Shape:
    """The shape of an event, as its family's `plain_event` matched it."""
    before = plain.string[plain.start() : plain.start(1)]
    after = plain.string[plain.end(1) : plain.end()]
    number = _NUMBER.search(before)
    head, neck = (before[: number.start()], before[number.end() :]) if number else (before, b"")
    padding = after.find(_PADDING)
    if padding < 0:
        return Shape(head, neck, after, b"")
    padding += len(_PADDING)
    return Shape(head, neck, after[:padding], after[after.index(b'"', padding) :])

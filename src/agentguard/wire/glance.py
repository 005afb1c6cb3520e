"""A glance at a response, before it is read: could it have used more than was reserved?"""

from __future__ import annotations

import re

_COUNT = re.compile(rb'"(total|prompt|input|cache_creation_input|cache_read_input|completion|output)_tokens"\s*:\s*(\d{1,12})\b')

_LONGEST_NAME = len('"cache_creation_input')

MOST_BYTES = 16_384
"""A longer body is read at once: beside its size, reading it costs nothing."""


def most_tokens(body: bytes) -> int | None:
    """The most tokens that a response can say it used: all its counts together, or its largest total.

    What it says twice is counted twice, so the answer is a bound, never too low. None: it names none, or is long.
    """
    first = body.find(b'_tokens"')  # counts stand near the end, and a plain search gets there ten times as fast
    if first < 0 or len(body) > MOST_BYTES:
        return None
    parts = total = 0
    found = _COUNT.findall(body, max(first - _LONGEST_NAME, 0))
    for name, digits in found:
        if name == b"total":
            total = max(total, int(digits))
        else:
            parts += int(digits)
    return max(parts, total) if found else None

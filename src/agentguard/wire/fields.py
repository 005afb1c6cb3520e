"""Reading JSON that somebody else wrote: no shape is taken for granted, and nothing here raises on what it finds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MOST_TOKENS = 1_000_000_000
"""No call uses more. A larger count is a fault of the sender, not a fact."""

LONGEST_IDENTIFIER = 256
"""Characters of a model's name, a response's id and the like that are kept: it goes onto each span and into each log line."""

_NOTHING: Mapping[str, object] = {}


def _bounded_int(digits: str) -> int:
    return int(digits) if len(digits) < 20 else -1


_DECODER = json.JSONDecoder(strict=False)

# CPython refuses to read an integer of thousands of digits: one absurd number must not hide the rest of a body.
_PATIENT_DECODER = json.JSONDecoder(strict=False, parse_int=_bounded_int)


def parse_object(data: bytes) -> Mapping[str, object] | None:
    """The JSON object that these bytes are; None when they are anything else."""
    return _parse(data, may_go_on=False)


def parse_first_object(data: bytes) -> Mapping[str, object] | None:
    """The JSON object that these bytes begin with, whatever follows it."""
    return _parse(data, may_go_on=True)


def _parse(data: bytes, *, may_go_on: bool) -> Mapping[str, object] | None:
    document = data.decode("utf-8-sig", "replace").lstrip(" \t\r\n")
    for decoder in (_DECODER, _PATIENT_DECODER):
        try:
            value, end = decoder.raw_decode(document)
        except (ValueError, RecursionError):
            continue
        is_whole = may_go_on or end == len(document) or not document[end:].strip(" \t\r\n")
        return value if isinstance(value, dict) and is_whole else None
    return None


def members(value: object) -> Mapping[str, object]:
    """The value when it is an object, else an empty one."""
    return value if isinstance(value, dict) else _NOTHING


def objects(value: object) -> Iterator[Mapping[str, object]]:
    """The objects in a list; nothing when it is none."""
    if isinstance(value, list):
        yield from (item for item in value if isinstance(item, dict))


def text(value: object) -> str | None:
    """The value when it is a string that says something."""
    return value if isinstance(value, str) and value else None


def identifier(value: object) -> str | None:
    """`text` as a span's name, a store's key and a log line can hold it: bounded, and UTF-8 (JSON may hold half a pair)."""
    known = text(value)
    if known is None:
        return None
    known = known[:LONGEST_IDENTIFIER]
    return known if known.isascii() else known.encode("utf-8", "replace").decode()


def count(value: object) -> int | None:
    """The value when it is a plausible number of tokens."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def first_count(source: Mapping[str, object], *names: str) -> int:
    """The first of these fields that is a plausible count, else 0."""
    for name in names:
        found = count(source.get(name))
        if found is not None:
            return found
    return 0


def asked(value: object) -> int | None:
    """A number that a request asks for, read as leniently as a lenient server would: `"100"` and `100.0` are 100.

    None when it is no number or negative, which servers take for "no bound".
    """
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
    elif isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def is_on(value: object) -> bool:
    """Whether a flag is set, as a lenient server would read it."""
    return value.lower() in {"true", "1"} if isinstance(value, str) else bool(value)


def utf8_length(value: str) -> int:
    """UTF-8 bytes of a string, lone surrogates included."""
    return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))


def unescaped_length(escaped: bytes) -> int:
    """UTF-8 bytes of the inside of a JSON string once its escapes are undone."""
    if b"\\u" in escaped:
        try:
            return utf8_length(_DECODER.decode(f'"{escaped.decode("utf-8", "replace")}"'))
        except ValueError:  # no JSON: the length is all that can be said
            return len(escaped)
    single = escaped.replace(b"\\\\", b"x")  # from left to right, so that what is left is one escape a backslash
    return len(single) - single.count(b"\\")

"""How much text a request shows to the model, measured without copying or serialising it."""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, NamedTuple

from agentguard.wire.fields import utf8_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_MOST_NODES = 1_000_000
"""No provider takes a body with more; a value that contains itself has more."""

_BLOCK = 256
_SHORTEST_RUN = 32
"""Shorter runs without white space are words, names and identifiers."""

_TOKEN_ID_BYTES = 3
"""A prompt of token ids is one token each: what an estimate of bytes / 3 makes of it."""

_LONGEST_FLOAT = 24

MEDIA = frozenset(
    {
        "audio", "audio_url", "container_upload", "document", "file", "image", "image_url", "input_audio", "input_file",
        "input_image", "input_video", "video", "video_url",
    }
)  # fmt: skip
"""Types of content parts that hold something other than text."""

_PAYLOADS = frozenset(
    {"audio_url", "data", "file", "file_data", "file_id", "file_url", "image_url", "input_audio", "source", "url", "video_url"}
)
"""Where a media part keeps what is not text. Its other members (a title, a caption) are text."""

_DEFINITIONS = frozenset({"functions", "output_config", "output_format", "response_format", "text", "tools"})
"""Fields that hold schemas: many small strings, no media, written out for the model as JSON or like it."""

_SEALED = frozenset({"encrypted_content", "signature"})
"""Text that only the provider can open. It is no longer than its seal, and not denser than other text."""


class Measure(NamedTuple):
    """UTF-8 bytes of the text, the dense part of them, parts that are no text, and whether every part could be looked at."""

    size: int
    dense: int
    opaque: int
    is_visible: bool


def measure(roots: Iterable[object]) -> Measure:  # noqa: C901, PLR0912  # one flat loop: a call a node would double its cost
    """Measure JSON-like values, keys included. Walks without recursion; what it cannot look at makes it not visible."""
    size = dense = opaque = 0
    is_visible = True
    stack = list(roots)
    nodes = len(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            nodes += len(node)
            try:
                keys = "".join(node)
            except TypeError:  # JSON would write a key that is no string as one
                keys = "".join(map(str, node))
            size += len(keys) if keys.isascii() else utf8_length(keys)
            part = node.get("type")
            if part.__class__ is str and part in MEDIA and not _is_text_document(node):
                opaque += 1
                is_visible = False
                node = {key: value for key, value in node.items() if key not in _PAYLOADS}
            for key, value in node.items():
                if value.__class__ is str:
                    length = len(value) if value.isascii() else utf8_length(value)
                    size += length
                    # Nearly all strings are short text: settled here, without a call.
                    if length >= _SHORTEST_RUN and (length > _BLOCK or " " not in value) and key not in _SEALED:
                        dense += _dense_bytes(value)
                elif value is not None:
                    stack.append(value)
        elif isinstance(node, str):
            size += utf8_length(node)
            dense += _dense_bytes(node)
        elif isinstance(node, list | tuple):
            if node and isinstance(node[0], int) and _are_numbers(node):
                size += _TOKEN_ID_BYTES * len(node)
            else:
                nodes += len(node)
                stack += node
        elif node is None or isinstance(node, bool):
            size += 5
        elif isinstance(node, int):
            size += node.bit_length() // 3 + 2  # never fewer than its digits and sign
        elif isinstance(node, float):
            size += _LONGEST_FLOAT
        else:
            is_visible = False
        if nodes > _MOST_NODES:
            return Measure(size, dense, opaque, is_visible=False)
    return Measure(size, dense, opaque, is_visible)


def measure_body(body: Mapping[str, object], parameters: frozenset[str]) -> Measure:
    """Measure what a body shows to the model: everything but the named parameters, so that a field we do not know counts."""
    written = 0
    roots: list[object] = []
    for name, value in body.items():
        if name in _DEFINITIONS and (length := _written_length(value)):
            written += length
        elif name not in parameters:
            roots.append(value)
    shown = measure(roots)
    return shown._replace(size=shown.size + written) if written else shown


def _written_length(definitions: object) -> int:
    """Bytes of definitions as they are written out for the model, punctuation included; 0 when that cannot be told.

    marshal (format 2) takes as much room for a string's length as JSON for its quotes and comma: 9 % more than JSON on tool
    schemas, at a third of its time and a fifth of a walk's. What it makes is measured and thrown away.
    """
    try:
        return len(marshal.dumps(definitions, 2))  # type: ignore[arg-type]  # what it cannot take raises
    except ValueError:  # no JSON, or too deep
        return 0


def are_visible_tools(tools: object, kinds: frozenset[object]) -> bool:
    """Whether a request's tools are all of kinds whose whole definition stands in the request."""
    if tools is None:
        return True
    return isinstance(tools, list | tuple) and all(isinstance(tool, dict) and tool.get("type") in kinds for tool in tools)


def _is_text_document(node: Mapping[object, object]) -> bool:
    """An Anthropic document is text when its source says so."""
    source = node.get("source")
    return node["type"] == "document" and isinstance(source, dict) and source.get("type") in ("text", "content")


def _are_numbers(items: Sequence[object]) -> bool:
    try:
        sum(items)  # type: ignore[arg-type]  # that is the question; it is answered in C, at a few ns a number
    except TypeError:
        return False
    return True


def _dense_bytes(value: str) -> int:
    """Bytes of the long runs of ASCII without white space: base64, hashes, hex.

    Looked for at every block: a run shorter than two of them may be missed inside a longer text.
    """
    length = len(value)
    dense = start = 0
    while length - start >= _SHORTEST_RUN:
        if value.find(" ", start, start + _BLOCK) >= 0:
            start += _BLOCK
            continue
        end = value.find(" ", start + _BLOCK)
        end = length if end < 0 else end
        if _is_dense(value[start:end]):
            dense += end - start
        start = end
    return dense


def _is_dense(run: str) -> bool:
    """Whether a run without spaces is no text: CJK is not ASCII, compact JSON is quoted words, a list has many lines."""
    return run.isascii() and run.count('"') * 32 < len(run) and run.count("\n") * 32 < len(run)

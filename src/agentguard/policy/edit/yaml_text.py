"""Edits of a YAML text that change nothing but what they are asked to: comments, spacing and line ends stay as they are.

PyYAML says where each node begins and ends, and the edit is made there, in the text. (A round trip through a library that
writes the whole document anew moves what it does not understand: ruamel.yaml 0.19 indents lists its own way, folds aligned
spaces, and puts a new item after the comment that belongs to the next key.) Whoever calls checks that the result says what
was meant, so a place that is found wrongly can spoil no policy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from agentguard.policy.load import yaml12

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.policy.load.yaml12 import Key

_SAFE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class NotEditable(ValueError):
    """The text is written in a way that only a person can change: an alias, or a mapping where none was expected."""


def add(text: str, key: Key, items: Sequence[str], new: str) -> str:
    """The text with an item added to the list at `key`; `items` is the whole list, written where none stands yet.

    Raises:
        NotEditable: The place cannot be found, or is not written as a list.
    """
    node, missing = _nearest(text, key)
    if not missing:
        return _appended(text, _sequence(node), _word(new))
    return _entered(text, _mapping(node), missing, _list(items))


def remove(text: str, key: Key, items: Sequence[str], index: int) -> str:
    """The text without one item of the list at `key`; `items` is what is left, written where none stands yet.

    Raises:
        NotEditable: As `add`.
    """
    node, missing = _nearest(text, key)
    if missing:
        return _entered(text, _mapping(node), missing, _list(items))
    if items or _sequence(node).flow_style:
        return _without(text, _sequence(node), index)
    around, _ = _nearest(text, key[:-1])
    name = next(name for name, _ in around.value if name.value == key[-1])
    colon = text.index(":", name.end_mark.index)
    return _spliced(_without_line(text, node.value[index]), colon + 1, colon + 1, " []")


def append_mapping(text: str, key: Key, entry: Mapping[str, Any]) -> str:
    """The text with a mapping added to the list of mappings at `key`, which is written as a block.

    Raises:
        NotEditable: As `add`.
    """
    node, missing = _nearest(text, key)
    if missing or _sequence(node).flow_style or not node.value:
        raise NotEditable("the list is not written as a block")
    indent = " " * node.start_mark.column
    lines = yaml12.render(dict(entry)).splitlines()
    return _after_line(text, _end(node), [f"{indent}{'  ' if number else '- '}{line}" for number, line in enumerate(lines)])


# ------------------------------------------------------------------------------------------------------ finding the place


def _nearest(text: str, key: Key) -> tuple[Any, tuple[str, ...]]:
    """The node at a key; or the nearest one around it, with the keys that are missing below."""
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for depth, step in enumerate(key):
        if isinstance(step, int):
            node = _sequence(node).value[step]
            continue
        found = next((value for name, value in _mapping(node).value if name.value == step), None)
        if found is None:
            missing = tuple(str(rest) for rest in key[depth:])
            return node, missing
        node = found
    return node, ()


def _sequence(node: Any) -> Any:
    if not isinstance(node, yaml.SequenceNode):
        raise NotEditable("it is not written as a list")
    return node


def _mapping(node: Any) -> Any:
    if not isinstance(node, yaml.MappingNode):
        raise NotEditable("it is not written as a mapping")
    return node


def _end(node: Any) -> int:
    """Where the last thing within a node ends. A block's own end mark stands behind the comments that follow it."""
    if isinstance(node, yaml.ScalarNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


# -------------------------------------------------------------------------------------------------------------- the edits


def _appended(text: str, node: Any, word: str) -> str:
    if not node.flow_style:
        return _after_line(text, _end(node), [f"{' ' * node.start_mark.column}- {word}"])
    if not node.value:
        return _spliced(text, node.start_mark.index + 1, node.start_mark.index + 1, word)
    last = node.value[-1]
    end = int(last.end_mark.index)
    line_start = text.rfind("\n", 0, last.start_mark.index) + 1
    indent = text[line_start : last.start_mark.index]
    if indent.strip() or last.end_mark.line == node.end_mark.line:
        return _spliced(text, end, end, f", {word}")
    # One item a line, each perhaps with a comment behind it.
    comma = re.match(r"\s*,", text[end : node.end_mark.index])
    if comma is None:
        return _spliced(_after_line(text, end, [f"{indent}{word}"]), end, end, ",")
    return _after_line(text, end, [f"{indent}{word},"])


def _entered(text: str, node: Any, missing: tuple[str, ...], value: str) -> str:
    """The text with `a: {b: value}` entered into a mapping: in one line into one in braces, as lines into a block."""
    if node.flow_style:
        entry = value
        for name in reversed(missing):
            entry = f"{name}: {entry}"
            if name != missing[0]:
                entry = f"{{{entry}}}"
        if not node.value:
            return _spliced(text, node.start_mark.index + 1, node.start_mark.index + 1, entry)
        end = int(node.value[-1][1].end_mark.index)
        return _spliced(text, end, end, f", {entry}")
    column = node.start_mark.column
    lines = [f"{' ' * (column + 2 * depth)}{name}:" for depth, name in enumerate(missing)]
    lines[-1] += f" {value}"
    return _after_line(text, _end(node), lines)


def _without(text: str, node: Any, index: int) -> str:
    items = node.value
    item = items[index]
    if not node.flow_style or _has_a_line(text, item):
        return _without_line(text, item)
    start, end = item.start_mark.index, item.end_mark.index
    if index:
        start = items[index - 1].end_mark.index
    elif len(items) > 1:
        end = items[1].start_mark.index
    return _spliced(text, start, end, "")


def _has_a_line(text: str, item: Any) -> bool:
    """Whether an item within brackets stands alone on its line, with its comma and its comment."""
    before = text[text.rfind("\n", 0, item.start_mark.index) + 1 : item.start_mark.index]
    after = text[item.end_mark.index : _line_end(text, item.end_mark.index)]
    return not before.strip() and _ENDS_A_LINE.fullmatch(after) is not None


_ENDS_A_LINE = re.compile(r"\s*,?\s*(?:#.*)?")


def _without_line(text: str, item: Any) -> str:
    start = text.rfind("\n", 0, item.start_mark.index) + 1
    return _spliced(text, start, min(_line_end(text, item.end_mark.index) + 1, len(text)), "")


def _after_line(text: str, position: int, lines: Sequence[str]) -> str:
    """The text with whole lines entered below the line in which something ends."""
    newline = "\r\n" if "\r\n" in text else "\n"
    position = len(text[:position].rstrip())
    end = _line_end(text, position)
    if text[:end].endswith("\r"):
        end -= 1
    return _spliced(text, end, end, "".join(f"{newline}{line}" for line in lines))


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _spliced(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _list(items: Sequence[str]) -> str:
    return f"[{', '.join(map(_word, items))}]"


def _word(text: str) -> str:
    """Text as YAML, the same within brackets and outside of them."""
    if _SAFE_WORD.fullmatch(text) and yaml12.is_plain_text(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""TOML with places: `tomllib` reads the values, and a scan of the lines finds where the keys stand."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from agentguard.policy.load.yaml12 import MAX_BYTES, Document, Fault, Key, Place

_HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<keys>[^\[\]]+?)\s*\]\]?\s*(?:#.*)?")
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_ENTRY = re.compile(rf"\s*(?P<keys>{_PART}(?:\s*\.\s*{_PART})*)\s*=")
_TABLE = ("tool", "agentguard")


def parse(text: str, *, needs_table: bool) -> Document:
    """Read `[tool.agentguard]`, or the whole text when there is no such table and none is needed.

    Raises:
        Fault: It is not TOML, or has no policy.
    """
    if len(text) > MAX_BYTES:
        raise Fault("a policy is smaller than 4 MiB", (1, 1))
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise Fault(f"not TOML: {error}", _place_in(str(error))) from None
    tool = values.get("tool")
    if isinstance(tool, dict) and "agentguard" in tool:
        places = {key[2:]: place for key, place in _places(text).items() if key[:2] == _TABLE}
        return Document(value=tool["agentguard"], places=places)
    if needs_table:
        raise Fault("there is no [tool.agentguard]", (1, 1))
    return Document(value=values, places=_places(text))


def _place_in(message: str) -> Place:
    found = re.search(r"\(at line (\d+), column (\d+)\)", message)
    return (int(found[1]), int(found[2])) if found else (1, 1)


def _places(text: str) -> dict[Key, Place]:
    """The places of tables and of keys that begin a line. What stands inside a line has the place of its line's key."""
    places: dict[Key, Place] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        column = len(line) - len(line.lstrip()) + 1
        if header := _HEADER.fullmatch(line):
            table = _indexed(_keys(header["keys"]), counts, is_new=header["open"] == "[[")
            places.setdefault(table, (number, column))
        elif entry := _ENTRY.match(line):
            places.setdefault((*table, *_keys(entry["keys"])), (number, column))
    return places


def _indexed(keys: tuple[str, ...], counts: dict[Key, int], *, is_new: bool) -> Key:
    """A table's key with the number of each array of tables on its way."""
    found: Key = ()
    for position, key in enumerate(keys):
        found = (*found, key)
        if is_new and position == len(keys) - 1:
            counts[found] = counts.get(found, -1) + 1
        if found in counts:
            found = (*found, counts[found])
    return found


def _keys(text: str) -> tuple[str, ...]:
    return tuple(part[1:-1] if part[:1] in "\"'" else part for part in re.findall(_PART, text))


def has_policy(text: str) -> bool:
    """Whether a pyproject.toml carries a policy; one that is broken does if it says so."""
    try:
        tool: Any = tomllib.loads(text).get("tool")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return "tool.agentguard" in text
    return isinstance(tool, dict) and "agentguard" in tool

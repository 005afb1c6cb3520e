"""YAML 1.2 without surprises: plain values, the place of every key, and every fault instead of a guess.

PyYAML reads YAML 1.1: `no` is False, `12:30` is 750, `010` is 8, and the second of two equal keys wins silently. Here
its parser only splits the text; values are resolved by YAML 1.2's core schema, and whatever the two versions read
differently is refused with the advice to quote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 32
MAX_NODES = 200_000
"""What an alias stands for counts each time it is used: a few lines of aliases can say billions of values."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Key = tuple[str | int, ...]
Place = tuple[int, int]


class Fault(Exception):
    """One fault of a text, with its place. Raised only where reading cannot go on."""

    def __init__(self, message: str, place: Place, key: Key = ()) -> None:
        super().__init__(message)
        self.message = message
        self.place = place
        self.key = key


@dataclass(slots=True)
class Document:
    """A parsed text. `places` has line and column (from 1) of every key and item; `faults` what was wrong but readable."""

    value: Any = None
    places: dict[Key, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        Fault: It is not YAML, or larger than any policy.
    """
    if len(text) > MAX_BYTES:
        raise Fault("a policy is smaller than 4 MiB", (1, 1))
    try:
        return _Composer(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Fault(
            f"not YAML: {_known_slip(error.problem or '', text, mark) or error.problem or error.context}", _place(mark)
        ) from None
    except yaml.reader.ReaderError as error:
        position = error.position if isinstance(error.position, int) else 0
        raise Fault(f"not YAML: {error.reason}", _count(text, position)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML's escapes and encodings fail in these ways
        raise Fault(f"not YAML: {error}", (1, 1)) from None


def _known_slip(problem: str, text: str, mark: Any) -> str:
    """What people write that YAML's parser has only its own words for; empty when it is something else."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return ""
    line, column = lines[mark.line], mark.column
    is_token = "start any token" in problem or "tab character" in problem
    if is_token and "\t" in (*line[: len(line) - len(line.lstrip())], line[column : column + 1]):
        return "there is a tab where YAML takes spaces only; indent with spaces"
    if "alphabetic or numeric" in problem and line[max(column - 1, 0) : column] == "*":
        return """what begins with '*' must be quoted, such as "*" or "*.acme.com\""""
    return ""


_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?\.[0-9]+|[-+]?(?:0|[1-9][0-9]*)\.")

# What YAML 1.1 and 1.2 read differently, or as something that is not text and that no policy means.
_WORDS = re.compile(r"(?:y|yes|n|no|on|off)", re.IGNORECASE)
_CLOCK = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")
_ODD_NUMBER = re.compile(
    r"[-+]?(?:0[0-9_]+(?:\.[0-9_]*)?|0[xob][0-9a-fA-F_]*|[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?|[0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+)"
)
_NO_NUMBER = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_OPERATORS = {"<<": "a merge key is YAML 1.1", "=": "a value key is YAML 1.1"}


def is_plain_text(text: str) -> bool:
    """Whether YAML 1.1 and 1.2 both read the unquoted word as text."""
    return (
        not any(pattern.fullmatch(text) for pattern in (_NULL, _BOOL, _INT, _FLOAT, _WORDS, _CLOCK, _DATE, _NO_NUMBER))
        and not _ODD_NUMBER.fullmatch(text)
        and text not in _OPERATORS
    )


def _surprise(text: str) -> str | None:
    if _WORDS.fullmatch(text):
        meant = "true" if text.lower() in {"y", "yes", "on"} else "false"
        return f"{text!r} is a truth value in YAML 1.1 and text in 1.2; write {meant}, or quote it"
    if _CLOCK.fullmatch(text):
        return f"{text!r} is a number in base 60 in YAML 1.1; quote it"
    if _DATE.fullmatch(text):
        return f"{text!r} is a date in YAML 1.1; quote it"
    if _ODD_NUMBER.fullmatch(text):
        return f"{text!r} is not the same number in YAML 1.1 and 1.2; write it in plain digits, or quote it"
    if _NO_NUMBER.fullmatch(text):
        return f"{text!r} is no number to count with; quote it if it is text"
    if text in _OPERATORS:
        return f"{_OPERATORS[text]}; use `defaults:`, or quote it"
    return None


class _Composer:
    """Reads the parser's events. Depth and size are bounded here: PyYAML's own composer recurses without a bound."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=_Loader))
        self._document = Document()
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def document(self) -> Document:
        next(self._events)  # the stream's start
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return self._document
        self._document.value = self._node(next(self._events), (), 0)
        next(self._events)  # the document's end
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise Fault("a policy is one document: remove the second '---'", _place(event.start_mark))
        return self._document

    def _node(self, event: Any, key: Key, depth: int) -> Any:
        place = _place(event.start_mark)
        if depth > MAX_DEPTH:
            raise Fault(f"nested deeper than {MAX_DEPTH} levels", place, key)
        self._count(1, place, key)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, key)
        if event.tag not in (None, "!") and not event.tag.startswith("tag:yaml.org,2002:"):
            self._fault(f"a tag ({event.tag}) is not understood here; remove it", place, key)
        elif event.tag not in (None, "!"):
            self._fault(f"a tag (!!{event.tag.rpartition(':')[2]}) is not needed; remove it", place, key)
        before = self._nodes
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, key)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(key, depth)
        else:
            value = self._mapping(key, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._nodes - before + 1
        return value

    def _alias(self, event: Any, key: Key) -> Any:
        place = _place(event.start_mark)
        if event.anchor not in self._anchors:
            raise Fault(f"*{event.anchor} has no &{event.anchor} before it", place, key)
        value, size = self._anchors[event.anchor]
        self._count(size, place, key)
        return value

    def _sequence(self, key: Key, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            here = (*key, len(items))
            self._document.places[here] = _place(event.start_mark)
            items.append(self._node(event, here, depth + 1))
        return items

    def _mapping(self, key: Key, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = _place(event.start_mark)
            spelled = str(event.value) if isinstance(event, yaml.ScalarEvent) else f"line {place[0]}"
            name = self._node(event, (*key, spelled), depth + 1)
            if not isinstance(name, str):
                name = spelled
                self._fault("a key is text: quote it", place, (*key, name))
            here = (*key, name)
            if name in entries:
                first = self._document.places[here]
                self._fault(f"duplicate key; the first is in line {first[0]}", place, here)
                self._node(next(self._events), here, depth + 1)
                continue
            self._document.places[here] = place
            entries[name] = self._node(next(self._events), here, depth + 1)
        return entries

    def _scalar(self, event: Any, key: Key) -> Any:
        text: str = event.value
        if event.style:  # quoted or a block: text as it stands
            return text
        if surprise := _surprise(text):
            self._fault(surprise, _place(event.start_mark), key)
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text) and len(text) <= 30:
            return int(text)
        if _FLOAT.fullmatch(text) and len(text) <= 400:
            return float(text)
        return text

    def _count(self, nodes: int, place: Place, key: Key) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Fault(f"more than {MAX_NODES} values, each use of an alias counted", place, key)

    def _fault(self, message: str, place: Place, key: Key) -> None:
        self._document.faults.append(Fault(message, place, key))


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _count(text: str, position: int) -> Place:
    before = text[:position]
    return before.count("\n") + 1, position - before.rfind("\n")


def render(document: dict[str, Any]) -> str:
    """Plain values as YAML that `parse` reads back: blocks outside, short leaves in one line, text quoted where needed."""
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text, and never writes an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain_text(text) else '"')


def _represent_float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    """Every digit and no exponent, which the two versions of YAML read differently."""
    text = format(Decimal(repr(number)), "f")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text if "." in text else f"{text}.0")


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_float)

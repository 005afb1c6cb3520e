"""The three ways in, and the account of every fault."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from agentguard.errors import PolicyError, Problem
from agentguard.policy.load import yaml12
from agentguard.policy.load.build import build
from agentguard.policy.load.check import cross_faults
from agentguard.policy.load.shape import adapter, did_you_mean, found, known_keys, nearest_word
from agentguard.policy.load.yaml12 import MAX_DEPTH, Document, Fault, Key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic_core import ErrorDetails

    from agentguard.policy.model import Policy

Source = str | bytes | os.PathLike[str]
TEXT = "<text>"
"""What a policy is called that came as text."""


def from_file(path: str | os.PathLike[str], content: bytes | None = None) -> Policy:
    """The policy of a file: TOML by its suffix, else YAML. `content` is what was read from it, if it was read already.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    name = os.fspath(path)
    raw = _read(name) if content is None else content
    if name.endswith(".toml"):
        return _load_toml(name, raw)
    return _load(name, raw, yaml12.parse)


def from_yaml(source: Source) -> Policy:
    """The policy of a YAML file, given by its path, or of YAML text: bytes, or a string that no path is like.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    name, raw = _named(source)
    return _load(name, raw, yaml12.parse)


def from_toml(source: Source) -> Policy:
    """The policy of a TOML file or text: its `[tool.agentguard]`, or the whole when there is none.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    name, raw = _named(source)
    return _load_toml(name, raw)


def from_mapping(document: Mapping[str, Any]) -> Policy:
    """The policy that a mapping of the file's shape says. It is copied: later changes of the mapping change nothing.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    try:
        return _policy("", Document(value=_plain(document, ())))
    except Fault as fault:
        raise PolicyError("policy", [_problem("policy", fault, document)]) from None


def _named(source: Source) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return TEXT, source
    name = os.fspath(source)
    if isinstance(source, str) and ("\n" in name or name.lstrip().startswith("{") or not name):
        return TEXT, name.encode("utf-8", errors="surrogatepass")
    return name, _read(name)


def _read(name: str) -> bytes:
    try:
        with open(name, "rb") as file:  # noqa: PTH123 - a name with a NUL must end in the ValueError below
            return file.read(yaml12.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PolicyError(name, [Problem(name, 0, 0, "", f"cannot be read: {why}")]) from error


def _load_toml(name: str, raw: bytes) -> Policy:
    from agentguard.policy.load import toml  # nobody pays for TOML who writes YAML

    return _load(name, raw, lambda text: toml.parse(text, needs_table=Path(name).name == "pyproject.toml"))


def _load(name: str, raw: bytes, parse: Callable[[str], Document]) -> Policy:
    try:
        document = parse(_decoded(raw))
    except Fault as fault:
        raise PolicyError(name, [_problem(name, fault, None)]) from None
    return _policy(name, document)


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        place = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise Fault(f"not UTF-8: {error.reason}", place) from None


def _policy(path: str, document: Document) -> Policy:
    value = document.value
    faults = list(document.faults)
    if value is None or value == {}:
        faults.append(Fault("says nothing: a policy needs 'agents' or 'agent_config'", (1, 1)))
    elif not isinstance(value, dict):
        faults.append(Fault(f"expected a mapping with 'agents' or 'agent_config', found {found(value)}", (1, 1)))
    if faults and not isinstance(value, dict):
        raise _error(path, document, faults)
    try:
        shape = adapter().validate_python(value)
    except ValidationError as error:
        shape = None
        faults += _shape_faults(error, document)
    faults += cross_faults(value, document.places) if value else ()
    if faults or shape is None:
        raise _error(path, document, faults)
    return build(shape, path, document.places)


def _error(path: str, document: Document, faults: Sequence[Fault]) -> PolicyError:
    name = path or "policy"
    read = {fault.key for fault in document.faults}
    said: dict[tuple[Key, tuple[int, int]], Fault] = {}
    for fault in faults:
        if fault in document.faults or fault.key not in read:  # what follows from a fault of the text is noise
            said.setdefault((fault.key, fault.place), fault)
    ordered = sorted(said.values(), key=lambda fault: fault.place)
    return PolicyError(name, [_problem(name, fault, document.value, has_lines=bool(path)) for fault in ordered])


def _problem(name: str, fault: Fault, value: object, *, has_lines: bool = True) -> Problem:
    line, column = fault.place if has_lines and name != "policy" else (0, 0)
    return Problem(name, line, column, spelled(fault.key, value), fault.message)


def spelled(key: Key, value: object) -> str:
    """A key as messages spell it: `agents[researcher].budgets[0].limit`."""
    text = ""
    for step in key:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
            name = value.get("name") if isinstance(value, dict) else None
            text += f"[{name if isinstance(name, str) and name.isprintable() else step}]"
        else:
            value = value.get(step) if isinstance(value, dict) else None
            text += f".{step}" if text else step
    return text


def _shape_faults(error: ValidationError, document: Document) -> Iterator[Fault]:
    for detail in error.errors(include_url=False):
        key = _key(detail)
        if detail["type"] == "missing":
            yield Fault(f"missing key {key[-1]!r}", nearest(document.places, key[:-1]), key[:-1])
        else:
            yield Fault(_message(detail, key), nearest(document.places, key), key)


def _key(detail: ErrorDetails) -> Key:
    """The way to a fault, without the branch of a union and the "[key]" that pydantic adds. An unknown key ends it as it is."""
    last = len(detail["loc"]) - 1 if detail["type"] == "extra_forbidden" else len(detail["loc"])
    steps = enumerate(detail["loc"])
    return tuple(step for place, step in steps if place == last or not (isinstance(step, str) and step[:1] in {"|", "["}))


def nearest(places: Mapping[Key, tuple[int, int]], key: Key) -> tuple[int, int]:
    """The place of a key, or of the nearest thing around it that has one."""
    for length in range(len(key), 0, -1):
        if key[:length] in places:
            return places[key[:length]]
    return 1, 1


_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
}


def _message(detail: ErrorDetails, key: Key) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return f"unknown key{did_you_mean(str(key[-1]), known_keys(key[:-1]))}"
        case "literal_error" | "enum":
            said = f"expected {context['expected']}, found {found(detail['input'])}"
            words = re.findall("'([^']*)'", context["expected"])
            return said + nearest_word(detail["input"], words) if isinstance(detail["input"], str) else said
        case kind if kind in _EXPECTED:
            return f"expected {_EXPECTED[kind]}, found {found(detail['input'])}"
        case _:
            said = detail["msg"]
            return f"{said[:1].lower()}{said[1:]}, found {found(detail['input'])}"


def _plain(value: object, key: Key) -> Any:
    """A copy in dicts and lists, no deeper than a file may be."""
    if len(key) > MAX_DEPTH:
        raise Fault(f"nested deeper than {MAX_DEPTH} levels", (0, 0), key)
    if isinstance(value, Mapping):
        return {str(name): _plain(item, (*key, str(name))) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*key, index)) for index, item in enumerate(value)]
    return value

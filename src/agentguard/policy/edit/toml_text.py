"""Edits of a TOML text. tomlkit keeps comments, spacing and order as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentguard.policy.edit.yaml_text import NotEditable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.policy.load.yaml12 import Key


def add(text: str, key: Key, items: Sequence[str], new: str) -> str:
    """The text with an item added to the list at `key`; `items` is the whole list, written where none stands yet."""
    tomlkit = _tomlkit()
    document = tomlkit.parse(text)
    table, name = _table(tomlkit, document, key)
    if name in table:
        table[name].append(new)
    else:
        table[name] = list(items)
    return str(tomlkit.dumps(document))


def remove(text: str, key: Key, items: Sequence[str], index: int) -> str:
    """The text without one item of the list at `key`; `items` is what is left, written where none stands yet."""
    tomlkit = _tomlkit()
    document = tomlkit.parse(text)
    table, name = _table(tomlkit, document, key)
    if name in table:
        del table[name][index]
    else:
        table[name] = list(items)
    return str(tomlkit.dumps(document))


def append_mapping(text: str, key: Key, entry: Mapping[str, Any]) -> str:
    """The text with a mapping added to the list of mappings at `key`."""
    tomlkit = _tomlkit()
    document = tomlkit.parse(text)
    table = _policy_of(document)
    for step in key:
        table = table[step]
    table.append(tomlkit.item(dict(entry)))
    return str(tomlkit.dumps(document))


def _table(tomlkit: Any, document: Any, key: Key) -> tuple[Any, str]:
    """The table that holds the list at `key`, made where it is missing, and the list's name in it."""
    *way, name = key
    table = _policy_of(document)
    for step in way:
        if isinstance(step, str) and step not in table:
            is_inline = isinstance(table, tomlkit.items.InlineTable)
            table[step] = tomlkit.inline_table() if is_inline else tomlkit.table()
        table = table[step]
    return table, str(name)


def _policy_of(document: Any) -> Any:
    return document.get("tool", {}).get("agentguard", document)


def _tomlkit() -> Any:
    try:
        import tomlkit
    except ImportError:
        raise NotEditable("editing TOML needs tomlkit: pip install 'agentguard[learn]'") from None
    return tomlkit

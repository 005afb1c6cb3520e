"""The verbs of a store on rows at hand: what the memory store does under its lock and SQLite inside its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.core.limits import RefusalKind, Refused, decide, enlarge, portion, take
from agentguard.stores.base import GRANTED, Granted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.core.limits import Charge, Crossed, Item, Row


def reserve(rows: Mapping[str, Row], charges: Sequence[Charge], now: float, force: bool) -> tuple[Granted | Refused, list[Item]]:
    """Take all charges or none. Returns the answer, and what is held now."""
    fitting = decide(rows, charges, now)
    refused = None
    if isinstance(fitting, Refused):
        if not force or fitting.kind is RefusalKind.UNREGISTERED:
            return fitting, []
        refused, fitting = fitting, {key: rows[key] for key, _ in charges}
    crossed: list[Crossed] = []
    items = take(fitting.values(), charges, crossed)
    return (Granted((), tuple(crossed), refused) if crossed or refused else GRANTED), items


def extend(rows: Mapping[str, Row], charges: Sequence[Charge], items: list[Item], now: float) -> Granted | Refused:
    """Take more for a call that holds `items`: all of it, or the largest share that is left; refused when nothing is."""
    fitting = decide(rows, charges, now)
    granted = tuple(charges)
    if isinstance(fitting, Refused):
        refused = fitting
        if refused.kind is RefusalKind.UNREGISTERED:
            return refused
        fitting = {key: rows[key] for key, _ in charges}
        granted = portion(fitting.values(), charges)
        if not granted:
            return refused
    crossed: list[Crossed] = []
    enlarge(fitting.values(), granted, items, crossed)
    return Granted(granted, tuple(crossed))

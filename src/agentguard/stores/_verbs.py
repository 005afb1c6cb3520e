"""The verbs of a store on rows at hand: what the memory store does under its lock and SQLite inside its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.core.limits import Charge, RefusalKind, Refused, calls_that_fit, decide, enlarge, portion, spend, take
from agentguard.stores.base import GRANTED, Accounted, Granted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentguard.core.limits import Crossed, Item, Row
    from agentguard.stores.base import Account


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


def lease(
    rows: Mapping[str, Row], account: Account, items: list[Item] | None, now: float
) -> tuple[Accounted | Refused, list[Item]]:
    """Take the account of a slice that holds `items` (None: it is not open), and let it grow. Returns what it holds now."""
    if items is None and (account.keep or any(account.used)):
        return Refused(RefusalKind.UNREGISTERED, account.id), []
    unknown = next((key for key, _ in account.call if key not in rows), None)
    if unknown is not None:
        return Refused(RefusalKind.UNREGISTERED, unknown), items or []
    crossed: list[Crossed] = []
    kept = spend(items or (), account.used, dict(account.keep), crossed)
    growing = [rows[key] for key, _ in account.call]
    for row in growing:
        row.advance(now)
    calls = calls_that_fit(growing, account.call, account.calls, account.share)
    if any(row.start != start for row, start, _, _ in kept):
        calls = 0
    if calls:
        more = [Charge(key, amount * calls) for key, amount in account.call]
        enlarge(growing, more, kept, crossed, holds_calls=True)
    return Accounted(calls, tuple(crossed)), kept

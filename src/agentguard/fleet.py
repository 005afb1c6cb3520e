"""The operator's half of a fleet: stop a subject and see who has confirmed it, restore it, correct a counter.

Each function is given the store, changes it, and returns the event to be told.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.isolation import IsolationMode, probation_word, probations, read_word, word_for
from agentguard.core.limits import Amounts, Charge
from agentguard.events import BudgetAdjusted, SubjectIsolated
from agentguard.policy.model import Mode, Unit
from agentguard.stores.base import Reserve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Balance, Isolation, Member, Store

CONFIRM_SECONDS = 2.0
"""How long to wait for every process: they take milliseconds, and one that has been stopped takes for ever."""

_LOOK_SECONDS = 0.004


class Confirmation(NamedTuple):
    """Which processes act on an isolation, and which have not said so. Those in report mode say so, and refuse nothing."""

    confirmed: tuple[Member, ...]
    missing: tuple[Member, ...]
    reporting: tuple[Member, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every process refuses the subject now."""
        return not self.missing and not self.reporting


class Standing(NamedTuple):
    """How a subject stands: isolated (`mode`), or on probation `until` then."""

    subject: str
    mode: str
    isolation: Isolation
    until: float = 0.0


def isolate(store: Store, subject: str, mode: IsolationMode, *, by: str, why: str, now: float) -> SubjectIsolated:
    """Stop a subject, in every process that shares the store.

    Raises:
        StoreUnavailable: Nothing was changed, as far as can be known.
    """
    word = word_for(subject, mode)
    epoch = store.isolate(word, on=True, by=by, why=why)
    for other in _words_of(store, subject) - {word}:  # after it, so that the subject is never free in between
        epoch = store.isolate(other, on=False, by=by, why=why)
    return SubjectIsolated(now, subject, True, by, why, epoch, mode)


def restore(store: Store, subject: str, *, by: str, why: str, now: float, probation: float = 0.0) -> SubjectIsolated:
    """Let a subject go on: with half of its limits for `probation` seconds, if that is not 0.

    Raises:
        StoreUnavailable: It may still be isolated.
    """
    until = now + probation if probation else 0.0
    epoch = store.epoch()
    if until:
        epoch = store.isolate(probation_word(subject, until), on=True, by=by, why=why)
    for word in _words_of(store, subject) - ({probation_word(subject, until)} if until else set()):
        epoch = store.isolate(word, on=False, by=by, why=why)
    return SubjectIsolated(now, subject, False, by, why, epoch, probation_until=until)


def standings(isolations: Sequence[Isolation], now: float) -> list[Standing]:
    """The subjects that are isolated or on probation."""
    found = [Standing(*read, one) for one in isolations if (read := read_word(one.subject))]
    by_word = {one.subject: one for one in isolations}
    found += [Standing(subject, "probation", by_word[word], until) for word, subject, until in probations(by_word) if until > now]
    return found


def confirmation(members: Sequence[Member], epoch: int) -> Confirmation:
    """Who of the members acts on the isolations up to an epoch."""
    heard = [member for member in members if member.epoch >= epoch]
    return Confirmation(
        tuple(member for member in heard if member.mode != Mode.REPORT),
        tuple(member for member in members if member.epoch < epoch),
        tuple(member for member in heard if member.mode == Mode.REPORT),
    )


def await_confirmation(store: Store, epoch: int, seconds: float = CONFIRM_SECONDS) -> Confirmation:
    """Wait until every process that is listed acts on the isolations up to an epoch, at most so long."""
    deadline = time.monotonic() + seconds
    while True:
        said = confirmation(store.members(), epoch)
        if not said.missing or time.monotonic() >= deadline:
            return said
        time.sleep(_LOOK_SECONDS)


def adjust(store: Store, row: LimitRow, amount: int, *, by: str, why: str, now: float, id: str) -> BudgetAdjusted:
    """Correct what a limit has counted as spent in its current window, by an amount in its unit. It never falls below nothing.

    Raises:
        ValueError: The limit forgets by itself: a sliding window, or calls at once.
        StoreUnavailable: Nothing was changed, as far as can be known.
    """
    if row.limit.window.is_rolling or row.limit.unit is Unit.CONCURRENT_CALLS:
        raise ValueError(f"{row.limit.text or row.key!r} cannot be adjusted: it forgets what it has counted by itself")
    before = _spent(store, row)
    amount = max(amount, -before)
    _count(store, row, amount, id)
    after = _spent(store, row)
    if after < 0:  # the window has ended since we looked
        _count(store, row, -after, f"{id}-back")
        amount, after = amount - after, 0
    return BudgetAdjusted(now, row.key, amount, after, by, why)


def _count(store: Store, row: LimitRow, amount: int, id: str) -> None:
    store.reserve(Reserve(id, (Charge(row.key, amount),), force=True))
    store.settle(id, Amounts(amount, amount))


def _spent(store: Store, row: LimitRow) -> int:
    balances: Sequence[Balance] = store.read([row.key])
    return balances[0].spent if balances else 0


def _words_of(store: Store, subject: str) -> set[str]:
    """Every word that the store was told of a subject."""
    words = {one.subject for one in store.isolations()}
    stopping = {word for word in words if (read := read_word(word)) and read[0] == subject}
    return stopping | {word for word, of, _ in probations(words) if of == subject}

"""Accounts: a store is told what was used of slices, given back what lies idle in them, and asked for more."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agentguard.errors import StoreUnavailable
from agentguard.stores._slices import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.core.limits import Amounts
    from agentguard.stores._leases import Leases
    from agentguard.stores._slices import Slice
    from agentguard.stores.base import Balance, Leasable

_READINGS = 8
"""How often balances are read, at most, until no account was on its way meanwhile."""


class Accounts:
    """The trips to a store that are about slices. Each is made in the turn of its slice, and under no lock.

    Args:
        store: It holds the slices.
        leases: The slices.
        now: Unix time.
    """

    def __init__(self, store: Leasable, leases: Leases, now: Callable[[], float]) -> None:
        self._store = store
        self._leases = leases
        self._now = now

    def give(self, slice_: Slice, *, keeps_left: bool, ask: Amounts = NOTHING, calls: int = 0) -> int:
        """Tell what was used of a slice, give back what is left unless it is kept, and ask for more. Whoever calls has its turn.

        Returns:
            For how many calls it has grown; -1 when there was nothing to tell.
        """
        account = self._leases.begin_account(slice_, ask, calls, keeps_left=keeps_left)
        if account is None:
            return -1
        asked_at = self._now()
        try:
            answer = self._store.lease(account)
        except BaseException:  # Ctrl-C too: what was used is not forgotten for it
            self._leases.lose_account(slice_, account)
            raise
        return self._leases.end_account(slice_, account, answer, asked_at, ask)

    def give_last(self, slice_: Slice) -> None:
        """Tell what was used of a slice from which no call will be taken. Without an answer, the next sweep tells it."""
        with slice_.turn, contextlib.suppress(StoreUnavailable):
            self.give(slice_, keeps_left=False)

    def give_back(self, keys: Sequence[str]) -> bool:
        """Give back what lies idle of rows, and tell what was used of them. Whether there was anything."""
        found = False
        for slice_ in self._leases.of(keys):
            with slice_.turn:
                self._leases.be_exact(slice_.chain)
                found = self.give(slice_, keeps_left=False) >= 0 or found
        return found

    def give_back_all(self) -> None:
        """Give back whatever lies idle. Without an answer it stays held, until it is swept."""
        with contextlib.suppress(StoreUnavailable):
            for slice_ in self._leases.all():
                with slice_.turn:
                    self.give(slice_, keeps_left=False)

    def give_due(self) -> None:
        """Tell of slices that the store has not heard of for half a horizon, and give back what lies idle in them."""
        now = self._now()
        for slice_ in self._leases.due(now):
            with slice_.turn:
                self.give(slice_, keeps_left=self._leases.is_worth_keeping(slice_, now))

    def give_ended(self) -> None:
        """Tell what was used in windows that are over: it counts in no balance of now."""
        now = self._now()
        for slice_ in self._leases.all():
            if slice_.ends <= now:
                with slice_.turn:
                    self.give(slice_, keeps_left=False)

    def read(self, read: Callable[[], Sequence[Balance]]) -> list[Balance]:
        """Balances with what was not told yet. They are read again if an account was on its way meanwhile."""
        self.give_ended()
        found: list[Balance] = []
        for _ in range(_READINGS):
            seen = self._leases.accounts
            found, is_whole = self._leases.as_they_are(read(), seen)
            if is_whole:
                break
        return found

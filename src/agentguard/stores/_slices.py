"""Slices: what a process holds of the rows of a chain, to admit calls out of it by itself.

One slice of a chain is one hold of the store, so it is taken from all of the chain's rows or from none, as a call is, and what
is used of it can be told in one number for each unit.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agentguard.core.limits import Amounts
from agentguard.stores.base import Account

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.stores._chains import Chain
    from agentguard.stores.base import Accounted

_PLENTY = 1 << 62
"""What is left of a unit that no row of the chain counts."""

NOTHING = Amounts()


class Slice:
    """A hold of the store that the calls of a chain share. Guarded by the lock of `Leases`.

    At every moment `total = used + held + left`: used by calls that are settled since the last account, held by those that
    are open, and left for others.

    Attributes:
        tokens, nanos, calls: What is left. Below nothing when calls have used more than they had reserved.
        total: What the store holds for it.
        ends: When the first window that it was taken in is over.
        until: When no further call is admitted from it: when it ends, or a while after the store last heard of it; `-inf` once
            it is given up.
        is_begun: The store knows it.
        is_lost: The store does not know it any more: it was swept, and charged.
        turn: Held while its account is on the way, so that the store gets one account after the other.
    """

    __slots__ = (
        "accounted_at",
        "calls",
        "chain",
        "ends",
        "id",
        "is_begun",
        "is_lost",
        "nanos",
        "tokens",
        "total",
        "turn",
        "until",
    )

    def __init__(self, id: str, chain: Chain, now: float) -> None:
        self.id: str = id
        self.chain: Chain = chain
        self.ends: float = chain.ends(now)
        self.until: float = self.ends
        self.total: Amounts = NOTHING
        self.is_begun = False
        self.is_lost = False
        self.accounted_at: float = now
        self.turn: threading.Lock = threading.Lock()
        self.tokens, self.nanos, self.calls = (0 if counts else _PLENTY for counts in chain.counts)

    @property
    def left(self) -> Amounts:
        """What is left, in the units that the chain counts."""
        return self._counted((self.tokens, self.nanos, self.calls))

    def used(self, held: Amounts) -> Amounts:
        """What settled calls have used since the last account, when open ones hold `held`. A call is used when it is made."""
        left = self.left
        return self._counted([total - rest - kept for total, rest, kept in zip(self.total, left, held, strict=True)])

    def begin_account(
        self, held: Amounts, ask: Amounts, calls: int, share: int, *, is_open: bool, keeps_left: bool
    ) -> Account | None:
        """What to tell the store of it, and to ask for; None when there is nothing to tell.

        What was used is told from here on: it is neither in the slice, nor known to be in the store.
        """
        used, left = self.used(held), at_least_nothing(self.left)
        kept = left if keeps_left else NOTHING
        is_over = self.is_begun and self.until < 0 and not is_open
        if self.is_lost or not (calls or any(used) or kept != left or is_over):
            return None
        self.total = add(held, kept)
        self._leave(kept)
        keep = self.chain.charges(self.total) if is_open or any(kept) else ()
        return Account(self.id, used, keep, self.chain.charges(ask) if calls else (), calls, share)

    def end_account(self, account: Account, answer: Accounted, ask: Amounts, until: float) -> None:
        """Gain what the store has granted, and go on until then, since it has heard of it; not beyond the windows."""
        gained = Amounts(*(amount * answer.calls for amount in ask))
        self.total = add(self.total, gained)
        self._leave(add(self.left, gained))
        if self.until >= 0:
            self.until = min(self.ends, until)
        self.is_begun = bool(account.keep) or answer.calls > 0

    def tell_again(self, account: Account) -> None:
        """Have used what the store was not told after all."""
        self.total = add(self.total, account.used)

    def _leave(self, left: Amounts) -> None:
        self.tokens, self.nanos, self.calls = (
            amount if counts else _PLENTY for amount, counts in zip(left, self.chain.counts, strict=True)
        )

    def _counted(self, amounts: Sequence[int]) -> Amounts:
        return Amounts(*(amount if counts else 0 for amount, counts in zip(amounts, self.chain.counts, strict=True)))


def add(some: Amounts, more: Amounts) -> Amounts:
    """The sum, unit by unit."""
    return Amounts(some[0] + more[0], some[1] + more[1], some[2] + more[2])


def at_least_nothing(amounts: Amounts) -> Amounts:
    """The amounts, without what is below nothing."""
    return Amounts(max(amounts[0], 0), max(amounts[1], 0), max(amounts[2], 0))

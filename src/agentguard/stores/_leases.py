"""What a process holds of a store in slices, and which calls are open in them. Nothing here asks the store.

One lock guards all of it, and is held for microseconds: never while the store is asked, nor while somebody waits for the `turn`
of a slice. So every method here is one step that nobody sees half of, and what is between two of them may have changed.
"""

from __future__ import annotations

import itertools
import os
import threading
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.limits import Amounts, RefusalKind, Refused
from agentguard.stores._chains import MOST_CHAINS, Chains
from agentguard.stores._fork import Rests
from agentguard.stores._slices import Slice, add
from agentguard.stores.base import GRANTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Charge, Crossed, LimitRow
    from agentguard.stores._chains import Chain
    from agentguard.stores.base import Account, Accounted, Balance, Granted, Reserve

    Grant = tuple[Slice, int, int, int]
    """What an open call holds of a slice: tokens, nano-USD, calls."""

    _Fast = tuple[Slice, int, int, int, int, tuple[LimitRow, ...]]

SHARE = 8
"""A slice takes at most an eighth of what a limit has left: eight racing processes leave a third of it to the ninth."""

UNHEARD: frozenset[str] = frozenset({"*"})
"""Nobody has asked yet who is isolated. There are no slices before that."""

UNKNOWN: frozenset[str] = frozenset({"?"})
"""Nobody knows who is isolated: it has changed, and could not be read."""


class Wanted(NamedTuple):
    """A slice that is worth taking: of which chain, and for a call that charges how much."""

    chain: Chain
    ask: Amounts


class Leases(Rests):
    """The slices of this process, and the calls that are open.

    Args:
        now: Unix time.
        horizon: For how many seconds a slice should last.
        most_calls: The most calls that a slice is taken for at once.

    Attributes:
        crossed: Soft steps that an account has passed, for the next settlement to tell.
        accounts: How many accounts have ended, with an answer or without.
    """

    def __init__(self, now: Callable[[], float], horizon: float, most_calls: int) -> None:
        self._now = now
        self._horizon = horizon
        self._most_calls = most_calls
        self._lock = threading.Lock()
        self._chains = Chains()
        self._slices: dict[str, Slice] = {}  # all that the store holds for this process, or is being asked for
        self._open: dict[str, Grant | None] = {}  # None: the store itself has admitted it
        self._fast: dict[int, _Fast] = {}
        self.crossed: list[Crossed] = []
        self._isolated = UNHEARD
        self._begin()

    def _begin(self) -> None:
        self._names = map(f"slice-{os.urandom(6).hex()}-{{}}".format, itertools.count(1))
        self._accounting = 0
        self.accounts = 0

    def after_fork_in_child(self) -> None:
        """Go on as another process: the slices are the parent's, and so are the calls in flight."""
        self._lock = threading.Lock()
        self._chains.clear()
        self._slices.clear()
        self._open.clear()
        self._fast.clear()
        self.crossed.clear()
        self._begin()

    # --- calls ------------------------------------------------------------------------------------------------------

    def take_again(self, request: Reserve) -> bool:
        """Take a call from the slice that the last one with the same tuple of rows was taken from. The way of most calls."""
        call, charges, rows = request[0], request[1], request[4]  # by index: to unpack a named tuple takes longer
        with self._lock:
            fast = self._fast.get(id(rows))
            if fast is None:
                return False
            slice_, of_tokens, of_nanos, of_calls, are, _ = fast
            if are != len(charges) or (self._isolated and not self._isolated.isdisjoint(request.subjects)):
                return False
            tokens, nanos, calls = charges[of_tokens][1], charges[of_nanos][1], charges[of_calls][1]
            if (
                tokens <= slice_.tokens
                and nanos <= slice_.nanos
                and calls <= slice_.calls
                and self._now() < slice_.until
                and call not in self._open
            ):
                slice_.tokens -= tokens
                slice_.nanos -= nanos
                slice_.calls -= calls
                self._open[call] = (slice_, tokens, nanos, calls)
                return True
            return False

    def take(self, request: Reserve) -> Granted | Refused | Wanted | None:
        """Take a call from a slice, or refuse one that is isolated; or say what slice to take. None: the store decides."""
        call, charges, subjects, _, rows = request
        with self._lock:
            if self._open.get(call) is not None:
                return GRANTED
            chain = None if self._isolated is UNKNOWN or call in self._open else self._chains.of(charges)
            ask = None if chain is None else chain.amounts(charges)
            if chain is None or ask is None:
                return None
            if subject := next(filter(self._isolated.__contains__, subjects), None):
                return Refused(RefusalKind.ISOLATED, subject)
            if self._take(call, chain, ask):
                self._remember(rows, chain)
                return GRANTED
            return Wanted(chain, ask) if self._is_due(chain) else None

    def settle(self, id: str, actual: Amounts) -> Slice | None:
        """End a call, and leave to others what it has not used. Returns its slice; None: it has none, or is not open."""
        with self._lock:
            grant = self._open.pop(id, None)
            if grant is None:
                return None
            slice_, tokens, nanos, _ = grant
            slice_.tokens += tokens - actual[0]
            slice_.nanos += nanos - actual[1]
            return slice_

    def grant(self, id: str) -> Grant | None:
        """What an open call holds of a slice; None: nothing."""
        with self._lock:
            return self._open.get(id)

    def extend(self, id: str, charges: Sequence[Charge]) -> bool:
        """Take more for an open call from what its slice has left. Whether there was enough."""
        with self._lock:
            grant = self._open.get(id)
            if grant is None:
                return False
            slice_ = grant[0]
            more = slice_.chain.more(charges)
            if more is None or self._now() >= slice_.until or more[0] > slice_.tokens or more[1] > slice_.nanos:
                return False
            slice_.tokens -= more[0]
            slice_.nanos -= more[1]
            self._enlarge(id, more)
            return True

    def enlarge(self, id: str, slice_: Slice, more: Amounts) -> None:
        """Note that the store has enlarged a slice for an open call."""
        with self._lock:
            slice_.total = add(slice_.total, more)
            self._enlarge(id, more)

    def know(self, id: str) -> None:
        """Note that the store itself has admitted a call."""
        with self._lock:
            self._open[id] = None

    def know_instead(self, id: str, grant: Grant) -> None:
        """Note that the store itself holds what a call has held of a slice, unless that has changed."""
        slice_, tokens, nanos, _ = grant
        with self._lock:
            if self._open.get(id) is grant:
                self._open[id] = None
                slice_.tokens += tokens
                slice_.nanos += nanos

    def forget(self, id: str) -> None:
        """Note that the store has settled a call."""
        with self._lock:
            self._open.pop(id, None)

    def _take(self, id: str, chain: Chain, ask: Amounts) -> bool:
        """Take a call from the chain's slice, if there is enough left in it."""
        slice_ = chain.slice
        if slice_ is None:
            return False
        now = self._now()
        if now >= slice_.until:
            if now >= slice_.ends:
                chain.end(slice_)
            self._give_up(slice_)
            return False
        tokens, nanos, calls = ask
        if tokens > slice_.tokens or nanos > slice_.nanos or calls > slice_.calls:
            return False
        slice_.tokens -= tokens
        slice_.nanos -= nanos
        slice_.calls -= calls
        self._open[id] = (slice_, tokens, nanos, calls)
        return True

    def _remember(self, rows: tuple[LimitRow, ...], chain: Chain) -> None:
        """Know the slice by the tuple of rows, which is held on to, so that its id stays its own."""
        if chain.slice is None or tuple([row.key for row in rows]) != chain.keys:
            return
        if len(self._fast) >= MOST_CHAINS:
            self._fast.clear()
        tokens, nanos, calls = chain.places
        self._fast[id(rows)] = (chain.slice, tokens, nanos, calls, len(rows), rows)

    def _is_due(self, chain: Chain) -> bool:
        """Whether to take a slice for the call that asks: for the second within a horizon, when nobody else is waiting."""
        now = self._now()
        is_frequent = chain.slice is not None or now - chain.seen_at < self._horizon
        chain.seen_at = now
        return is_frequent and now >= chain.exact_until

    def _enlarge(self, id: str, more: Amounts) -> None:
        if (grant := self._open.get(id)) is not None:
            slice_, tokens, nanos, calls = grant
            self._open[id] = (slice_, tokens + more[0], nanos + more[1], calls)

    # --- a slice that grows, in its turn ----------------------------------------------------------------------------

    def slice_of(self, chain: Chain, subjects: Sequence[str]) -> Slice | None:
        """The slice that the chain's calls are admitted from now, which may be a new one; None for who may be isolated."""
        with self._lock:
            if not self._are_free(subjects):
                return None
            if chain.slice is None:
                chain.slice = Slice(next(self._names), chain, self._now())
                self._slices[chain.slice.id] = chain.slice
            return chain.slice

    def next_size(self, slice_: Slice, call: str, ask: Amounts) -> int:
        """For how many calls a slice should grow; 0 when the call was taken from it, since another thread has let it grow."""
        with self._lock:
            if self._take(call, slice_.chain, ask):
                return 0
            return slice_.chain.next_size(self._now(), self._horizon, self._most_calls, slice_.is_begun)

    def take_for(self, call: str, subjects: Sequence[str], wanted: Wanted) -> bool:
        """Take a call from a slice that has just grown."""
        with self._lock:
            return self._are_free(subjects) and self._take(call, *wanted)

    def be_exact(self, chain: Chain) -> None:
        """Have the store decide the chain's calls for half a horizon: others should have what is left."""
        with self._lock:
            chain.exact_until = self._now() + self._horizon / 2

    # --- accounts, in the turn of their slice -----------------------------------------------------------------------

    def begin_account(self, slice_: Slice, ask: Amounts, calls: int, *, keeps_left: bool) -> Account | None:
        """What to tell the store of a slice, and to ask for; None when there is nothing to tell."""
        with self._lock:
            held, is_open = self._held(slice_)
            account = slice_.begin_account(held, ask, calls, SHARE, is_open=is_open, keeps_left=keeps_left)
            if account is not None:
                self._accounting += 1
                if not (account.keep or calls):
                    self._give_up(slice_)
            return account

    def end_account(self, slice_: Slice, account: Account, answer: Accounted | Refused, asked_at: float, ask: Amounts) -> int:
        """Take the store's answer. Returns for how many calls the slice has grown."""
        with self._lock:
            self._end_account()
            slice_.accounted_at = asked_at
            if isinstance(answer, Refused):
                slice_.is_lost = answer.row == slice_.id
                slice_.tell_again(account)
                self._give_up(slice_)
                if slice_.is_lost or not slice_.is_begun:
                    self._slices.pop(slice_.id, None)
                return 0
            self.crossed += answer.crossed
            slice_.end_account(account, answer, ask, asked_at + self._horizon)
            if not slice_.is_begun:
                self._give_up(slice_)
                self._slices.pop(slice_.id, None)
            return answer.calls

    def lose_account(self, slice_: Slice, account: Account) -> None:
        """Note that there was no answer. What was used is told again: rather twice, if only the answer was lost, than never."""
        with self._lock:
            self._end_account()
            if not slice_.is_begun:  # it may have been granted all the same: it is given back when the store answers
                slice_.is_begun = True
                self._give_up(slice_)
            slice_.tell_again(account)

    def is_worth_keeping(self, slice_: Slice, now: float) -> bool:
        """Whether to keep what is left of a slice: if its time is not over, and a fifth of what it has was used."""
        with self._lock:
            if slice_.until <= now:
                self._give_up(slice_)
                return False
            used, left = slice_.used(self._held(slice_)[0]), slice_.left
        counted = [pair for *pair, counts in zip(used, left, slice_.chain.counts, strict=True) if counts]
        return any(part * 4 >= rest for part, rest in counted)

    def news(self, slice_: Slice) -> tuple[tuple[Crossed, ...], bool]:
        """The soft steps that nobody was told of, and whether no call will be taken from a slice, and none is open in it."""
        with self._lock:
            crossed, self.crossed = tuple(self.crossed), []
            return crossed, slice_.until < 0 and not self._held(slice_)[1]

    def _held(self, slice_: Slice) -> tuple[Amounts, bool]:
        """What open calls hold of a slice, and whether there are any. Their calls are made, hence used."""
        mine = [grant for grant in self._open.values() if grant is not None and grant[0] is slice_]
        return Amounts(sum(grant[1] for grant in mine), sum(grant[2] for grant in mine)), bool(mine)

    def _end_account(self) -> None:
        self._accounting -= 1
        self.accounts += 1

    def _give_up(self, slice_: Slice) -> None:
        """Admit no further call from a slice."""
        slice_.until = -inf
        self._fast.clear()
        if slice_.chain.slice is slice_:
            slice_.chain.slice = None

    # --- which slices -----------------------------------------------------------------------------------------------

    def all(self) -> list[Slice]:
        """Every slice."""
        with self._lock:
            return list(self._slices.values())

    def of(self, keys: Iterable[str]) -> list[Slice]:
        """The slices of rows."""
        with self._lock:
            return [slice_ for slice_ in self._slices.values() if not slice_.chain.keyset.isdisjoint(keys)]

    def due(self, now: float) -> list[Slice]:
        """Those that the store has not heard of for half a horizon, and those whose time is over."""
        with self._lock:
            return [
                slice_
                for slice_ in self._slices.values()
                if abs(now - slice_.accounted_at) >= self._horizon / 2 or slice_.until <= now  # clocks are set back, too
            ]

    # --- what is known of rows and subjects -------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> list[str]:
        """Know the limits of rows. Returns the rows whose limit has changed."""
        with self._lock:
            return self._chains.register(rows)

    def unregister(self, keys: Iterable[str]) -> None:
        """Know the limits of rows no more."""
        with self._lock:
            self._chains.forget(keys)

    def drop(self, keys: Sequence[str]) -> None:
        """Take no more from the slices of rows, and begin their chains anew."""
        with self._lock:
            for slice_ in [slice_ for slice_ in self._slices.values() if not slice_.chain.keyset.isdisjoint(keys)]:
                self._give_up(slice_)
            self._chains.drop(keys)

    def know_isolated(self, isolated: frozenset[str]) -> None:
        """Know who is isolated. While that is `UNKNOWN`, no call is taken from a slice."""
        with self._lock:
            self._isolated = isolated
            if isolated is UNKNOWN:
                self._fast.clear()

    def stop(self, subject: str) -> None:
        """Take no more for a subject, ahead of reading who is isolated."""
        with self._lock:
            if self.knows_isolated:
                self._isolated |= {subject}

    @property
    def knows_isolated(self) -> bool:
        """Whether it is known who is isolated."""
        return self._isolated is not UNKNOWN and self._isolated is not UNHEARD

    def _are_free(self, subjects: Sequence[str]) -> bool:
        """Whether none of them is isolated, as far as is known."""
        return self.knows_isolated and self._isolated.isdisjoint(subjects)

    # --- what is not told yet ---------------------------------------------------------------------------------------

    def as_they_are(self, balances: Iterable[Balance], seen: int) -> tuple[list[Balance], bool]:
        """Balances with what this process has not told yet; and whether no account was on its way since `accounts` was `seen`.

        What such an account tells would be in both of them, or in neither.
        """
        with self._lock:
            return [self._as_it_is(balance) for balance in balances], self.accounts == seen and not self._accounting

    def _as_it_is(self, balance: Balance) -> Balance:
        mine = [slice_ for slice_ in self._slices.values() if balance.row in slice_.chain.keyset]
        used = idle = 0
        for slice_ in mine:
            used += slice_.chain.of(balance.row, slice_.used(self._held(slice_)[0]))
            idle += slice_.chain.of(balance.row, slice_.left)
        return balance._replace(spent=balance.spent + used, held=balance.held - used - idle) if mine else balance

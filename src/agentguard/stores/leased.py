"""A store in front of another: calls are admitted from slices, so that most decisions ask nobody.

A process takes slices of the rows that its calls charge: holds of the store behind, sized by how fast they are used. The law
`spent + held <= limit` stays the store's, over all processes, since what lies in a slice is held. Near a limit the store grants
no slices and decides every call itself; a call that it would refuse is refused only after this process has given back what it
does not use, and others have been asked to (`recall`). So a refusal is never wrong, and nothing strands.

A process that dies takes its slices with it: they are holds, and charged as every dead holder's are. That is the price: at most
what a slice holds, which is what its process uses in one horizon, and a fraction of what was left.

A slice is good for one horizon from the last time that the store has heard of it. So a process that has lost the store goes on
with what is already its own for that long, while isolations stand as they were last known, and then asks for every call.

Concurrency limits are not leased, nor rates per second (`_slices.is_leasable`): calls that are under one are decided by the
store, each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.stores._fork import Rests, survive_forks
from agentguard.stores._idle import SHORT_LIVED
from agentguard.stores._slices import NOTHING, Chain, Slice, add, at_least_nothing, is_leasable
from agentguard.stores._watchers import Together, Watchers
from agentguard.stores.base import GRANTED, NOT_SETTLED, SETTLED, Account, Granted, Reserve, Settled
from agentguard.stores.deciding import Deciding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from agentguard.core.limits import Crossed, LimitRow
    from agentguard.policy.model import Limit
    from agentguard.stores.base import Balance, Closeable, Hold, Isolation, Leasable, Member, WallClock

    _Grant = tuple[Slice, int, int, int]
    _Fast = tuple[tuple[LimitRow, ...], int, Slice, int, int, int]

HORIZON_SECONDS = 5.0
"""For how long a slice should last. Half as long lie amounts idle in it, or used without being told."""

SHARE = 8
"""A slice takes at most an eighth of what a limit has left: eight racing processes leave a third of it to the ninth."""

_MOST_CALLS = 1024
_MOST_REMEMBERED = 4096
_MOST_LIMITS = 65_536
_RECALL_PAUSE_SECONDS = 0.02
_TRIES = 8
_UNKNOWN = frozenset({"*"})
"""Nobody knows who is isolated."""

_MAY_HEAL = frozenset({RefusalKind.CONTENDED, RefusalKind.EXHAUSTED})
"""Refusals that may be none when what lies idle is given back."""


class LeasedStore(Rests):
    """A `Store` that admits calls from slices of another one.

    Args:
        store: Where the counters live. It is closed with this one.
        clock: Unix time. Windows end by it, so hosts should keep theirs.
        horizon_seconds: For how long a slice should last.
        most_calls: The most calls that a slice is taken for at once.
    """

    def __init__(
        self,
        store: Leasable,
        clock: WallClock = time,  # the module is a WallClock
        *,
        horizon_seconds: float = HORIZON_SECONDS,
        most_calls: int = _MOST_CALLS,
    ) -> None:
        self._store = store
        self._now = clock.time
        self._horizon = horizon_seconds
        self._most_calls = most_calls
        self._lock = threading.Lock()
        self._limits: dict[str, Limit] = {}
        self._chains: dict[tuple[str, ...], Chain | None] = {}
        self._slices: dict[str, Slice] = {}
        self._open: dict[str, _Grant | None] = {}
        self._fast: dict[int, _Fast] = {}
        self._isolated: frozenset[str] = _UNKNOWN
        self._crossed: list[Crossed] = []
        self._recalled: dict[str, float] = {}
        self._watchers: Watchers[[]] = Watchers()
        self._listening: tuple[Closeable, ...] = ()
        self._await_store: Callable[[Reserve], Awaitable[Granted | Refused]] | None = getattr(store, "areserve", None)
        self._begin()
        survive_forks(self)

    def _begin(self) -> None:
        self._names = map(f"slice-{os.urandom(6).hex()}-{{}}".format, itertools.count(1))
        self._accounting = self._accounts = 0
        self._joining = threading.Lock()
        self._looking = threading.Lock()

    @property
    def may_block(self) -> bool:
        """Whether the store behind may, for the calls that it has to decide."""
        return self._store.may_block

    @property
    def me(self) -> str:
        """What the store calls this process."""
        return self._store.me

    @property
    def store(self) -> Leasable:
        """The store that slices are taken of."""
        return self._store

    # --- the way of most calls --------------------------------------------------------------------------------------

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none: from a slice, or from the store."""
        call, charges, subjects, _, rows = request
        with self._lock:
            fast = self._fast.get(id(rows))
            if fast is not None and len(charges) == fast[1] and (not self._isolated or self._isolated.isdisjoint(subjects)):
                _, _, slice_, of_tokens, of_nanos, of_calls = fast
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
                    return GRANTED
        answer, wanted = self._look(request)
        if answer is None and wanted is not None and self._lease(request, *wanted):
            return GRANTED
        return answer or self._reserve_exactly(request)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        with self._lock:
            grant = self._open.pop(id, None)
            if grant is None:
                slice_ = None
            else:
                slice_, tokens, nanos, _ = grant
                slice_.tokens += tokens - actual[0]
                slice_.nanos += nanos - actual[1]
        if slice_ is None:
            return self._store.settle(id, actual)
        if self._watchers:
            self._watchers.announce()
        return self._settled(slice_) if slice_.until < 0 or self._crossed else SETTLED

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says when the call is a slice's, or the store is free; None otherwise."""
        with self._lock:
            grant = self._open.get(id)
        if grant is not None:
            return None if grant[0].until < 0 else self.settle(id, actual)  # a slice that is given up gives account
        settled = self._store.try_settle(id, actual)
        if settled is not None:
            with self._lock:
                self._open.pop(id, None)
        return settled

    # --- the way of the others --------------------------------------------------------------------------------------

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says when a slice has room, or the store is free; None otherwise."""
        if not self._store.may_block:
            return self.reserve(request)
        answer, wanted = self._look(request)
        if answer is not None or wanted is not None:
            return answer
        return self._unless_it_may_heal(request, self._store.try_reserve(request))

    async def areserve(self, request: Reserve) -> Granted | Refused:
        """Like `reserve`, without blocking the event loop. What the store decides travels together, where it can do so.

        When the task is cancelled meanwhile, whatever is granted is given back.
        """
        if not self._store.may_block:
            return self.reserve(request)
        answer, wanted = self._look(request)
        if answer is None and wanted is None and not request.force:
            asked = self._store.try_reserve(request) if self._await_store is None else await self._await_store(request)
            answer = self._unless_it_may_heal(request, asked)
        return answer or await Deciding(self.reserve, self.settle, request).in_thread()

    def _look(self, request: Reserve) -> tuple[Granted | Refused | None, tuple[Chain, Amounts] | None]:
        """What a slice says; if none says anything, of which chain to take one, and what the call charges."""
        call, charges, subjects, _, rows = request
        with self._lock:
            if self._open.get(call) is not None:
                return GRANTED, None
            is_lost = self._isolated is _UNKNOWN and bool(self._listening)
            chain = None if is_lost or call in self._open else self._chain(charges)
            ask = None if chain is None else chain.amounts(charges)
            if chain is None or ask is None:
                return None, None
            if subject := next(filter(self._isolated.__contains__, subjects), None):
                return Refused(RefusalKind.ISOLATED, subject), None
            if self._take(call, chain, ask):
                self._remember(rows, chain)
                return GRANTED, None
            return None, (chain, ask) if self._is_due(chain) else None

    def _unless_it_may_heal(self, request: Reserve, answer: Granted | Refused | None) -> Granted | Refused | None:
        """What the store said to somebody who cannot wait: no refusal, if there may be something to give back first."""
        if isinstance(answer, Granted):
            self._know(request.id)
            return answer
        return None if answer is None or answer.kind in _MAY_HEAL else answer

    def _chain(self, charges: Sequence[Charge]) -> Chain | None:
        """The chain of charges; None when it cannot be leased."""
        keys = tuple([key for key, _ in charges])
        if keys in self._chains:
            return self._chains[keys]
        limits = [(key, self._limits[key]) for key in keys if key in self._limits]
        is_whole = 0 < len(limits) == len(keys) == len(set(keys))
        chain = Chain(limits) if is_whole and all(is_leasable(limit) for _, limit in limits) else None
        if chain is not None or is_whole:
            if len(self._chains) >= _MOST_REMEMBERED:
                self._chains = {
                    keys: chain for keys, chain in self._chains.items() if chain is not None and chain.slice is not None
                }
            self._chains[keys] = chain
        return chain

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
        if len(self._fast) >= _MOST_REMEMBERED:
            self._fast.clear()
        tokens, nanos, calls = chain.places
        self._fast[id(rows)] = (rows, len(rows), chain.slice, tokens, nanos, calls)

    def _is_due(self, chain: Chain) -> bool:
        """Whether to take a slice for the call that asks: for the second within a horizon, when nobody else is waiting."""
        now = self._now()
        is_frequent = chain.slice is not None or now - chain.seen_at < self._horizon
        chain.seen_at = now
        return is_frequent and now >= chain.exact_until

    def _lease(self, request: Reserve, chain: Chain, ask: Amounts) -> bool:
        """Let the chain's slice grow, and take the call from it. False when the store should rather decide."""
        call, subjects = request.id, request.subjects
        self._listen()
        with self._lock:
            if not self._are_free(subjects):
                return False
            now = self._now()
            slice_ = chain.slice
            if slice_ is None:
                slice_ = chain.slice = Slice(next(self._names), chain, now)
                self._slices[slice_.id] = slice_
        with slice_.turn:
            with self._lock:
                if self._take(call, chain, ask):  # another thread has let it grow
                    return True
                calls = chain.next_size(now, self._horizon, self._most_calls, slice_.is_begun)
            grown = slice_ is chain.slice and self._give_account(slice_, keeps_left=True, ask=ask, calls=calls)
            with self._lock:
                if not grown:
                    chain.exact_until = now + self._horizon / 2  # others should have what is left
                return bool(grown) and self._are_free(subjects) and self._take(call, chain, ask)

    def _reserve_exactly(self, request: Reserve) -> Granted | Refused:
        """Ask the store. What this process has lying idle in the way of the call is given back first."""
        call, charges, _, force, _ = request
        if force:
            self._give_back([key for key, _ in charges])
        answer = self._store.reserve(request)
        for _ in range(_TRIES):
            if isinstance(answer, Granted) or answer.kind not in _MAY_HEAL:
                break
            if not self._give_back([answer.row]) and (answer.kind is RefusalKind.EXHAUSTED or not self._recall(answer.row)):
                break
            answer = self._store.reserve(request)
        if isinstance(answer, Granted):
            self._know(call)
        return answer

    def _know(self, id: str) -> None:
        """Note that the store itself has admitted a call."""
        with self._lock:
            self._open[id] = None

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        charges = tuple(charges)
        with self._lock:
            grant = self._open.get(id)
            if grant is None:
                more = None
            else:
                slice_ = grant[0]
                more = slice_.chain.more(charges)
                if more is not None and self._now() < slice_.until and more[0] <= slice_.tokens and more[1] <= slice_.nanos:
                    self._enlarge(id, more)
                    slice_.tokens -= more[0]
                    slice_.nanos -= more[1]
                    return Granted(charges)
        if grant is not None and more is not None:
            return self._extend_slice(id, grant[0], charges)
        if grant is not None:
            self._make_own(id, grant)
        return self._extend_exactly(id, charges)

    def _extend_slice(self, id: str, slice_: Slice, charges: tuple[Charge, ...]) -> Granted | Refused:
        """Take more for an open call into the slice that it belongs to, when there is not enough left in it."""
        self._give_back([key for key, _ in charges])
        with slice_.turn:
            answer = self._store.extend(slice_.id, charges)
            if isinstance(answer, Refused):
                return answer._replace(row=id) if answer.row == slice_.id else answer
            taken = slice_.chain.more(answer.charges or charges) or NOTHING
            with self._lock:
                slice_.total = add(slice_.total, taken)
                self._enlarge(id, taken)
        return answer

    def _enlarge(self, id: str, more: Amounts) -> None:
        if (grant := self._open.get(id)) is not None:
            slice_, tokens, nanos, calls = grant
            self._open[id] = (slice_, tokens + more[0], nanos + more[1], calls)

    def _extend_exactly(self, id: str, charges: tuple[Charge, ...]) -> Granted | Refused:
        """Ask the store, and again for the rest when this process had some of it lying idle."""
        answer = self._store.extend(id, charges)
        if isinstance(answer, Refused):
            is_worth_it = answer.kind is not RefusalKind.UNREGISTERED and self._give_back([key for key, _ in charges])
            return self._store.extend(id, charges) if is_worth_it else answer
        granted = answer.charges
        if granted == charges or not self._give_back([key for key, _ in charges]):
            return answer
        rest = tuple(Charge(key, asked - amount) for (key, asked), (_, amount) in zip(charges, granted, strict=True))
        more = self._store.extend(id, rest)
        if isinstance(more, Refused):
            return answer
        both = tuple(Charge(key, first + second) for (key, first), (_, second) in zip(granted, more.charges, strict=True))
        return Granted(both, (*answer.crossed, *more.crossed))

    def _make_own(self, id: str, grant: _Grant) -> None:
        """Give an open call a hold of its own, for what a slice cannot do. For a moment it is held twice, never not at all."""
        slice_, tokens, nanos, _ = grant
        counted = {key: amount for key, amount in slice_.chain.charges(Amounts(tokens, nanos)) if amount}
        while isinstance(
            refused := self._store.reserve(Reserve(id, tuple(map(Charge._make, counted.items())), (), force=True)), Refused
        ):
            del counted[refused.row]  # it was forgotten: what calls held of it settles into nothing
        with self._lock:
            if self._open.get(id) is grant:
                self._open[id] = None
                slice_.tokens += tokens
                slice_.nanos += nanos
        with slice_.turn:
            self._give_account(slice_, keeps_left=False)

    def _settled(self, slice_: Slice) -> Settled:
        """The answer to a settlement after which something is to be told, or which was the last of a slice."""
        if slice_.is_lost:
            return NOT_SETTLED
        with self._lock:
            crossed, self._crossed = tuple(self._crossed), []
            is_last = slice_.until < 0 and not self._is_open(slice_)
        if is_last:
            with slice_.turn, contextlib.suppress(StoreUnavailable):  # else the next sweep tells it
                self._give_account(slice_, keeps_left=False)
        return Settled(True, crossed) if crossed else SETTLED

    # --- slices -----------------------------------------------------------------------------------------------------

    def _give_account(self, slice_: Slice, *, keeps_left: bool, ask: Amounts = NOTHING, calls: int = 0) -> int:
        """Tell the store what was used of a slice, give back what is left unless it is kept, and ask for more.

        Returns:
            For how many calls it has grown; -1 when there was nothing to tell.
        """
        with self._lock:
            held, is_open = self._held(slice_)
            used, left = slice_.used(held), at_least_nothing(slice_.left)
            kept = left if keeps_left else NOTHING
            if slice_.is_lost or not (
                calls or any(used) or kept != left or (slice_.is_begun and slice_.until < 0 and not is_open)
            ):
                return -1
            keeps = is_open or any(kept)
            slice_.begin_anew(held, kept)
            if not (keeps or calls):
                self._give_up(slice_)
            account = Account(
                slice_.id,
                used,
                slice_.chain.charges(slice_.total) if keeps else (),
                slice_.chain.charges(ask) if calls else (),
                calls,
                SHARE,
            )
            self._accounting += 1
        asked_at = self._now()
        try:
            answer = self._store.lease(account)
        except BaseException:  # Ctrl-C too: what was used is not forgotten for it
            with self._lock:
                self._end_account()
                if not slice_.is_begun:  # it may have been granted all the same: it is given back when the store answers
                    slice_.is_begun = True
                    self._give_up(slice_)
                slice_.total = add(slice_.total, used)  # to be told again: rather twice, if only the answer was lost, than never
            raise
        with self._lock:
            self._end_account()
            slice_.accounted_at = asked_at
            if isinstance(answer, Refused):
                slice_.is_lost = answer.row == slice_.id
                slice_.total = add(slice_.total, used)
                self._give_up(slice_)
                if slice_.is_lost or not slice_.is_begun:
                    self._slices.pop(slice_.id, None)
                return 0
            self._crossed += answer.crossed
            slice_.grow(ask, answer.calls)
            slice_.renew(asked_at + self._horizon)
            slice_.is_begun = keeps or answer.calls > 0
            if not slice_.is_begun:
                self._give_up(slice_)
                self._slices.pop(slice_.id, None)
            return answer.calls

    def _end_account(self) -> None:
        self._accounting -= 1
        self._accounts += 1

    def _give_up(self, slice_: Slice) -> None:
        """Admit no further call from a slice."""
        slice_.until = float("-inf")
        self._fast.clear()
        if slice_.chain.slice is slice_:
            slice_.chain.slice = None

    def _held(self, slice_: Slice) -> tuple[Amounts, bool]:
        """What open calls hold of a slice, and whether there are any. Their calls are made, hence used."""
        mine = [grant for grant in self._open.values() if grant is not None and grant[0] is slice_]
        return Amounts(sum(grant[1] for grant in mine), sum(grant[2] for grant in mine)), bool(mine)

    def _is_open(self, slice_: Slice) -> bool:
        return any(grant is not None and grant[0] is slice_ for grant in self._open.values())

    def _give_back(self, keys: Sequence[str]) -> bool:
        """Give back what lies idle of rows, and tell what was used of them. Whether there was anything."""
        with self._lock:
            now = self._now()
            slices = [slice_ for slice_ in self._slices.values() if not slice_.chain.keyset.isdisjoint(keys)]
        found = False
        for slice_ in slices:
            with slice_.turn:
                slice_.chain.exact_until = now + self._horizon / 2
                found = self._give_account(slice_, keeps_left=False) >= 0 or found
        return found

    def _give_back_all(self, keys: Sequence[str]) -> None:
        """Somebody waits for what lies idle here. All have heard it, so nobody needs to say it again just now."""
        self._note_recall(keys)
        with contextlib.suppress(StoreUnavailable):  # it stays held, and is given back by the next sweep
            self._give_back(keys)

    def _give_back_idle(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # it stays held, until it is swept
            for slice_ in list(self._slices.values()):
                with slice_.turn:
                    self._give_account(slice_, keeps_left=False)

    def _recall(self, key: str) -> bool:
        """Ask others for what lies idle there. Whether it was done: every waiting call asks, and all of a fleet seldom."""
        if time.monotonic() - self._recalled.get(key, -1.0) < _RECALL_PAUSE_SECONDS:
            return False
        self._note_recall([key])
        self._store.recall([key])
        return True

    def _note_recall(self, keys: Sequence[str]) -> None:
        now = time.monotonic()
        with self._lock:
            if len(self._recalled) >= _MOST_REMEMBERED:
                self._recalled.clear()
            self._recalled.update(dict.fromkeys(keys, now))

    def _listen(self) -> None:
        """Hear of isolations and recalls from now on. A process that has never taken a slice has no need to."""
        if self._listening:
            return
        with self._joining:
            if not self._listening:
                self._listening = (
                    self._store.watch_isolations(self._look_at_isolations, self._stop),
                    self._store.watch_recalls(self._give_back_all),
                )
                self._look_at_isolations()

    def _look_at_isolations(self) -> None:
        """Read who is isolated. While that is known to have changed and cannot be read, the store decides every call."""
        with self._looking:  # so that what is read first is not what stands last
            try:
                isolated = frozenset(isolation.subject for isolation in self._store.isolations())
            except StoreUnavailable:
                isolated = _UNKNOWN
            with self._lock:
                self._isolated = isolated
                if isolated is _UNKNOWN:
                    self._fast.clear()

    def _stop(self, _epoch: int, isolation: Isolation) -> None:
        """Admit nothing more of a subject, before it is read who is isolated."""
        with self._looking, self._lock:
            if self._isolated is not _UNKNOWN:
                self._isolated |= {isolation.subject}

    def _are_free(self, subjects: Sequence[str]) -> bool:
        """Whether none of them is isolated, as far as is known."""
        return self._isolated is not _UNKNOWN and self._isolated.isdisjoint(subjects)

    def sweep(self) -> int:
        """Hear of slices that have told nothing for half a horizon, give back what lies idle in them, and sweep the store."""
        if self._listening and self._isolated is _UNKNOWN:
            self._look_at_isolations()
        with self._lock:
            now = self._now()
            due = [
                slice_
                for slice_ in self._slices.values()
                if abs(now - slice_.accounted_at) >= self._horizon / 2 or slice_.until <= now  # clocks are set back, too
            ]
        for slice_ in due:
            with slice_.turn:
                with self._lock:
                    if slice_.until <= now:
                        self._give_up(slice_)
                    used, left = slice_.used(self._held(slice_)[0]), slice_.left
                is_idle = all(
                    part * 4 < rest for part, rest, counts in zip(used, left, slice_.chain.counts, strict=True) if counts
                )
                self._give_account(slice_, keeps_left=not is_idle and slice_.until > now)
        return self._store.sweep()

    # --- what the store says ----------------------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        rows = tuple(rows)
        with self._lock:
            changed = [key for key, _, limit in rows if self._limits.get(key, limit) != limit]
            if len(self._limits) >= _MOST_LIMITS:
                self._limits = {key: limit for key, limit in self._limits.items() if limit.per not in SHORT_LIVED}
            self._limits.update((key, limit) for key, _, limit in rows)
        self._drop(changed)
        self._store.register(rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        with self._lock:
            for key in keys:
                self._limits.pop(key, None)
        self._drop(keys)
        self._store.forget(keys)

    def _drop(self, keys: Sequence[str]) -> None:
        """Take no more from the slices of rows that have changed."""
        if not keys:
            return
        self._give_back(keys)
        with self._lock:
            for slice_ in [slice_ for slice_ in self._slices.values() if not slice_.chain.keyset.isdisjoint(keys)]:
                self._give_up(slice_)
            self._chains = {known: chain for known, chain in self._chains.items() if not set(keys) & set(known)}

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows: what this process has used counts as spent, and what lies idle in its slices as not held."""
        self._end_what_is_over()
        return self._as_they_are(lambda: self._store.read(keys))

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        self._end_what_is_over()
        rows: Sequence[tuple[LimitRow, Balance]] = ()

        def read() -> list[Balance]:
            nonlocal rows
            rows = self._store.rows()
            return [balance for _, balance in rows]

        balances = self._as_they_are(read)
        return [(row, balance) for (row, _), balance in zip(rows, balances, strict=True)]

    def _end_what_is_over(self) -> None:
        """Tell what was used in windows that are over: it counts in no balance of now."""
        now = self._now()
        for slice_ in [slice_ for slice_ in list(self._slices.values()) if slice_.ends <= now]:
            with slice_.turn:
                self._give_account(slice_, keeps_left=False)

    def _as_they_are(self, read: Callable[[], Sequence[Balance]]) -> list[Balance]:
        """Balances with what this process has not told yet. They are read again if an account was on its way meanwhile.

        What it tells would be in both of them, or in neither.
        """
        found: list[Balance] = []
        for _ in range(_TRIES):
            seen = self._accounts
            balances = read()
            with self._lock:
                is_whole = self._accounts == seen and not self._accounting
                found = [self._as_it_is(balance) for balance in balances]
            if is_whole:
                break
        return found

    def _as_it_is(self, balance: Balance) -> Balance:
        mine = [slice_ for slice_ in self._slices.values() if balance.row in slice_.chain.keyset]
        used = idle = 0
        for slice_ in mine:
            used += slice_.chain.of(balance.row, slice_.used(self._held(slice_)[0]))
            idle += slice_.chain.of(balance.row, slice_.left)
        return balance._replace(spent=balance.spent + used, held=balance.held - used - idle) if mine else balance

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        epoch = self._store.isolate(subject, on=on, by=by, why=why)
        self._look_at_isolations()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""
        return self._store.isolations()

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`."""
        return self._store.dated_isolations()

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        return self._store.epoch()

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations, here and wherever the store is used."""
        return Together(self._watchers.add(on_change), self._store.watch(on_change))

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations only."""
        return self._store.watch_isolations(on_change, on_isolated)

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself."""
        self._store.beat(member)

    def leave(self, name: str) -> None:
        """Strike a process from the list. What lies idle is given back: it ends, and would be charged what it holds."""
        self._give_back_idle()
        self._store.leave(name)

    def members(self) -> Sequence[Member]:
        """The processes that were heard of."""
        return self._store.members()

    def holds(self) -> Sequence[Hold]:
        """What calls and slices hold."""
        return self._store.holds()

    def renew(self) -> None:
        """Move on the deadlines of this process's calls and slices."""
        self._store.renew()

    def close(self) -> None:
        """Give back what lies idle, and free the store. What open calls hold stays held."""
        self._give_back_idle()
        for listening in self._listening:
            listening.close()
        self._store.close()

    # --- forks ------------------------------------------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Go on as another process: the slices are the parent's, and so are the calls in flight."""
        self._lock = threading.Lock()
        self._watchers.lock = threading.Lock()
        self._chains.clear()
        self._slices.clear()
        self._open.clear()
        self._fast.clear()
        self._crossed.clear()
        self._begin()

"""What every store can do, and the values that go in and come out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import Amounts, Charge, Crossed, LimitRow, Refused, Row


class Reserve(NamedTuple):
    """A request for all charges of one call.

    Attributes:
        id: Names the call. While it is open, asking again with the same id gives the same answer.
        charges: One for each row; a row that is named twice is a `ValueError`, since both charges might not fit where each does.
            A negative amount, with `force`, is an operator's correction: settled, it takes back what was spent.
        subjects: Every subject of the call; if one is isolated, the call is refused.
        force: Take the charges whatever the rows say (report mode). The refusal that this passed over is in `Granted.refused`.
            Isolation and a missing row refuse all the same.
        rows: The rows of the call, by whoever keeps one tuple for all calls that have the same rows, and charges all that
            count the same unit the same. Only to know a chain again: what is charged stands in `charges`.
    """

    id: str
    charges: tuple[Charge, ...]
    subjects: tuple[str, ...] = ()
    force: bool = False
    rows: tuple[LimitRow, ...] = ()


class Granted(NamedTuple):
    """The charges were taken.

    Attributes:
        charges: What an extension took, which may be a part, so that nothing strands. Empty: all that was asked for.
        crossed: Soft steps that were passed.
        refused: What would have been the answer without `force`.
    """

    charges: tuple[Charge, ...] = ()
    crossed: tuple[Crossed, ...] = ()
    refused: Refused | None = None


GRANTED = Granted()


class Settled(NamedTuple):
    """The answer to a settlement. `first` is False when the id was settled before, or is not known: nothing changed then."""

    first: bool
    crossed: tuple[Crossed, ...] = ()


SETTLED = Settled(first=True)
NOT_SETTLED = Settled(first=False)


class Balance(NamedTuple):
    """A row as `read` gives it, in the limit's unit. `resets_at` is Unix time; None for windows that do not end at once."""

    row: str
    amount: int
    spent: int
    held: int
    resets_at: float | None = None

    @classmethod
    def of(cls, row: Row, now: float) -> Balance:
        """The balance of a row, at a moment."""
        row = row.at(now)
        return cls(row.key, row.amount, row.spent, row.held, row.ends if row.window.every else None)


class Isolation(NamedTuple):
    """An isolated subject, and who isolated it, why and when (Unix time).

    To a store a subject is a word: it refuses every request that names it among its `subjects`. What the words mean is said in
    `agentguard.core.isolation`: `agent:a` stops every call of the agent, `llm@agent:a` its LLM calls, `key:k` the uses of a key.
    """

    subject: str
    by: str
    why: str
    at: float


class Member(NamedTuple):
    """A guarded process, as it last described itself.

    Attributes:
        name: `Store.me` of its process, a slash, and what tells two guards of one process apart.
        host, pid: Where it runs.
        agent: Its own agent; empty when it hosts several.
        version: That of agentguard.
        policy: The digest of the policy in force: the same on every host, unless they have drifted apart.
        mode: `enforce` or `report`: in the latter nothing is refused.
        epoch: The newest epoch whose isolations it acts on.
        started: When it joined, in Unix time.
        at: When it was last heard of, in the store's time. `beat` sets it.
    """

    name: str
    host: str
    pid: int
    agent: str
    version: str
    policy: str
    mode: str
    epoch: int
    started: float
    at: float = 0.0

    @property
    def holder(self) -> str:
        """What the store calls its process, as the holder of what it holds."""
        return self.name.partition("/")[0]


class Hold(NamedTuple):
    """What one call in flight holds of each row. It is charged at the deadline (Unix time; None: it has none)."""

    id: str
    holder: str
    charges: tuple[Charge, ...]
    deadline: float | None = None


FORGET_MEMBER_SECONDS = 600.0
"""A process that has said nothing for so long is not listed any more. One that is known to be dead goes at once."""


class WallClock(Protocol):
    """A source of Unix time. The module `time` is one."""

    def time(self) -> float:
        """Seconds since 1970, UTC."""


class Closeable(Protocol):
    """Something to close."""

    def close(self) -> None:
        """Stop, and free what is held. Twice is once."""


class Store(Protocol):
    """Counts, holds and isolations. Every verb is atomic, and raises `StoreUnavailable` when there is no answer in time."""

    @property
    def may_block(self) -> bool:
        """Whether a verb may wait for another process, so that an event loop should call it in a thread."""

    @property
    def me(self) -> str:
        """What the store calls this process, and no other one. A forked child has another name than its parent."""

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount. What they have counted stays."""

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows that will not be asked for again (an ended budget block). A hold on them settles into nothing."""

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none. Asking again with the same id gives the same answer.

        Returns:
            Granted when every charge was taken; otherwise Refused with the row that stands in the way, and nothing was taken.
        """

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """What `reserve` says, without waiting; None while another thread or process is deciding: ask `reserve` in a thread."""

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or the largest share that is left; refused when there is nothing left."""

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""

    def try_settle(self, id: str, actual: Amounts) -> Settled | None:
        """What `settle` says, without waiting; None when it would have to, and nothing is done: ask `settle` in a thread."""

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked; rows that are not known are left out."""

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row: the ledger, for the operator."""

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it. Returns the epoch, which grows with every change."""

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, in one look. They are of that epoch or newer."""

    def epoch(self) -> int:
        """The number of changes by `isolate` so far: a cheap look whether there is something new.

        A number that has become smaller means that the store has lost what it was told.
        """

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations, by whatever process, at most 20 ms late.

        It may be called without a change, and from any thread; it must not raise.
        """

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations only, by whatever process: pushed, so that it takes milliseconds and idles for free.

        Every process listens all the time, so a settlement must not call it. What a broken subscription has missed is found
        within 50 ms: the epoch is looked at when the subscription stands again, and every now and then.
        It may be called without a change, and from any thread; it must not raise.

        Args:
            on_change: Reads who is isolated.
            on_isolated: Called ahead of it, with the epoch and the isolation, by a store whose messages say them. It may be late
                or false: it says nothing to whoever knows that epoch, and holds only until `on_change` has read.
        """

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself, and that it was heard of now."""

    def leave(self, name: str) -> None:
        """Strike a process from the list: it ends."""

    def members(self) -> Sequence[Member]:
        """The processes that were heard of in the last `FORGET_MEMBER_SECONDS`, in the order in which they started.

        Those that have left, or are known to be dead, are not among them.
        """

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold, for the operator; the earliest deadline first. Rows that are forgotten are left out."""

    def renew(self) -> None:
        """Move on the deadlines of this process's open holds."""

    def sweep(self) -> int:
        """Charge the holds of dead processes, and of those past their deadline. Returns how many."""

    def close(self) -> None:
        """Free what is held. Open holds stay, and are swept when the process is gone."""


class Account(NamedTuple):
    """What the holder of a slice says of it, and what more it asks for.

    A slice is a hold that many calls share: whoever holds it admits calls out of it without asking the store.

    Attributes:
        id: Names the slice among the ids of calls.
        used: What calls have used of it since the last account, in each unit; it is spent now, in the window of the slice.
        keep: What it goes on holding of each row: what calls in flight hold, and what is left for later ones.
        call: What one call charges, to ask for more; empty to ask for nothing.
        calls: How many such calls the slice should grow by, at most.
        share: No more of any row is taken than one `share`-th of what it has left.
    """

    id: str
    used: Amounts
    keep: tuple[Charge, ...] = ()
    call: tuple[Charge, ...] = ()
    calls: int = 0
    share: int = 1


class Accounted(NamedTuple):
    """The answer to an account. `calls`: how many calls the slice grew by, which may be none. `crossed`: soft steps passed."""

    calls: int
    crossed: tuple[Crossed, ...] = ()


class Leasable(Store, Protocol):
    """A store that gives out slices. A slice is a hold like that of a call: it is renewed, and charged when its holder dies."""

    def lease(self, account: Account) -> Accounted | Refused:
        """Take the account of a slice, and let it grow: both in one step, so that what is kept is never anybody else's.

        A slice that is not open begins when nothing is used and kept. It ends when nothing is kept and it did not grow.
        It does not grow once the window of any of its rows is over: what is taken later belongs to a slice of its own.

        Returns:
            Accounted when the account was taken, whether or not the slice grew. Refused (UNREGISTERED, nothing changed) when a
            slice that uses or keeps something is not open, for it was swept or lost; or when a row of `call` is not known.
        """

    def recall(self, keys: Sequence[str]) -> None:
        """Ask whoever holds slices of these rows to give back what no call holds."""

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` with the rows that another process has recalled, at most 20 ms late.

        It may be called for rows that nobody has recalled, and from any thread; it must not raise.
        """

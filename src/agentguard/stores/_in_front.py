"""A store in front of another: what it does not do itself, the other does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Balance, Closeable, Hold, Isolation, Member, Store

_Behind = TypeVar("_Behind", bound="Store")


class InFront(Generic[_Behind]):
    """The verbs of a `Store` that are left to another one: all but those that admit, extend and settle calls.

    Args:
        store: The one behind. It is closed with this one.
    """

    def __init__(self, store: _Behind) -> None:
        self._store = store

    @property
    def store(self) -> _Behind:
        """The store behind."""
        return self._store

    @property
    def may_block(self) -> bool:
        """Whether the store behind may."""
        return self._store.may_block

    @property
    def me(self) -> str:
        """What the store behind calls this process."""
        return self._store.me

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        return self._store.read(keys)

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row."""
        return self._store.rows()

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        return self._store.isolate(subject, on=on, by=by, why=why)

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
        """Call `on_change` after settlements and isolations."""
        return self._store.watch(on_change)

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_change` after isolations only."""
        return self._store.watch_isolations(on_change, on_isolated)

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself."""
        self._store.beat(member)

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        self._store.leave(name)

    def members(self) -> Sequence[Member]:
        """The processes that were heard of."""
        return self._store.members()

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold."""
        return self._store.holds()

    def renew(self) -> None:
        """Move on the deadlines of what this process holds."""
        self._store.renew()

    def close(self) -> None:
        """Free the store behind."""
        self._store.close()

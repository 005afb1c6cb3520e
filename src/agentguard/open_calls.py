"""The calls of a guard that are admitted and not settled yet."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.admission import Admission, Owner

_COLLECT_SECONDS = 1.0


class OpenCalls:
    """The calls that are admitted and not settled yet. Any thread adds and removes.

    Args:
        monotonic: Seconds that never go back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._by_id: dict[str, Admission] = {}
        self._survivors: frozenset[str] = frozenset()
        self._collected = -float("inf")

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Admission]:
        """Those that are open now: whoever comes or goes meanwhile disturbs nobody."""
        return iter(list(self._by_id.values()))

    def add(self, admitted: Admission) -> None:
        """Know a call that was admitted."""
        self._by_id[admitted.id] = admitted

    def remove(self, admitted: Admission) -> None:
        """Forget a call that is settled. Twice is once."""
        self._by_id.pop(admitted.id, None)

    def clear(self) -> None:
        """Forget all, in a forked child: they are the parent's."""
        self._by_id.clear()

    def held_by(self, owner: Owner, row: str) -> int:
        """What the open calls of one thread or task hold of a row."""
        mine = [admitted for admitted in self if admitted.is_open and _is_same(admitted.owner, owner)]
        return sum(
            charge.amount for admitted in mine for charge in (*admitted.outcome.charges, *admitted.extended) if charge.row == row
        )

    def collect_garbage(self, owner: Owner | None = None) -> bool:
        """Free streams that a bare `break` has left: the SDK's stream and its generator are a cycle.

        Once a second at most; for an owner, whenever it has a stream that no collection has seen yet.

        Returns:
            Whether it was done.
        """
        now = self._monotonic()
        streams = [admitted for admitted in self if admitted.is_streaming and admitted.is_open]
        if owner is None:
            is_due = bool(streams) and now - self._collected >= _COLLECT_SECONDS
        else:
            is_due = any(stream.id not in self._survivors and _is_same(stream.owner, owner) for stream in streams)
        if is_due:
            self._collected = now
            gc.collect()
            self._survivors = frozenset(stream.id for stream in streams if stream.is_open)
        return is_due


def _is_same(other: Owner, mine: Owner) -> bool:
    """A task waits for itself in vain; a thread for everything that runs on it, its event loop's tasks included."""
    return other.task is mine.task if mine.task is not None else other.thread == mine.thread

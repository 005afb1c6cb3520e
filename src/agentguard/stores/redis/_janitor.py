"""What is left over in a Redis: the holds of dead processes, those past their deadline, and rows that are long idle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, cast

from agentguard.stores._holder import Holder
from agentguard.stores._idle import IDLE_SECONDS, PRUNE_EVERY_SECONDS, SHORT_LIVED
from agentguard.stores.redis._packing import MICROS, decoded, encoded, unpack_hold, unpack_registration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.stores.redis._keys import Keys
    from agentguard.stores.redis._link import Link

_BATCH = 200


class OpenHold(NamedTuple):
    """A call in flight, its deadline (Unix time), and what it holds, as the server has it."""

    id: str
    deadline: float
    packed: bytes


def open_holds(link: Link, keys: Keys) -> Iterator[list[OpenHold]]:
    """The calls in flight, in batches; the earliest deadline first."""
    found = link.ask(lambda client: client.zrange(keys.open, 0, -1, withscores=True))
    for start in range(0, len(found), _BATCH):
        calls = [(decoded(call), deadline / MICROS) for call, deadline in found[start : start + _BATCH]]
        packed = _packed(link, [keys.hold + call for call, _ in calls])
        yield [OpenHold(call, deadline, hold) for (call, deadline), hold in zip(calls, packed, strict=True) if hold]


def _packed(link: Link, names: list[str]) -> list[bytes | None]:
    return cast("list[bytes | None]", link.ask(lambda client: client.mget(encoded(names))))


class Janitor:
    """Clears away what is left over.

    Args:
        link: The way to the server.
        keys: The fleet's.
        charge: Ends the hold of a call, as `settle.lua` says `overdue` and `dead`. Returns whether it was there to be ended.
    """

    def __init__(self, link: Link, keys: Keys, charge: Callable[[str, str], bool]) -> None:
        self._link = link
        self._keys = keys
        self._charge = charge
        self._prune_at = 0.0

    def sweep(self, me: Holder) -> int:
        """Charge the holds of dead processes of this host, and of those past their deadline; now and then drop idle rows."""
        swept = 0
        seen: set[bytes] = set()
        while True:
            overdue, holders = self._link.run("overdue", [self._keys.open, self._keys.holders(me)], [_BATCH])
            swept += sum(self._charge(decoded(call), "overdue") for call in overdue)
            if len(overdue) < _BATCH or seen.issuperset(overdue):  # whatever stays in spite of it, the sweep ends
                break
            seen.update(overdue)
        dead = {name for holder in holders if Holder.parse(name := holder.decode()).is_dead(me)}
        if dead:
            swept += self._charge_dead(dead, me)
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + PRUNE_EVERY_SECONDS
            self._prune()
        return swept

    def _charge_dead(self, dead: set[str], me: Holder) -> int:
        """Charge what processes hold that are gone, and strike them from the host's list."""
        swept = 0
        for holds in open_holds(self._link, self._keys):
            swept += sum(self._charge(hold.id, "dead") for hold in holds if unpack_hold(hold.packed)[0] in dead)
        self._link.ask(lambda client: client.srem(self._keys.holders(me), *dead))
        return swept

    def _prune(self) -> None:
        """Drop rows of sessions, interactions and calls that are long idle."""
        now, _ = self._link.run("read", [self._keys.state])  # for the time: the server's, as the rows have it
        since = repr(now / MICROS - IDLE_SECONDS)
        for written in self._limits():
            limits = [unpack_registration(decoded(key), text) for key, text in written.items()]
            idle = [limit.key for limit in limits if limit.limit.per in SHORT_LIVED]
            if idle:
                self._link.run("forget", [self._keys.limits, *self._keys.rows(idle)], [since, *idle])

    def _limits(self) -> Iterator[dict[bytes, bytes]]:
        """What is registered, in batches. One that is dropped meanwhile does not disturb."""
        cursor, written = self._scan(0)
        yield written
        while cursor:
            cursor, written = self._scan(cursor)
            yield written

    def _scan(self, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        found = self._link.ask(lambda client: client.hscan(self._keys.limits, cursor, count=_BATCH))
        return cast("tuple[int, dict[bytes, bytes]]", found)

"""Counters in a Redis or Valkey, shared by the hosts of a fleet.

Every verb is one script, and so one round trip and atomic: it reads all rows of a call, decides as `core.limits` does, and
writes all of them or none. The clock is the server's. All keys of a fleet carry one hash tag, so that they are in one slot.

A server that was emptied knows nothing, which is not the same as nothing spent. It begins a new generation; a process that
knew an older one is granted nothing before it has told the server what it has taken itself, and for `LEARNING_SECONDS` nobody
is granted anything, so that all have the time to.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused, Row
from agentguard.errors import PolicyError, Problem
from agentguard.stores._fork import survive_forks
from agentguard.stores._holder import Holder
from agentguard.stores._watchers import Together
from agentguard.stores.base import (
    FORGET_MEMBER_SECONDS,
    GRANTED,
    NOT_SETTLED,
    SETTLED,
    Accounted,
    Balance,
    Granted,
    Hold,
    Isolation,
    Member,
    Settled,
)
from agentguard.stores.redis._batches import Batches
from agentguard.stores.redis._channels import Channels, isolation_of
from agentguard.stores.redis._janitor import Janitor, open_holds
from agentguard.stores.redis._keys import Keys
from agentguard.stores.redis._link import Link
from agentguard.stores.redis._own import OwnCounts
from agentguard.stores.redis._packing import (
    MICROS,
    MOST_EXACT,
    crossed_of,
    decoded,
    encoded,
    pack_registration,
    pack_row,
    refused_of,
    unpack_hold,
    unpack_registration,
    unpack_row,
)
from agentguard.stores.redis._scripts import Scripts
from agentguard.stores.redis._urls import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.stores.base import Account, Closeable, Reserve

HOLD_SECONDS = 600.0
"""How long a hold lives without being renewed: the SDKs' own timeout is 10 minutes."""

LEARNING_SECONDS = 2.0
"""How long nothing is granted after the server has lost what it was told: every guard looks at it once a second."""

_BATCH = 200
_T = TypeVar("_T")
_LOST = b"lost"
_CONTROL = struct.Struct("<d")


class RedisStore:
    """A `Store` in a Redis or Valkey, for all processes of a fleet. `areserve`, `aextend` and `asettle` are for event loops.

    Args:
        url: `redis://`, `rediss://`, `redis+sentinel://` or `redis+cluster://`.
        fleet: Names the shared counters; `?fleet=` of the URL outranks it.
        scripts: What runs inside the server.

    Attributes:
        is_leased: Whether the URL lets processes lease parts of the limits, as it does unless it says `?leases=off`.

    Raises:
        PolicyError: The URL is none of these.
    """

    may_block = True

    def __init__(self, url: str, *, fleet: str = "default", scripts: Scripts | None = None) -> None:
        address = Address.parse(url)
        self._link = Link(address, scripts or Scripts())
        self._batches = Batches(self._link)
        self.is_leased: bool = address.is_leased
        self._keys = Keys(address.fleet or fleet)
        self._front = (self._keys.state, self._keys.open)
        self._me = Holder.of_this_process()
        self._name = str(self._me)
        self._teller = _teller(self._name)
        self._own = OwnCounts()
        self._generation = ""
        self._is_listed = False
        self._janitor = Janitor(self._link, self._keys, self._charge)
        self._channels = Channels(self._link, self._keys, self.epoch)
        self._orphans: set[asyncio.Task[Any]] = set()
        survive_forks(self)

    @property
    def me(self) -> str:
        """This process."""
        return self._name

    # --- limits -----------------------------------------------------------------------------------------------------

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known, or adopt a changed amount."""
        rows = tuple(rows)
        for row in rows:
            if row.limit.amount >= MOST_EXACT:
                raise _too_large(row)
        self._own.know(rows)
        for batch in _in_batches(rows) or [()]:  # without rows too: this process joins the others by it
            self._register(batch)

    def _register(self, rows: Sequence[LimitRow]) -> None:
        keys = [
            self._keys.state,
            self._keys.limits,
            self._keys.ids,
            self._keys.holders(self._me),
            *(self._keys.row + row.key for row in rows),
        ]
        answer = [_LOST]
        while answer[0] == _LOST:
            arguments: list[str | bytes] = [self._generation, _new_generation(), self._name, self._keys.settlements]
            for row in rows:
                arguments += (row.key, pack_registration(row), pack_row(Row.of(row.key, row.limit), row.limit))
            answer = self._link.run("register", keys, arguments)
            if answer[0] == _LOST:
                self._tell_again()
        self._generation = answer[0].decode()
        self._is_listed = True

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        keys = tuple(keys)
        self._own.forget(keys)
        for batch in _in_batches(keys):
            self._link.run("forget", [self._keys.limits, *self._keys.rows(batch)], ["", *batch])

    # --- one call ---------------------------------------------------------------------------------------------------

    def reserve(self, request: Reserve) -> Granted | Refused:
        """Take all charges of a call or none."""
        self._link.breaker.check()
        answer = self._link.run("reserve", *self._asked(request))
        if isinstance(answer, list) and answer[0] == _LOST:
            self._tell_again()
            return _unknown(request)
        return self._granted(request, answer)

    def try_reserve(self, request: Reserve) -> Granted | Refused | None:
        """None: the answer always comes from elsewhere. Raises when it is known that none comes."""
        self._link.breaker.check()
        return None

    async def areserve(self, request: Reserve) -> Granted | Refused:
        """Like `reserve`, without blocking the event loop; requests of many tasks travel together.

        When the task is cancelled meanwhile, whatever is granted is given back.
        """
        loop = asyncio.get_running_loop()
        if not self._is_listed:
            await loop.run_in_executor(None, self._joined)
        asked = loop.create_task(self._batches.run("reserve", *self._asked(request)))
        try:
            answer = await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._orphan(self._give_back(request, asked))
            raise
        if isinstance(answer, list) and answer[0] == _LOST:
            await loop.run_in_executor(None, self._tell_again)
            return _unknown(request)
        return self._granted(request, answer)

    def extend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Take more for an open call: all of it, or what is left."""
        answer = self._link.run("extend", *self._more(id, charges))
        if answer[0] == _LOST:
            self._tell_again()
            answer = self._link.run("extend", *self._more(id, charges))
        return self._grown(id, charges, answer)

    async def aextend(self, id: str, charges: Sequence[Charge]) -> Granted | Refused:
        """Like `extend`, without blocking the event loop."""
        answer = await self._batches.run("extend", *self._more(id, charges))
        if answer[0] == _LOST:
            return await asyncio.get_running_loop().run_in_executor(None, self.extend, id, charges)
        return self._grown(id, charges, answer)

    def settle(self, id: str, actual: Amounts) -> Settled:
        """Replace what a call holds by what it used, exactly once."""
        answer = self._close(id, "used", actual)
        return self._settled_by(id, actual, answer)

    def try_settle(self, id: str, actual: Amounts) -> None:
        """Nothing: the server has to be asked."""

    async def asettle(self, id: str, actual: Amounts) -> Settled:
        """Like `settle`, without blocking the event loop."""
        keys = self._own.keys_of(id)
        if keys is None:
            return await asyncio.get_running_loop().run_in_executor(None, self.settle, id, actual)
        answer = await self._batches.run("settle", *self._ending(id, keys, "used", actual))
        if isinstance(answer, list) and answer[0] in {_LOST, b"keys"}:
            return await asyncio.get_running_loop().run_in_executor(None, self.settle, id, actual)
        return self._settled_by(id, actual, answer)

    # --- slices -----------------------------------------------------------------------------------------------------

    def lease(self, account: Account) -> Accounted | Refused:
        """Take the account of a slice, and let it grow."""
        keys: Iterable[str] = (*dict(account.keep), *(self._own.keys_of(account.id) or ()))
        while True:
            answer = self._link.run("lease", *self._accounted(account, keys))
            if answer[0] == b"keys":
                keys = self._keys.of_rows(decoded(key) for key in answer[1:])
            elif answer[0] == _LOST:
                self._tell_again()
            else:
                break
        if answer[0] == b"closed":
            self._own.drop(account.id)
            return Refused(RefusalKind.UNREGISTERED, account.id)
        if answer[0] == b"refused":
            return refused_of(answer[1], len(self._keys.row))
        _, now, calls, crossed = answer
        self._own.lease(account, calls, now / MICROS)
        self._channels.say_settled()
        return Accounted(calls, crossed_of(crossed, len(self._keys.row)))

    def recall(self, keys: Sequence[str]) -> None:
        """Ask whoever holds slices of these rows to give back what no call holds."""
        self._channels.recall(keys)

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` with the rows that any process has recalled."""
        return self._channels.watch_recalls(on_recall)

    # --- the ledger -------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        return [Balance.of(row, now) for row, now in self._read(keys) if row is not None]

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row, in the order in which they were registered."""
        written = self._link.ask(lambda client: client.hgetall(self._keys.limits))
        limits = [unpack_registration(decoded(key), text) for key, text in written.items()]
        read = self._read([limit.key for limit in limits])
        found = [(limit, row, now) for limit, (row, now) in zip(limits, read, strict=True) if row is not None]
        return [(limit, Balance.of(row, now)) for limit, row, now in sorted(found, key=lambda one: one[1].id)]

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold; the earliest deadline first."""
        holds: list[Hold] = []
        for batch in open_holds(self._link, self._keys):
            read = [(hold, *unpack_hold(hold.packed)) for hold in batch]
            keys = self._keys.of_rows(row for _, _, items in read for row, _, _ in items)
            known = {self._keys.row + row.key: row for row, _ in self._read(keys) if row is not None}
            for hold, holder, items in read:
                rows = [(known.get(row), row_id, held) for row, row_id, held in items]
                charges = [Charge(row.key, held) for row, row_id, held in rows if row is not None and row.id == row_id]
                holds.append(Hold(hold.id, holder, tuple(charges), hold.deadline))
        return holds

    # --- isolation --------------------------------------------------------------------------------------------------

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        arguments = ["1" if on else "", subject, by, why, self._keys.isolations]
        epoch = int(self._link.run("isolate", [self._keys.control, self._keys.isolated], arguments))
        self._channels.say_isolated()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""
        return self.dated_isolations()[1]

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, of one moment."""
        epoch, found = self._link.run("isolations", [self._keys.state], [self._keys.control, self._keys.isolated])
        pairs = zip(found[::2], found[1::2], strict=True)
        isolations = [isolation_of(decoded(subject), *json.loads(said)) for subject, said in pairs]
        return epoch, sorted(isolations, key=lambda isolation: (isolation.at, isolation.subject))

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        control = self._link.ask(lambda client: client.get(self._keys.control))
        return int(_CONTROL.unpack_from(control)[0]) if control else 0

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations."""
        return Together(self._channels.watch_settlements(on_change), self._channels.watch_isolations(on_change))

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_isolated` with what a message says of an isolation, and `on_change` after it."""
        return self._channels.watch_isolations(on_change, on_isolated)

    # --- the processes ----------------------------------------------------------------------------------------------

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself, and that it was heard of now."""
        self._link.run(
            "beat", [self._keys.members, self._keys.heard], [member.name, json.dumps(member), _micros(FORGET_MEMBER_SECONDS)]
        )

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        self._link.ask(lambda client: (client.zrem(self._keys.heard, name), client.hdel(self._keys.members, name)))

    def members(self) -> Sequence[Member]:
        """The processes that were heard of, without those that have left or are dead."""
        found = self._link.run("members", [self._keys.members, self._keys.heard], [_micros(FORGET_MEMBER_SECONDS)])
        members = [Member._make(json.loads(text))._replace(at=at / MICROS) for text, at in found]
        living = [member for member in members if not Holder.parse(member.holder).is_dead(self._me)]
        return sorted(living, key=lambda member: (member.started, member.name))

    def renew(self) -> None:
        """Move on the deadlines of this process's open holds."""
        for batch in _in_batches(self._own.ids()):
            self._link.run("renew", [self._keys.open], [_micros(HOLD_SECONDS), len(batch), *batch])

    def sweep(self) -> int:
        """Charge the holds of dead processes of this host, and of those past their deadline."""
        self._look_whether_lost()
        return self._janitor.sweep(self._me)

    def close(self) -> None:
        """Free the connections. Open holds stay, and are swept when the process is gone. A later verb connects anew."""
        self._channels.close()
        self._link.close()
        self._batches.cut_ended()

    async def aclose(self) -> None:
        """Free the connections of the running event loop too."""
        await asyncio.gather(*self._orphans, return_exceptions=True)
        await self._batches.close()
        self.close()

    def before_fork(self) -> None:
        """Nothing to bring to rest: each connection is used by one thread, and the child opens its own."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Go on as another process, that has taken nothing yet and has no threads."""
        self._link.drop()
        self._batches.drop()
        self._me = Holder.of_this_process()
        self._name = str(self._me)
        self._teller = _teller(self._name)
        self._own.clear()
        self._is_listed = False
        self._channels.restart()

    # --- asking and reading answers ---------------------------------------------------------------------------------

    def _asked(self, request: Reserve) -> tuple[list[str], list[str | int]]:
        call, charges, subjects, force, _ = request
        if len({key for key, _ in charges}) < len(charges):
            raise ValueError(f"a request charges a row twice: {', '.join(charge.row for charge in charges)}")
        row = self._keys.row
        keys = [*self._front, self._keys.hold + call, *[row + key for key, _ in charges]]
        head = (self._joined(), call, self._name, _HOLD_MICROS, "1" if force else "", self._keys.control, self._keys.isolated)
        return keys, [*head, *[amount for _, amount in charges], *subjects]

    def _granted(self, request: Reserve, answer: Any) -> Granted | Refused:
        if not isinstance(answer, list):
            if answer:
                self._own.take(request.id, request.charges, answer / MICROS)
            elif not self._own.is_open(request.id):  # it was granted before, and only the answer was lost
                self._own.take(request.id, request.charges, time.time())
            return GRANTED
        if answer[0] == b"refused":
            return refused_of(answer[1], len(self._keys.row))
        _, now, crossed, refused = answer
        if not self._own.is_open(request.id):
            self._own.take(request.id, request.charges, now / MICROS)
        prefix = len(self._keys.row)
        return Granted((), crossed_of(crossed, prefix), refused_of(refused, prefix) if refused else None)

    def _joined(self) -> str:
        """The generation that this process has joined. Before it asks it is put on its host's list, so that its death is seen."""
        if not self._is_listed:
            self.register(())
        return self._generation

    def _more(self, id: str, charges: Sequence[Charge]) -> tuple[list[str], list[str | int]]:
        keys = [self._keys.state, self._keys.hold + id, *(self._keys.row + key for key, _ in charges)]
        return keys, [self._joined(), id, *(amount for _, amount in charges)]

    def _grown(self, id: str, charges: Sequence[Charge], answer: Any) -> Granted | Refused:
        if answer[0] == b"closed":
            return Refused(RefusalKind.UNREGISTERED, id)
        if answer[0] != b"granted":
            return refused_of(answer[1], len(self._keys.row))
        _, now, crossed, amounts = answer
        granted = tuple(Charge(key, amount) for (key, _), amount in zip(charges, amounts, strict=True))
        self._own.take(id, granted, now / MICROS)
        return Granted(granted, crossed_of(crossed, len(self._keys.row)))

    def _accounted(self, account: Account, others: Iterable[str]) -> tuple[list[str], list[str | int]]:
        part: dict[str, int | str] = dict(account.call)
        keep: dict[str, int | str] = dict(account.keep)
        keys = list(dict.fromkeys((*part, *keep, *others)))
        arguments: list[str | int] = [self._joined(), account.id, self._name, _HOLD_MICROS, self._keys.settlements]
        arguments += (account.used.tokens, account.used.nanos, account.used.calls, account.calls, account.share)
        for key in keys:
            arguments += [keep.get(key, ""), part.get(key, "")]
        rows = self._keys.rows(keys)
        return [self._keys.state, self._keys.open, self._keys.hold + account.id, *rows], arguments

    def _ending(self, id: str, keys: Iterable[str], how: str, actual: Amounts) -> tuple[list[str], list[str | int]]:
        rows = self._keys.rows(keys)
        arguments: list[str | int] = [self._joined(), id, self._keys.settlements, how, actual.tokens, actual.nanos, actual.calls]
        return [self._keys.state, self._keys.open, self._keys.hold + id, *rows], arguments

    def _close(self, id: str, how: str, actual: Amounts) -> Any:
        """Have a hold settled. The rows that it needs are known here for the calls of this process; else they are looked up."""
        keys: Iterable[str] | None = self._own.keys_of(id)
        while True:
            if keys is None:
                packed = self._link.ask(lambda client: client.get(*encoded([self._keys.hold + id])))
                keys = self._keys.of_rows(key for key, *_ in unpack_hold(packed)[1]) if packed else ()
            answer = self._link.run("settle", *self._ending(id, keys, how, actual))
            if not isinstance(answer, list):
                return answer
            if answer[0] == _LOST:
                self._tell_again()
            elif answer[0] == b"keys":
                keys = self._keys.of_rows(decoded(key) for key in answer[1:])
            else:
                return answer

    def _settled_by(self, id: str, actual: Amounts, answer: Any) -> Settled:
        if isinstance(answer, list) and answer[0] == b"closed":
            self._own.drop(id)
            return NOT_SETTLED
        now, crossed = (answer[1], answer[2]) if isinstance(answer, list) else (answer, ())
        self._own.settle(id, actual, now / MICROS)
        self._channels.say_settled()
        return Settled(True, crossed_of(crossed, len(self._keys.row))) if crossed else SETTLED

    async def _give_back(self, request: Reserve, asked: asyncio.Task[Any]) -> None:
        """Settle what was granted to a task that no longer waits for it."""
        answer = self._granted(request, await asked)
        if isinstance(answer, Granted):
            await self.asettle(request.id, Amounts())

    def _orphan(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._orphans.add(task)
        task.add_done_callback(self._orphans.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _read(self, keys: Sequence[str]) -> list[tuple[Row | None, float]]:
        """Rows, and the time at which each was read."""
        read: list[tuple[Row | None, float]] = []
        for batch in _in_batches(keys):
            now, found = self._link.run("read", self._keys.rows(batch))
            read += [
                (None if packed is None else unpack_row(key, packed), now / MICROS)
                for key, packed in zip(batch, found, strict=True)
            ]
        return read

    # --- what was lost, and what is left over -----------------------------------------------------------------------

    def _look_whether_lost(self) -> None:
        """A process that asks for nothing looks too, so that its part is told while the others still wait for it."""
        if self._generation:
            state = self._link.ask(lambda client: client.get(self._keys.state))
            if state is None or state[:16] != self._generation.encode():
                self._tell_again()

    def _tell_again(self) -> None:
        """Tell a server that has lost its memory what this process has taken."""
        rows, holds = self._own.all()
        places = {row.key: place for place, (_, row) in enumerate(rows, 1)}
        keys = [
            self._keys.state,
            self._keys.limits,
            self._keys.ids,
            self._keys.told,
            self._keys.open,
            self._keys.holders(self._me),
        ]
        keys += [self._keys.row + row.key for _, row in rows] + [self._keys.hold + call for call in holds]
        arguments: list[str | bytes | int] = [
            _new_generation(), self._teller, _micros(LEARNING_SECONDS), _micros(HOLD_SECONDS), len(rows)
        ]  # fmt: skip
        for known, row in rows:
            arguments += (known.key, pack_registration(known), pack_row(row, known.limit))
        for call, items in holds.items():
            arguments += (call, "", len(items))
            for row, start, held, continued in items:
                arguments += (places[row.key], repr(start), held, int(continued))
        self._generation = self._link.run("remember", keys, arguments)[0].decode()

    def _charge(self, id: str, how: str) -> bool:
        answer = self._close(id, how, Amounts())
        return not (isinstance(answer, list) and answer[0] == b"closed")


def _in_batches(many: Sequence[_T]) -> list[Sequence[_T]]:
    """As many as a script takes: Lua unpacks some thousand keys at most, and all other processes wait meanwhile."""
    return [many[start : start + _BATCH] for start in range(0, len(many), _BATCH)]


def _unknown(request: Reserve) -> Refused:
    """The answer to whoever knew what the server has lost: an unknown balance is not an empty one."""
    return Refused(RefusalKind.UNREGISTERED, request.charges[0].row if request.charges else request.id)


def _new_generation() -> str:
    return os.urandom(8).hex()


def _teller(holder: str) -> str:
    """What tells two stores of one process apart: each tells its own part, once."""
    return f"{holder}/{os.urandom(4).hex()}"


def _micros(seconds: float) -> int:
    return int(seconds * MICROS)


_HOLD_MICROS = _micros(HOLD_SECONDS)


def _too_large(row: LimitRow) -> PolicyError:
    limit = row.limit
    message = (
        f"{limit.text or limit.amount} is too large for a Redis store, which counts exactly up to $9.0 million or 9.0e15 tokens"
    )
    return PolicyError(limit.rule.path or "policy", (Problem(limit.rule.path, limit.rule.line, 0, limit.rule.name, message),))

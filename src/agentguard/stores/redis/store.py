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
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused, Row
from agentguard.errors import PolicyError, Problem
from agentguard.policy.model import Per
from agentguard.stores._fork import survive_forks
from agentguard.stores._holder import Holder
from agentguard.stores._watchers import Together, Watchers
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
from agentguard.stores.redis._link import Link
from agentguard.stores.redis._listener import Listener
from agentguard.stores.redis._own import OwnCounts
from agentguard.stores.redis._packing import (
    MICROS,
    MOST_EXACT,
    crossed_of,
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

IDLE_SECONDS = 30 * 86400.0
"""How long the row of a session, an interaction or a call is kept after its last use; the rows of all others for ever."""

_SHORT_LIVED = (Per.SESSION, Per.INTERACTION, Per.CALL)
_PRUNE_EVERY_SECONDS = 3600.0
_BATCH = 200
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
        prefix = f"ag:{{{quote(address.fleet or fleet, safe='')}}}:"
        self._row = f"{prefix}r:"
        self._hold = f"{prefix}h:"
        self._state, self._limits, self._ids, self._open, self._told = (
            f"{prefix}{name}" for name in ("state", "limits", "ids", "open", "told")
        )
        self._control, self._isolated, self._members, self._heard = (
            f"{prefix}{name}" for name in ("control", "isolated", "members", "heard")
        )
        self._front = (self._state, self._open)
        self._settlements, self._changes = f"{prefix}settlements", f"{prefix}isolations"
        self._holders = f"{prefix}holders"
        self._me = Holder.of_this_process()
        self._name = str(self._me)
        self._teller = _teller(self._name)
        self._own = OwnCounts()
        self._generation = ""
        self._is_listed = False
        self._prune_at = 0.0
        self._settled = Listener(self._link, self._settlements)
        self._isolating: Watchers[[int, Isolation]] = Watchers()
        self._steered = Listener(self._link, self._changes, self.epoch, self._hear_of_isolation)
        self._recalls: Watchers[[Sequence[str]]] = Watchers()
        self._recalled = Listener(self._link, f"{prefix}recalls", hear=self._hear_of_recall)
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
        keys = [self._state, self._limits, self._ids, self._holders_here, *(self._row + row.key for row in rows)]
        answer = [_LOST]
        while answer[0] == _LOST:
            arguments: list[str | bytes] = [self._generation, _new_generation(), self._name, self._settlements]
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
        if keys:
            self._link.run("forget", [self._limits, *(self._row + key for key in keys)], ["", *keys])

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
                keys = self._keys(key.decode() for key in answer[1:])
            elif answer[0] == _LOST:
                self._tell_again()
            else:
                break
        if answer[0] == b"closed":
            self._own.drop(account.id)
            return Refused(RefusalKind.UNREGISTERED, account.id)
        if answer[0] == b"refused":
            return refused_of(answer[1], len(self._row))
        _, now, calls, crossed = answer
        self._own.lease(account, calls, now / MICROS)
        self._settled.watchers.announce()
        return Accounted(calls, crossed_of(crossed, len(self._row)))

    def recall(self, keys: Sequence[str]) -> None:
        """Ask whoever holds slices of these rows to give back what no call holds."""
        said = json.dumps(list(keys))
        self._link.ask(lambda client: client.publish(self._recalled.channel, said))

    def watch_recalls(self, on_recall: Callable[[Sequence[str]], None]) -> Closeable:
        """Call `on_recall` with the rows that any process has recalled."""
        return Together(self._recalls.add(on_recall), self._recalled.add(_hear_nothing))

    # --- the ledger -------------------------------------------------------------------------------------------------

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows, in the order asked."""
        now, rows = self._read(keys)
        return [Balance.of(row, now) for row in rows if row is not None]

    def rows(self) -> Sequence[tuple[LimitRow, Balance]]:
        """Every row, in the order in which they were registered."""
        written = self._link.ask(lambda client: client.hgetall(self._limits))
        limits = [unpack_registration(key.decode(), text) for key, text in written.items()]
        found: list[tuple[LimitRow, Row, float]] = []
        for start in range(0, len(limits), _BATCH):
            batch = limits[start : start + _BATCH]
            now, rows = self._read([limit.key for limit in batch])
            found += [(limit, row, now) for limit, row in zip(batch, rows, strict=True) if row is not None]
        return [(limit, Balance.of(row, now)) for limit, row, now in sorted(found, key=lambda one: one[1].id)]

    def holds(self) -> Sequence[Hold]:
        """What the calls in flight hold; the earliest deadline first."""
        holds: list[Hold] = []
        for ids in self._open_calls():
            packed = self._packed(ids)
            read = [(call, deadline, *unpack_hold(hold)) for (call, deadline), hold in zip(ids, packed, strict=True) if hold]
            keys = list(dict.fromkeys(key for *_, items in read for key, _, _ in items))
            known = {key: row.id for key, row in zip(keys, self._read(self._keys(keys))[1], strict=True) if row is not None}
            for call, deadline, holder, items in read:
                charges = [Charge(key[len(self._row) :], held) for key, row_id, held in items if known.get(key) == row_id]
                holds.append(Hold(call, holder, tuple(charges), deadline))
        return holds

    # --- isolation --------------------------------------------------------------------------------------------------

    def isolate(self, subject: str, *, on: bool, by: str, why: str) -> int:
        """Stop a subject, or restore it."""
        arguments = ["1" if on else "", subject, by, why, self._changes]
        epoch = int(self._link.run("isolate", [self._control, self._isolated], arguments))
        self._settled.watchers.announce()
        self._steered.watchers.announce()
        return epoch

    def isolations(self) -> Sequence[Isolation]:
        """The subjects that are isolated now, oldest first."""
        return self.dated_isolations()[1]

    def dated_isolations(self) -> tuple[int, Sequence[Isolation]]:
        """The epoch and `isolations`, of one moment."""
        epoch, found = self._link.run("isolations", [self._state], [self._control, self._isolated])
        pairs = zip(found[::2], found[1::2], strict=True)
        isolations = [_isolation(subject.decode(), *json.loads(said)) for subject, said in pairs]
        return epoch, sorted(isolations, key=lambda isolation: (isolation.at, isolation.subject))

    def epoch(self) -> int:
        """The number of changes by `isolate` so far."""
        control = self._link.ask(lambda client: client.get(self._control))
        return int(_CONTROL.unpack_from(control)[0]) if control else 0

    def watch(self, on_change: Callable[[], None]) -> Closeable:
        """Call `on_change` after settlements and isolations."""
        return Together(self._settled.add(on_change), self._steered.add(on_change))

    def watch_isolations(
        self, on_change: Callable[[], None], on_isolated: Callable[[int, Isolation], None] | None = None
    ) -> Closeable:
        """Call `on_isolated` with what a message says of an isolation, and `on_change` after it."""
        if on_isolated is None:
            return self._steered.add(on_change)
        return Together(self._isolating.add(on_isolated), self._steered.add(on_change))

    # --- the processes ----------------------------------------------------------------------------------------------

    def beat(self, member: Member) -> None:
        """Write down how this process describes itself, and that it was heard of now."""
        self._link.run("beat", [self._members, self._heard], [member.name, json.dumps(member), _micros(FORGET_MEMBER_SECONDS)])

    def leave(self, name: str) -> None:
        """Strike a process from the list."""
        self._link.ask(lambda client: (client.zrem(self._heard, name), client.hdel(self._members, name)))

    def members(self) -> Sequence[Member]:
        """The processes that were heard of, without those that have left or are dead."""
        found = self._link.run("members", [self._members, self._heard], [_micros(FORGET_MEMBER_SECONDS)])
        members = [Member._make(json.loads(text))._replace(at=at / MICROS) for text, at in found]
        living = [member for member in members if not Holder.parse(member.holder).is_dead(self._me)]
        return sorted(living, key=lambda member: (member.started, member.name))

    def renew(self) -> None:
        """Move on the deadlines of this process's open holds."""
        ids = self._own.ids()
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            self._link.run("renew", [self._open], [_micros(HOLD_SECONDS), len(batch), *batch])

    def sweep(self) -> int:
        """Charge the holds of dead processes of this host, and of those past their deadline."""
        swept = 0
        self._look_whether_lost()
        while True:
            overdue, holders = self._link.run("overdue", [self._open, self._holders_here], [_BATCH])
            swept += sum(self._charge(call.decode(), "overdue") for call in overdue)
            if len(overdue) < _BATCH:
                break
        dead = {name for holder in holders if Holder.parse(name := holder.decode()).is_dead(self._me)}
        if dead:
            swept += self._charge_dead(dead)
        if time.monotonic() >= self._prune_at:
            self._prune_at = time.monotonic() + _PRUNE_EVERY_SECONDS
            self._prune()
        return swept

    def close(self) -> None:
        """Free the connections. Open holds stay, and are swept when the process is gone. A later verb connects anew."""
        self._settled.close()
        self._steered.close()
        self._recalled.close()
        self._link.close()

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
        self._settled.restart()
        self._steered.restart()
        self._isolating.lock = threading.Lock()
        self._recalls.lock = threading.Lock()
        self._recalled.restart()

    # --- what is said to all ----------------------------------------------------------------------------------------

    def _hear_of_isolation(self, said: bytes) -> None:
        with suppress(ValueError, TypeError):  # a restored subject, or not ours: what is true is read all the same
            epoch, subject, by, why, at = json.loads(said)
            self._isolating.announce(int(epoch), _isolation(subject, by, why, at))

    def _hear_of_recall(self, said: bytes) -> None:
        with suppress(ValueError, TypeError):
            self._recalls.announce([str(key) for key in json.loads(said)])

    # --- asking and reading answers ---------------------------------------------------------------------------------

    def _asked(self, request: Reserve) -> tuple[list[str], list[str | int]]:
        call, charges, subjects, force, _ = request
        if len({key for key, _ in charges}) < len(charges):
            raise ValueError(f"a request charges a row twice: {', '.join(charge.row for charge in charges)}")
        row = self._row
        keys = [*self._front, self._hold + call, *[row + key for key, _ in charges]]
        head = (self._joined(), call, self._name, _HOLD_MICROS, "1" if force else "", self._control, self._isolated)
        return keys, [*head, *[amount for _, amount in charges], *subjects]

    def _granted(self, request: Reserve, answer: Any) -> Granted | Refused:
        if not isinstance(answer, list):
            if answer:
                self._own.take(request.id, request.charges, answer / MICROS)
            return GRANTED
        if answer[0] == b"refused":
            return refused_of(answer[1], len(self._row))
        _, now, crossed, refused = answer
        if not self._own.is_open(request.id):
            self._own.take(request.id, request.charges, now / MICROS)
        prefix = len(self._row)
        return Granted((), crossed_of(crossed, prefix), refused_of(refused, prefix) if refused else None)

    def _joined(self) -> str:
        """The generation that this process has joined. Before it asks it is put on its host's list, so that its death is seen."""
        if not self._is_listed:
            self.register(())
        return self._generation

    def _more(self, id: str, charges: Sequence[Charge]) -> tuple[list[str], list[str | int]]:
        keys = [self._state, self._hold + id, *(self._row + key for key, _ in charges)]
        return keys, [self._joined(), id, *(amount for _, amount in charges)]

    def _grown(self, id: str, charges: Sequence[Charge], answer: Any) -> Granted | Refused:
        if answer[0] == b"closed":
            return Refused(RefusalKind.UNREGISTERED, id)
        if answer[0] != b"granted":
            return refused_of(answer[1], len(self._row))
        _, now, crossed, amounts = answer
        granted = tuple(Charge(key, amount) for (key, _), amount in zip(charges, amounts, strict=True))
        self._own.take(id, granted, now / MICROS)
        return Granted(granted, crossed_of(crossed, len(self._row)))

    def _accounted(self, account: Account, others: Iterable[str]) -> tuple[list[str], list[str | int]]:
        part: dict[str, int | str] = dict(account.call)
        keep: dict[str, int | str] = dict(account.keep)
        keys = list(dict.fromkeys((*part, *keep, *others)))
        arguments: list[str | int] = [self._joined(), account.id, self._name, _HOLD_MICROS, self._settlements]
        arguments += (account.used.tokens, account.used.nanos, account.used.calls, account.calls, account.share)
        for key in keys:
            arguments += [keep.get(key, ""), part.get(key, "")]
        rows = [self._row + key for key in keys]
        return [self._state, self._open, self._hold + account.id, *rows], arguments

    def _ending(self, id: str, keys: Iterable[str], how: str, actual: Amounts) -> tuple[list[str], list[str | int]]:
        rows = [self._row + key for key in keys]
        arguments: list[str | int] = [self._joined(), id, self._settlements, how, actual.tokens, actual.nanos, actual.calls]
        return [self._state, self._open, self._hold + id, *rows], arguments

    def _close(self, id: str, how: str, actual: Amounts) -> Any:
        """Have a hold settled. The rows that it needs are known here for the calls of this process; else they are looked up."""
        keys: Iterable[str] | None = self._own.keys_of(id)
        while True:
            if keys is None:
                packed = self._link.ask(lambda client: client.get(self._hold + id))
                keys = self._keys(key for key, *_ in unpack_hold(packed)[1]) if packed else ()
            answer = self._link.run("settle", *self._ending(id, keys, how, actual))
            if not isinstance(answer, list):
                return answer
            if answer[0] == _LOST:
                self._tell_again()
            elif answer[0] == b"keys":
                keys = self._keys(key.decode() for key in answer[1:])
            else:
                return answer

    def _settled_by(self, id: str, actual: Amounts, answer: Any) -> Settled:
        if isinstance(answer, list) and answer[0] == b"closed":
            self._own.drop(id)
            return NOT_SETTLED
        now, crossed = (answer[1], answer[2]) if isinstance(answer, list) else (answer, ())
        self._own.settle(id, actual, now / MICROS)
        self._settled.watchers.announce()
        return Settled(True, crossed_of(crossed, len(self._row))) if crossed else SETTLED

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

    def _keys(self, full: Iterable[str]) -> list[str]:
        """The keys of rows without what stands in front of them, each once."""
        return [key[len(self._row) :] for key in dict.fromkeys(full)]

    def _read(self, keys: Sequence[str]) -> tuple[float, list[Row | None]]:
        now, found = self._link.run("read", [self._row + key for key in keys])
        return now / MICROS, [
            None if packed is None else unpack_row(key, packed) for key, packed in zip(keys, found, strict=True)
        ]

    # --- what was lost, and what is left over -----------------------------------------------------------------------

    def _look_whether_lost(self) -> None:
        """A process that asks for nothing looks too, so that its part is told while the others still wait for it."""
        if self._generation:
            state = self._link.ask(lambda client: client.get(self._state))
            if state is None or state[:16] != self._generation.encode():
                self._tell_again()

    def _tell_again(self) -> None:
        """Tell a server that has lost its memory what this process has taken."""
        rows, holds = self._own.all()
        places = {row.key: place for place, (_, row) in enumerate(rows, 1)}
        keys = [self._state, self._limits, self._ids, self._told, self._open, self._holders_here]
        keys += [self._row + row.key for _, row in rows] + [self._hold + call for call in holds]
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

    def _charge_dead(self, dead: set[str]) -> int:
        """Charge what processes hold that are gone, and strike them from the host's list."""
        swept = 0
        for ids in self._open_calls():
            packed = self._packed(ids)
            for (call, _), hold in zip(ids, packed, strict=True):
                if hold and unpack_hold(hold)[0] in dead:
                    swept += self._charge(call, "dead")
        self._link.ask(lambda client: client.srem(self._holders_here, *dead))
        return swept

    def _open_calls(self) -> Iterable[list[tuple[str, float]]]:
        """The open calls with their deadlines, in batches."""
        found = self._link.ask(lambda client: client.zrange(self._open, 0, -1, withscores=True))
        calls = [(call.decode(), deadline / MICROS) for call, deadline in found]
        return (calls[start : start + _BATCH] for start in range(0, len(calls), _BATCH))

    def _packed(self, calls: Sequence[tuple[str, float]]) -> list[bytes | None]:
        keys = [self._hold + call for call, _ in calls]
        return cast("list[bytes | None]", self._link.ask(lambda client: client.mget(keys)))

    def _some_limits(self, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        return cast(
            "tuple[int, dict[bytes, bytes]]", self._link.ask(lambda client: client.hscan(self._limits, cursor, count=_BATCH))
        )

    def _prune(self) -> None:
        """Drop rows of sessions, interactions and calls that are long idle."""
        now, _ = self._link.run("read", ())
        since = repr(now / MICROS - IDLE_SECONDS)
        cursor = 0
        while True:
            cursor, written = self._some_limits(cursor)
            limits = [unpack_registration(key.decode(), text) for key, text in written.items()]
            idle = [limit.key for limit in limits if limit.limit.per in _SHORT_LIVED]
            if idle:
                self._link.run("forget", [self._limits, *(self._row + key for key in idle)], [since, *idle])
            if not cursor:
                return

    @property
    def _holders_here(self) -> str:
        return f"{self._holders}:{self._me.boot}:{self._me.namespace}"


def _isolation(subject: str, by: str, why: str, at: str) -> Isolation:
    return Isolation(subject, by, why, int(at) / MICROS)


def _hear_nothing() -> None:
    """Who listens to recalls is told of each by its own way."""


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

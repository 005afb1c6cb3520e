"""Any order of everything: each store against a ledger that keeps every grant and adds them up, and store against store."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.policy.model import Limit, Per, Unit, Window
from agentguard.stores.base import Granted, Reserve
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import HOLD_SECONDS, SqliteStore
from agentguard.testing.clock import FrozenClock


def row(subject: str, unit: Unit, amount: int, window: Window = Window.LIFE) -> LimitRow:
    return LimitRow.of(subject, Limit(amount=amount, unit=unit, per=Per.USER, window=window, warn_at=(50, 90)))


ROWS = (
    row("agent:a", Unit.TOKENS, 40),
    row("agent:a", Unit.TOKENS, 25, Window("minute")),
    row("agent:a", Unit.TOKENS, 30, Window(seconds=120.0)),
    row("team:t", Unit.USD, 60, Window("hour")),
    row("team:t", Unit.CALLS, 6, Window(seconds=60.0)),
    row("team:t", Unit.CALLS, 9, Window("minute")),
    row("user:u", Unit.CONCURRENT_CALLS, 3),
)
BY_KEY = {known.key: known for known in ROWS}
KEYS = st.sampled_from(sorted(BY_KEY))
CHARGES = st.dictionaries(KEYS, st.integers(1, 20), max_size=4).map(lambda found: tuple(Charge(*pair) for pair in found.items()))
CALLS = st.sampled_from("abcdefgh")
SUBJECTS = st.sampled_from(["agent:a", "team:t", "user:u"])
USAGE = st.builds(Amounts, st.integers(0, 30), st.integers(0, 30))


class Grant:
    """A part of a call's charges, in one window of one row. `spent` is None while it is held."""

    def __init__(self, call: str, limit_row: LimitRow, window: float, amount: int) -> None:
        self.call, self.row, self.window, self.amount = call, limit_row, window, amount
        self.spent = amount if limit_row.limit.unit is Unit.CALLS else None


class Ledger:
    """The oracle: it remembers what was granted, and counts by looking at all of it."""

    def __init__(self) -> None:
        self.grants: list[Grant] = []
        self.forgotten = set(BY_KEY)
        self.seen: dict[str, float] = {}
        self.open: dict[str, float] = {}
        self.isolated: set[str] = set()

    def window(self, limit_row: LimitRow, now: float) -> float:
        window = limit_row.limit.window
        if window.is_rolling:
            return now * 60 // window.seconds
        return 0.0 if window.every is None else now // {"minute": 60, "hour": 3600}[window.every]

    def counted(self, limit_row: LimitRow, now: float) -> tuple[int, int]:
        current = self.window(limit_row, max(now, self.seen.get(limit_row.key, 0.0)))
        oldest = current - 60 if limit_row.limit.window.is_rolling else current
        live = [grant for grant in self.grants if grant.row.key == limit_row.key and oldest <= grant.window <= current]
        return sum(grant.spent or 0 for grant in live), sum(grant.amount for grant in live if grant.spent is None)

    def refuses(self, charges: tuple[Charge, ...], now: float) -> tuple[RefusalKind, str] | None:
        kinds = []
        for key, amount in charges:
            if key in self.forgotten:
                kinds.append((0, RefusalKind.UNREGISTERED, key))
                continue
            spent, held = self.counted(BY_KEY[key], now)
            if spent + amount > BY_KEY[key].limit.amount:
                kinds.append((1, RefusalKind.EXHAUSTED, key))
            elif spent + held + amount > BY_KEY[key].limit.amount:
                kinds.append((2, RefusalKind.CONTENDED, key))
        return min(kinds, key=lambda kind: kind[0])[1:] if kinds else None

    def look(self, charges: tuple[Charge, ...], now: float) -> None:
        for key, _ in charges:
            if key in self.forgotten:
                return
            self.seen[key] = max(now, self.seen.get(key, 0.0))

    def grant(self, call: str, charges: tuple[Charge, ...]) -> None:
        for key, amount in charges:
            window = self.window(BY_KEY[key], self.seen[key])
            mine = [grant for grant in self.grants if grant.call == call and grant.row.key == key and grant.spent is None]
            if mine and mine[-1].window == window:
                mine[-1].amount += amount
            else:
                self.grants.append(Grant(call, BY_KEY[key], window, amount))

    def settle(self, call: str, used_in: dict[Unit, int], now: float) -> None:
        held = [grant for grant in self.grants if grant.call == call and grant.spent is None]
        for key in {grant.row.key for grant in held}:
            parts = [grant for grant in held if grant.row.key == key]
            left = used_in.get(parts[0].row.limit.unit, 0)
            for part in parts[:-1]:
                part.spent = min(left, part.amount)
                left -= part.spent
            parts[-1].spent = left
            self.seen[key] = max(now, self.seen.get(key, 0.0))
        self.close(call)

    def lose(self, call: str) -> None:
        for grant in self.grants:
            if grant.call == call and grant.spent is None:
                grant.spent = 0 if grant.row.limit.unit is Unit.CONCURRENT_CALLS else grant.amount
        self.close(call)

    def close(self, call: str) -> None:
        del self.open[call]
        for grant in self.grants:
            if grant.call == call:
                grant.call += "'"  # the name may be used again

    def forget(self, key: str) -> None:
        self.forgotten.add(key)
        self.seen.pop(key, None)
        self.grants = [grant for grant in self.grants if grant.row.key != key]


class AnyOrder(RuleBasedStateMachine):
    """One history, asked of every store of `stores` and of the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FrozenClock()
        self.stores = self.make_stores()
        self.ledger = Ledger()

    def make_stores(self) -> list:
        return [MemoryStore(self.clock), self.make_sqlite()]

    def make_sqlite(self) -> SqliteStore:
        return SqliteStore(Path(self.folder.name, "counters.sqlite"), self.clock)

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    def ask(self, verb: str, *args, **kwargs):
        answers = [getattr(store, verb)(*args, **kwargs) for store in self.stores]
        assert all(answer == answers[0] for answer in answers), answers
        return answers[0]

    def is_refused_as(self, answer: Refused, expected: tuple[RefusalKind, str], charges, now: float) -> bool:
        """The same kind, by the same row."""
        return answer[:2] == expected

    @initialize()
    def know_the_rows(self) -> None:
        self.register(list(BY_KEY))

    @rule(keys=st.lists(KEYS, max_size=3))
    def register(self, keys) -> None:
        self.ask("register", [BY_KEY[key] for key in keys])
        self.ledger.forgotten -= set(keys)

    @rule(key=KEYS)
    def forget(self, key) -> None:
        self.ask("forget", [key])
        self.ledger.forget(key)

    @rule(call=CALLS, charges=CHARGES, subject=SUBJECTS, force=st.sampled_from([False] * 7 + [True]))
    def reserve(self, call, charges, subject, force) -> None:
        now = self.clock.time()
        expected = self.ledger.refuses(charges, now)
        answer = self.ask("reserve", Reserve(call, charges, (subject,), force))
        if call in self.ledger.open:
            assert isinstance(answer, Granted)
            return
        if subject in self.ledger.isolated:
            assert answer == Refused(RefusalKind.ISOLATED, subject)
            return
        self.ledger.look(charges, now)
        if isinstance(answer, Granted):
            assert expected is None or force
            assert answer.refused is expected or self.is_refused_as(answer.refused, expected, charges, now)
            self.ledger.open[call] = now + HOLD_SECONDS
            self.ledger.grant(call, charges)
            return
        assert self.is_refused_as(answer, expected, charges, now)
        if answer.kind is not RefusalKind.UNREGISTERED:
            assert (answer.spent, answer.held) == self.ledger.counted(BY_KEY[answer.row], now)

    @rule(call=CALLS, charges=CHARGES)
    def extend(self, call, charges) -> None:
        now = self.clock.time()
        expected = self.ledger.refuses(charges, now)
        answer = self.ask("extend", call, charges)
        if call not in self.ledger.open:
            assert answer == Refused(RefusalKind.UNREGISTERED, call)
            return
        self.ledger.look(charges, now)
        if isinstance(answer, Refused):
            assert self.is_refused_as(answer, expected, charges, now)
            return
        assert (answer.charges == charges) == (expected is None)
        assert self.ledger.refuses(answer.charges, now) is None
        assert [charge.row for charge in answer.charges] == [charge.row for charge in charges]
        self.ledger.grant(call, answer.charges)

    @rule(call=CALLS, actual=USAGE)
    def settle(self, call, actual) -> None:
        settled = self.ask("settle", call, actual)
        assert settled.first == (call in self.ledger.open)
        if settled.first:
            self.ledger.settle(call, {Unit.TOKENS: actual.tokens, Unit.USD: actual.nanos}, self.clock.time())
        assert not self.ask("settle", call, actual).first

    @rule(subject=SUBJECTS, on=st.booleans())
    def isolate(self, subject, on) -> None:
        self.ask("isolate", subject, on=on, by="ada", why="drill")
        (self.ledger.isolated.add if on else self.ledger.isolated.discard)(subject)
        assert {isolation.subject for isolation in self.ask("isolations")} == self.ledger.isolated

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 7.0, 31.0, 59.0, 60.0, 61.0, 122.0, 3600.0]))
    def advance(self, seconds) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, 30.0, 100.0]))
    def set_back(self, seconds) -> None:
        self.clock.set_time(self.clock.time() - seconds)

    @invariant()
    def what_is_counted_is_the_sum_of_the_grants(self) -> None:
        now = self.clock.time()
        for balance in self.ask("read", sorted(BY_KEY)):
            assert balance.row not in self.ledger.forgotten
            assert (balance.spent, balance.held) == self.ledger.counted(BY_KEY[balance.row], now), balance


class MemoryInAnyOrder(AnyOrder):
    def make_stores(self) -> list:
        return [MemoryStore(self.clock)]


class SqliteInAnyOrder(AnyOrder):
    """With what only a store can have that outlives its processes: another one on the same file, deaths, a new opening."""

    def make_stores(self) -> list:
        self.other = self.make_sqlite()
        return [self.make_sqlite()]

    def teardown(self) -> None:
        self.other.close()
        super().teardown()

    @rule()
    def go_on_in_the_other(self) -> None:
        self.stores, self.other = [self.other], self.stores[0]

    @rule()
    def open_anew(self) -> None:
        self.stores[0].close()
        self.stores = [self.make_sqlite()]

    @precondition(lambda self: self.stores[0]._me.started)
    @rule(call=CALLS, charges=CHARGES)
    def crash(self, call, charges) -> None:
        """A process reserves and dies."""
        (store,) = self.stores
        was_open = call in self.ledger.open
        name, store._name = store._name, str(store._me._replace(pid=DEAD, started="1"))
        self.reserve(call, charges, "fleet", False)
        store._name = name
        if call in self.ledger.open and not was_open:
            self.ledger.open[call] = float("-inf")
        self.sweep()

    @rule()
    def renew(self) -> None:
        self.stores[0].renew()
        for call in self.ledger.open:
            self.ledger.open[call] = self.clock.time() + HOLD_SECONDS

    @rule()
    def sweep(self) -> None:
        lost = [call for call, deadline in self.ledger.open.items() if deadline < self.clock.time()]

        assert self.stores[0].sweep() == len(lost)

        for call in lost:
            self.ledger.lose(call)


def a_dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


DEAD = a_dead_pid()
LONG = settings(max_examples=40, stateful_step_count=50, deadline=None)

TestMemoryInAnyOrder = MemoryInAnyOrder.TestCase
TestMemoryInAnyOrder.settings = settings(LONG, max_examples=100)
TestSqliteInAnyOrder = SqliteInAnyOrder.TestCase
TestSqliteInAnyOrder.settings = LONG
TestMemoryAndSqliteAgree = AnyOrder.TestCase
TestMemoryAndSqliteAgree.settings = LONG

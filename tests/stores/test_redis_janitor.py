"""What a sweep clears away in a Redis."""

from __future__ import annotations

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind
from agentguard.policy.model import Limit, Per, Unit
from agentguard.stores._idle import IDLE_SECONDS
from agentguard.stores.base import GRANTED, Reserve
from agentguard.testing.clock import FrozenClock

from .redis_server import PROGRAM, clocked

pytestmark = pytest.mark.needs(PROGRAM)
SHORT_LIVED = {Per.SESSION, Per.INTERACTION, Per.CALL}


def row(subject: str, per: Per) -> LimitRow:
    return LimitRow.of(subject, Limit(amount=9, unit=Unit.TOKENS, per=per))


@pytest.fixture
def sweep(server, clock):
    """What a process does that has just begun: one that runs drops idle rows every hour."""

    def sweep() -> int:
        store = clocked(server.url, clock)
        swept = store.sweep()
        store.close()
        return swept

    return sweep


def subjects(store) -> set[str]:
    return {limit_row.subject for limit_row, _ in store.rows()}


def test_rows_of_sessions_that_are_long_idle_are_dropped_and_no_others(redis, clock, sweep):
    idle = {per: row(f"{per}:idle", per) for per in Per}
    redis.register(idle.values())
    clock.advance(IDLE_SECONDS + 1)

    sweep()

    assert subjects(redis) == {f"{per}:idle" for per in set(Per) - SHORT_LIVED}
    refused = redis.reserve(Reserve("1", (Charge(idle[Per.SESSION].key, 1),)))
    assert refused.kind is RefusalKind.UNREGISTERED


def test_a_row_that_is_idle_for_just_so_long_is_kept(redis, clock, sweep):
    redis.register([row("session:s", Per.SESSION)])
    clock.advance(IDLE_SECONDS)

    sweep()

    assert subjects(redis) == {"session:s"}


@pytest.mark.parametrize("use", ["reserve", "settle", "register again with another amount"])
def test_whatever_uses_a_row_keeps_it(redis, clock, sweep, use):
    session = row("session:s", Per.SESSION)
    redis.register([session])
    charge = (Charge(session.key, 1),)
    assert redis.reserve(Reserve("before", charge)) is GRANTED
    clock.advance(IDLE_SECONDS)
    if use == "reserve":
        assert redis.reserve(Reserve("now", charge)) is GRANTED
    elif use == "settle":
        assert redis.settle("before", Amounts(1)).first
    else:
        redis.register([LimitRow(session.key, session.subject, Limit(amount=5, unit=Unit.TOKENS, per=Per.SESSION))])
    clock.advance(2)

    sweep()

    assert subjects(redis) == {"session:s"}


def test_many_idle_rows_are_dropped_in_one_sweep(redis, clock, sweep):
    redis.register([row(f"session:{number}", Per.SESSION) for number in range(450)])
    redis.register([row("agent:a", Per.AGENT)])
    clock.advance(IDLE_SECONDS + 1)

    sweep()

    assert subjects(redis) == {"agent:a"}


def test_the_calls_past_their_deadline_are_charged_in_one_sweep_and_the_others_left(redis, clock, sweep):
    agent = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS))
    redis.register([agent])
    for number in range(450):
        redis.reserve(Reserve(f"old-{number}", (Charge(agent.key, 1),)))
    clock.advance(601)
    redis.reserve(Reserve("new", (Charge(agent.key, 7),)))

    assert sweep() == 450

    (balance,) = redis.read([agent.key])
    assert (balance.spent, balance.held) == (450, 7)
    assert [hold.id for hold in redis.holds()] == ["new"]


def test_calls_whose_holds_the_server_has_dropped_are_swept_from_its_list(redis, server, clock, sweep):
    agent = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS))
    redis.register([agent])
    for number in range(450):
        redis.reserve(Reserve(str(number), (Charge(agent.key, 1),)))
    server.ask("DEL", *(f"{redis._keys.hold}{number}" for number in range(449)))  # as one does that is short of memory
    clock.advance(601)

    assert sweep() == 1

    assert server.ask("ZCARD", redis._keys.open) == 0
    assert not redis.settle("0", Amounts(1)).first


class SwayingClock(FrozenClock):
    """Behind, but for each look at what is overdue: it is 200 calls at most that are then settled."""

    readings = 0

    def time(self) -> float:
        self.readings += 1
        return super().time() + 601 * (self.readings % 201 == 2)  # the first is that of `register`


def test_a_sweep_ends_though_calls_stay_that_were_past_their_deadline(redis, server):
    agent = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS))
    redis.register([agent])
    for number in range(450):
        redis.reserve(Reserve(str(number), (Charge(agent.key, 1),)))
    sweeper = clocked(server.url, SwayingClock())
    sweeper.register(())

    swept = sweeper.sweep()
    sweeper.close()

    assert swept == 0
    assert len(redis.holds()) == 450

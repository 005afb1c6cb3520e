"""Scripts that travel together, or with many keys: nobody waits for ever, and no connection outlives its event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, Per, Unit
from agentguard.stores.base import GRANTED, SETTLED, Reserve
from agentguard.stores.redis import RedisStore

from .redis_server import PROGRAM

pytestmark = pytest.mark.needs(PROGRAM)
AGENT = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS))
LONE = "session:\udc80"
"""As a file's name has it that is not UTF-8, or JSON that was cut between the halves of an emoji."""


@pytest.fixture
def store(own):
    with contextlib.closing(RedisStore(f"{own.url}?timeout=5")) as store:
        store.register([AGENT])
        yield store


def request(name: str, *subjects: str, amount: object = 1) -> Reserve:
    return Reserve(name, (Charge(AGENT.key, amount),), subjects)


def in_a_loop(store: RedisStore, *asked: Reserve) -> list:
    """Ask for all at once. An answer that does not come is an error."""

    async def ask() -> list:
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*map(store.areserve, asked), return_exceptions=True)
        await store.aclose()
        return answers

    return asyncio.run(ask())


# --- words that cannot be sent --------------------------------------------------------------------------------------


def test_a_subject_with_a_lone_surrogate_is_decided_together_with_the_others(store):
    assert in_a_loop(store, request("1"), request("2", LONE), request("3")) == [GRANTED] * 3


def test_a_row_with_a_lone_surrogate_is_counted_and_read_back(store):
    session = LimitRow.of(f"{LONE}@agent:a", Limit(amount=9, unit=Unit.TOKENS, per=Per.SESSION, warn_at=(50,)))
    store.register([session])

    taken = store.reserve(Reserve("call\udc81", (Charge(session.key, 5),), (LONE,)))
    more = store.extend("call\udc81", [Charge(session.key, 1)])
    refused = store.reserve(Reserve("2", (Charge(session.key, 9),), (LONE,)))

    assert (taken, more.charges) == (GRANTED, (Charge(session.key, 1),))
    assert (refused.kind, refused.row) == (RefusalKind.CONTENDED, session.key)
    assert [row for row, _ in store.rows()] == [AGENT, session]
    assert [(hold.id, hold.charges) for hold in store.holds()] == [("call\udc81", (Charge(session.key, 6),))]
    assert [crossed.row for crossed in store.settle("call\udc81", Amounts(6)).crossed] == [session.key]
    assert [balance.spent for balance in store.read([session.key])] == [6]


def test_a_subject_with_a_lone_surrogate_is_isolated_and_read_back(store):
    store.isolate(LONE, on=True, by="\udc81", why="\udc82")

    refused = Refused(RefusalKind.ISOLATED, LONE)
    assert store.reserve(request("1", LONE)) == refused
    assert in_a_loop(store, request("2", LONE), request("3")) == [refused, GRANTED]
    assert [isolation[:3] for isolation in store.isolations()] == [(LONE, "\udc81", "\udc82")]


def test_a_call_that_cannot_be_sent_is_refused_alone(store):
    first, bad, last = in_a_loop(store, request("1"), request("2", amount=None), request("3"))

    assert (first, last) == (GRANTED, GRANTED)
    assert isinstance(bad, StoreUnavailable)


class Unspeakable(str):
    """A subject that fails when it is to be sent."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        raise LookupError(self)


def test_whatever_goes_wrong_with_a_batch_is_told_to_all_who_wait_and_the_next_ones_are_answered(store):
    together = in_a_loop(store, request("1"), request("2", Unspeakable("session:s")))

    assert [type(answer) for answer in together] == [LookupError, LookupError]
    assert in_a_loop(store, request("3")) == [GRANTED]


def test_nobody_waits_for_a_batch_whose_task_somebody_has_cancelled(store, own):
    async def cancel_what_is_not_ours() -> list:
        for name in "12":
            await store.areserve(request(name))
        mine = asyncio.all_tasks()
        own.stop()
        asking = [asyncio.create_task(store.asettle(name, Amounts(1))) for name in "12"]
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - mine - set(asking):
            task.cancel()
        async with asyncio.timeout(3):
            answers = await asyncio.gather(*asking, return_exceptions=True)
        own.go_on()
        later = await store.areserve(request("3"))
        await store.aclose()
        return [*answers, later]

    *answers, later = asyncio.run(cancel_what_is_not_ours())

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 2
    assert later == GRANTED


# --- loops that end -------------------------------------------------------------------------------------------------


def run_and_close(asked) -> object:
    """Like `asyncio.run`, as those do it who have a loop of their own: without a word to what is left in it."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asked)
    finally:
        loop.close()


@pytest.mark.parametrize("run", [asyncio.run, run_and_close])
def test_a_connection_is_closed_when_its_event_loop_has_ended(store, own, run):
    for number in range(20):
        assert run(store.areserve(request(str(number)))) == GRANTED
    gc.collect()  # what is unclosed, warns
    with own.client() as client:
        while_open = len(client.client_list())
    store.close()
    gc.collect()

    assert while_open <= 3  # the store's own, that of the last loop, and this one


def test_a_loop_that_goes_on_keeps_its_connection_when_others_end(store):
    with asyncio.Runner() as goes_on:
        goes_on.run(store.areserve(request("1")))
        for number in range(3):
            asyncio.run(store.areserve(request(f"other-{number}")))

        assert goes_on.run(store.asettle("1", Amounts(1))) == SETTLED
        goes_on.run(store.aclose())


# --- many keys ------------------------------------------------------------------------------------------------------


def test_any_number_of_rows_is_registered_read_and_forgotten_by_scripts_that_take_few(store, own):
    rows = [LimitRow.of(f"session:{number}", Limit(amount=9, unit=Unit.TOKENS, per=Per.SESSION)) for number in range(9000)]
    keys = [row.key for row in rows]
    own.ask("CONFIG", "SET", "slowlog-max-len", 10_000, "slowlog-log-slower-than", 0)

    store.register(rows)
    balances = store.read(keys)
    listed = store.rows()
    store.forget(keys)

    with own.client() as client:
        asked = [entry["command"].split() for entry in client.slowlog_get(10_000)]
    assert max(int(words[2]) for words in asked if words[0] == b"EVALSHA") < 210
    assert [balance.row for balance in balances] == keys
    assert [row.key for row, _ in listed] == [AGENT.key, *keys]
    assert [row for row, _ in store.rows()] == [AGENT]


def test_a_call_that_was_granted_though_its_answer_was_lost_is_renewed_like_any_other(store, own):
    client, execute = store._link.client, store._link.client.execute_command
    answers = []

    def lose_the_first(*words, **options):
        answers.append(execute(*words, **options))
        if len(answers) == 1:
            raise ConnectionError("reset by peer")
        return answers[-1]

    client.execute_command = lose_the_first
    granted = store.reserve(request("1", amount=500))
    client.execute_command = execute
    own.ask("ZADD", store._keys.open, 10, "1")

    store.renew()

    assert (granted, len(answers)) == (GRANTED, 2)
    assert store.sweep() == 0
    assert store.settle("1", Amounts(20)) == SETTLED

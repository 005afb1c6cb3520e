"""Redis that is killed, frozen, emptied, paused, failed over, or cut off in the middle of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, OnStoreDown, Unit, Window
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.redis import RedisStore
from agentguard.stores.standby import Standby

from .redis_server import PROGRAM, Server, free_port
from .redis_topologies import is_in_step, wait_until

pytestmark = pytest.mark.needs(PROGRAM)
PATIENT = "?timeout=5"
SHORT = "?timeout=0.3"
"""For tests that wait until it is over: more than a call has by default, since a busy machine may take that long to answer."""


def row(subject: str, amount: int, down: OnStoreDown = OnStoreDown.CLOSED, unit: Unit = Unit.TOKENS) -> LimitRow:
    return LimitRow.of(subject, Limit(amount=amount, unit=unit, on_store_down=down, window=Window("day")))


AGENT = row("agent:a", 1000)
LOCAL = row("agent:local", 1000, OnStoreDown.LOCAL)
OPEN = row("agent:open", 1000, OnStoreDown.OPEN)


@contextlib.contextmanager
def opened(url: str, *rows: LimitRow):
    store = RedisStore(url)
    store.register(rows or (AGENT,))
    yield store
    store.close()


def ask(store, name: str, amount: int = 1, limit_row: LimitRow = AGENT):
    return store.reserve(Reserve(name, (Charge(limit_row.key, amount),)))


def fails(store, name: str) -> str:
    """Ask in vain. Returns why there was no answer."""
    with pytest.raises(StoreUnavailable) as unavailable:
        ask(store, name)
    return str(unavailable.value)


def come_back(store, name: str, seconds: float = 5.0):
    """Ask until there is an answer."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(StoreUnavailable):
            return ask(store, name)
        assert time.monotonic() < until, "the store does not come back"
        time.sleep(0.02)


# --- no answer ------------------------------------------------------------------------------------------------------


def test_a_frozen_server_costs_the_first_decisions_their_timeout_and_the_next_ones_nothing(own):
    with opened(own.url + SHORT) as store:
        ask(store, "warm")
        own.stop()
        first = [fails(store, f"first-{number}") for number in range(3)]
        next_ones = {fails(store, f"next-{number}") for number in range(10_000)}  # more than could time out
        own.go_on()

        assert all("TimeoutError" in reason for reason in first)
        assert all("no call waits for it until then" in reason for reason in next_ones)
        assert come_back(store, "back") == GRANTED
        assert ask(store, "first-0") in (GRANTED, ask(store, "first-0"))  # whatever became of it, it is charged once at most


def test_a_killed_server_is_an_error_at_once_and_a_restarted_one_answers_without_a_new_store(own):
    with opened(own.url + PATIENT) as store:
        assert ask(store, "1") == GRANTED
        own.kill()
        assert "gave no answer" in fails(store, "2")
        own.start()

        assert come_back(store, "3").kind is RefusalKind.UNREGISTERED  # it has forgotten everything


def test_a_connection_that_the_server_has_closed_is_replaced(own):
    with opened(own.url + PATIENT) as store:
        ask(store, "1")
        own.ask("CLIENT", "KILL", "TYPE", "normal")

        assert ask(store, "2") == GRANTED


def test_a_paused_server_is_an_error_until_it_goes_on(own):
    with opened(own.url + SHORT) as store:
        ask(store, "1")
        own.ask("CLIENT", "PAUSE", 1000)

        assert "gave no answer" in fails(store, "2")
        assert come_back(store, "3") == GRANTED


def test_scripts_that_the_server_has_forgotten_are_sent_again(own):
    with opened(own.url + PATIENT) as store:
        ask(store, "1")
        own.ask("SCRIPT", "FLUSH")

        assert ask(store, "2") == GRANTED


def test_the_breaker_of_a_closed_store_asks_no_more(own):
    with opened(own.url + SHORT) as store:
        own.kill()
        for number in range(3):
            fails(store, str(number))
        assert store._link.breaker.is_open
    probing = [thread for thread in threading.enumerate() if thread.name == "agentguard-store-probe"]
    for thread in probing:
        thread.join(1)

    assert not any(thread.is_alive() for thread in probing)


class CutOff:
    """A way to the server that lets a number of answers through, then cuts the next one off before its first byte."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._port = port
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listening.getsockname()[1]}/0{PATIENT}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server, contextlib.suppress(OSError):
            is_script = False
            while True:
                ready, _, _ = select.select([client, server], [], [])
                source = ready[0]
                passed = source.recv(65536)
                if not passed or (source is server and is_script and self.cuts):
                    self.cuts -= bool(passed)
                    return
                is_script = source is client and b"EVALSHA" in passed
                (server if source is client else client).sendall(passed)

    def close(self) -> None:
        self._listening.close()


def test_an_answer_that_is_cut_off_is_asked_again_under_the_same_id_and_charged_once(own):
    way = CutOff(own.port)
    with opened(way.url) as store:
        ask(store, "0")
        store.settle("0", Amounts())
        way.cuts = 1
        assert ask(store, "1", 100) == GRANTED
        (after_reserve,) = store.read([AGENT.key])
        way.cuts = 1
        store.settle("1", Amounts(40))
        (after_settle,) = store.read([AGENT.key])
    way.close()

    assert (after_reserve.spent, after_reserve.held) == (0, 100)
    assert (after_settle.spent, after_settle.held) == (40, 0)


# --- lost memory ----------------------------------------------------------------------------------------------------


def take_until_refused(stores, name: str, seconds: float = 6.0) -> int:
    """What is granted over all stores, ten by ten, until the limit ends it; half of it settled, half held."""
    taken = number = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answers = []
        for store in stores:
            number += 1
            answer = ask(store, f"{name}-{number}", 10)
            answers.append(answer)
            if isinstance(answer, Granted):
                taken += 10
                if number % 2:
                    store.settle(f"{name}-{number}", Amounts(10))
            elif answer.kind is RefusalKind.UNREGISTERED:
                store.register([AGENT])
        if all(isinstance(answer, Refused) and answer.kind is not RefusalKind.UNREGISTERED for answer in answers):
            return taken
        if all(isinstance(answer, Refused) for answer in answers):
            time.sleep(0.05)
    raise AssertionError(f"never refused for good; {taken} taken")


def test_a_server_that_is_emptied_in_the_window_admits_no_more_than_the_limit(own):
    with opened(own.url + PATIENT) as one, opened(own.url + PATIENT) as two:
        for number in range(30):
            assert ask(one, f"one-{number}", 10) == GRANTED
            assert ask(two, f"two-{number}", 10) == GRANTED
        one.settle("one-1", Amounts(10))
        two.settle("two-1", Amounts(10))
        own.ask("FLUSHALL")

        assert ask(one, "at once", 10).kind is RefusalKind.UNREGISTERED
        assert take_until_refused([one, two], "after") == 400
        (left,) = one.read([AGENT.key])
        assert left.spent + left.held == 1000
        assert two.settle("two-2", Amounts(4)).first


def test_what_was_settled_in_one_generation_is_not_told_twice_in_the_next(own):
    with opened(own.url + PATIENT) as store:
        ask(store, "1", 100)
        for _ in range(3):
            own.ask("FLUSHALL")
            assert ask(store, "2", 10).kind is RefusalKind.UNREGISTERED
            store.sweep()
        (left,) = store.read([AGENT.key])

    assert (left.spent, left.held) == (0, 100)


def test_an_isolation_is_known_to_be_lost_by_an_epoch_that_went_back(own):
    with opened(own.url + PATIENT) as store:
        store.isolate("agent:a", on=True, by="ada", why="drill")
        store.isolate("agent:b", on=True, by="ada", why="drill")
        before = store.epoch()
        own.ask("FLUSHALL")

        assert store.epoch() < before


def test_a_promoted_replica_goes_on_with_what_it_was_told(own):
    own.ask("CONFIG", "SET", "repl-diskless-sync-delay", 0)
    replica = Server("--replicaof", "127.0.0.1", str(own.port))
    with opened(own.url + PATIENT) as store:
        ask(store, "1", 100)
        wait_until(lambda: is_in_step(own, replica), "a replica that has the first")
        ask(store, "2", 100)
        wait_until(lambda: is_in_step(own, replica), "a replica that has both")
        own.kill()
        replica.ask("REPLICAOF", "NO", "ONE")
    with opened(replica.url + PATIENT) as promoted:
        (balance,) = promoted.read([AGENT.key])
        assert balance.held == 200
        assert promoted.settle("1", Amounts(30)).first
    replica.close()


def test_a_replica_that_is_not_promoted_refuses_and_says_so(own):
    with opened(own.url + PATIENT) as store:
        other = Server()
        own.ask("REPLICAOF", "127.0.0.1", other.port)
        with pytest.raises(StoreUnavailable, match="refuses"):
            ask(store, "1")
        other.close()


# --- what each limit does meanwhile ---------------------------------------------------------------------------------


def test_a_closed_limit_refuses_a_local_one_counts_a_part_and_an_open_one_goes_on(own):
    rows = (AGENT, LOCAL, OPEN)
    store = Standby(RedisStore(own.url + PATIENT))
    store.register(rows)
    ask(store, "before", 500, LOCAL)
    store.sweep()
    own.kill()

    with pytest.raises(StoreUnavailable):
        ask(store, "closed")
    taken = sum(isinstance(ask(store, f"local-{number}", 10, LOCAL), Granted) for number in range(20))
    opened_calls = [ask(store, f"open-{number}", 900, OPEN) for number in range(3)]
    with pytest.raises(StoreUnavailable):
        store.reserve(Reserve("both", (Charge(OPEN.key, 1), Charge(AGENT.key, 1))))
    store.close()

    assert taken == 5  # a tenth of the 500 that were left
    assert opened_calls == [GRANTED] * 3


def test_what_was_used_meanwhile_is_charged_when_the_store_is_back(own):
    store = Standby(RedisStore(own.url + SHORT))
    store.register((LOCAL, OPEN))
    ask(store, "before", 100, LOCAL)
    store.sweep()
    own.stop()
    ask(store, "1", 10, LOCAL)
    ask(store, "2", 700, OPEN)
    store.settle("1", Amounts(7))
    store.settle("2", Amounts(650))
    own.go_on()

    until = time.monotonic() + 5
    while time.monotonic() < until:
        with contextlib.suppress(StoreUnavailable):
            store.sweep()
            break
        time.sleep(0.02)
    balances = store.read([LOCAL.key, OPEN.key])
    store.close()

    assert [(balance.spent, balance.held) for balance in balances] == [(7, 100), (650, 0)]


def test_an_isolation_holds_while_the_store_is_down(own):
    store = Standby(RedisStore(own.url + PATIENT))
    store.register((OPEN,))
    store.isolate("agent:open", on=True, by="ada", why="drill")
    store.isolations()
    own.kill()

    refused = store.reserve(Reserve("1", (Charge(OPEN.key, 1),), ("agent:open",)))
    store.close()

    assert refused == Refused(RefusalKind.ISOLATED, "agent:open")


# --- in an event loop -----------------------------------------------------------------------------------------------


def test_tasks_that_ask_together_travel_together_and_pass_exactly_the_limit(own):
    async def crowd(store: RedisStore) -> int:
        answers = await asyncio.gather(*(store.areserve(Reserve(str(name), (Charge(AGENT.key, 100),))) for name in range(64)))
        settled = await asyncio.gather(*(store.asettle(str(name), Amounts(50)) for name in range(64)))
        assert sum(one.first for one in settled) == 10
        await store.aclose()
        return sum(isinstance(answer, Granted) for answer in answers)

    with opened(own.url + PATIENT) as store:
        granted = asyncio.run(crowd(store))
        (balance,) = store.read([AGENT.key])

    assert granted == 10
    assert (balance.spent, balance.held) == (500, 0)


def test_a_cancelled_task_leaves_nothing_held(own):
    async def ask_and_leave(store: RedisStore) -> None:
        await store.areserve(Reserve("warm", ()))
        own.stop()
        asking = asyncio.create_task(store.areserve(Reserve("1", (Charge(AGENT.key, 100),))))
        await asyncio.sleep(0.05)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        own.go_on()
        await store.aclose()

    with opened(own.url + PATIENT) as store:
        asyncio.run(ask_and_leave(store))
        (balance,) = store.read([AGENT.key])

    assert (balance.spent, balance.held) == (0, 0)


def test_an_event_loop_is_not_held_up_by_a_frozen_server(own):
    async def ask_while_frozen(store: RedisStore) -> None:
        await store.areserve(Reserve("warm", ()))
        own.stop()
        asking = asyncio.gather(
            *(store.areserve(Reserve(str(name), (Charge(AGENT.key, 1),))) for name in range(16)), return_exceptions=True
        )
        turns = 0
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
        own.go_on()
        await store.aclose()
        assert all(isinstance(answer, StoreUnavailable) for answer in await asking)
        assert turns > 100

    with opened(own.url + SHORT) as store:
        asyncio.run(ask_while_frozen(store))


# --- who may do what ------------------------------------------------------------------------------------------------


def test_an_agents_user_may_decide_and_may_not_restore(own):
    recipe = (Path(__file__).parents[2] / "docs/how-to/redis.md").read_text(encoding="utf-8")
    for line in (
        recipe.partition("<!-- acl -->")[2].partition("```text")[2].partition("```")[0].strip().replace("\\\n", " ").splitlines()
    ):
        own.ask(*line.split())
    server = f"127.0.0.1:{own.port}/0{PATIENT}&fleet=support"
    with opened(f"redis://agent:agents-password@{server}") as agent:
        assert ask(agent, "1", 40) == GRANTED
        assert agent.extend("1", (Charge(AGENT.key, 5),)) == Granted((Charge(AGENT.key, 5),))
        assert agent.settle("1", Amounts(30)).first
        assert agent.sweep() == 0
        assert asyncio.run(in_a_loop(agent)) == GRANTED
        with pytest.raises(StoreUnavailable, match=r"docs/how-to/redis\.md"):
            agent.isolate("agent:b", on=True, by="agent", why="envy")
        operator = RedisStore(f"redis://operator:operators-password@{server}")
        operator.isolate("agent:a", on=True, by="ada", why="drill")
        operator.close()
        assert [isolation.subject for isolation in agent.isolations()] == ["agent:a"]
        refused = agent.reserve(Reserve("2", (Charge(AGENT.key, 1),), ("agent:a",)))

    assert refused == Refused(RefusalKind.ISOLATED, "agent:a")


async def in_a_loop(store: RedisStore):
    answer = await store.areserve(Reserve("in a loop", ()))
    await store.aclose()
    return answer


# --- a cluster ------------------------------------------------------------------------------------------------------


def test_a_cluster_of_one_node_keeps_a_fleet_in_one_slot():
    server = Server("--cluster-enabled", "yes", port=free_port())
    server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    until = time.monotonic() + 10
    while "cluster_state:ok" not in str(server.ask("CLUSTER", "INFO")):
        assert time.monotonic() < until
        time.sleep(0.05)
    with opened(f"redis+cluster://127.0.0.1:{server.port}?timeout=5&fleet=support") as store:
        assert ask(store, "1", 100) == GRANTED
        assert store.extend("1", (Charge(AGENT.key, 50),)) == Granted((Charge(AGENT.key, 50),))
        assert store.settle("1", Amounts(120)).first
        assert store.sweep() == 0
        assert [balance.spent for _, balance in store.rows()] == [120]
        assert all(key.startswith(b"ag:{support}:") for key in server.ask("KEYS", "*"))
    server.close()

"""Redis as it is run in earnest: over TLS, with users, behind a sentinel that promotes a replica, in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest
from redis.crc import key_slot

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.stores.redis import RedisStore

from . import test_contract as contract
from .redis_server import PROGRAM, ClockedScripts
from .redis_topologies import LATE, Cluster, Replicated, TlsServer, is_in_step, wait_until

pytestmark = pytest.mark.needs(PROGRAM)
AGENT = LimitRow.of("agent:a", Limit(amount=1000, unit=Unit.TOKENS, window=Window("day")))
SLOT = key_slot(b"{support}")


def with_options(url: str, *options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{'&'.join(('fleet=support', *options))}"


@contextlib.contextmanager
def opened(url: str, *options: str):
    with contextlib.closing(RedisStore(with_options(url, *(options or ("timeout=5",))))) as store:
        store.register([AGENT])
        yield store


class Blocking:
    """The verbs of a call, asked from a thread."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store

    def reserve(self, name: str, amount: int = 10, *subjects: str):
        return self.store.reserve(Reserve(name, (Charge(AGENT.key, amount),), subjects))

    def extend(self, name: str, amount: int):
        return self.store.extend(name, (Charge(AGENT.key, amount),))

    def settle(self, name: str, tokens: int) -> bool:
        return self.store.settle(name, Amounts(tokens)).first

    def settle_in_the_end(self, name: str, tokens: int) -> None:
        """As often as it takes. That it was settled already is an answer too: the first one may have been lost on its way."""
        wait_until(lambda: self.settle(name, tokens) in (True, False), f"an answer to the settlement of {name}")

    def close(self) -> None:
        self.store.close()


class InALoop(Blocking):
    """The same, asked from a task."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store)
        self._runner = asyncio.Runner()

    def reserve(self, name: str, amount: int = 10, *subjects: str):
        return self._runner.run(self.store.areserve(Reserve(name, (Charge(AGENT.key, amount),), subjects)))

    def extend(self, name: str, amount: int):
        return self._runner.run(self.store.aextend(name, (Charge(AGENT.key, amount),)))

    def settle(self, name: str, tokens: int) -> bool:
        return self._runner.run(self.store.asettle(name, Amounts(tokens))).first

    def close(self) -> None:
        self._runner.run(self.store.aclose())
        self._runner.close()


@pytest.fixture(params=[Blocking, InALoop], ids=["blocking", "in_a_loop"])
def way(request):
    return request.param


@pytest.fixture
def closing():
    """Closes what it is given when the test is over, however that ends."""
    with contextlib.ExitStack() as stack:
        yield lambda opened: stack.enter_context(contextlib.closing(opened))


def spent_and_held(store: RedisStore) -> tuple[int, int]:
    """As often as it takes: a sentinel on a busy machine takes the promoted server for dead too, now and then."""
    found = []
    wait_until(lambda: found.extend(store.read([AGENT.key])) or found, "an answer to a look at the row")
    return found[0].spent, found[0].held


def take_until_refused(asking: Blocking, name: str, seconds: float = 30.0) -> tuple[int, int]:
    """Take ten by ten until the limit ends it, asking again whenever there is no answer. Returns what was taken, and how often
    there was none."""
    taken = silent = number = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        try:
            answer = asking.reserve(f"{name}-{number}")
        except StoreUnavailable:
            silent += 1
            time.sleep(0.02)
            continue
        if isinstance(answer, Refused):
            assert answer.kind is not RefusalKind.UNREGISTERED, "the server has lost what it was told"
            return taken, silent
        taken += 10
        if number % 2:
            asking.settle_in_the_end(f"{name}-{number}", 10)
    raise AssertionError(f"never refused; {taken} taken")


# --- what every store promises --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def replicated():
    replicated = Replicated(down_after=LATE)
    yield replicated
    replicated.close()


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(
    params=[pytest.param("tls", marks=pytest.mark.storm), pytest.param("replicated", marks=pytest.mark.storm), "cluster"]
)
def store(request, clock):
    """A store on each, that knows the rows of the contract and goes by the test's clock."""
    topology = request.getfixturevalue(request.param)
    topology.ask("FLUSHALL")
    store = RedisStore(with_options(topology.url, "timeout=5"), scripts=ClockedScripts(clock))
    store.register(contract.ROWS)
    yield store
    store.close()


globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


# --- TLS ------------------------------------------------------------------------------------------------------------


def test_a_server_of_another_authority_is_refused_and_the_option_is_named(tls, way, closing):
    with opened(tls.url) as known:
        asking = closing(way(RedisStore(with_options(tls.url_trusting(tls.stranger), "timeout=5"))))
        known.read([AGENT.key])

        with pytest.raises(StoreUnavailable, match=r"(?s)certificate verify failed.*ssl_ca_certs") as refused:
            asking.reserve("1")

    assert "password" not in str(refused.value)


def test_a_certificate_for_another_host_is_refused(tls, closing):
    asking = closing(Blocking(RedisStore(with_options(tls.url.replace("127.0.0.1", "localhost"), "timeout=5"))))
    with pytest.raises(StoreUnavailable, match="localhost"):
        asking.reserve("1")


def test_a_plain_client_of_a_server_that_speaks_tls_gets_no_answer(tls, closing):
    asking = closing(Blocking(RedisStore(f"redis://127.0.0.1:{tls.tls_port}/0?timeout=1")))
    with pytest.raises(StoreUnavailable, match="gave no answer"):
        asking.reserve("1")


def test_a_server_that_asks_for_certificates_knows_its_clients_by_them(tmp_path, closing):
    server = closing(TlsServer(tmp_path, asks_clients=True))
    with opened(server.url, f"ssl_certfile={server.certificate}", f"ssl_keyfile={server.key}", "timeout=5") as store:
        assert Blocking(store).reserve("1") == GRANTED
        unknown = closing(Blocking(RedisStore(with_options(server.url, "timeout=5"))))
        with pytest.raises(StoreUnavailable):
            unknown.reserve("2")


# --- users ----------------------------------------------------------------------------------------------------------


def allow_users(ask) -> None:
    """Load the recipe of the documentation as it stands."""
    page = (Path(__file__).parents[2] / "docs/how-to/redis.md").read_text(encoding="utf-8")
    recipe = page.partition("<!-- acl -->")[2].partition("```text\n")[2].partition("```")[0]
    for line in recipe.replace("\\\n", " ").splitlines():
        ask(*line.split())


def as_user(url: str, name: str, password: str) -> str:
    return url.replace("://", f"://{name}:{password}@")


AS_AGENT = ("agent", "agents-password")
AS_OPERATOR = ("operator", "operators-password")


@pytest.fixture(params=["tls", "replicated", "cluster"])
def guarded(request):
    """Each of them, with the users of the recipe."""
    topology = request.getfixturevalue(request.param)
    topology.ask("FLUSHALL")
    for server in topology.servers:
        allow_users(server.ask)
    return topology


def test_an_agent_may_spend_and_hear_and_may_not_isolate_or_forget_or_empty(guarded, way, closing):
    agent = closing(way(RedisStore(with_options(as_user(guarded.url, *AS_AGENT), "timeout=5"))))
    heard = threading.Event()
    closing(agent.store.watch_isolations(heard.set))
    agent.store.register([AGENT])

    assert agent.reserve("1", 40) == GRANTED
    assert agent.extend("1", 5) == Granted((Charge(AGENT.key, 5),))
    assert agent.settle("1", 30)
    assert agent.store.sweep() == 0
    assert agent.store.isolations() == []
    with pytest.raises(StoreUnavailable, match=r"docs/how-to/redis\.md"):
        agent.store.isolate("agent:b", on=True, by="agent", why="envy")
    for words in (
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("DEL", "ag:{support}:control"),
        ("GET", "ag:{other}:state"),
    ):
        with pytest.raises(StoreUnavailable, match="refuses"):
            agent.store._link.ask(lambda client, words=words: client.execute_command(*words))

    with opened(as_user(guarded.url, *AS_OPERATOR)) as operator:
        heard.clear()
        operator.isolate("agent:a", on=True, by="ada", why="drill")
        assert heard.wait(5)
        assert agent.reserve("2", 1, "agent:a") == Refused(RefusalKind.ISOLATED, "agent:a")
        operator.isolate("agent:a", on=False, by="ada", why="done")
        assert agent.reserve("3", 1, "agent:a") == GRANTED
        assert spent_and_held(operator) == (30, 1)


def test_a_wrong_password_is_an_answer_and_says_what_to_correct(guarded, way, closing):
    asking = closing(way(RedisStore(with_options(as_user(guarded.url, "agent", "guessed"), "timeout=5"))))
    for number in range(4):
        with pytest.raises(StoreUnavailable, match="correct the credentials") as refused:
            asking.reserve(str(number))
        assert "guessed" not in str(refused.value)


def test_a_sentinel_may_ask_for_credentials_of_its_own(way, closing):
    replicated = closing(Replicated(down_after=LATE))
    replicated.sentinel.ask("ACL", "SETUSER", "watcher", "on", ">sentinels-password", "+@all", "allchannels")
    replicated.sentinel.ask("ACL", "SETUSER", "default", "off")
    stranger = closing(way(RedisStore(with_options(replicated.url, "timeout=5"))))
    known = "sentinel_username=watcher", "sentinel_password=sentinels-password"

    with pytest.raises(StoreUnavailable, match="Authentication"):
        stranger.reserve("1")
    with opened(replicated.url, "timeout=5", *known):
        asking = closing(way(RedisStore(with_options(replicated.url, "timeout=5", *known))))
        assert asking.reserve("2") == GRANTED


# --- a sentinel that promotes a replica -------------------------------------------------------------------------------


@pytest.mark.storm
def test_a_promoted_replica_is_gone_on_with_and_the_limit_holds_to_the_unit(way, closing):
    replicated = closing(Replicated())
    with opened(replicated.url, "timeout=0.5") as looking:
        asking = closing(way(RedisStore(with_options(replicated.url, "timeout=0.5"))))
        assert [asking.reserve(f"before-{number}") for number in range(30)] == [GRANTED] * 30
        assert asking.settle("before-0", 5)
        generation = looking._generation
        wait_until(lambda: is_in_step(replicated.master, replicated.replica), "a replica that has all")
        heard = threading.Event()
        closing(looking.watch_isolations(heard.set))
        assert heard.wait(5)

        replicated.master.kill()
        with pytest.raises(StoreUnavailable):
            asking.reserve("meanwhile")
        taken, silent = take_until_refused(asking, "after")

        assert silent
        assert replicated.master_port() == replicated.replica.port
        assert sum(spent_and_held(looking)) == 995  # ten by ten, from 295
        assert 0 <= 700 - taken <= 10 * silent  # what was granted when the answer was lost is counted, and not known here
        assert looking._generation == generation
        assert asking.settle("before-1", 3)
        heard.clear()
        looking.isolate("agent:b", on=True, by="ada", why="drill")
        assert heard.wait(5)


@pytest.mark.storm
def test_a_frozen_master_that_thaws_grants_nothing_once_its_replica_was_promoted(closing):
    """With `min-replicas-to-write 1`, as the documentation asks for: a connection that lay idle meanwhile still leads to it."""
    replicated = closing(Replicated("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1"))
    with opened(replicated.url, "timeout=0.5") as idle, opened(replicated.url, "timeout=0.5") as busy:
        assert Blocking(idle).reserve("before") == GRANTED
        wait_until(lambda: is_in_step(replicated.master, replicated.replica), "a replica that has all")
        replicated.master.stop()
        wait_until(lambda: replicated.master_port() == replicated.replica.port, "a replica that is promoted")
        replicated.replica.ask("CONFIG", "SET", "min-replicas-to-write", 0)  # it has none until the old master has joined it
        taken, _ = take_until_refused(Blocking(busy), "after")
        replicated.master.go_on()
        wait_until(
            lambda: not replicated.master.ask("INFO", "replication")["connected_slaves"], "a master that misses its replica"
        )

        answers = []
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with contextlib.suppress(StoreUnavailable):
                answers.append(Blocking(idle).reserve(f"thawed-{len(answers)}"))
            time.sleep(0.05)

    assert taken <= 990
    assert not any(isinstance(answer, Granted) for answer in answers)


# --- a cluster ----------------------------------------------------------------------------------------------------------


def test_all_keys_of_a_fleet_are_on_one_node_of_a_cluster(cluster, way, closing):
    cluster.ask("FLUSHALL")
    with opened(cluster.url) as store:
        asking = closing(way(RedisStore(with_options(cluster.url, "timeout=5"))))
        asking.reserve("1")
        assert store.sweep() == 0

    held = [node.ask("KEYS", "*") for node in cluster.masters]
    assert sorted(map(bool, held)) == [False, False, True]
    assert held[cluster.place_of(SLOT)] == max(held, key=len)


def test_a_fleets_slot_moves_to_another_node_and_nothing_is_lost(cluster, way, closing):
    cluster.ask("FLUSHALL")
    with opened(cluster.url) as looking:
        asking = closing(way(RedisStore(with_options(cluster.url, "timeout=5"))))
        heard = threading.Event()
        closing(looking.watch_isolations(heard.set))
        assert [asking.reserve(f"before-{number}") for number in range(30)] == [GRANTED] * 30
        source = cluster.place_of(SLOT)
        target = (source + 1) % 3
        cluster.begin_to_move(SLOT, source, target)

        keys = cluster.masters[source].ask("CLUSTER", "GETKEYSINSLOT", SLOT, 1000)
        cluster.move(keys[::2], source, target)
        with pytest.raises(StoreUnavailable):
            asking.reserve("meanwhile")
        cluster.move(keys[1::2], source, target)
        cluster.end_move(SLOT, target)
        taken, _ = take_until_refused(asking, "after")

        assert taken == 700
        assert sum(spent_and_held(looking)) == 1000
        assert asking.settle("before-1", 3)
        assert cluster.place_of(SLOT) == target
        heard.clear()
        looking.isolate("agent:b", on=True, by="ada", why="drill")
        assert heard.wait(5)


@pytest.mark.storm
def test_a_node_that_dies_is_followed_by_its_replica_and_the_limit_holds_to_the_unit(way, closing):
    cluster = closing(Cluster(replicated=True))
    with opened(cluster.url, "timeout=0.5") as looking:
        asking = closing(way(RedisStore(with_options(cluster.url, "timeout=0.5"))))
        assert [asking.reserve(f"before-{number}") for number in range(30)] == [GRANTED] * 30
        generation = looking._generation
        place = cluster.place_of(SLOT)
        wait_until(lambda: is_in_step(cluster.masters[place], cluster.replicas[place]), "a replica that has all")
        heard = threading.Event()
        closing(looking.watch_isolations(heard.set))

        cluster.masters[place].kill()
        with pytest.raises(StoreUnavailable):
            asking.reserve("meanwhile")
        taken, silent = take_until_refused(asking, "after")

        assert silent
        assert sum(spent_and_held(looking)) == 1000
        assert 0 <= 700 - taken <= 10 * silent
        assert looking._generation == generation
        heard.clear()
        looking.isolate("agent:b", on=True, by="ada", why="drill")
        assert heard.wait(5)


@pytest.mark.storm
def test_a_fleet_goes_on_while_a_node_is_down_that_holds_none_of_it(way, closing):
    cluster = closing(Cluster())
    cluster.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    with opened(cluster.url, "timeout=0.5"):
        asking = closing(way(RedisStore(with_options(cluster.url, "timeout=0.5"))))
        asking.reserve("before")
        other = (cluster.place_of(SLOT) + 1) % 3
        cluster.masters[other].kill()

        taken, silent = take_until_refused(asking, "after")

    assert (taken, silent) == (990, 0)


@pytest.mark.storm
def test_the_fleets_own_node_is_the_one_that_is_asked_whether_it_answers_again(closing):
    cluster = closing(Cluster())
    cluster.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    with opened(cluster.url, "timeout=0.1") as store:
        place = cluster.place_of(SLOT)
        cluster.masters[(place + 1) % 3].kill()
        cluster.masters[place].stop()
        for number in range(3):
            with pytest.raises(StoreUnavailable):
                Blocking(store).reserve(str(number))
        assert store._link.breaker.is_open
        time.sleep(0.5)
        assert store._link.breaker.is_open
        cluster.masters[place].go_on()

        wait_until(lambda: Blocking(store).reserve("again") == GRANTED, "an answer of the fleet's node", 5.0)

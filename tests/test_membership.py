"""A process among those that share a store: what it acts on, what it says of itself, and what it does when the store forgets."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from agentguard.core.call import HTTPCall
from agentguard.errors import AgentIsolated, StoreUnavailable
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.policy.digest import digest_of
from agentguard.stores.memory import MemoryStore

CALL = HTTPCall.to("GET", "https://api.example.com/")
WRITTEN = {
    "agents": [
        {
            "name": "bot",
            "external_calls": {"allowed_domains": ["api.example.com"], "blocked_domains": ["*"]},
            "budgets": [{"limit": "10 calls"}],
        }
    ]
}


class Forgetful(MemoryStore):
    """A store that can lose what it was told of isolations, or give no answer about them."""

    is_down = False

    def lose(self):
        self._isolated.clear()
        self._epoch = 0

    def epoch(self):
        if self.is_down:
            raise StoreUnavailable("down")
        return super().epoch()


@pytest.fixture
def store():
    return Forgetful()


@pytest.fixture
def guard(store):
    made = Guard(Policy.from_mapping(WRITTEN), store=store)
    made.begin(CALL).settle()
    yield made
    made.close()


def test_another_guard_on_the_store_hears_of_an_isolation_at_once(guard, store):
    other = Guard(Policy.from_mapping(WRITTEN), store=store)

    other.isolate("bot", by="ada", why="drill")

    assert "agent:bot" in guard.isolated
    with pytest.raises(AgentIsolated):
        guard.begin(CALL)
    other.close()


def test_a_process_says_which_isolations_it_acts_on(guard, store):
    epoch = store.isolate("session:1", on=True, by="ada", why="drill")

    (member,) = store.members()

    assert (member.epoch, member.pid, member.agent, member.mode) == (epoch, os.getpid(), "bot", "enforce")
    assert member.policy == digest_of(guard.policy)


def test_a_process_is_listed_as_soon_as_it_has_joined_though_it_has_just_kept_house(store):
    from agentguard.testing import FrozenClock

    with contextlib.closing(Guard(Policy.from_mapping(WRITTEN), store=store, clock=FrozenClock())) as guard:
        kept = threading.Event()
        guard.chore(kept.set)
        guard.worker.wake()
        assert kept.wait(10)

        guard.join()

        for _ in range(1000):
            if store.members():
                break
            threading.Event().wait(0.01)
        assert len(store.members()) == 1


def test_a_store_that_has_lost_an_isolation_is_told_it_again(guard, store):
    guard.isolate("bot", by="ada", why="drill")
    guard.isolate("session:1", by="ada", why="drill")

    store.lose()
    guard.refresh_isolations()

    assert {isolation.subject for isolation in store.isolations()} == {"agent:bot", "session:1"}
    with pytest.raises(AgentIsolated):
        guard.begin(CALL)


def test_an_isolation_that_was_lost_is_told_again_though_another_was_made_since(guard, store):
    guard.isolate("bot", by="ada", why="drill")
    guard.leave()  # it hears of nothing meanwhile

    store.lose()
    store.isolate("session:1", on=True, by="ada", why="drill")
    guard.refresh_isolations()

    assert {isolation.subject for isolation in store.isolations()} == {"agent:bot", "session:1"}


def test_a_subject_that_others_have_restored_is_not_isolated_again(guard, store):
    guard.isolate("bot", by="ada", why="drill")
    guard.leave()

    store.isolate("agent:bot", on=False, by="bob", why="")
    store.isolate("session:1", on=True, by="bob", why="drill")
    guard.refresh_isolations()

    assert list(guard.isolated) == ["session:1"]


def test_a_guard_that_cannot_read_who_is_isolated_does_not_start(store):
    store.is_down = True

    with pytest.raises(StoreUnavailable):
        Guard(Policy.from_mapping(WRITTEN), store=store)


def test_what_was_read_last_holds_while_the_store_cannot_be_read(guard, store):
    guard.isolate("bot", by="ada", why="drill")
    store.is_down = True

    with pytest.raises(StoreUnavailable):
        guard.refresh_isolations()
    with pytest.raises(AgentIsolated):
        guard.begin(CALL)


def test_probation_halves_the_limits_of_the_agent_and_ends_by_itself(store):
    from agentguard.testing import FrozenClock

    clock = FrozenClock()
    guard = Guard(Policy.from_mapping(WRITTEN), store=MemoryStore(clock), clock=clock)
    guard.restore("bot", by="ada", probation_seconds=60)
    halved = guard.policy.agents[0].budgets[0].amount

    clock.advance(61)
    guard.refresh_isolations()

    assert (halved, guard.policy.agents[0].budgets[0].amount) == (5, 10)
    guard.close()


def test_a_forked_child_is_a_process_of_its_own_and_hears_by_itself(tmp_path):
    from agentguard.stores.sqlite import SqliteStore

    guard = Guard(Policy.from_mapping(WRITTEN), store=SqliteStore(tmp_path / "ledger.sqlite"))
    guard.begin(CALL).settle()
    child = os.fork()
    if child == 0:
        try:
            guard.begin(CALL).settle()
            guard._membership.beat()
            heard = threading.Event()
            for _ in range(3000):
                if "agent:bot" in guard.isolated:
                    os._exit(0)
                heard.wait(0.01)
        finally:
            os._exit(1)
    for _ in range(3000):
        if len(guard.store.members()) == 2:
            break
        threading.Event().wait(0.01)
    guard.isolate("bot", by="ada", why="drill")

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    guard.close()


def test_the_digest_of_a_policy_does_not_depend_on_where_it_was_written(tmp_path):
    text = "version: 1\nagents:\n  - {name: bot, budgets: [{limit: 10 calls}]}\n"
    (tmp_path / "one.yaml").write_text(text)
    (tmp_path / "two.yaml").write_text(f"# a comment\n\n{text}")
    one, two = (Policy.from_yaml(tmp_path / name) for name in ("one.yaml", "two.yaml"))

    assert digest_of(one) == digest_of(two)
    assert digest_of(one) != digest_of(Policy.from_mapping({"agents": [{"name": "bot", "budgets": [{"limit": "11 calls"}]}]}))

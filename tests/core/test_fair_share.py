"""Shares of the fleet's limits: whoever races, each agent has its own."""

from __future__ import annotations

import threading

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import agentguard
from agentguard.core.call import HTTPCall, ToolCall
from agentguard.core.caller import NOBODY
from agentguard.core.limits import Charge, Refused, Row, decide, take
from agentguard.core.rights import Rights
from agentguard.errors import RateLimited
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.policy.model import AgentPolicy, Limit, Limits, Per, Share, Unit
from agentguard.policy.shares import parts
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.testing.clock import FrozenClock

CALL = HTTPCall.to("GET", "https://api.test/")


def fleet(limit: str, **shares: object) -> Policy:
    allowed = {"allowed_domains": ["api.test"]}
    return Policy.from_mapping(
        {
            "agents": [{"name": name, "share": share, "external_calls": allowed} for name, share in shares.items()],
            "limits": {"fleet": [{"limit": limit}], "fair_share": True},
        }
    )


def rows_of(policy: Policy, name: str) -> tuple:
    return Rights(policy, [policy.agent(name)], "").charged_rows(CALL, NOBODY._replace(agents=(name,))).rows


def admitted(guard: Guard, agent: str, calls: int) -> int:
    served = 0
    with agentguard.agent(agent):
        for _ in range(calls):
            try:
                with guard.admit(CALL):
                    served += 1
            except RateLimited:
                pass
    return served


@st.composite
def divisions(draw):
    """Agents whose guarantees can all be kept."""
    weights = draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    cuts = sorted(draw(st.lists(st.integers(0, 10**6), min_size=len(weights), max_size=len(weights))))
    guarantees = [end - begin for begin, end in zip([0, *cuts], cuts, strict=False)]
    shares = [
        Share(guarantee=guarantee, weight=draw(st.sampled_from([weight, 0])) if guarantee else weight)
        for guarantee, weight in zip(guarantees, weights, strict=True)
    ]
    return tuple(AgentPolicy(name=f"a{place}", share=share) for place, share in enumerate(shares))


@given(divisions(), st.integers(0, 10**12))
def test_shares_follow_guarantees_and_weights_and_together_are_the_whole_limit(agents, amount):
    divided = parts(agents, {agent.name for agent in agents})

    shares = [divided[agent.name].of(amount) for agent in agents]
    weights = sum(agent.share.weight for agent in agents)
    rest = amount - sum(agent.share.guarantee for agent in agents) * amount // 10**6
    assert sum(shares) == (amount if weights else amount - rest)
    for agent, share in zip(agents, shares, strict=True):
        of_the_rest = rest * agent.share.weight / weights if weights else 0
        assert share >= agent.share.guarantee * amount // 10**6
        assert abs(share - agent.share.guarantee * amount / 10**6 - of_the_rest) <= 2


@given(divisions(), st.integers(1, 9))
def test_a_guarantee_is_the_same_whoever_joins(agents, weight):
    joined = (AgentPolicy(name="new", share=Share(weight=weight)), *agents)

    for agent in agents:
        share = parts(joined, {agent.name})[agent.name].of(10**9)
        assert share >= agent.share.guarantee * 10**3


@given(divisions(), st.integers(100, 10**6), st.data())
def test_whatever_others_have_taken_each_agent_can_still_take_its_share_to_the_unit(agents, amount, data):
    assume(all(part.of(amount) for part in parts(agents, {agent.name for agent in agents}).values()))
    limit = Limit(amount=amount, unit=Unit.TOKENS, per=Per.FLEET)
    policy = Policy(agents=agents, limits=Limits(fleet=(limit,), fair_share=True))
    chains = {agent.name: rows_of(policy, agent.name) for agent in agents}
    rows = {row.key: Row.of(row.key, row.limit) for chain in chains.values() for row in chain}
    fleet_row = next(row for row in rows.values() if row.key.startswith("fleet|"))

    def ask(name: str, asked: int) -> bool:
        charges = tuple(Charge(row.key, asked) for row in chains[name])
        fitting = decide(rows, charges, 0.0)
        if isinstance(fitting, Refused):
            return False
        take(fitting.values(), charges, [])
        return True

    for name, asked in data.draw(st.lists(st.tuples(st.sampled_from(sorted(chains)), st.integers(1, 100 * amount)), max_size=30)):
        ask(name, asked)
        ask(name, max(asked % amount, 1))
        assert fleet_row.taken <= amount

    for agent in agents:
        share = next(rows[row.key] for row in chains[agent.name] if row.subject.startswith("share:"))
        left = share.amount - share.taken
        assert not left or ask(agent.name, left)
        assert not ask(agent.name, 1)


@pytest.mark.parametrize("is_leased", [False, True])
def test_a_rogue_at_a_hundred_times_its_share_takes_nothing_from_the_others(is_leased):
    clock = FrozenClock()
    store = LeasedStore(MemoryStore(clock), clock) if is_leased else MemoryStore(clock)
    guard = Guard(fleet("1000_requests_per_hour", rogue=1, b=1, c=1, d=1, e=1), store=store, clock=clock)
    served = {}
    agents = {"rogue": 20_000, "b": 200, "c": 200, "d": 200, "e": 200}
    threads = [
        threading.Thread(target=lambda name=name, calls=calls: served.update({name: admitted(guard, name, calls)}))
        for name, calls in agents.items()
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert served == dict.fromkeys(agents, 200)


@pytest.mark.parametrize("is_leased", [False, True])
def test_hour_after_hour_a_rogue_leaves_the_others_what_a_window_that_slides_can_give(is_leased):
    clock = FrozenClock()
    store = LeasedStore(MemoryStore(clock), clock) if is_leased else MemoryStore(clock)
    guard = Guard(fleet("200_requests_per_hour", rogue=1, b=2, c=1), store=store, clock=clock)
    own = {"rogue": 50, "b": 100, "c": 50}
    served = dict.fromkeys(own, 0)
    hours, steps = 3, 100

    for _ in range(hours * steps):
        served["rogue"] += admitted(guard, "rogue", 50)
        for name in ("b", "c"):
            served[name] += admitted(guard, name, -(-own[name] // steps))
        store.sweep()
        clock.advance(3600 / steps)

    assert served["rogue"] <= hours * own["rogue"]
    assert all(served[name] >= 0.95 * hours * own[name] for name in ("b", "c")), served


def test_a_refusal_names_the_share_and_says_when_to_try_again():
    clock = FrozenClock()
    guard = Guard(fleet("10_requests_per_minute", a=1, b=4), store=MemoryStore(clock), clock=clock)
    assert admitted(guard, "a", 2) == 2

    with agentguard.agent("a"), pytest.raises(RateLimited, match="a's share of the fleet's limit") as denied, guard.admit(CALL):
        pass

    assert 59 < denied.value.retry_after <= 62
    assert "2 calls of 10_requests_per_minute" in denied.value.remedy
    assert admitted(guard, "b", 100) == 8


def test_a_new_policy_moves_the_shares_and_what_was_counted_stays():
    clock = FrozenClock()
    guard = Guard(fleet("100_requests_per_hour", a=1, b=1), store=MemoryStore(clock), clock=clock)
    assert admitted(guard, "a", 40) == 40

    guard.adopt(fleet("100_requests_per_hour", a={"guarantee": "60%", "weight": 0}, b=1, c=1))

    assert [admitted(guard, name, 100) for name in "abc"] == [20, 20, 20]


def test_a_caller_that_is_no_agent_of_the_policy_has_no_share_to_take():
    guard = Guard(fleet("10_requests_per_minute", a=1, b=1), store=MemoryStore(FrozenClock()))

    refused = pytest.raises(RateLimited, match=r"'stranger' .* has no share of 10_requests_per_minute")
    with agentguard.agent("stranger"), refused as denied, guard.admit(CALL):
        pass

    assert "Enter an agent of the policy" in denied.value.remedy
    assert guard.check(ToolCall("lookup")).allowed
    assert [admitted(guard, name, 10) for name in "ab"] == [5, 5]


def test_an_agent_inside_another_uses_the_shares_of_both():
    guard = Guard(fleet("10_requests_per_minute", a=1, b=1), store=MemoryStore(FrozenClock()))

    with agentguard.agent("a"):
        assert admitted(guard, "b", 3) == 3

    assert [admitted(guard, name, 10) for name in "ab"] == [2, 2]

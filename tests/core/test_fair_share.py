"""Shares of the fleet's limits: whoever races, each agent has its own."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentguard
from agentguard.core.call import HTTPCall
from agentguard.core.caller import NOBODY
from agentguard.core.rights import Rights
from agentguard.errors import RateLimited
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.testing.clock import FrozenClock

CALL = HTTPCall.to("GET", "https://api.test/")


def fleet(limit: str, **weights: int) -> Policy:
    allowed = {"allowed_domains": ["api.test"]}
    return Policy.from_mapping(
        {
            "agents": [{"name": name, "share": weight, "external_calls": allowed} for name, weight in weights.items()],
            "limits": {"fleet": [{"limit": limit}], "fair_share": True},
        }
    )


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


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(100, 10**6))
def test_shares_follow_the_weights_and_together_are_the_whole_limit(weights, amount):
    policy = fleet(f"{amount} tokens", **{f"a{place}": weight for place, weight in enumerate(weights)})

    shares = []
    for agent in policy.agents:
        caller = NOBODY._replace(agents=(agent.name,))
        rows = Rights(policy, [agent], "").account(CALL, caller).rows
        shares += [row.limit.amount for row in rows if row.subject == f"share:{agent.name}@fleet"]

    assert len(shares) == len(weights)
    assert sum(shares) == amount or 1 in shares
    assert all(abs(share - amount * weight / sum(weights)) <= 1 for share, weight in zip(shares, weights, strict=True))


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


def test_a_refusal_names_the_share_and_says_when_to_try_again():
    clock = FrozenClock()
    guard = Guard(fleet("10_requests_per_minute", a=1, b=4), store=MemoryStore(clock), clock=clock)
    assert admitted(guard, "a", 2) == 2

    with agentguard.agent("a"), pytest.raises(RateLimited, match="a's share of the fleet's limit") as denied, guard.admit(CALL):
        pass

    assert 59 < denied.value.retry_after <= 62
    assert admitted(guard, "b", 100) == 8

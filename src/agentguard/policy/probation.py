"""A policy for agents on probation: they have half of every limit of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from agentguard.policy.model import AgentPolicy, Limit, Policy


def on_probation(policy: Policy, agents: Collection[str]) -> Policy:
    """The policy with the limits of these agents halved; limits of the fleet stay."""
    if not agents:
        return policy
    return replace(policy, agents=tuple(_halved(agent) if agent.name in agents else agent for agent in policy.agents))


def _halved(agent: AgentPolicy) -> AgentPolicy:
    rate = agent.api_keys.rate_limit
    return replace(
        agent,
        budgets=tuple(map(_half, agent.budgets)),
        api_keys=replace(agent.api_keys, rate_limit=None if rate is None else _half(rate)),
    )


def _half(limit: Limit) -> Limit:
    text = f"{limit.text}, halved on probation" if limit.text else ""
    return replace(limit, amount=max(limit.amount // 2, 1), text=text)

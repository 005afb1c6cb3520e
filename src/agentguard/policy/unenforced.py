"""What a policy says that nothing enforces: in one place, to be shortened as enforcement arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.policy.model import Per, Share
from agentguard.policy.shares import parts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.policy.model import AgentPolicy, Policy


def unenforced(policy: Policy) -> tuple[str, ...]:
    """Plain sentences on what is written and has no effect, or less than it seems to; none when all is enforced."""
    return (*_of_policy(policy), *(sentence for agent in policy.agents for sentence in _of_agent(agent, policy)))


def _of_policy(policy: Policy) -> Iterator[str]:
    if policy.keys:
        yield "keys: secrets are not yet swapped for handles; agents still hold the keys themselves."
    if policy.alerts.channels or policy.alerts.routes:
        yield "alerts: alerts are not yet sent to channels; they go to the log and stderr."
    yield from _of_shares(policy)


def _of_shares(policy: Policy) -> Iterator[str]:
    if not policy.limits.fair_share:
        if any(agent.share != Share() for agent in policy.agents):
            yield "limits.fair_share: shares are written and not kept; write `fair_share: true` under limits."
        return
    divided = [limit for limit in policy.limits.fleet if limit.per is Per.FLEET]
    if not divided:
        yield "limits.fair_share: limits.fleet has no limit per fleet, so there is nothing to share."
    everybody = parts(policy.agents, {agent.name for agent in policy.agents})
    for limit in divided:
        without = sum(not part.of(limit.amount) for part in everybody.values())
        if without:
            yield (
                f"{limit.rule.name}: {limit.text!r} is too little for {len(everybody)} agents; "
                f"the share of {without} would be nothing: it is 1, while the fleet has any left."
            )


def _of_agent(agent: AgentPolicy, policy: Policy) -> Iterator[str]:
    where = f"{agent.rule.name}."
    bound = {resource.name for resource in policy.resources}
    for word in agent.api_keys.scope or ():
        if word not in bound:
            yield f"{where}security.api_keys.scope: no resource binds {word!r}; it opens only tools that ask for it."
    if agent.api_keys.rotation_days is not None:
        yield f"{where}security.api_keys.rotation_days: the age of keys is not yet watched."
    if agent.external_calls.is_unwritten:
        yield f"{where}external_calls: no list of hosts is written; calls are observed, none is refused."
    if agent.monitoring.alert_on_anomaly:
        yield f"{where}monitoring.alert_on_anomaly: behaviour is not yet learned, so nothing is told."
    if agent.monitoring.alert_at:
        yield f"{where}monitoring.alert_at: fixed thresholds are not yet watched."

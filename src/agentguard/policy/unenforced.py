"""What a policy says that nothing enforces: in one place, to be shortened as enforcement arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

"""From a policy back to the words of a file. What a default already says is left out; loading it gives the policy again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentguard.policy import grammar
from agentguard.policy.model import (
    LLM,
    AgentPolicy,
    Alerts,
    ApiKeys,
    ExternalCalls,
    KeySource,
    Limits,
    Mode,
    Monitoring,
    OnStoreDown,
    Over,
    Per,
    Policy,
    Share,
    Tools,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentguard.policy.model import Limit, Price, Resource


def to_mapping(policy: Policy) -> dict[str, Any]:
    """The policy as plain mappings, lists and text, in the shape of a file with `agents:`."""
    return _written(
        version=policy.version,
        mode=policy.mode.value if policy.mode is not Mode.ENFORCE else None,
        fleet=policy.fleet if policy.fleet != Policy().fleet else None,
        store=policy.store,
        agents=[_agent(agent) for agent in policy.agents],
        resources={resource.name: _resource(resource) for resource in policy.resources} or None,
        keys=[_key(key) for key in policy.keys] or None,
        limits=_limits(policy.limits) or None,
        alerts=_alerts(policy.alerts) or None,
    )


def to_yaml(policy: Policy) -> str:
    """The policy as the YAML of a file."""
    from agentguard.policy.load import yaml12

    return yaml12.render(to_mapping(policy))


def _written(**entries: Any) -> dict[str, Any]:
    """The entries that say something: None stands for a default."""
    return {key: value for key, value in entries.items() if value is not None}


def _changed(value: Any, default: Any) -> Any:
    return value if value != default else None


def _texts(items: Iterable[object] | None) -> list[str] | None:
    return None if items is None else [str(item) for item in items]


def _agent(agent: AgentPolicy) -> dict[str, Any]:
    api_keys = _api_keys(agent.api_keys)
    return _written(
        name=agent.name,
        team=agent.team,
        share=_share(agent.share),
        security={"api_keys": api_keys} if api_keys else None,
        external_calls=_external_calls(agent.external_calls) or None,
        llm=_llm(agent.llm) if agent.llm is not None else None,
        budgets=[write_limit(limit, Per.AGENT) for limit in agent.budgets] or None,
        tools=_tools(agent.tools) or None,
        monitoring=_monitoring(agent.monitoring) or None,
    )


def _share(share: Share) -> Any:
    weight = _changed(share.weight, Share().weight)
    return {"guarantee": grammar.write_part(share.guarantee), **_written(weight=weight)} if share.guarantee else weight


def _api_keys(api_keys: ApiKeys) -> dict[str, Any]:
    return _written(
        rotation_days=api_keys.rotation_days,
        scope=_texts(api_keys.scope),
        rate_limit=grammar.write_amount(api_keys.rate_limit) if api_keys.rate_limit is not None else None,
    )


def _external_calls(calls: ExternalCalls) -> dict[str, Any]:
    standard = ExternalCalls()
    return _written(
        allowed_domains=_texts(calls.allowed_domains),
        blocked_domains=_texts(calls.blocked_domains),
        enforcement=_changed(calls.enforcement, standard.enforcement),
        allow_private=calls.allow_private or None,
        allow_metadata=calls.allow_metadata or None,
        allow_udp=calls.allow_udp or None,
        unix_sockets=list(calls.unix_sockets) or None,
    )


def _llm(llm: LLM) -> dict[str, Any]:
    standard = LLM()
    return _written(
        providers=list(llm.providers) or None,
        models=_texts(llm.models),
        max_output_tokens=_changed(llm.max_output_tokens, standard.max_output_tokens),
        bound=_changed(llm.bound.value, standard.bound.value),
        unbounded_output=_changed(llm.unbounded_output.value, standard.unbounded_output.value),
        include_usage=_changed(llm.include_usage, standard.include_usage),
        ambiguous=_changed(llm.ambiguous.value, standard.ambiguous.value),
        prices={pattern: _price(price) for pattern, price in llm.prices.items()} or None,
        unknown_price=_price(llm.unknown_price) if llm.unknown_price is not None else None,
    )


def _price(price: Price) -> dict[str, str]:
    parts = {
        "input": price.input,
        "output": price.output,
        "cache_read": price.cache_read,
        "cache_write": price.cache_write,
    }
    return {name: grammar.write_money(nanos) for name, nanos in parts.items() if nanos is not None}


def write_limit(limit: Limit, per: Per) -> dict[str, Any]:
    """A limit as an entry of a list in which `per` is what an entry counts against by default."""
    amount = grammar.write_amount(limit)
    says_window = grammar.read_amount(amount).rate_seconds is not None
    return _written(
        limit=amount,
        per=_changed(limit.per.value, per.value),
        every=None if says_window else grammar.write_window(limit.window),
        over=_changed(limit.over.value, Over.ALL.value),
        warn_at=[f"{percent}%" for percent in limit.warn_at] or None,
        on_store_down=_changed(limit.on_store_down.value, OnStoreDown.CLOSED.value),
    )


def _tools(tools: Tools) -> dict[str, Any]:
    return _written(allowed=_texts(tools.allowed), proposed=_changed(tools.proposed, Tools().proposed))


def _monitoring(monitoring: Monitoring) -> dict[str, Any]:
    standard = Monitoring()
    per_week = _changed(monitoring.false_alerts_per_week, standard.false_alerts_per_week)
    return _written(
        alert_on_anomaly=_changed(monitoring.alert_on_anomaly, standard.alert_on_anomaly),
        track_token_usage=_changed(monitoring.track_token_usage, standard.track_token_usage),
        sensitivity={"false_alerts_per_week": per_week} if per_week is not None else None,
        typical={signal: grammar.write_range(ends) for signal, ends in monitoring.typical.items()} or None,
        alert_at=dict(monitoring.alert_at) or None,
    )


def _resource(resource: Resource) -> dict[str, Any]:
    return _written(hosts=_texts(resource.hosts) or None, paths=list(resource.paths) or None, tools=list(resource.tools) or None)


def _key(key: KeySource) -> dict[str, Any]:
    return {
        "name": key.name,
        "from": key.source,
        **_written(hosts=_texts(key.hosts) or None, agents=list(key.agents) or None, rotation_days=key.rotation_days),
    }


def _limits(limits: Limits) -> dict[str, Any]:
    contention_wait = _changed(limits.contention_wait_seconds, Limits().contention_wait_seconds)
    return _written(
        fleet=[write_limit(limit, Per.FLEET) for limit in limits.fleet] or None,
        fair_share=limits.fair_share or None,
        contention_wait=grammar.write_duration(contention_wait) if contention_wait is not None else None,
        wait=grammar.write_duration(limits.wait_seconds) if limits.wait_seconds else None,
    )


def _alerts(alerts: Alerts) -> dict[str, Any]:
    return _written(channels=_thawed(alerts.channels) or None, routes=_thawed(alerts.routes) or None)


def _thawed(value: Any) -> Any:
    """A copy in plain dicts and lists, which is all that YAML and JSON know."""
    if isinstance(value, (list, tuple)):
        return [_thawed(item) for item in value]
    if hasattr(value, "items"):
        return {key: _thawed(item) for key, item in value.items()}
    return value

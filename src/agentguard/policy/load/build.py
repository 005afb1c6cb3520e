"""From the checked shape of a file to the policy, with the line of every rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from agentguard.policy.model import (
    LLM,
    AgentPolicy,
    Alerts,
    ApiKeys,
    ExternalCalls,
    KeySource,
    Limit,
    Limits,
    Mode,
    Monitoring,
    OnStoreDown,
    Over,
    Per,
    Policy,
    Price,
    Resource,
    Rule,
    Share,
    Tools,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agentguard.policy.load.shape import DocumentShape, KeyShape, LimitFields, NamedAgentShape, PriceShape, ShareShape
    from agentguard.policy.load.yaml12 import Key, Place


def build(document: DocumentShape, path: str, places: Mapping[Key, Place]) -> Policy:
    """The policy of a document that has passed every check."""
    at = _Rules(path, places)
    limits = document.get("limits", {})
    alerts = document.get("alerts", {})
    return Policy(
        version=document.get("version", 1),
        mode=document.get("mode", Mode.ENFORCE),
        fleet=document.get("fleet", "default"),
        store=document.get("store"),
        agents=tuple(_agents(document, at)),
        resources=tuple(
            Resource(
                name=name,
                hosts=tuple(shape.get("hosts", ())),
                paths=tuple(shape.get("paths", ())),
                tools=tuple(shape.get("tools", ())),
                rule=at.rule(f"resources.{name}", ("resources", name)),
            )
            for name, shape in document.get("resources", {}).items()
        ),
        keys=tuple(_key(key, at, index) for index, key in enumerate(document.get("keys", ()))),
        limits=Limits(
            fleet=tuple(
                _limit(limit, at.rule(f"limits.fleet[{index}]", ("limits", "fleet", index)), Per.FLEET)
                for index, limit in enumerate(limits.get("fleet", ()))
            ),
            fair_share=limits.get("fair_share", False),
            contention_wait_seconds=limits.get("contention_wait", 30.0),
            wait_seconds=limits.get("wait", 0.0),
        ),
        alerts=Alerts(
            channels=cast("dict[str, dict[str, object]]", alerts.get("channels", {})),
            routes=tuple(cast("dict[str, object]", route) for route in alerts.get("routes", ())),
        ),
        path=path,
    )


class _Rules:
    """Finds the line where a rule stands; `bases` are the places an agent's words may come from, nearest first."""

    def __init__(self, path: str, places: Mapping[Key, Place], bases: tuple[Key, ...] = ((),)) -> None:
        self._path = path
        self._places = places
        self._bases = bases

    def below(self, *bases: Key) -> _Rules:
        return _Rules(self._path, self._places, bases)

    def rule(self, name: str, key: Key) -> Rule:
        """The rule with the line of its key, or of the nearest thing around it that was written."""
        for length in range(len(key), -1, -1):
            for base in self._bases:
                place = self._places.get((*base, *key[:length]))
                if place is not None:
                    return Rule(name, self._path, place[0])
        return Rule(name, self._path)

    def is_written(self, key: Key) -> bool:
        return any((*base, *key) in self._places for base in self._bases)


def _agents(document: DocumentShape, at: _Rules) -> Iterator[AgentPolicy]:
    defaults = document.get("defaults", {})
    if "agent_config" in document:
        agent = document["agent_config"]
        yield _agent(_merged(defaults, agent), at.below(("agent_config",), ("defaults",)), "agent_config")
    for index, agent in enumerate(document.get("agents", ())):
        name = f"agents[{agent['name']}]"
        yield _agent(_merged(defaults, agent), at.below(("agents", index), ("defaults",)), name)


def _merged(under: Any, over: Any) -> Any:
    """`over` upon `under`: mappings are merged, everything else is replaced."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {**under, **{key: _merged(under[key], value) if key in under else value for key, value in over.items()}}


def _agent(agent: NamedAgentShape, at: _Rules, name: str) -> AgentPolicy:
    return AgentPolicy(
        name=agent["name"],
        team=agent.get("team"),
        share=_share(agent.get("share", 1)),
        api_keys=_api_keys(agent, at),
        external_calls=_external_calls(agent, at),
        llm=_llm(agent, at),
        budgets=tuple(
            _limit(limit, at.rule(f"budgets[{index}]", ("budgets", index)), Per.AGENT)
            for index, limit in enumerate(agent.get("budgets", ()))
        ),
        tools=_tools(agent, at),
        monitoring=_monitoring(agent),
        rule=at.rule(name, ()),
    )


def _share(share: int | ShareShape) -> Share:
    return Share(weight=share) if isinstance(share, int) else Share(**share)


def _api_keys(agent: NamedAgentShape, at: _Rules) -> ApiKeys:
    shape = agent.get("security", {}).get("api_keys", {})
    rate = shape.get("rate_limit")
    rate_rule = at.rule("security.api_keys.rate_limit", ("security", "api_keys", "rate_limit"))
    return ApiKeys(
        rotation_days=shape.get("rotation_days"),
        scope=_tuple_or_none(shape.get("scope")),
        rate_limit=_limit({"limit": rate}, rate_rule, Per.AGENT) if rate is not None else None,
        rule=at.rule("security.api_keys", ("security", "api_keys")),
    )


def _external_calls(agent: NamedAgentShape, at: _Rules) -> ExternalCalls:
    shape = agent.get("external_calls", {})
    allowed = ("external_calls", "allowed_domains")
    blocked = ("external_calls", "blocked_domains")
    return ExternalCalls(
        allowed_domains=_tuple_or_none(shape.get("allowed_domains")),
        blocked_domains=_tuple_or_none(shape.get("blocked_domains")),
        enforcement=shape.get("enforcement", "in_process"),
        allow_private=shape.get("allow_private", False),
        allow_metadata=shape.get("allow_metadata", False),
        allow_udp=shape.get("allow_udp", False),
        unix_sockets=tuple(shape.get("unix_sockets", ())),
        rule=at.rule("external_calls", allowed),
        blocked_rule=at.rule("external_calls.blocked_domains", blocked) if at.is_written(blocked) else None,
    )


def _llm(agent: NamedAgentShape, at: _Rules) -> LLM | None:
    if "llm" not in agent:
        return None
    shape = agent["llm"]
    unknown = shape.get("unknown_price", "deny")
    standard = LLM()
    return LLM(
        providers=tuple(shape.get("providers", ())),
        models=_tuple_or_none(shape.get("models")),
        max_output_tokens=shape.get("max_output_tokens", standard.max_output_tokens),
        bound=shape.get("bound", standard.bound),
        unbounded_output=shape.get("unbounded_output", standard.unbounded_output),
        include_usage=shape.get("include_usage", standard.include_usage),
        ambiguous=shape.get("ambiguous", standard.ambiguous),
        prices={pattern: _price(price) for pattern, price in shape.get("prices", {}).items()},
        unknown_price=None if isinstance(unknown, str) else _price(unknown),
        rule=at.rule("llm", ("llm",)),
    )


def _price(shape: PriceShape) -> Price:
    return Price(
        input=shape["input"],
        output=shape["output"],
        cache_read=shape.get("cache_read"),
        cache_write=shape.get("cache_write"),
    )


def _tools(agent: NamedAgentShape, at: _Rules) -> Tools:
    shape = agent.get("tools", {})
    return Tools(
        allowed=_tuple_or_none(shape.get("allowed")),
        proposed=shape.get("proposed", "allow"),
        rule=at.rule("tools", ("tools", "allowed")),
    )


def _monitoring(agent: NamedAgentShape) -> Monitoring:
    shape = agent.get("monitoring", {})
    standard = Monitoring()
    return Monitoring(
        alert_on_anomaly=shape.get("alert_on_anomaly", standard.alert_on_anomaly),
        track_token_usage=shape.get("track_token_usage", standard.track_token_usage),
        false_alerts_per_week=shape.get("sensitivity", {}).get("false_alerts_per_week", standard.false_alerts_per_week),
        typical=dict(shape.get("typical", {})),
        alert_at=dict(shape.get("alert_at", {})),
    )


def _limit(shape: LimitFields, rule: Rule, per: Per) -> Limit:
    amount = shape["limit"]
    rate = Window(seconds=amount.rate_seconds) if amount.rate_seconds is not None else Window.LIFE
    return Limit(
        amount=amount.amount,
        unit=amount.unit,
        per=shape.get("per", per),
        window=shape.get("every", rate),
        over=shape.get("over", Over.ALL),
        warn_at=tuple(sorted(set(shape.get("warn_at", ())))),
        on_store_down=shape.get("on_store_down", OnStoreDown.CLOSED),
        text=amount.text,
        rule=rule,
    )


def _key(shape: KeyShape, at: _Rules, index: int) -> KeySource:
    return KeySource(
        name=shape["name"],
        source=shape["source"],
        hosts=tuple(shape.get("hosts", ())),
        agents=tuple(shape.get("agents", ())),
        rotation_days=shape.get("rotation_days"),
        rule=at.rule(f"keys[{shape['name']}]", ("keys", index)),
    )


def _tuple_or_none(items: list[Any] | None) -> tuple[Any, ...] | None:
    return None if items is None else tuple(items)

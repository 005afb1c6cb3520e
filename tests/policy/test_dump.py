"""A policy written as YAML is the same policy when it is read."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.policy import Policy, dump
from agentguard.policy.grammar import MAX_AMOUNT
from agentguard.policy.hosts import HostPattern
from agentguard.policy.model import (
    LLM,
    AgentPolicy,
    Alerts,
    Ambiguous,
    ApiKeys,
    Bound,
    ExternalCalls,
    KeySource,
    Limit,
    Limits,
    Mode,
    Monitoring,
    OnStoreDown,
    Over,
    Per,
    Price,
    Resource,
    Share,
    Tools,
    Unbounded,
    Unit,
    Window,
)
from agentguard.policy.providers import PROVIDER_HOSTS

LAW = settings(max_examples=60, deadline=None)
TRICKY = ["no", "12:30", "010", "null", "1e3", "<<", "=", "0o7", "- x", "a: b", "#x", "*", "ä", "'", '"', "a b", "x" * 128]
NAMES = st.sampled_from(TRICKY) | st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
HOSTS = st.sampled_from(
    ["a.example", "*.b.example", "c.example:8443", "10.0.0.0/8", "10.1.0.0/16:443", "[::1]:80", "fd00::/8", "*"]
).map(HostPattern.parse)


def tuples(of, **sizes):
    return st.lists(of, max_size=3, unique=True, **sizes).map(tuple)


WINDOWS = st.sampled_from([Window.LIFE, *(Window(every=word) for word in ("minute", "hour", "day", "month"))]) | st.builds(
    Window, seconds=st.integers(1, 10**9).map(lambda millis: millis / 1000)
)


@st.composite
def limits(draw, per):
    unit = draw(st.sampled_from(Unit))
    against = draw(per)
    if against is Per.CALL:
        unit = draw(st.sampled_from([Unit.TOKENS, Unit.USD]))
    has_window = unit is not Unit.CONCURRENT_CALLS and against is not Per.CALL
    return Limit(
        amount=draw(st.integers(1, MAX_AMOUNT)),
        unit=unit,
        per=against,
        window=draw(WINDOWS) if has_window else Window.LIFE,
        over=draw(st.sampled_from(Over)),
        warn_at=tuple(sorted(draw(tuples(st.integers(1, 100))))),
        on_store_down=draw(st.sampled_from(OnStoreDown)),
    )


RATES = st.builds(
    Limit,
    amount=st.integers(1, MAX_AMOUNT),
    unit=st.just(Unit.CALLS),
    window=st.sampled_from([Window(seconds=seconds) for seconds in (1, 60, 3600, 86_400)]),
)
NANOS = st.integers(0, 10**15)
PRICES = st.builds(Price, input=NANOS, output=NANOS, cache_read=st.none() | NANOS, cache_write=st.none() | NANOS)
NUMBERS = st.floats(0, 1e9, allow_nan=False).map(lambda number: round(number, 6))
DAYS = st.none() | st.integers(1, 36_500)
LLMS = st.builds(
    LLM,
    providers=tuples(st.sampled_from(sorted(PROVIDER_HOSTS))),
    models=st.none() | tuples(NAMES),
    max_output_tokens=st.integers(1, 10**6),
    bound=st.sampled_from(Bound),
    unbounded_output=st.sampled_from(Unbounded),
    include_usage=st.booleans(),
    ambiguous=st.sampled_from(Ambiguous),
    prices=st.dictionaries(NAMES, PRICES, max_size=2),
    unknown_price=st.none() | PRICES,
)
AGENTS = st.builds(
    AgentPolicy,
    name=NAMES,
    team=st.none() | NAMES,
    share=st.builds(Share, guarantee=st.integers(0, 400_000), weight=st.integers(1, 9))
    | st.builds(Share, guarantee=st.integers(1, 400_000), weight=st.just(0)),
    api_keys=st.builds(ApiKeys, rotation_days=DAYS, scope=st.none() | tuples(NAMES), rate_limit=st.none() | RATES),
    external_calls=st.builds(
        ExternalCalls,
        allowed_domains=st.none() | tuples(HOSTS),
        blocked_domains=st.none() | tuples(HOSTS),
        enforcement=st.sampled_from(["in_process", "kernel", "auto"]),
        allow_private=st.booleans(),
        allow_metadata=st.booleans(),
        allow_udp=st.booleans(),
        unix_sockets=tuples(st.sampled_from(["/run/postgresql", "/var/run/docker.sock", "@name"])),
    ),
    llm=st.none() | LLMS,
    budgets=tuples(limits(st.sampled_from(Per))),
    tools=st.builds(Tools, allowed=st.none() | tuples(NAMES), proposed=st.sampled_from(["allow", "deny"])),
    monitoring=st.builds(
        Monitoring,
        alert_on_anomaly=st.booleans(),
        track_token_usage=st.booleans(),
        false_alerts_per_week=NUMBERS.filter(bool),
        typical=st.dictionaries(NAMES, st.tuples(NUMBERS, NUMBERS).map(sorted).map(tuple), max_size=2),
        alert_at=st.dictionaries(NAMES, NUMBERS, max_size=2),
    ),
)


@st.composite
def policies(draw):
    agents = draw(st.lists(AGENTS, min_size=1, max_size=2, unique_by=lambda agent: agent.name))
    names = [agent.name for agent in agents]
    keys = st.builds(
        KeySource,
        name=NAMES,
        source=st.sampled_from(["env:A", "file:/etc/key", "vault:secret/x#y"]),
        hosts=tuples(HOSTS),
        agents=tuples(st.sampled_from(names)),
        rotation_days=DAYS,
    )
    resources = st.builds(Resource, name=NAMES, hosts=tuples(HOSTS), paths=tuples(NAMES.map("/{}".format)), tools=tuples(NAMES))
    return Policy(
        mode=draw(st.sampled_from(Mode)),
        fleet=draw(NAMES),
        store=draw(st.sampled_from([None, "memory://", "redis://:secret@redis:6379/0"])),
        agents=tuple(agents),
        resources=tuple(draw(st.lists(resources, max_size=2, unique_by=lambda resource: resource.name))),
        keys=tuple(draw(st.lists(keys, max_size=2, unique_by=lambda key: key.name))),
        limits=Limits(
            fleet=draw(tuples(limits(st.sampled_from([per for per in Per if per is not Per.AGENT])))),
            fair_share=draw(st.booleans()),
            contention_wait_seconds=draw(st.integers(1, 10**6).map(lambda millis: millis / 1000)),
            wait_seconds=draw(st.integers(0, 10**6).map(lambda millis: millis / 1000)),
        ),
        alerts=draw(
            st.sampled_from(
                [
                    Alerts(),
                    Alerts(
                        channels={"oncall": {"slack": {"url": "env:SLACK", "retry": 3}}},
                        routes=({"severity": ["critical"], "to": ["oncall"]},),
                    ),
                ]
            )
        ),
    )


@LAW
@given(policies())
def test_a_policy_comes_back_from_yaml_as_it_was(policy):
    assert Policy.from_yaml(dump.to_yaml(policy).encode()) == policy


@LAW
@given(policies())
def test_a_policy_comes_back_from_a_mapping_as_it_was(policy):
    assert Policy.from_mapping(dump.to_mapping(policy)) == policy


def test_what_is_written_reads_like_what_was_written(fleet):
    policy = Policy.from_yaml(fleet)

    text = dump.to_yaml(policy)

    assert Policy.from_yaml(text) == policy
    assert "- {limit: 5000 tokens, per: session}" in text
    assert "- {limit: $20.00, every: day}" in text
    assert "fleet:\n  - {limit: 100000_requests_per_hour}" in text
    assert '"*.knowledge.ourservice.com"' in text or "'*.knowledge.ourservice.com'" in text


def test_a_written_policy_is_stable(fleet):
    text = dump.to_yaml(Policy.from_yaml(fleet))

    assert dump.to_yaml(Policy.from_yaml(text)) == text


def test_a_small_number_is_written_without_an_exponent():
    policy = Policy.from_mapping({"agents": [{"name": "a", "monitoring": {"alert_at": {"x": 1e-9, "y": 1e22}}}]})

    text = dump.to_yaml(policy)

    assert "x: 0.000000001\n" in text
    assert ": 10000000000000000000000.0\n" in text
    assert Policy.from_yaml(text) == policy

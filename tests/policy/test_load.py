"""A policy loads from YAML, TOML or a mapping into the same value, or not at all."""

import json
import tomllib

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agentguard.errors import PolicyError
from agentguard.policy import Policy
from agentguard.policy.hosts import HostRules
from agentguard.policy.model import (
    Ambiguous,
    Bound,
    Limit,
    Mode,
    OnStoreDown,
    Over,
    Per,
    Price,
    Rule,
    Unbounded,
    Unit,
    Window,
)

LAW = settings(max_examples=60, deadline=None)
SMALLEST = "agents:\n  - name: a\n"


def agent(text):
    return Policy.from_yaml("agents:\n  - name: a\n" + text).agents[0]


def limits(*entries):
    return Policy.from_mapping({"agents": [{"name": "a", "budgets": list(entries)}]}).agents[0].budgets


def problems(text):
    with pytest.raises(PolicyError) as refused:
        Policy.from_yaml(text)
    return [f"{problem.key}: {problem.message}" for problem in refused.value.problems]


def test_the_document_of_one_agent_loads(single):
    policy = Policy.from_yaml(single)

    bot = policy.agent("customer_support_bot")
    assert policy.mode is Mode.ENFORCE
    assert bot.api_keys.rotation_days == 30
    assert bot.api_keys.scope == ("customer_data", "knowledge_base")
    assert bot.api_keys.rate_limit == Limit(amount=1000, unit=Unit.CALLS, window=Window(seconds=3600))
    assert list(map(str, bot.external_calls.allowed_domains)) == ["api.ourservice.com", "knowledge.ourservice.com"]
    assert list(map(str, bot.external_calls.blocked_domains)) == ["*"]
    assert bot.monitoring.alert_on_anomaly
    assert bot.monitoring.track_token_usage
    assert bot.llm is None


def test_the_document_of_a_fleet_loads_with_every_key(fleet):
    policy = Policy.from_yaml(fleet)

    bot = policy.agent("customer_support_bot")
    assert (policy.version, policy.mode, policy.fleet, policy.store) == (
        1,
        Mode.ENFORCE,
        "support",
        "redis://redis:6379/0",
    )
    assert bot.team == "support"
    assert bot.llm.providers == ("openai", "anthropic")
    assert bot.llm.models == ("gpt-5*", "claude-*")
    assert bot.external_calls.enforcement == "in_process"
    assert bot.budgets == (
        Limit(amount=5000, unit=Unit.TOKENS, per=Per.SESSION),
        Limit(amount=20_000_000_000, unit=Unit.USD, window=Window(every="day")),
        Limit(amount=4, unit=Unit.CONCURRENT_CALLS),
        Limit(amount=50, unit=Unit.CALLS, per=Per.SESSION, over=Over.EXTERNAL),
    )
    assert bot.tools.allowed == ("search_kb", "lookup_customer")
    assert bot.monitoring.false_alerts_per_week == 1
    assert bot.monitoring.typical == {"tokens_per_session": (500, 1000)}
    assert [(bound.name, bound.paths, bound.tools) for bound in policy.resources] == [
        ("customer_data", ("/customers/*",), ("lookup_customer",))
    ]
    assert [(key.name, key.source, key.agents, key.rotation_days) for key in policy.keys] == [
        ("openai-prod", "env:OPENAI_API_KEY", ("customer_support_bot",), 30)
    ]
    assert policy.limits.fleet == (Limit(amount=100_000, unit=Unit.CALLS, per=Per.FLEET, window=Window(seconds=3600)),)
    assert policy.limits.fair_share
    assert policy.alerts.channels == {"oncall": {"pagerduty": {"routing_key": "env:PD_KEY"}}}
    assert policy.alerts.routes == ({"severity": ["critical", "error"], "to": ["oncall"]},)


def test_every_rule_knows_its_line(fleet):
    policy = Policy.from_yaml(fleet)

    bot = policy.agents[0]
    lines = fleet.read_text().splitlines()
    rules = [
        (bot.rule, "agents[customer_support_bot]", "- name:"),
        (bot.external_calls.rule, "external_calls", "allowed_domains"),
        (bot.external_calls.rule_of("external_calls.allowed_domains"), "external_calls.allowed_domains", "allowed_domains"),
        (bot.external_calls.rule_of("external_calls.blocked_domains"), "external_calls.blocked_domains", "blocked_domains"),
        (bot.budgets[1].rule, "budgets[1]", "$20.00"),
        (bot.tools.rule, "tools", "tools: {allowed"),
        (bot.llm.rule, "llm", "llm: {providers"),
        (policy.resources[0].rule, "resources.customer_data", "customer_data:"),
        (policy.keys[0].rule, "keys[openai-prod]", "openai-prod"),
        (policy.limits.fleet[0].rule, "limits.fleet[0]", "limits:"),
    ]
    for rule, name, words in rules:
        assert rule.name == name
        assert rule.path == str(fleet)
        assert words in lines[rule.line - 1]


def test_a_rate_knows_its_line(single):
    rate = Policy.from_yaml(single).agents[0].api_keys.rate_limit

    assert rate.rule == Rule("security.api_keys.rate_limit", str(single), 4)
    assert rate.text == "1000_requests_per_hour"


def test_defaults_are_merged_under_each_agent_and_lists_replaced():
    policy = Policy.from_yaml("""
defaults:
  team: support
  external_calls:
    allowed_domains: [api.ourservice.com]
    allow_private: true
  llm: {prices: {"a*": {input: $1, output: $2}}}
  budgets:
    - {limit: $1}
    - {limit: $2, every: day}
agents:
  - name: a
  - name: b
    external_calls: {allowed_domains: [b.ourservice.com], allow_private: false}
    llm: {prices: {"b*": {input: $3, output: $4}}}
    budgets: []
""")

    a, b = policy.agents
    assert (a.team, b.team) == ("support", "support")
    assert list(map(str, a.external_calls.allowed_domains)) == ["api.ourservice.com"]
    assert list(map(str, b.external_calls.allowed_domains)) == ["b.ourservice.com"]
    assert (a.external_calls.allow_private, b.external_calls.allow_private) == (True, False)
    assert set(b.llm.prices) == {"a*", "b*"}
    assert (len(a.budgets), len(b.budgets)) == (2, 0)
    assert [limit.rule.line for limit in a.budgets] == [9, 10]
    assert (a.external_calls.rule.line, b.external_calls.rule.line) == (5, 14)


def test_the_words_of_llm():
    llm = agent("""
    llm:
      providers: [openai, anthropic]
      max_output_tokens: 1000
      bound: strict
      unbounded_output: deny
      include_usage: false
      ambiguous: nothing
      prices: {"gpt-5*": {input: "$1.25", output: $10, cache_read: $0.125, cache_write: $0}}
      unknown_price: {input: $10, output: $50}
""").llm

    assert llm.max_output_tokens == 1000
    assert (llm.bound, llm.unbounded_output, llm.ambiguous) == (Bound.STRICT, Unbounded.DENY, Ambiguous.NOTHING)
    assert not llm.include_usage
    assert llm.prices == {"gpt-5*": Price(input=1_250_000_000, output=10_000_000_000, cache_read=125_000_000, cache_write=0)}
    assert llm.unknown_price == Price(input=10_000_000_000, output=50_000_000_000)
    assert agent("    llm: {unknown_price: deny}\n").llm.unknown_price is None


def test_the_words_of_a_limit():
    assert limits(
        {"limit": "$5.00", "per": "user", "every": "90s", "over": "llm", "warn_at": ["80%", "50%"], "on_store_down": "local"}
    ) == (
        Limit(
            amount=5_000_000_000,
            unit=Unit.USD,
            per=Per.USER,
            window=Window(seconds=90),
            over=Over.LLM,
            warn_at=(50, 80),
            on_store_down=OnStoreDown.LOCAL,
        ),
    )


def test_what_is_seconds_in_the_file_is_seconds_in_the_policy():
    policy = Policy.from_yaml(SMALLEST + "limits: {contention_wait: 500ms, wait: 2m}\n")

    assert (policy.limits.contention_wait_seconds, policy.limits.wait_seconds) == (0.5, 120)


def test_a_call_waits_for_no_window_unless_it_is_written():
    assert Policy.from_yaml(SMALLEST).limits.wait_seconds == 0


def test_a_policy_of_a_file_judges_hosts(single):
    rules = HostRules(Policy.from_yaml(single).agents[0].external_calls)

    assert rules.judge("api.ourservice.com", 443).allowed
    assert rules.judge("pastebin.com", 443).rule == "external_calls.allowed_domains"


def test_yaml_toml_and_a_mapping_say_the_same(fleet, tmp_path):
    document = yaml.safe_load(fleet.read_text())
    toml = tmp_path / "pyproject.toml"
    toml.write_text("[project]\nname = 'x'\n" + _toml(document, "tool.agentguard"))

    assert Policy.from_mapping(document) == Policy.from_yaml(fleet) == Policy.from_toml(toml)
    assert Policy.from_toml(_toml(document["agents"][0], "agent_config").encode()).agents[0].team == "support"


def _toml(document, table):
    """Every key in one inline table: enough TOML for a test."""

    def value(item):
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item)

    text = f"[{table}]\n" + "\n".join(f"{key} = {value(item)}" for key, item in document.items()) + "\n"
    assert tomllib.loads(text)
    return text


def test_a_rule_in_toml_knows_its_line():
    policy = Policy.from_toml("""
[tool.agentguard]
mode = "report"

[[tool.agentguard.agents]]
name = "a"

[[tool.agentguard.agents]]
name = "b"

[tool.agentguard.agents.external_calls]
allowed_domains = [
  "b.ourservice.com",
]

[[tool.agentguard.agents.budgets]]
limit = "$5"

[[tool.agentguard.agents.budgets]]
limit = "$6"
every = "day"
""")

    a, b = policy.agents
    assert (a.rule.line, b.rule.line) == (5, 8)
    assert b.external_calls.rule.line == 12
    assert [limit.rule.line for limit in b.budgets] == [16, 19]


def test_faults_in_toml_have_their_line():
    with pytest.raises(PolicyError) as refused:
        Policy.from_toml('[tool.agentguard]\nmodee = "report"\n[[tool.agentguard.agents]]\nname = "a"\nteam = 5\n')

    assert str(refused.value) == (
        "<text> has 2 problems\n"
        "  <text>:2:1  modee   unknown key; did you mean 'mode'?\n"
        "  <text>:5:1  agents[a].team   expected a name in text, found 5"
    )


def test_faults_of_a_mapping_have_no_line():
    with pytest.raises(PolicyError) as refused:
        Policy.from_mapping({"agents": ({"name": "a", "toolz": {}},)})

    assert str(refused.value) == "policy has 1 problem\n  policy  agents[a].toolz   unknown key; did you mean 'tools'?"


def test_a_mapping_may_be_changed_after_it_was_loaded():
    document = {"agents": [{"name": "a"}], "alerts": {"channels": {"x": {"log": {"level": "info"}}}}}

    policy = Policy.from_mapping(document)
    document["alerts"]["channels"]["x"]["log"]["level"] = "debug"

    assert policy.alerts.channels["x"] == {"log": {"level": "info"}}


def test_a_mapping_that_contains_itself_is_refused():
    document = {"agents": [{"name": "a"}]}
    document["alerts"] = document

    with pytest.raises(PolicyError, match="nested deeper"):
        Policy.from_mapping(document)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for load in (Policy.from_yaml, Policy.from_toml):
        with pytest.raises(PolicyError, match=r"cannot be read: No such file"):
            load(tmp_path / "absent")


def test_a_pyproject_without_a_policy_is_refused(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text("[project]\nname = 'x'\n")

    with pytest.raises(PolicyError, match=r"there is no \[tool\.agentguard\]"):
        Policy.from_toml(path)


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("alert_on_anomaly", "no", "write false, or quote it"),
        ("alert_on_anomaly", "On", "write true, or quote it"),
        ("alert_on_anomaly", "'true'", "expected true or false, found 'true'"),
        ("sensitivity", "12:30", "base 60"),
        ("sensitivity", "010", "not the same number"),
        ("sensitivity", "1_000", "not the same number"),
        ("sensitivity", "0x1f", "not the same number"),
        ("sensitivity", "1e3", "not the same number"),
        ("sensitivity", ".inf", "no number to count with"),
        ("sensitivity", "2026-01-01", "is a date"),
        ("sensitivity", "!!python/object:os.system x", "remove it"),
        ("sensitivity", "!secret x", "remove it"),
    ],
)
def test_a_surprise_of_yaml_is_refused_with_advice(key, value, fault):
    found = problems(f"{SMALLEST}    monitoring:\n      {key}: {value}\n")

    assert len(found) == 1
    assert fault in found[0]


def test_a_bare_number_is_no_money():
    found = problems(SMALLEST + "    budgets: [{limit: 0.5}, {limit: 5}]\n")

    expected = 'expected an amount such as "$5.00" or "5000 tokens", found'
    rounded = "a number may already have been rounded, so write it as text"
    assert found == [
        f"agents[a].budgets[0].limit: {expected} 0.5; {rounded}",
        f"agents[a].budgets[1].limit: {expected} 5",
    ]


def test_anchors_are_read_and_their_faults_stand_where_they_are_used():
    policy = Policy.from_yaml("agents:\n  - {name: a, tools: &both {allowed: [x]}}\n  - {name: b, tools: *both}\n")

    assert policy.agents[1].tools.allowed == ("x",)


@pytest.mark.parametrize("depth", [9, 40])
def test_a_bomb_of_aliases_is_refused_in_no_time(depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]

    assert "each use of an alias counted" in problems("\n".join(lines))[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "- " * 50_000, "x: &x [*x]", "&a : *a\n"])
def test_depth_and_loops_are_refused(text):
    with pytest.raises(PolicyError):
        Policy.from_yaml(text.encode())


def test_a_file_is_smaller_than_a_bound():
    assert problems(" " * 5_000_000 + "\n") == [": a policy is smaller than 4 MiB"]


def test_a_secret_in_the_wrong_place_is_not_repeated():
    text = "store: sk-live-secret\nagents: [{name: a}]\nkeys: [{name: k, from: sk-live-secret}]\n"

    assert not any("sk-live-secret" in problem for problem in problems(text))


def test_the_schema_accepts_the_documents_and_refuses_unknown_keys(fleet, single):
    schema = Policy.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    documents = [yaml.safe_load(path.read_text()) for path in (fleet, single)]
    for document in documents:
        validator.validate(document)
    for document in _with_strays(documents):
        assert not validator.is_valid(document)
    assert not validator.is_valid({"version": 1})
    assert not validator.is_valid(documents[0] | documents[1])


def _with_strays(documents):
    """Each document with a key that nobody knows, in every place where keys are known."""
    open_places = {"prices", "typical", "alert_at", "resources", "channels", "oncall", "pagerduty"}

    def places(value, way):
        if isinstance(value, dict):
            if not way or way[-1] not in open_places:
                yield way
            for key, item in value.items():
                yield from places(item, (*way, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from places(item, (*way, index))

    for document in documents:
        for way in places(document, ()):
            copy = json.loads(json.dumps(document))
            place = copy
            for step in way:
                place = place[step]
            place["stray"] = 1
            yield copy


@LAW
@given(st.binary(max_size=200))
@example(b'"[":')
@example(b'{"|": 1, agents: [{name: a, "[x": 2}]}')
def test_bytes_load_or_are_refused(content):
    _loads_or_is_refused(content)


@LAW
@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t0.9$~\\", max_size=120))
def test_text_that_is_nearly_yaml_loads_or_is_refused(text):
    _loads_or_is_refused(text.encode())


@LAW
@given(st.data())
def test_a_mangled_policy_loads_or_is_refused(fleet, data):
    content = bytearray(fleet.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.sampled_from([0, 1, 1, 5]))
        content[at : at + length] = data.draw(st.binary(max_size=2) | st.sampled_from([b"\n", b": ", b"- ", b"{", b"*a", b"&a "]))

    _loads_or_is_refused(bytes(content))


# fmt: off
KEYS = st.sampled_from([
    "version", "mode", "agents", "agent_config", "defaults", "name", "budgets", "limit", "per", "every", "llm", "prices",
    "unknown_price", "external_calls", "allowed_domains", "security", "api_keys", "keys", "from", "alerts", "channels",
    "routes", "to", "resources", "hosts", "limits", "fleet", "x", "",
])
# fmt: on
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["a", "*", "$5"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=15
)


@LAW
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_a_mapping_of_the_known_words_loads_or_is_refused(document):
    assert _faults(Policy.from_mapping, document) is not None


def _loads_or_is_refused(content):
    for load in (Policy.from_yaml, Policy.from_toml):
        assert all(fault.line >= 1 and fault.column >= 1 for fault in _faults(load, content))


def _faults(load, source):
    """Nothing for what loads. Anything but a policy or its problems is the failure that is looked for."""
    try:
        load(source)
    except PolicyError as error:
        return error.problems
    return ()

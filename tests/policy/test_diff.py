"""A change says what it grants and what it takes."""

import pytest

from agentguard.policy import Policy
from agentguard.policy.diff import Direction, diff


def policy(**agent):
    return Policy.from_mapping({"agents": [{"name": "a", **agent}]})


def said(old, new):
    return [(change.direction.value, change.key.removeprefix("agents[a]."), change.sentence) for change in diff(old, new)]


def budget(text, **more):
    return policy(budgets=[{"limit": text, **more}])


@pytest.mark.parametrize(
    ("old", "new", "direction", "key", "sentence"),
    [
        (
            policy(external_calls={"allowed_domains": ["a.example"]}),
            policy(external_calls={"allowed_domains": ["a.example", "b.example"]}),
            "grants",
            "external_calls.allowed_domains",
            "b.example may be reached.",
        ),
        (
            policy(external_calls={"allowed_domains": []}),
            policy(external_calls={}),
            "grants",
            "external_calls.allowed_domains",
            "Hosts need not be listed any more.",
        ),
        (
            policy(),
            policy(external_calls={"blocked_domains": ["*"]}),
            "takes",
            "external_calls.blocked_domains",
            "* is blocked.",
        ),
        (
            policy(),
            policy(external_calls={"allow_metadata": True}),
            "grants",
            "external_calls.allow_metadata",
            "Cloud metadata services may be used.",
        ),
        (
            policy(),
            policy(external_calls={"unix_sockets": ["/run/postgresql/"]}),
            "grants",
            "external_calls.unix_sockets",
            "Unix sockets below /run/postgresql may be connected to.",
        ),
        (
            policy(external_calls={"unix_sockets": ["/run/postgresql"]}),
            policy(),
            "takes",
            "external_calls.unix_sockets",
            "/run/postgresql is no longer listed.",
        ),
        (
            policy(tools={"allowed": ["x"]}),
            policy(tools={"allowed": []}),
            "takes",
            "tools.allowed",
            "Tool 'x' may no longer be used.",
        ),
        (policy(tools={"allowed": ["x"]}), policy(), "grants", "tools.allowed", "Any tool may be used."),
        (policy(), policy(tools={"allowed": ["x"]}), "takes", "tools.allowed", "Only the tools listed here may be used: x."),
        (
            policy(llm={"providers": ["openai"]}),
            policy(llm={"providers": ["openai", "anthropic"]}),
            "grants",
            "llm.providers",
            "The hosts of 'anthropic' may be reached.",
        ),
        (
            policy(llm={"models": ["gpt-5*", "o3"]}),
            policy(llm={"models": ["gpt-5*"]}),
            "takes",
            "llm.models",
            "Model 'o3' may no longer be used.",
        ),
        (policy(llm={"bound": "strict"}), policy(llm={}), "grants", "llm.bound", "calibrated instead of strict."),
        (
            policy(llm={}),
            policy(llm={"unknown_price": {"input": "$1", "output": "$2"}}),
            "grants",
            "llm.unknown_price",
            "Models without a price pass budgets of money, at $1.00 in and $2.00 out per million tokens.",
        ),
        (
            budget("$5", every="day"),
            budget("$10", every="day"),
            "grants",
            "budgets",
            "Raised: $10 per agent every day instead of $5.",
        ),
        (
            budget("5000 tokens", per="session"),
            budget("200 tokens", per="session"),
            "takes",
            "budgets",
            "Lowered: 200 tokens per session instead of 5000 tokens.",
        ),
        (budget("4 concurrent_calls"), policy(), "grants", "budgets", "Removed: 4 concurrent_calls per agent."),
        (policy(), budget("5 calls", over="llm"), "takes", "budgets", "New limit: 5 calls per agent of llm calls."),
        (
            budget("$5"),
            budget("$5", on_store_down="open"),
            "grants",
            "budgets",
            "$5 per agent is open instead of closed while the store is down.",
        ),
        (
            policy(security={"api_keys": {"rate_limit": "10_requests_per_hour"}}),
            policy(security={"api_keys": {"rate_limit": "20_requests_per_hour"}}),
            "grants",
            "security.api_keys.rate_limit",
            "Raised: 20_requests_per_hour per agent instead of 10_requests_per_hour.",
        ),
        (
            policy(security={"api_keys": {"scope": ["x"]}}),
            policy(security={"api_keys": {"scope": []}}),
            "takes",
            "security.api_keys.scope",
            "What asks for scope 'x' is closed.",
        ),
    ],
)
def test_a_change_grants_or_takes(old, new, direction, key, sentence):
    assert said(old, new) == [(direction, key, sentence)]


def test_each_change_is_undone_by_the_opposite(fleet, single):
    documents = [Policy.from_yaml(fleet), Policy.from_yaml(single)]

    for old, new in (documents, documents[::-1]):
        assert {change.direction for change in diff(old, new)} == set(Direction)


def test_the_mode_the_agents_the_resources_and_the_keys_are_compared():
    base = {"agents": [{"name": "a"}]}
    bound = {"hosts": ["a.example"], "tools": ["t"]}
    key = {"name": "k", "from": "env:K", "hosts": ["a.example"]}
    old = Policy.from_mapping(base)
    new = Policy.from_mapping({"mode": "report", "agents": [{"name": "b"}], "resources": {"r": bound}, "keys": [key]})

    assert [(change.direction.value, change.key) for change in diff(old, new)] == [
        ("grants", "mode"),
        ("takes", "agents[a]"),
        ("grants", "agents[b]"),
        ("takes", "resources.r"),
        ("grants", "keys[k]"),
    ]
    assert [(change.direction.value, change.key) for change in diff(new, old)] == [
        ("takes", "mode"),
        ("takes", "agents[b]"),
        ("grants", "agents[a]"),
        ("grants", "resources.r"),
        ("takes", "keys[k]"),
    ]


def test_shares_are_compared_as_what_becomes_of_them():
    def shared(**shares):
        agents = [{"name": name, "share": share} for name, share in shares.items()]
        return Policy.from_mapping({"agents": agents, "limits": {"fair_share": True}})

    changes = diff(shared(a=1, b={"guarantee": "20%", "weight": 0}), shared(a=1, b={"guarantee": "20%", "weight": 1}))

    assert sorted(changes) == [
        ("grants", "agents[b].share", "Its share of the fleet's limits is 60%; it was 20%."),
        ("takes", "agents[a].share", "Its share of the fleet's limits is 40%; it was 80%."),
    ]
    assert diff(shared(a=1, b=1), shared(a=3, b=3)) == ()


def test_the_same_policy_in_other_words_is_no_change(fleet):
    policy = Policy.from_yaml(fleet)

    assert diff(policy, Policy.from_yaml(fleet.read_text().replace("5000 tokens", "5k tokens"))) == ()


def test_a_change_reads_as_one_line():
    assert str(diff(policy(), budget("$5"))[0]) == "takes  agents[a].budgets   New limit: $5 per agent."

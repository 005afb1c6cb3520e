"""The boundary of a process tree is the union of its agents, survives its own JSON, and knows what is narrower."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.egress.boundary import OWN_ENDPOINTS, Boundary, Endpoint
from agentguard.policy import Policy

ENTRIES = [
    "*", "api.test", "*.test", "*.api.test", "api.test:443", "1.2.3.4", "1.2.0.0/16", "10.0.0.1", "10.0.0.0/8", "10.1.0.0/16:80",
    "0.0.0.0/0", "169.254.169.254", "::1", "[2606:2800:220:1::14]:443", "localhost",
]  # fmt: skip
HOSTS = [
    "api.test",
    "x.api.test",
    "other.test",
    "localhost",
    "1.2.3.4",
    "1.2.9.9",
    "10.0.0.1",
    "10.1.0.5",
    "169.254.169.254",
    "::1",
]
IPS = ["1.2.3.4", "8.8.8.8", "10.0.0.1", "10.1.0.5", "127.0.0.1", "169.254.169.254", "2606:2800:220:1::14"]

agents = st.fixed_dictionaries(
    {
        "allowed_domains": st.none() | st.lists(st.sampled_from(ENTRIES), max_size=4, unique=True),
        "blocked_domains": st.none() | st.lists(st.sampled_from(ENTRIES), max_size=3, unique=True),
        "allow_private": st.booleans(),
        "allow_metadata": st.booleans(),
        "allow_udp": st.booleans(),
        "unix_sockets": st.lists(st.sampled_from(["/run", "/run/app", "/run/docker.sock", "@bus"]), max_size=2, unique=True),
    },
)
trees = st.tuples(
    st.lists(agents, min_size=1, max_size=3),
    st.lists(st.sampled_from([("collector.test", 4318), ("127.0.0.1", 6379)]), max_size=2, unique=True),
)
asked = st.tuples(st.sampled_from(IPS), st.sampled_from([80, 443, 6379, None]), st.lists(st.sampled_from(HOSTS[:4]), max_size=2))


def boundary(*external, endpoints=()):
    written = [{key: value for key, value in calls.items() if value is not None} for calls in external]
    document = {"agents": [{"name": f"agent{number}", "external_calls": calls} for number, calls in enumerate(written)]}
    return Boundary.of(Policy.from_mapping(document), endpoints)


def boundary_of(tree):
    external, endpoints = tree
    return boundary(*external, endpoints=endpoints)


@settings(deadline=None)
@given(trees)
def test_json_gives_the_boundary_back(tree):
    one = boundary_of(tree)

    assert Boundary.from_json(one.to_json()) == one


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"reaches":[{}],"endpoints":[],"is_enforced":true,"path":""}'])
def test_json_that_is_no_boundary_is_refused(text):
    with pytest.raises(ValueError, match=r"cannot be read|Expecting value"):
        Boundary.from_json(text)


@settings(deadline=None)
@given(st.lists(agents, min_size=1, max_size=3), asked)
def test_the_union_allows_what_one_of_its_agents_may(external, question):
    whole = boundary(*external)

    verdict = whole.judge_address(*question)

    assert verdict.allowed == any(boundary(one).judge_address(*question).allowed for one in external)


@settings(deadline=None)
@given(trees, trees, asked, st.sampled_from(HOSTS))
def test_what_narrows_another_allows_nothing_that_the_other_refuses(tree, wider, question, host):
    one, other = boundary_of(tree), boundary_of(wider)

    if one.narrows(other):
        assert one.judge_address(*question).allowed <= other.judge_address(*question).allowed
        for port in (None, 80, 443):
            assert one.judge_name(host, port).allowed <= other.judge_name(host, port).allowed


@settings(deadline=None)
@given(agents, st.sampled_from(ENTRIES), st.booleans(), asked, st.sampled_from(HOSTS))
def test_the_same_holds_of_two_that_differ_by_one_entry(agent, entry, is_allowed, question, host):
    key = "allowed_domains" if is_allowed else "blocked_domains"
    changed = agent | {key: list(dict.fromkeys([*(agent[key] or ()), entry]))}

    for one, other in ((boundary(agent), boundary(changed)), (boundary(changed), boundary(agent))):
        if one.narrows(other):
            assert one.judge_address(*question).allowed <= other.judge_address(*question).allowed
            assert one.judge_name(host, 443).allowed <= other.judge_name(host, 443).allowed


def test_no_lists_at_all_do_not_narrow_an_empty_list():
    assert not boundary({}).narrows(boundary({"blocked_domains": []}))  # which keeps metadata services closed
    assert boundary({"blocked_domains": []}).narrows(boundary({}))


@settings(deadline=None)
@given(trees)
def test_a_boundary_narrows_itself(tree):
    assert boundary_of(tree).narrows(boundary_of(tree))


def test_taking_a_host_away_narrows_and_adding_one_does_not():
    wide = boundary({"allowed_domains": ["a.test", "b.test"], "blocked_domains": ["*"]})
    narrow = boundary({"allowed_domains": ["a.test"], "blocked_domains": ["*"]})

    assert narrow.narrows(wide)
    assert not wide.narrows(narrow)
    assert boundary({"allowed_domains": ["x.a.test"]}).narrows(boundary({"allowed_domains": ["*.a.test"]}))


def test_own_endpoints_are_reachable_by_name_and_by_what_it_resolves_to():
    one = boundary({"allowed_domains": [], "blocked_domains": ["*"]}, endpoints=[("Collector.internal.", 4318)])

    assert one.judge_name("collector.internal").rule == OWN_ENDPOINTS
    assert one.judge_address("10.0.0.7", 4318, {"collector.internal"}).allowed
    assert not one.judge_address("10.0.0.7", 22, {"collector.internal"}).allowed
    assert not one.judge_address("10.0.0.7", 4318, ()).allowed
    assert one.endpoints == (Endpoint("collector.internal", 4318),)


def test_a_refusal_says_where_to_look(tmp_path):
    file = tmp_path / "agentguard.yaml"
    file.write_text("agents:\n  - name: bot\n    external_calls:\n      allowed_domains: [api.test]\n")

    verdict = Boundary.of(Policy.from_yaml(file)).judge_name("evil.test", 443)

    assert verdict.why == f"not in external_calls.allowed_domains ({file}:4)"


def test_the_refusal_that_says_most_is_told():
    one = boundary({"allowed_domains": ["db.test"], "blocked_domains": ["*"]})

    assert one.judge_address("10.0.0.1", 5432, {"db.test"}).rule == "external_calls.allow_private"


def test_an_agent_without_lists_leaves_the_tree_open():
    one = boundary({"allowed_domains": ["a.test"]}, {})

    assert one.unwritten == ("agent1",)
    assert one.is_open
    assert Boundary(reaches=()).is_open
    assert not Boundary(reaches=()).judge_name("a.test").allowed

"""An allowlist from what was seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from agentguard.policy import Policy
from agentguard.policy.hosts import HostRules
from agentguard.policy.learn import Flag, Sighting, learn
from agentguard.policy.model import ExternalCalls
from agentguard.policy.providers import patterns_of

SUFFIXES = PublicSuffixList()
registrable = SUFFIXES.privatesuffix


def seen(*hosts, times=3, agent="bot", port=443, went=True):
    return [Sighting((agent,) if agent else (), host, port, 100.0 + number, went) for host in hosts for number in range(times)]


def proposed(sightings, **how):
    (proposal,) = learn(sightings, registrable=registrable, **how)
    return [entry.word for entry in proposal.entries if entry.is_proposed]


def flagged(sightings, **how):
    return {entry.word: entry.flags for one in learn(sightings, registrable=registrable, **how) for entry in one.entries}


def test_a_host_is_proposed_with_how_often_and_when_it_was_seen():
    (proposal,) = learn(seen("api.acme.com", times=4))

    (entry,) = proposal.entries
    assert (proposal.agent, entry.word, entry.calls, entry.first, entry.last) == ("bot", "api.acme.com", 4, 100.0, 103.0)


def test_spellings_of_one_host_are_one_host():
    assert proposed(seen("API.acme.com.", "api.acme.com", times=1)) == ["api.acme.com"]


def test_three_names_below_one_domain_become_a_wildcard_at_the_narrowest_place():
    hosts = seen("a.kb.acme.com", "b.kb.acme.com", "c.kb.acme.com", "api.acme.com")

    assert proposed(hosts) == ["*.kb.acme.com", "api.acme.com"]


def test_names_of_several_depths_become_one_wildcard():
    assert proposed(seen("a.acme.com", "b.acme.com", "x.y.acme.com")) == ["*.acme.com"]


def test_a_domain_itself_is_never_meant_by_its_wildcard():
    assert sorted(proposed(seen("acme.com", "a.acme.com", "b.acme.com"))) == ["a.acme.com", "acme.com", "b.acme.com"]


@pytest.mark.parametrize("suffix", ["com", "co.uk", "github.io", "s3.amazonaws.com", "herokuapp.com", "blob.core.windows.net"])
def test_where_anyone_may_register_no_wildcard_is_proposed(suffix):
    assert "*" not in "".join(proposed(seen(*(f"tenant{number}.{suffix}" for number in range(5)))))


def test_without_the_public_suffix_list_no_wildcard_is_proposed():
    (proposal,) = learn(seen("a.acme.com", "b.acme.com", "c.acme.com"))

    assert [entry.word for entry in proposal.entries] == ["a.acme.com", "b.acme.com", "c.acme.com"]


def test_names_that_were_called_once_open_no_wildcard():
    hosts = seen(*(f"{number:032x}.evil.com" for number in range(50)), times=1)

    assert proposed(hosts) == []
    assert set(flagged(hosts).values()) == {(Flag.ONE_OFF,)}


def test_private_addresses_are_flagged_and_named_with_their_port():
    assert flagged([*seen("10.1.2.3", port=5432), *seen("10.1.2.3", port=443), *seen("localhost", port=11434)]) == {
        "10.1.2.3:5432": (Flag.PRIVATE,),
        "10.1.2.3:443": (Flag.PRIVATE,),
        "localhost:11434": (Flag.PRIVATE,),
    }


def test_metadata_and_what_was_refused_are_flagged():
    hosts = [*seen("169.254.169.254", port=80), *seen("pastebin.com", went=False)]

    assert flagged(hosts) == {"169.254.169.254:80": (Flag.METADATA,), "pastebin.com": (Flag.REFUSED,)}


def test_an_unusual_port_is_part_of_the_entry():
    assert proposed(seen("db.acme.com", port=5432)) == ["db.acme.com:5432"]


def test_hosts_of_known_providers_become_one_word():
    assert proposed(seen("api.openai.com", "eu.api.openai.com", "api.anthropic.com")) == ["openai", "anthropic"]


def test_a_provider_on_a_port_of_its_own_is_a_host():
    assert proposed(seen("api.openai.com", port=8443)) == ["api.openai.com:8443"]


def test_every_agent_of_a_chain_needs_what_the_innermost_calls():
    proposals = learn([Sighting(("outer", "inner"), "a.example", 443, 1.0)])

    assert [proposal.agent for proposal in proposals] == ["inner", "outer"]


def test_what_the_policy_allows_is_not_proposed_again():
    policy = Policy.from_mapping(
        {"agents": [{"name": "bot", "llm": {"providers": ["openai"]}, "external_calls": {"allowed_domains": ["*.acme.com"]}}]}
    )

    (proposal,) = learn(seen("api.openai.com", "x.acme.com", "b.example"), policy)

    assert [(entry.word, entry.is_allowed) for entry in proposal.entries] == [
        ("b.example", False),
        ("openai", True),
        ("x.acme.com", True),
    ]


def test_what_is_no_host_is_passed_over():
    assert learn(seen("a b", "-")) == []


LABEL = st.text("abc", min_size=1, max_size=2)
NAME = st.lists(LABEL, min_size=0, max_size=3).flatmap(
    lambda labels: st.sampled_from(["acme.com", "acme.co.uk", "github.io", "openai.com", "corp.internal"]).map(
        lambda top: ".".join([*labels, top])
    )
)
ADDRESS = st.sampled_from(["10.0.0.1", "93.184.216.34", "fd00::1", "2606:2800::1", "169.254.169.254"])
SIGHTINGS = st.lists(
    st.builds(
        Sighting,
        st.just(("bot",)),
        NAME | ADDRESS,
        st.sampled_from([0, 80, 443, 5432]),
        st.floats(0, 1e9),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(SIGHTINGS)
def test_what_is_proposed_allows_what_was_seen_and_opens_nothing_to_anyone(sightings):
    (proposal,) = learn(sightings, registrable=registrable, least_calls=2)

    entries = [entry for entry in proposal.entries if entry.is_proposed]
    patterns = tuple(entry.pattern for entry in entries if entry.pattern is not None)
    calls = ExternalCalls(allowed_domains=patterns)
    rules = HostRules(calls, patterns_of(entry.provider for entry in entries if entry.provider is not None))
    hidden = {host for entry in proposal.entries if entry.flags for host in entry.hosts}
    for sighting in sightings:
        if sighting.host not in hidden and sighting.port:
            assert rules.judge(sighting.host, sighting.port).allowed
    for pattern in patterns:
        assert not pattern.reaches_private
        if str(pattern).startswith("*."):
            assert SUFFIXES.privatesuffix(pattern.host) is not None
    assert sum(entry.calls for entry in proposal.entries) == len(sightings)

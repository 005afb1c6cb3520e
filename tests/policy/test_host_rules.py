"""The lists of an agent: the most specific entry wins, refusals win ties, and no wildcard leads into private space."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.policy.hosts import UNKNOWN_PORT, HostPattern, HostRules
from agentguard.policy.model import ExternalCalls

LAW = settings(max_examples=60, deadline=None)
ALLOWED, BLOCKED = "external_calls.allowed_domains", "external_calls.blocked_domains"
PRIVATE, METADATA = "external_calls.allow_private", "external_calls.allow_metadata"


def rules(allowed=None, blocked=None, providers=(), **flags):
    def listed(entries):
        return None if entries is None else tuple(map(HostPattern.parse, entries))

    external_calls = ExternalCalls(allowed_domains=listed(allowed), blocked_domains=listed(blocked), **flags)
    return HostRules(external_calls, map(HostPattern.parse, providers))


def test_what_is_not_listed_is_refused_by_the_list_to_add_it_to():
    verdict = rules(["api.ourservice.com"], ["*"]).judge("pastebin.com", 443)

    assert verdict[:3] == (False, "not in external_calls.allowed_domains", ALLOWED)
    assert str(verdict.entry) == "*"


def test_an_allowed_list_alone_refuses_the_rest():
    assert not rules(["api.ourservice.com"]).judge("pastebin.com", 443).allowed
    assert not rules([]).judge("pastebin.com", 443).allowed


def test_a_blocked_list_alone_refuses_what_it_names():
    judge = rules(None, ["*.evil.example", "pastebin.com"]).judge

    assert judge("pastebin.com", 443)[:3] == (False, f"pastebin.com is in {BLOCKED}", BLOCKED)
    assert judge("api.ourservice.com", 443).allowed
    assert judge("10.0.0.1", 443)[:3] == (False, "10.0.0.1 is in private space", PRIVATE)


@pytest.mark.parametrize("host", ["pastebin.com", "10.0.0.1", "localhost", "169.254.169.254", "straße.de", "a b"])
def test_without_any_list_everything_is_observed_and_nothing_refused(host):
    assert rules().judge(host, 443)[:2] == (True, "no list is written")
    assert rules().judge_ip("10.0.0.1", 443, "api.ourservice.com").allowed


@pytest.mark.parametrize(
    ("allowed", "blocked", "host", "is_allowed"),
    [
        (["*.ourservice.com"], ["admin.ourservice.com"], "admin.ourservice.com", False),
        (["*.ourservice.com"], ["admin.ourservice.com"], "api.ourservice.com", True),
        (["admin.ourservice.com"], ["*.ourservice.com"], "admin.ourservice.com", True),
        (["*.eu.ourservice.com"], ["*.ourservice.com"], "a.eu.ourservice.com", True),
        (["*.ourservice.com"], ["*.eu.ourservice.com"], "a.eu.ourservice.com", False),
        (["api.ourservice.com"], ["api.ourservice.com"], "api.ourservice.com", False),
        (["*"], ["*"], "api.ourservice.com", False),
        (["*"], ["*.evil.example"], "api.ourservice.com", True),
        (["10.1.0.0/16"], ["10.0.0.0/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.2.3", False),
        (["10.1.2.3"], ["10.1.0.0/16"], "10.1.2.3", True),
        (["10.1.0.0/16"], ["*"], "10.2.0.1", False),
        (["api.ourservice.com:443"], ["api.ourservice.com"], "api.ourservice.com", True),
        (["*"], [], "93.184.216.34", True),
    ],
)
def test_the_most_specific_entry_wins_and_a_refusal_wins_ties(allowed, blocked, host, is_allowed):
    assert rules(allowed, blocked).judge(host, 443).allowed is is_allowed


def test_a_port_narrows_an_entry():
    judge = rules(["api.ourservice.com:8443", "10.1.0.0/16:8443"]).judge

    assert judge("api.ourservice.com", 8443).allowed
    assert not judge("api.ourservice.com", 443).allowed
    assert judge("10.1.2.3", 8443).allowed
    assert not judge("10.1.2.3", 443).allowed


def test_without_a_port_the_name_is_judged_by_what_any_port_would_be():
    judge = rules(["api.ourservice.com:443"], ["db.ourservice.com:22", "*.ourservice.com:25"]).judge

    assert judge("api.ourservice.com", None).allowed
    assert not judge("db.ourservice.com", None).allowed


def test_a_port_that_nobody_knows_is_met_by_refusals_and_not_by_permissions():
    judge = rules(["*.ourservice.com", "api.other.example:443"], ["db.ourservice.com:22"]).judge

    assert not judge("db.ourservice.com", UNKNOWN_PORT).allowed
    assert not judge("api.other.example", UNKNOWN_PORT).allowed
    assert judge("db.ourservice.com", 443).allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "0x7f.1", "[::1]", "::ffff:10.0.0.1", "a.localhost"])
@pytest.mark.parametrize("wildcard", ["*", "0.0.0.0/0", "::/0", "*.localhost"])
@pytest.mark.parametrize("allow_private", [False, True])
def test_a_wildcard_never_reaches_private_space(host, wildcard, allow_private):
    assert not rules([wildcard], allow_private=allow_private).judge(host, 80).allowed


def test_an_address_or_a_network_that_is_written_out_reaches_private_space():
    judge = rules(["127.0.0.1:8080", "10.1.0.0/16", "fd12::/16"]).judge

    assert judge("127.0.0.1", 8080).allowed
    assert judge("2130706433", 8080).allowed
    assert judge("10.1.2.3", 443).allowed
    assert judge("fd12::1", 443).allowed


def test_a_private_name_needs_the_flag_that_the_refusal_names():
    assert rules(["localhost"]).judge("localhost", 80)[:3] == (False, "'localhost' is in private space", PRIVATE)
    assert rules(["localhost"], allow_private=True).judge("localhost", 80).allowed


@pytest.mark.parametrize("host", ["169.254.169.254", "0xa9fea9fe", "[::ffff:169.254.169.254]", "fd00:ec2::254", "168.63.129.16"])
def test_metadata_is_refused_even_to_entries_that_name_it(host):
    entries = ["169.254.0.0/16", "169.254.169.254", "fd00:ec2::254", "168.63.129.16", "*"]

    assert rules(entries, allow_private=True).judge(host, 80).rule == METADATA
    assert rules(entries, allow_metadata=True).judge(host, 80).allowed
    assert not rules(["*"], allow_metadata=True).judge(host, 80).allowed


def test_metadata_names_need_the_flag_too():
    assert rules(["metadata.google.internal"]).judge("metadata.google.internal", 80).rule == METADATA
    assert rules(["metadata.google.internal"], allow_metadata=True).judge("metadata.google.internal", 80).allowed


def test_providers_pass_without_an_entry_and_an_entry_against_them_wins():
    assert rules(["a.example"], ["*"], ["api.openai.com"]).judge("api.openai.com", 443)[:3] == (
        True,
        "api.openai.com is in llm.providers",
        "llm.providers",
    )
    assert not rules([], ["api.openai.com"], ["api.openai.com"]).judge("api.openai.com", 443).allowed


def test_a_name_that_leads_into_private_space_is_refused_when_it_connects():
    judge_ip = rules(["api.ourservice.com", "*.ourservice.com", "10.1.0.0/16"]).judge_ip

    verdict = judge_ip("10.0.0.1", 443, "api.ourservice.com")

    assert verdict[:3] == (False, "'api.ourservice.com' leads to 10.0.0.1, which is in private space", PRIVATE)
    assert judge_ip("93.184.216.34", 443, "api.ourservice.com").allowed
    assert judge_ip("10.1.0.1", 443, "api.ourservice.com").allowed
    assert judge_ip("10.0.0.1", 443, "a.ourservice.com").rule == ALLOWED
    assert judge_ip("169.254.169.254", 80, "api.ourservice.com").rule == METADATA
    assert judge_ip("::ffff:10.0.0.1", 443, "api.ourservice.com").rule == PRIVATE
    assert not judge_ip("93.184.216.34", 443, "pastebin.com").allowed
    assert not judge_ip("not an address", 443, "api.ourservice.com").allowed


def test_an_exact_name_may_lead_into_private_space_where_the_policy_says_so():
    judge_ip = rules(["db.ourservice.com", "*.ourservice.com"], allow_private=True).judge_ip

    assert judge_ip("10.0.0.1", 5432, "db.ourservice.com").allowed
    assert not judge_ip("10.0.0.1", 5432, "a.ourservice.com").allowed


def test_an_address_that_is_blocked_is_not_reached_through_an_allowed_name():
    judge_ip = rules(["api.ourservice.com"], ["93.184.216.0/24", "*"]).judge_ip

    assert judge_ip("93.184.216.34", 443, "api.ourservice.com").rule == BLOCKED
    assert judge_ip("93.184.217.34", 443, "api.ourservice.com").allowed


def test_an_address_without_a_name_is_judged_as_itself():
    judge_ip = rules(["10.1.0.0/16"]).judge_ip

    assert judge_ip("10.1.0.1", 443).allowed
    assert not judge_ip("93.184.216.34", 443).allowed


def test_an_explanation_shows_every_entry_and_the_one_that_decides():
    looks = rules(["*.ourservice.com", "10.0.0.0/8"], ["admin.ourservice.com", "*"]).trace("admin.ourservice.com", 443)

    assert [(str(look.entry), look.allows, look.matches, look.decides) for look in looks] == [
        ("*.ourservice.com", True, True, False),
        ("10.0.0.0/8", True, False, False),
        ("admin.ourservice.com", False, True, True),
        ("*", False, True, False),
    ]
    assert not any(look.matches for look in rules(["*"]).trace("a b", 443))


def test_what_is_no_host_is_refused_where_hosts_are():
    for host in ("a b", b"\xff.com", "straße.de", ""):
        assert not rules(["*"]).judge(host, 443).allowed


def test_verdicts_are_remembered_within_bounds():
    judged = rules(["*.ourservice.com"])

    first = judged.judge("api.ourservice.com", 443)
    for number in range(10_000):
        judged.judge(f"h{number}.example", 443)

    assert judged.judge("api.ourservice.com", 443) == first
    assert len(judged._cache) <= 4096


HOSTS = st.sampled_from(
    ["a.x.example", "x.example", "b.a.x.example", "10.1.2.3", "::ffff:10.1.2.3", "93.184.216.34", "localhost"]
)
ENTRIES = st.lists(
    st.sampled_from(
        ["*", "*.x.example", "x.example", "a.x.example", "a.x.example:443", "10.0.0.0/8", "10.1.2.3", "0.0.0.0/0", "localhost"]
    ),
    max_size=4,
)


@LAW
@given(ENTRIES, ENTRIES, HOSTS, st.sampled_from([None, 0, 80, 443]), st.booleans())
def test_blocking_more_never_opens_anything(allowed, blocked, host, port, allow_private):
    before = rules(allowed, blocked[1:], allow_private=allow_private).judge(host, port)
    after = rules(allowed, blocked, allow_private=allow_private).judge(host, port)

    assert before.allowed or not after.allowed


@LAW
@given(ENTRIES, ENTRIES, HOSTS, st.sampled_from([None, 0, 80, 443]))
def test_the_order_of_entries_does_not_matter(allowed, blocked, host, port):
    forward = rules(allowed, blocked).judge(host, port)
    backward = rules(allowed[::-1], blocked[::-1]).judge(host, port)

    assert forward == backward


@LAW
@given(ENTRIES, ENTRIES, HOSTS, st.sampled_from([None, 0, 80, 443]))
def test_the_entry_that_an_explanation_points_at_is_the_verdicts(allowed, blocked, host, port):
    judged = rules(allowed, blocked)

    deciding = [look.entry for look in judged.trace(host, port) if look.decides]

    assert deciding == ([judged.judge(host, port).entry] if deciding else [])

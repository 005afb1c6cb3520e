"""What is read from records, and what is never read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.core.call import Target
from agentguard.core.decision import Decision, Effect, Facts, Reason
from agentguard.otel import facts
from agentguard.otel import semconv as names

CANARY = "sk-canary-7f3a"
WRONG = st.recursive(
    st.none() | st.booleans() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def url(path="/", host="api.example.com", port=443, scheme="https"):
    return facts.url_of(Target(scheme, host, port, path))


def test_a_url_has_no_values_of_its_query():
    assert url(f"/v1/x?key={CANARY}&page=2") == "https://api.example.com/v1/x?key=REDACTED&page=REDACTED"


def test_a_query_without_names_is_cut_too():
    assert url(f"/v1?{CANARY}") == f"https://api.example.com/v1?{facts.REDACTED}"


def test_a_url_has_no_user_information_and_no_fragment():
    assert url(f"/v1#{CANARY}", host=f"user:{CANARY}@api.example.com") == "https://api.example.com/v1"


def test_a_url_names_its_port_unless_it_is_the_standard_one():
    assert url(port=8443) == "https://api.example.com:8443/"
    assert url(port=80, scheme="http") == "http://api.example.com/"


def test_an_ipv6_host_stands_in_brackets():
    assert url(host="::1", port=8080, scheme="http") == "http://[::1]:8080/"


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_url_shows_a_secret_from_its_query_or_user_information(before, name, after):
    shown = url(f"/p?{before.replace('=', '')}={CANARY}&{name.replace('=', '')}={CANARY}{after}", host=f"{CANARY}@h.example")

    assert CANARY not in shown


def test_parameters_are_read_from_the_bodies_of_every_api():
    chat = {
        "temperature": 0.2,
        "n": 3,
        "stop": "END",
        "seed": 7,
        "response_format": {"type": "json_schema"},
        "max_completion_tokens": 9,
    }
    responses = {"reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}}, "previous_response_id": "resp_1"}
    messages = {"max_tokens": 64, "top_k": 5, "stop_sequences": ["a", "b"]}

    assert facts.of_request(chat) == {
        names.REQUEST_TEMPERATURE: 0.2,
        names.REQUEST_CHOICE_COUNT: 3,
        names.REQUEST_STOP_SEQUENCES: ("END",),
        names.REQUEST_SEED: 7,
        names.OUTPUT_TYPE: "json",
        names.REQUEST_MAX_TOKENS: 9,
    }
    assert facts.of_request(responses) == {
        names.REQUEST_REASONING_LEVEL: "low",
        names.OUTPUT_TYPE: "text",
        names.REQUEST_PREVIOUS_RESPONSE_ID: "resp_1",
    }
    assert facts.of_request(messages) == {
        names.REQUEST_MAX_TOKENS: 64,
        names.REQUEST_TOP_K: 5,
        names.REQUEST_STOP_SEQUENCES: ("a", "b"),
    }


def test_a_single_choice_is_not_worth_an_attribute():
    assert facts.of_request({"n": 1}) == {}


def test_the_service_tier_is_openais_and_told_when_it_was_chosen():
    assert facts.of_request({"service_tier": "flex"}, "openai") == {names.OPENAI_REQUEST_SERVICE_TIER: "flex"}
    assert facts.of_request({"service_tier": "auto"}, "openai") == {}
    assert facts.of_request({"service_tier": "flex"}, "anthropic") == {}


@given(st.dictionaries(st.sampled_from(list(facts._PARAMETERS)), WRONG))
def test_parameters_of_a_wrong_type_are_left_out(request):
    found = facts.of_request(request)

    assert all(isinstance(value, str | tuple) for value in found.values())


@pytest.mark.parametrize("value", [2**63, -(2**70)])
def test_a_number_that_no_collector_can_hold_is_left_out(value):
    assert facts.of_request({"seed": value, "temperature": value, "max_tokens": value}) == {}


def test_a_limit_is_told_as_the_most_that_a_collector_can_hold():
    decision = Decision(Effect.DENY, Reason.BUDGET, "rule", facts=Facts(10**30, 5, 0, 10**30))

    found = facts.of_decision(decision, enforced=True)

    assert (found[names.LIMIT], found[names.LIMIT_REQUESTED]) == (2**63 - 1, 2**63 - 1)


def test_content_is_no_parameter():
    asked = {"messages": [{"role": "user", "content": CANARY}], "system": CANARY, "input": CANARY, "tools": [{"name": CANARY}]}

    assert facts.of_request(asked) == {}

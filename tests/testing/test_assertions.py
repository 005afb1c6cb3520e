"""The assertions that users test their own agents with."""

from __future__ import annotations

import pytest

from agentguard import EgressDenied, Guard, HTTPCall, Policy, ToolDenied
from agentguard.events import CallAdmitted
from agentguard.testing import Recording, assert_denied, assert_spent

POLICY = Policy.from_mapping(
    {"agents": [{"name": "worker", "external_calls": {"allowed_domains": ["a.test"]}, "budgets": [{"limit": "3 calls"}]}]}
)
ALLOWED = HTTPCall.to("GET", "http://a.test/")
REFUSED = HTTPCall.to("GET", "http://b.test/")


@pytest.fixture
def recording():
    return Recording()


@pytest.fixture
def guard(recording):
    with Guard(POLICY, observers=[recording]) as guard:
        yield guard
    guard.close()


def test_a_refused_block_passes_and_hands_over_the_denial(guard):
    with assert_denied(EgressDenied, rule="external_calls.allowed_domains") as refusal, guard.admit(REFUSED):
        pass

    assert refusal.error.call == REFUSED


def test_a_block_that_is_not_refused_fails(guard):
    with pytest.raises(AssertionError, match="nothing was refused"), assert_denied(), guard.admit(ALLOWED):
        pass


def test_another_denial_or_another_rule_fails(guard):
    with pytest.raises(AssertionError, match="expected ToolDenied"), assert_denied(ToolDenied), guard.admit(REFUSED):
        pass
    with (
        pytest.raises(AssertionError, match=r"expected a refusal by 'tools\.allowed'"),
        assert_denied(rule="tools.allowed"),
        guard.admit(REFUSED),
    ):
        pass


def test_what_a_subject_has_spent_is_asserted_exactly(guard):
    with guard.admit(ALLOWED):
        pass

    assert_spent(guard, "agent:worker", 1)
    with pytest.raises(AssertionError, match="expected 2 spent"):
        assert_spent(guard, "agent:worker", 2)
    with pytest.raises(AssertionError, match="no limit has counted 'agent:nobody'"):
        assert_spent(guard, "agent:nobody", 1)


def test_a_recording_keeps_what_was_told(guard, recording):
    with guard.admit(ALLOWED):
        pass
    with assert_denied(), guard.admit(REFUSED):
        pass
    guard.flush()

    assert len(recording.of(CallAdmitted)) == 1
    assert recording.denials == ["external_calls.allowed_domains"]
    assert recording.tokens == 0

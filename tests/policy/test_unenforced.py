"""What a policy says without effect is said."""

from agentguard.policy import Policy
from agentguard.policy.unenforced import unenforced


def test_a_policy_that_is_enforced_whole_has_nothing_to_say():
    policy = Policy.from_mapping({"agents": [{"name": "a", "external_calls": {"allowed_domains": ["a.example"]}}]})

    assert unenforced(policy) == ()


def test_a_scope_word_that_nothing_binds_is_said(single, fleet):
    sentence = "agent_config.security.api_keys.scope: no resource binds 'knowledge_base'; it opens only tools that ask for it."
    assert sentence in unenforced(Policy.from_yaml(single))

    bound = Policy.from_mapping(
        {
            "agents": [{"name": "a", "security": {"api_keys": {"scope": ["x"]}}}],
            "resources": {"x": {"tools": ["t"]}},
        }
    )
    assert not any("no resource binds" in sentence for sentence in unenforced(bound))


def test_every_sentence_begins_with_its_key(fleet):
    keys = [sentence.partition(":")[0] for sentence in unenforced(Policy.from_yaml(fleet))]

    assert keys == ["keys", "alerts", "agents[customer_support_bot].monitoring.alert_on_anomaly"]


def shared(limit="1000_requests_per_hour", *, fair_share=True, **share):
    agents = [{"name": name, "external_calls": {"blocked_domains": ["*"]}} | share for name in "abc"]
    return Policy.from_mapping({"agents": agents, "limits": {"fleet": [{"limit": limit}], "fair_share": fair_share}})


def test_shares_that_nobody_keeps_are_said():
    assert unenforced(shared(share=3)) == ()
    assert unenforced(shared(share=3, fair_share=False)) == (
        "limits.fair_share: shares are written and not kept; write `fair_share: true` under limits.",
    )


def test_a_limit_that_is_too_small_to_be_shared_is_said():
    [sentence] = unenforced(shared("2 concurrent_calls"))

    assert sentence == (
        "limits.fleet[0]: '2 concurrent_calls' is too little for 3 agents; "
        "the share of 1 would be nothing: it is 1, while the fleet has any left."
    )


def test_shares_of_nothing_are_said():
    policy = Policy.from_mapping({"agents": [{"name": "a", "external_calls": {}}], "limits": {"fair_share": True}})

    assert "limits.fair_share: limits.fleet has no limit per fleet, so there is nothing to share." in unenforced(policy)

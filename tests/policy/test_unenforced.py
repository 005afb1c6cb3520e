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

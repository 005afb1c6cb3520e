"""What a refusal advises: nothing that cannot help."""

from __future__ import annotations

import pytest

from agentguard import BudgetExceeded, EgressDenied, Guard, HTTPCall, LLMCall, Policy, RateLimited, Usage
from agentguard.context import BudgetBlock
from agentguard.core.call import Target
from agentguard.core.caller import Caller
from agentguard.egress.judging import Reach
from agentguard.stores.memory import MemoryStore

HERE = Target("http", "127.0.0.1", 80, "/v1/chat/completions")


@pytest.fixture
def guard_of():
    made = []

    def make(*budgets, **external_calls):
        agent = {"name": "a", "llm": {}, "budgets": list(budgets)}
        agent["external_calls"] = {"allowed_domains": ["127.0.0.1"]} | external_calls
        made.append(Guard(Policy.from_mapping({"agents": [agent]}), store=MemoryStore(), agent="a"))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


def refusal(guard, tokens):
    with pytest.raises((BudgetExceeded, RateLimited)) as denied:
        guard.begin(LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=tokens))
    return denied.value.remedy


def use(guard, tokens):
    guard.begin(LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=tokens)).settle(Usage(0, tokens))


# ---------------------------------------------------------------------------------------------------------------- limits


def test_waiting_is_advised_where_a_window_ends(guard_of):
    guard = guard_of({"limit": "1000 tokens", "every": "day"})
    use(guard, 900)

    assert refusal(guard, 500) == "Wait, ask for less, or raise '1000 tokens'."


def test_waiting_is_not_advised_of_a_limit_for_life(guard_of):
    guard = guard_of({"limit": "1000 tokens"})
    use(guard, 900)

    assert refusal(guard, 500) == "Ask for less, or raise '1000 tokens'."


def test_waiting_is_not_advised_of_a_call_above_the_whole_limit(guard_of):
    guard = guard_of({"limit": "1000 tokens", "every": "day"})

    assert refusal(guard, 5000) == "Ask for less, or raise '1000 tokens'."


def test_a_call_cannot_ask_for_less_calls(guard_of):
    guard = guard_of({"limit": "1 calls"})
    use(guard, 10)

    assert refusal(guard, 10) == "Raise '1 calls'."


def test_waiting_is_not_advised_in_a_budget_block(guard_of):
    guard = guard_of()
    block = BudgetBlock(guard.store, None, 100, None)

    with block.entered():
        assert refusal(guard, 500) == "Ask for less, or raise the limit."


def test_a_limit_per_call_is_named(guard_of):
    assert refusal(guard_of({"limit": "100 tokens", "per": "call"}), 500) == "Ask for less, or raise '100 tokens'."


# ----------------------------------------------------------------------------------------------------------------- hosts


def denial(guard, url):
    with pytest.raises(EgressDenied) as denied:
        guard.begin(HTTPCall.to("GET", url))
    return str(denied.value)


def test_a_port_that_is_not_the_schemes_own_is_named_and_asked_for(guard_of):
    told = denial(guard_of(allowed_domains=["127.0.0.2:80"]), "http://127.0.0.2:8080/x")

    assert "may not reach '127.0.0.2:8080'" in told
    assert "`agentguard policy explain http://127.0.0.2:8080/x --agent a`" in told


def test_an_address_of_version_6_is_put_as_a_url_has_it(guard_of):
    told = denial(guard_of(), "http://[2001:db8::1]:8080/x")

    assert "may not reach '[2001:db8::1]:8080'" in told
    assert "`agentguard policy explain http://[2001:db8::1]:8080/x --agent a`" in told


def test_the_schemes_own_port_is_not_named(guard_of):
    told = denial(guard_of(), "https://pastebin.com/x")

    assert "may not reach 'pastebin.com'" in told
    assert "explain https://pastebin.com/x --agent a" in told


@pytest.mark.parametrize(
    ("port", "url"), [(8080, "https://db.acme.com:8080/"), (443, "https://db.acme.com/"), (80, "http://db.acme.com/")]
)
def test_a_connection_is_asked_for_with_its_port(guard_of, port, url):
    guard = guard_of(allowed_domains=["db.acme.com:5432"])
    caller = Caller(agents=("a",))

    refused = Reach(guard.rights(caller)).refuses_connection("93.184.216.34", port, frozenset({"db.acme.com"}), caller)

    assert refused is not None
    assert f"`agentguard policy explain {url} --agent a`" in refused.remedy


@pytest.mark.parametrize("host", ["localhost", "api.localhost"])
def test_a_listed_name_in_private_space_needs_the_switch(guard_of, host):
    told = denial(guard_of(allowed_domains=[host]), f"http://{host}/x")

    assert "Write allow_private: true under external_calls, or run" in told
    guard_of(allowed_domains=[host], allow_private=True).begin(HTTPCall.to("GET", f"http://{host}/x")).settle()


def test_a_model_at_a_listed_local_name_needs_the_switch_and_no_provider():
    policy = Policy.from_mapping({"agents": [{"name": "a", "external_calls": {"allowed_domains": ["localhost"]}}]})
    guard = Guard(policy, store=MemoryStore(), agent="a")

    with pytest.raises(EgressDenied, match="Write allow_private: true under external_calls"):
        guard.begin(LLMCall("chat", "openai", "llama", Target("http", "localhost", 11434, "/v1/chat/completions")))
    guard.close()


def test_a_blocked_host_is_not_to_be_added(guard_of):
    told = denial(guard_of(allowed_domains=["*.acme.com"], blocked_domains=["x.acme.com"]), "https://x.acme.com/")

    assert "Remove that entry, or run" in told

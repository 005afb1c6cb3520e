"""Errors say what was stopped, why, by which rule, and what to do; they survive a pickle, and no SDK retries them."""

from __future__ import annotations

import copy
import pickle

import anthropic
import httpx
import httpx2
import openai
import pytest

from agentguard import (
    AgentGuardError,
    AgentIsolated,
    BudgetExceeded,
    Denied,
    EgressDenied,
    Guard,
    HTTPCall,
    KeyDenied,
    LLMCall,
    ModelDenied,
    NotInstrumented,
    Policy,
    PolicyError,
    RateLimited,
    ToolCall,
    ToolDenied,
    Usage,
    errors,
)
from agentguard.core.call import Target
from agentguard.core.decision import Facts, Reason, deny
from agentguard.errors import Problem
from agentguard.guard import denial
from agentguard.policy.model import Rule
from agentguard.testing import FrozenClock

HERE = Target("https", "api.openai.com", 443, "/v1/chat/completions")
CALL = LLMCall("chat", "openai", "gpt-5", HERE, max_output_tokens=100, request={"model": "gpt-5"})
KINDS = {
    Reason.EGRESS: EgressDenied,
    Reason.TOOL: ToolDenied,
    Reason.MODEL: ModelDenied,
    Reason.KEY: KeyDenied,
    Reason.BUDGET: BudgetExceeded,
    Reason.RATE: RateLimited,
    Reason.ISOLATED: AgentIsolated,
}


def refused(reason):
    return deny(reason, Rule("some.rule", "agents.yaml", 12), "agent 'a' may not.", "Ask somebody.", Facts(5, 4, 3, 2, 1.5, 0.5))


@pytest.mark.parametrize(("reason", "kind"), KINDS.items())
@pytest.mark.parametrize("bases", [(), (openai.OpenAIError,), (openai.OpenAIError, anthropic.AnthropicError)])
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_a_denial_survives_pickle_and_copy_with_or_without_the_bases_of_an_sdk(reason, kind, bases, again):
    error = denial(refused(reason), CALL, bases)

    thawed = again(error)

    assert isinstance(error, (kind, *bases))
    assert type(thawed) is kind
    assert (thawed.decision, thawed.call, str(thawed)) == (error.decision, CALL, "agent 'a' may not.\n  Ask somebody.")
    assert (thawed.rule, thawed.remedy, thawed.decision.place) == ("some.rule", "Ask somebody.", "agents.yaml:12")


def test_the_numbers_of_a_refusal_survive_a_pickle():
    budget = pickle.loads(pickle.dumps(BudgetExceeded(refused(Reason.BUDGET), CALL)))
    rate = pickle.loads(pickle.dumps(RateLimited(refused(Reason.RATE), CALL)))

    assert (budget.limit, budget.spent, budget.held, budget.requested, budget.resets_at) == (5, 4, 3, 2, 1.5)
    assert rate.retry_after == 0.5


def test_a_policy_error_survives_a_pickle():
    error = PolicyError("agents.yaml", [Problem("agents.yaml", 14, 5, "agents[a].toolz", "unknown key; did you mean 'tools'?")])

    thawed = pickle.loads(pickle.dumps(error))

    assert (str(thawed), thawed.problems, thawed.source) == (str(error), error.problems, "agents.yaml")
    assert str(error) == "agents.yaml has 1 problem\n  agents.yaml:14:5  agents[a].toolz   unknown key; did you mean 'tools'?"


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AgentGuardError)]
)
def test_no_error_is_one_that_an_sdk_would_retry(kind):
    foreign = (OSError, httpx.HTTPError, httpx2.HTTPError, openai.OpenAIError, anthropic.AnthropicError)

    assert not issubclass(kind, foreign)
    assert issubclass(kind, Exception)


def test_errors_of_usage_are_also_what_python_would_raise():
    assert issubclass(PolicyError, ValueError)
    assert issubclass(NotInstrumented, LookupError)


# --- what they say -----------------------------------------------------------------------------------------------------

POLICY = """\
agents:
  - name: researcher
    external_calls:
      allowed_domains: [api.openai.com, "*.example.org"]
    llm:
      providers: [openai]
      models: ["gpt-*"]
      prices: {"gpt-5": {input: $1, output: $10}}
    tools:
      allowed: [search]
    budgets:
      - {limit: $5.00, every: day}
      - {limit: 1000 tokens, per: session}
      - {limit: 3 calls, every: hour}
"""


@pytest.fixture
def guard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agents.yaml").write_text(POLICY)
    guard = Guard(Policy.from_yaml("agents.yaml"), clock=FrozenClock(1_700_000_000.0))
    yield guard
    guard.close()


def message(guard, call):
    with pytest.raises(Denied) as denied:
        guard.begin(call)
    return str(denied.value)


def test_a_host_that_is_not_listed(guard):
    assert message(guard, HTTPCall.to("GET", "https://pastebin.com/x")) == (
        "agent 'researcher' may not reach 'pastebin.com': not in external_calls.allowed_domains (agents.yaml:4).\n"
        "  Add the host there, or run `agentguard policy explain https://pastebin.com/x --agent researcher`."
    )


def test_a_model_that_is_not_listed(guard):
    assert message(guard, CALL._replace(model="o3")) == (
        "agent 'researcher' may not use model 'o3': not in llm.models (agents.yaml:5).\n"
        "  Add 'o3', or a pattern such as 'o3-*', to llm.models."
    )


def test_a_tool_that_is_not_listed(guard):
    assert message(guard, ToolCall("mail")) == (
        "agent 'researcher' may not use tool 'mail': not in tools.allowed (agents.yaml:10).\n  Add 'mail' to tools.allowed."
    )


def test_a_budget_that_is_spent(guard):
    with guard.admit(CALL) as admission:
        admission.settle(Usage(0, 950))

    assert message(guard, CALL).startswith(
        "agent 'researcher' asked for 109 tokens for 'chat gpt-5' but 50 of 1,000 tokens are left"
    )
    assert "(agents.yaml:13)" in message(guard, CALL)


def test_a_window_says_when_it_starts_anew(guard):
    for _ in range(3):
        with guard.admit(CALL) as admission:
            admission.settle(Usage(0, 1))

    with pytest.raises(BudgetExceeded) as denied:
        guard.begin(CALL)

    assert "(agents.yaml:14)" in str(denied.value)
    assert "2023-11-14 23:00:00 UTC" in str(denied.value)
    assert denied.value.resets_at == 1_700_002_800.0


def test_no_message_carries_a_prompt_or_a_key(guard):
    secret = "sk-very-secret"
    call = CALL._replace(request={"model": "gpt-5", "messages": [{"role": "user", "content": secret}]}, max_output_tokens=50_000)

    assert secret not in message(guard, call)

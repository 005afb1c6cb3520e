"""`agentguard policy`."""

from __future__ import annotations

import pytest

from agentguard.core.call import HTTPCall, LLMCall, ToolCall
from agentguard.core.caller import Caller
from agentguard.core.explain import explain
from agentguard.guard import Guard
from agentguard.policy import Policy

# --------------------------------------------------------------------------------------------------------------- check


def test_a_policy_that_loads_is_ok(agentguard, policy):
    done = agentguard("policy", "check")

    assert done.exit_code == 0
    assert done.stdout.startswith("ok  agentguard.yaml  mode enforce, 3 limits, agents: bot, other\n")


def test_check_takes_a_file(agentguard, folder, policy):
    policy.rename(folder / "prod.yaml")

    assert agentguard("policy", "check", "prod.yaml").exit_code == 0


def test_every_fault_of_a_broken_policy_is_told_without_a_traceback(agentguard, policy):
    policy.write_text("version: 1\nagents:\n  - name: bot\n    toolz: {}\n    budgets: [{limit: ten}]\n")

    done = agentguard("policy", "check")

    assert done.exit_code == 1
    assert "PolicyError: agentguard.yaml has 2 problems" in done.stderr
    assert "did you mean 'tools'?" in done.stderr
    assert "Traceback" not in done.output


def test_faults_as_json_carry_their_place(agentguard_json, policy):
    policy.write_text("version: 1\nagents:\n  - name: bot\n    toolz: {}\n")

    code, document = agentguard_json("policy", "check")

    assert code == 1
    assert document["ok"] is False
    assert document["error"]["type"] == "PolicyError"
    assert document["error"]["problems"][0]["line"] == 4


def test_what_has_no_effect_is_a_note_and_with_strict_a_finding(agentguard, policy):
    channels = "alerts: {channels: {oncall: {pagerduty: {routing_key: env:PD_KEY}}}}"
    policy.write_text(policy.read_text().replace("mode: enforce", f"mode: enforce\n{channels}"))

    assert agentguard("policy", "check").exit_code == 0
    assert agentguard("policy", "check", "--strict").exit_code == 1
    assert "alerts" in agentguard("policy", "check").stdout


@pytest.mark.parametrize("args", [["policy", "check"], ["policy", "explain", "https://a.com"]])
def test_no_policy_is_wrong_usage(agentguard, args):
    done = agentguard(*args)

    assert done.exit_code == 2
    assert "agentguard init" in done.stderr


def test_a_named_file_that_is_absent_is_wrong_usage(agentguard, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_POLICY", "absent.yaml")

    assert agentguard("policy", "check").exit_code == 2


# ------------------------------------------------------------------------------------------------------------- explain


def test_an_allowed_call_is_explained_by_the_entry_that_allows_it(agentguard, policy):
    done = agentguard("policy", "explain", "https://x.kb.acme.com/doc", "--agent", "bot")

    assert done.exit_code == 0
    assert done.stdout.startswith("allowed  GET https://x.kb.acme.com/doc  by bot\n")
    assert " →  *.kb.acme.com" in done.stdout


def test_a_denied_call_is_explained_with_every_rule_and_the_remedy(agentguard, policy):
    done = agentguard("policy", "explain", "https://paste.evil.example", "--agent", "bot")

    assert done.exit_code == 1
    assert "denied  GET https://paste.evil.example/  by bot" in done.stdout
    assert "not in external_calls.allowed_domains (agentguard.yaml:6)" in done.stdout
    assert "Add the host there" in done.stdout
    for entry in ("api.acme.com", "*.kb.acme.com", "api.openai.com", "$5.00 every day for agent:bot"):
        assert entry in done.stdout


def test_the_explanation_as_json(agentguard_json, policy):
    code, document = agentguard_json("policy", "explain", "https://paste.evil.example", "--agent", "bot")

    assert code == 1
    assert document["effect"] == "deny"
    assert document["reason"] == "egress"
    assert document["place"] == "agentguard.yaml:6"
    deciding = [rule for rule in document["rules"] if rule["decides"]]
    assert [(rule["rule"], rule["entry"], rule["effect"]) for rule in deciding] == [
        ("external_calls.blocked_domains", "*", "deny")
    ]


def test_a_model_is_explained_at_its_provider(agentguard_json, policy):
    assert agentguard_json("policy", "explain", "--model", "gpt-5-mini", "--agent", "bot")[0] == 0
    code, document = agentguard_json("policy", "explain", "--model", "gpt-4", "--agent", "bot")

    assert (code, document["reason"], document["rule"]) == (1, "model", "llm.models")


def test_a_tool_is_explained(agentguard_json, policy):
    assert agentguard_json("policy", "explain", "--tool", "search_kb", "--agent", "bot")[0] == 0
    assert agentguard_json("policy", "explain", "--tool", "rm_rf", "--agent", "bot")[0] == 1


def test_without_an_agent_only_what_every_agent_may_is_allowed(agentguard_json, policy):
    assert agentguard_json("policy", "explain", "https://api.acme.com")[0] == 0
    assert agentguard_json("policy", "explain", "https://x.kb.acme.com")[0] == 1


def test_an_unknown_agent_is_wrong_usage_and_the_near_one_is_named(agentguard, policy):
    done = agentguard("policy", "explain", "https://api.acme.com", "--agent", "bto")

    assert done.exit_code == 2
    assert "did you mean 'bot'?" in done.stderr


@pytest.mark.parametrize(
    "args", [[], ["https://a.com", "--tool", "x"], ["https://:99999/"], ["--model", "m", "--provider", "nobody"]]
)
def test_what_cannot_be_explained_is_wrong_usage(agentguard, policy, args):
    assert agentguard("policy", "explain", *args).exit_code == 2


def test_live_says_what_is_left_and_who_is_isolated(agentguard_json, policy, folder):
    store = f"sqlite://{folder}/ledger.sqlite"
    from agentguard.stores import open_store

    guard = Guard(Policy.from_yaml(policy), store=open_store(store), agent="bot")
    with guard.admit(HTTPCall.to("GET", "https://api.acme.com/")):
        pass
    guard.isolate("agent:other", by="ops", why="incident")
    guard.close()

    code, document = agentguard_json("policy", "explain", "https://api.acme.com", "--agent", "bot", "--live", "--store", store)
    assert code == 0
    assert "99 calls left" in [rule["why"] for rule in document["rules"]]

    code, document = agentguard_json("policy", "explain", "https://api.acme.com", "--agent", "other", "--live", "--store", store)
    assert (code, document["reason"]) == (1, "isolated")
    assert document["rules"][0] == {
        "agent": None,
        "rule": "isolation",
        "place": None,
        "entry": "agent:other",
        "effect": "deny",
        "decides": True,
        "why": "an operator has stopped it",
    }


def test_live_says_that_a_call_would_wait_where_nothing_is_left(agentguard_json, policy, folder):
    store = f"sqlite://{folder}/ledger.sqlite"
    from agentguard.stores import open_store

    policy.write_text(
        "agents: [{name: bot, external_calls: {allowed_domains: [api.acme.com]}, budgets: [{limit: 1_requests_per_hour}]}]\n"
        "limits: {wait: 10s}\n"
    )
    guard = Guard(Policy.from_yaml(policy), store=open_store(store))
    guard.begin(HTTPCall.to("GET", "https://api.acme.com/")).settle()
    guard.close()

    _, document = agentguard_json("policy", "explain", "https://api.acme.com", "--live", "--store", store)

    assert "0 calls left; a call waits up to 10s for the window to be over" in [rule["why"] for rule in document["rules"]]


def test_a_store_that_cannot_be_reached_is_exit_code_3(agentguard, policy, folder):
    (folder / "ledger.sqlite").mkdir()

    done = agentguard("policy", "explain", "https://api.acme.com", "--live", "--store", f"sqlite://{folder}/ledger.sqlite")

    assert done.exit_code == 3
    assert "StoreUnavailable" in done.stderr


CALLS = [
    HTTPCall.to("GET", "https://api.acme.com/customers/1"),
    HTTPCall.to("GET", "https://API.acme.com./x"),
    HTTPCall.to("GET", "https://a.kb.acme.com/"),
    HTTPCall.to("GET", "https://kb.acme.com/"),
    HTTPCall.to("GET", "http://127.0.0.1/"),
    HTTPCall.to("GET", "http://169.254.169.254/latest"),
    HTTPCall.to("GET", "http://10.1.2.3:8443/"),
    LLMCall("chat", "openai", "gpt-5", HTTPCall.to("POST", "https://api.openai.com/v1").target),
    LLMCall("chat", "openai", "gpt-4", HTTPCall.to("POST", "https://api.openai.com/v1").target),
    ToolCall("search_kb"),
    ToolCall("rm_rf"),
    ToolCall("search_kb", scope="secret"),
]


@pytest.mark.parametrize("agents", [("bot",), ("other",), ("bot", "other"), ()])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_an_explanation_never_contradicts_the_decision(policy, call, agents):
    text = policy.read_text() + "resources: {customers: {hosts: [api.acme.com], paths: [/customers/*]}}\n"
    guard = Guard(Policy.from_yaml(text))
    caller = Caller(agents=agents)
    refusal = guard.rights(caller).refuses(call, caller)

    traces = explain(call, caller, guard.rights(caller))

    denials = [trace for trace in traces if trace.decides and trace.effect == "deny"]
    assert bool(denials) == (refusal is not None)


# ---------------------------------------------------------------------------------------------------- diff and schema


def test_a_change_that_grants_is_a_finding(agentguard, agentguard_json, policy, folder):
    (folder / "new.yaml").write_text(policy.read_text().replace("[api.acme.com, ", "[api.acme.com, paste.example.org, "))

    code, document = agentguard_json("policy", "diff", "agentguard.yaml", "new.yaml")

    assert code == 1
    assert [(change["direction"], change["sentence"]) for change in document["changes"]] == [
        ("grants", "paste.example.org may be reached.")
    ]
    assert "+ grants  agents[bot].external_calls" in agentguard("policy", "diff", "agentguard.yaml", "new.yaml").stdout


def test_a_change_that_only_takes_is_none(agentguard, policy, folder):
    (folder / "new.yaml").write_text(policy.read_text().replace('[api.acme.com, "*.kb.acme.com"]', "[api.acme.com]"))

    assert agentguard("policy", "diff", "agentguard.yaml", "new.yaml").exit_code == 0
    assert agentguard("policy", "diff", "agentguard.yaml", "agentguard.yaml").stdout == "No change of what may be done.\n"


def test_the_schema_is_json_schema(agentguard_json):
    code, document = agentguard_json("policy", "schema")

    assert code == 0
    assert "$defs" in document


def test_that_nothing_is_refused_is_a_note_and_no_finding(agentguard_json, policy):
    policy.write_text(policy.read_text().replace("mode: enforce", "mode: report"))

    code, document = agentguard_json("policy", "check", "--strict")

    assert (code, document["ok"]) == (0, True)
    assert "mode is report: refusals are recorded, and nothing is refused" in document["notes"]


@pytest.mark.parametrize(
    "command", [("policy", "explain", "https://paste.evil.example", "--agent", "bot"), ("budgets",), ("doctor", "--no-canary")]
)
def test_what_is_piped_has_no_spaces_at_the_ends_of_lines(agentguard, policy, command):
    lines = agentguard(*command).stdout.splitlines()

    assert len(lines) > 3
    assert [line for line in lines if line != line.rstrip()] == []

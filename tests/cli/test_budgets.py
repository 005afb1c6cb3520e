"""`agentguard budgets`."""

from __future__ import annotations

import pytest

from agentguard.context import session
from agentguard.core.call import HTTPCall
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.stores import open_store


@pytest.fixture
def store(policy, folder):
    """A ledger in which agent `bot` made 3 calls, in session s-1."""
    url = f"sqlite://{folder}/ledger.sqlite"
    guard = Guard(Policy.from_yaml(policy), store=open_store(url), agent="bot")
    for _ in range(3):
        with session("s-1", user="u-1"), guard.admit(HTTPCall.to("GET", "https://api.acme.com/")):
            pass
    guard.close()
    return url


def test_every_limit_is_listed_also_what_nobody_has_used(agentguard_json, store):
    code, document = agentguard_json("budgets", "--store", store)

    assert code == 0
    limits = {(limit["subject"], limit["unit"]): limit for limit in document["limits"]}
    calls = limits["agent:bot", "calls"]
    assert (calls["amount"], calls["spent"], calls["held"], calls["left"]) == (100, 3, 0, 97)
    assert calls["window"] == "hour"
    assert calls["resets_at"] > 0
    assert limits["agent:bot", "usd"]["left"] == 5_000_000_000
    assert ("session:s-1@agent:bot", "tokens") in limits


def test_the_ledger_for_people(agentguard, store):
    text = agentguard("budgets", "--store", store).stdout

    assert "agent:bot\n" in text.replace(" ", "")
    assert "$5.00 every day" in text
    assert "session:s-1 of agent:bot" in text


def test_a_subject_and_an_agent_filter(agentguard_json, store):
    _, by_subject = agentguard_json("budgets", "--store", store, "--subject", "session:s-1")
    _, as_printed = agentguard_json("budgets", "--store", store, "--subject", "session:s-1 of agent:bot")
    _, by_agent = agentguard_json("budgets", "--store", store, "--agent", "other")

    assert {limit["subject"] for limit in by_subject["limits"]} == {"session:s-1@agent:bot"}
    assert as_printed == by_subject
    assert by_agent["limits"] == []


@pytest.mark.parametrize("command", [("budgets", "--agent", "bott"), ("budgets", "explain", "bott")])
def test_an_agent_that_nobody_knows_is_wrong_usage(agentguard, store, command):
    done = agentguard(*command, "--store", store)

    assert done.exit_code == 2
    assert "no agent 'bott' in agentguard.yaml or among the running processes; did you mean 'bot'?" in " ".join(
        done.stderr.split()
    )


def test_an_agent_that_is_in_the_ledger_alone_is_known(agentguard_json, store, policy):
    policy.write_text(policy.read_text().replace("name: bot", "name: bot2"))

    code, document = agentguard_json("budgets", "--store", store, "--agent", "bot")

    assert code == 0
    assert document["limits"]


def test_an_empty_list_says_what_is_true(agentguard, store):
    none_exhausted = agentguard("budgets", "--store", store, "--exhausted").stdout
    none_of_agent = agentguard("budgets", "--store", store, "--agent", "other").stdout
    none_of_subject = agentguard("budgets", "--store", store, "--subject", "session:9").stdout

    assert none_exhausted == "Nothing is exhausted: each of 3 limits has something left.\n"
    assert none_of_agent.startswith("No limits of 'other': ")
    assert none_of_subject.startswith("No limits of 'session:9': ")


def test_an_exhausted_limit_is_a_finding_when_asked_for(agentguard_json, policy, folder):
    policy.write_text(policy.read_text().replace("100 calls", "1 calls"))
    url = f"sqlite://{folder}/ledger.sqlite"
    guard = Guard(Policy.from_yaml(policy), store=open_store(url), agent="bot")
    with guard.admit(HTTPCall.to("GET", "https://api.acme.com/")):
        pass
    guard.close()

    code, document = agentguard_json("budgets", "--store", url, "--exhausted")

    assert code == 1
    assert [limit["limit"] for limit in document["limits"]] == ["1 calls every hour"]


def test_an_isolated_subject_is_said_first(agentguard, store, folder):
    opened = open_store(store)
    opened.isolate("agent:bot", on=True, by="ops\x1b[2J", why="incident 7")
    opened.close()

    text = agentguard("budgets", "--store", store).stdout

    assert text.startswith("isolated  agent:bot  by ops\ufffd[2J: incident 7")


def test_nothing_counted_is_no_fault(agentguard, folder):
    done = agentguard("budgets", "--store", f"sqlite://{folder}/new.sqlite")

    assert done.exit_code == 0
    assert "No limits here" in done.stdout


def test_a_memory_store_cannot_be_read_from_outside(agentguard):
    assert agentguard("budgets", "--store", "memory://").exit_code == 2


def test_a_store_that_cannot_be_reached_is_exit_code_3(agentguard_json, folder):
    (folder / "ledger.sqlite").mkdir()

    code, document = agentguard_json("budgets", "--store", f"sqlite://{folder}/ledger.sqlite")

    assert code == 3
    assert document["error"]["type"] == "StoreUnavailable"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:abc", "redis://:pa/ss@127.0.0.1:6379/0", "redis://[::1"])
def test_a_store_that_cannot_be_read_is_said_without_its_password(agentguard, url):
    done = agentguard("budgets", "--store", url)

    assert done.exit_code == 1
    assert done.stderr.startswith("PolicyError: ")
    assert "'pa'" not in done.stderr
    assert ":pa" not in done.stderr

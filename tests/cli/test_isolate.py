"""`agentguard isolate`, `restore`, `agents`, `reservations`, and `budgets explain` and `adjust`."""

from __future__ import annotations

import json

import pytest

from agentguard.audit import read_events
from agentguard.cli._sources import events_directory
from agentguard.context import session
from agentguard.core.call import HTTPCall, ToolCall
from agentguard.errors import AgentIsolated
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.stores import open_store

CALL = HTTPCall.to("GET", "https://api.acme.com/")


@pytest.fixture
def url(folder):
    return f"sqlite://{folder}/ledger.sqlite"


@pytest.fixture
def guard(policy, url):
    """A guarded process with agent `bot`."""
    made = Guard(Policy.from_yaml(policy), store=open_store(url), agent="bot")
    made.begin(CALL).settle()
    made._membership.beat()
    yield made
    made.close()


def recorded(kind):
    return [record for record in read_events(events_directory()) if record["kind"] == kind]


def test_an_isolation_stops_a_running_process_and_is_confirmed_and_recorded(agentguard, guard, url):
    done = agentguard("isolate", "bot", "--store", url, "--why", "drill", "--by", "ada")

    assert done.exit_code == 0
    assert done.stdout.startswith("agent:bot is isolated: all of its calls are stopped.\nconfirmed by 1 of 1 processes in ")
    assert guard.isolated["agent:bot"].why == "drill"
    with pytest.raises(AgentIsolated):
        guard.begin(CALL)
    (record,) = recorded("subject_isolated")
    assert (record["subject"], record["by"], record["why"], record["mode"]) == ("agent:bot", "ada", "drill", "block-all")


def test_a_restoration_lets_it_go_on_and_probation_halves_its_limits(agentguard, guard, url):
    agentguard("isolate", "bot", "--store", url)

    done = agentguard("restore", "bot", "--store", url, "--probation", "24h")

    assert done.exit_code == 0
    assert "agent:bot may go on, with half of its limits until" in done.stdout
    guard.begin(CALL).settle()
    (calls,) = [balance for row, balance in guard.usage("agent:bot") if row.limit.unit == "calls"]
    assert calls.amount == 50
    assert "probation_until_us" in recorded("subject_restored")[0]


def test_llm_only_leaves_tools_and_other_hosts(agentguard_json, guard, url):
    code, document = agentguard_json("isolate", "agent:bot", "--mode", "llm-only", "--store", url)

    assert (code, document["mode"], document["complete"]) == (0, "llm-only", True)
    guard.begin(CALL).settle()
    guard.begin(ToolCall("search_kb")).settle()


def test_another_mode_replaces_the_one_before(agentguard, guard, url):
    agentguard("isolate", "bot", "--store", url)
    agentguard("isolate", "bot", "--mode", "llm-only", "--store", url)

    guard.begin(CALL).settle()
    agentguard("restore", "bot", "--store", url)

    assert guard.store.isolations() == []


def test_a_process_that_does_not_confirm_is_named_and_the_exit_code_says_so(agentguard, agentguard_json, guard, url):
    store = open_store(url)
    (member,) = store.members()
    store.beat(member._replace(name=f"{member.holder}/dead", pid=4711, host="host-3"))

    code, document = agentguard_json("isolate", "bot", "--store", url, "--wait", "1s")
    text = agentguard("isolate", "bot", "--store", url, "--wait", "0.1s").stdout
    store.close()

    assert (code, document["complete"], [one["pid"] for one in document["missing"]]) == (4, False, [4711])
    assert len(document["confirmed"]) == 1
    assert "confirmed by 1 of 2 processes" in text
    assert "not by bot, process 4711 on host-3, heard of" in text


def test_a_process_in_report_mode_is_named_because_it_refuses_nothing(agentguard_json, policy, url):
    policy.write_text(policy.read_text().replace("mode: enforce", "mode: report"))
    guard = Guard(Policy.from_yaml(policy), store=open_store(url), agent="bot")
    guard.begin(CALL).settle()
    guard._membership.beat()

    code, document = agentguard_json("isolate", "bot", "--store", url)
    guard.begin(CALL).settle()
    guard.close()

    assert (code, len(document["reporting"]), document["complete"]) == (4, 1, False)


def test_a_name_that_nobody_has_is_wrong_usage_and_isolates_nobody(agentguard, guard, url):
    done = agentguard("isolate", "bott", "--store", url)

    assert done.exit_code == 2
    assert "did you mean 'bot'?" in done.stderr
    assert guard.store.isolations() == []


def test_a_name_that_nobody_has_is_not_told_to_go_on(agentguard, guard, url):
    agentguard("isolate", "bot", "--store", url)

    done = agentguard("restore", "bott", "--store", url)

    assert done.exit_code == 2
    assert "did you mean 'bot'?" in done.stderr
    assert recorded("subject_restored") == []


def test_restoring_what_is_not_isolated_says_so_and_says_what_is(agentguard, agentguard_json, guard, url):
    agentguard("isolate", "session:42", "--store", url)

    done = agentguard("restore", "session:43", "--store", url)
    _, document = agentguard_json("restore", "bot", "--store", url)

    assert done.stdout == "session:43 is not isolated, so nothing was changed; isolated or on probation: session:42.\n"
    assert (document["isolated"], document["changed"]) == (False, False)
    assert recorded("subject_restored") == []


def test_an_agent_that_has_left_the_policy_can_be_restored(agentguard, agentguard_json, guard, url):
    guard.isolate("agent:gone", by="ada", why="drill")

    code, document = agentguard_json("restore", "gone", "--store", url)

    assert (code, document["changed"]) == (0, True)


@pytest.mark.parametrize("command", ["isolate", "restore"])
@pytest.mark.parametrize("subject", ["session:", "agent:", "user: ", ""])
def test_a_subject_without_a_name_is_wrong_usage(agentguard, guard, url, command, subject):
    done = agentguard(command, subject, "--store", url)

    assert done.exit_code == 2
    assert "names nobody" in done.stderr
    assert guard.store.isolations() == []


def test_an_isolation_survives_that_every_process_ends(agentguard, policy, guard, url):
    agentguard("isolate", "bot", "--store", url)
    guard.close()

    again = Guard(Policy.from_yaml(policy), store=open_store(url), agent="bot")

    with pytest.raises(AgentIsolated):
        again.begin(CALL)
    again.close()


def test_processes_are_listed_with_what_differs(agentguard, agentguard_json, guard, url):
    store = open_store(url)
    (member,) = store.members()
    store.beat(member._replace(name=f"{member.holder}/other", version="0.0.1", policy="abcdef", epoch=-1))
    store.close()

    code, document = agentguard_json("agents", "--store", url, "--drift")
    text = agentguard("agents", "--store", url).stdout

    assert code == 1
    assert [one["state"] for one in document["processes"]] == ["ok", "behind"]
    assert len(document["drift"]) == 2
    assert "policies of bot differ" in text


def test_a_process_leaves_the_list_when_its_guard_ends(agentguard_json, guard, url):
    guard.close()

    assert agentguard_json("agents", "--store", url)[1]["processes"] == []


def test_what_a_call_in_flight_holds_is_listed_with_its_process(agentguard, agentguard_json, guard, url, policy):
    policy.write_text(policy.read_text().replace("{limit: 100 calls, every: hour}", "{limit: 4 concurrent_calls}"))
    guard.adopt(Policy.from_yaml(policy))
    held = guard.begin(CALL)

    _, document = agentguard_json("reservations", "--store", url, "--agent", "bot")
    explained = agentguard("budgets", "explain", "bot", "--store", url)
    held.settle()

    (one,) = document["reservations"]
    assert {hold["unit"]: hold["amount"] for hold in one["holds"]} == {"concurrent_calls": 1}
    assert one["pid"] is not None
    assert explained.exit_code == 0
    assert f"held by process {one['pid']} on" in explained.stdout


def test_explaining_an_agent_that_cannot_call_is_a_finding(agentguard_json, guard, url):
    free, _ = agentguard_json("budgets", "explain", "bot", "--store", url)
    guard.isolate("agent:bot", by="ada", why="drill")
    stopped, document = agentguard_json("budgets", "explain", "bot", "--store", url)

    assert (free, stopped) == (0, 1)
    assert document["isolated"][0]["mode"] == "block-all"


def test_a_correction_changes_what_was_counted_never_below_nothing_and_is_recorded(agentguard_json, guard, url):
    code, charged = agentguard_json("budgets", "adjust", "bot", "--charge", "$1.50", "--store", url, "--why", "outside")
    _, credited = agentguard_json("budgets", "adjust", "agent:bot", "--credit", "$9", "--store", url, "--by", "ada")

    assert (code, charged["spent"], charged["amount"]) == (0, 1_500_000_000, 1_500_000_000)
    assert (credited["spent"], credited["amount"]) == (0, -1_500_000_000)
    assert [record["amount"] for record in recorded("budget_adjusted")] == [1_500_000_000, -1_500_000_000]


def test_a_subject_is_corrected_as_budgets_prints_it(agentguard, agentguard_json, guard, url):
    with session("s-1", user="ada@example.com"):
        guard.begin(CALL).settle()
    printed = agentguard("budgets", "--store", url).stdout
    assert "session:s-1 of agent:bot" in printed

    _, by_text = agentguard_json("budgets", "adjust", "session:s-1 of agent:bot", "--charge", "7 tokens", "--store", url)
    _, by_key = agentguard_json("budgets", "adjust", "session:s-1@agent:bot", "--charge", "7 tokens", "--store", url)

    assert (by_text["spent"], by_key["spent"]) == (7, 14)


def test_calls_are_corrected_too(agentguard_json, guard, url):
    _, credited = agentguard_json("budgets", "adjust", "bot", "--credit", "1 calls", "--store", url)

    assert (credited["amount"], credited["spent"]) == (-1, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "say either --credit or --charge"),
        (("--credit", "ten"), "ten"),
        (("--credit", "10 tokens"), "has no such limit in tokens; it has:"),
        (("--credit", "1 calls", "--every", "day"), "has no such limit in calls"),
    ],
)
def test_what_cannot_be_adjusted_is_wrong_usage_and_says_why(agentguard, guard, url, options, said):
    done = agentguard("budgets", "adjust", "bot", *options, "--store", url)

    assert done.exit_code == 2
    assert said in done.stderr


def test_the_ledger_tells_an_isolation_of_llm_calls_and_a_probation_from_one_of_all_calls(agentguard, guard, url):
    guard.isolate("agent:bot", by="ada", why="drill", mode="llm-only")
    guard.restore("agent:other", by="ada", probation_seconds=3600)

    text = agentguard("budgets", "--store", url).stdout

    assert "isolated (llm-only)  agent:bot  by ada: drill" in text
    assert "on probation for 59 min  agent:other  by ada" in text


def test_a_store_that_is_not_there_is_unreachable(agentguard, tmp_path):
    (tmp_path / "store").write_text("no database" * 100)

    done = agentguard("isolate", "bot", "--store", f"sqlite://{tmp_path}/store", "--json")

    assert done.exit_code == 3
    assert json.loads(done.stdout)["ok"] is False

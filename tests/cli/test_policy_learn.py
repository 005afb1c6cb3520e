"""`agentguard policy learn`, `allow`, `deny` and `replay`, over event logs that a real guard has written."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest
import requests

import agentguard as product
from agentguard.audit import EventLog
from agentguard.policy import Policy
from agentguard.policy.load import from_file

BOT_CLOSED = {"name": "bot", "external_calls": {"allowed_domains": [], "blocked_domains": ["*"]}}
REPORT = {"mode": "report", "agents": [{"name": "bot"}]}
WEEK = ("http://api.acme.com/v1", "http://api.acme.com/v2", "http://api.openai.com/v1", "http://169.254.169.254/latest")


@pytest.fixture
def recorded(guarded, provider):
    """Call through a proxy that answers for every host: the calls are judged and recorded, and nothing leaves loopback."""

    def record(*urls, document=REPORT, agent="bot", times=2):
        one = guarded(policy=Policy.from_mapping(document))
        log = EventLog()
        one.guard.observe(log)
        with product.agent(agent):
            for url in urls * times:
                with contextlib.suppress(product.Denied):
                    requests.get(url, proxies={"http": provider.base_url}, timeout=5)
        one.settle()
        one.guard.flush()
        log.close()
        one.close()

    return record


@pytest.fixture
def written(folder):
    def write(text):
        file = folder / "agentguard.yaml"
        file.write_text(text)
        return file

    return write


CLOSED = """\
mode: report   # until the week is over
agents:
  - name: bot
    external_calls: {allowed_domains: [], blocked_domains: ["*"]}   # nothing yet
"""


# --------------------------------------------------------------------------------------------------------------- learn


def test_what_was_called_is_proposed_and_what_is_odd_is_flagged(agentguard, recorded):
    recorded(*WEEK)
    recorded("http://once.example/", times=1)

    shown = agentguard("policy", "learn").stdout

    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "bot"
    assert any(line.startswith("+ llm.providers: openai 2 calls") and line.endswith("api.openai.com") for line in lines)
    assert any(line.startswith("+ api.acme.com 4 calls") for line in lines)
    assert any(line.startswith("? 169.254.169.254:80 2 calls") and line.endswith("metadata") for line in lines)
    assert any(line.startswith("? once.example 1 call ") and line.endswith("one-off") for line in lines)
    assert "agentguard policy allow once.example --agent bot" in lines
    assert "policy allow 169" not in shown


def test_the_proposal_as_json(agentguard_json, recorded):
    recorded(*WEEK)

    code, document = agentguard_json("policy", "learn", "--since", "1h")

    (agent,) = document["agents"]
    (acme,) = (entry for entry in agent["entries"] if entry["entry"] == "api.acme.com")
    assert (code, document["ok"], document["written"], document["unreadable"]) == (0, True, None, 0)
    assert (acme["kind"], acme["calls"], acme["flags"], acme["proposed"]) == ("host", 4, [], True)
    assert acme["last"] > acme["first"]


def test_write_enters_what_is_proposed_and_leaves_the_rest_of_the_file(agentguard, recorded, written):
    recorded(*WEEK)
    file = written(CLOSED)

    done = agentguard("policy", "learn", "--write")

    bot = from_file(file).agent("bot")
    assert done.exit_code == 0
    assert [str(host) for host in bot.external_calls.allowed_domains] == ["api.acme.com"]
    assert bot.llm.providers == ("openai",)
    assert "# until the week is over" in file.read_text()
    assert "+ grants" in done.stdout
    assert "Nothing to write." in agentguard("policy", "learn", "--write").stdout


def test_without_a_file_write_makes_one_that_refuses_nothing(agentguard, recorded, folder):
    recorded(*WEEK)

    done = agentguard("policy", "learn", "--write")

    policy = from_file(folder / "agentguard.yaml")
    assert "Wrote agentguard.yaml" in done.stdout
    assert (policy.mode, [agent.name for agent in policy.agents]) == ("report", ["bot"])
    assert agentguard("policy", "replay").exit_code == 1  # metadata was called, and was not written


def test_after_learning_nothing_but_what_was_flagged_would_be_refused(agentguard_json, agentguard, recorded, written):
    recorded(*WEEK)
    written(CLOSED)
    agentguard("policy", "learn", "--write")

    code, document = agentguard_json("policy", "replay")

    assert code == 1
    assert [group["what"] for group in document["refused"]] == [[{"what": "GET 169.254.169.254", "calls": 2}]]


def test_only_one_agents_calls_are_learned_when_it_is_named(agentguard_json, recorded):
    two = {"mode": "report", "agents": [{"name": "bot"}, {"name": "other"}]}
    recorded("http://a.example/", document=two)
    recorded("http://b.example/", document=two, agent="other")

    _, document = agentguard_json("policy", "learn", "--agent", "other")

    assert [(one["agent"], [entry["entry"] for entry in one["entries"]]) for one in document["agents"]] == [
        ("other", ["b.example"])
    ]


def test_sub_domains_are_grouped_by_the_public_suffix_list_and_not_without_it(agentguard, agentguard_json, recorded, monkeypatch):
    recorded("http://a.kb.acme.com/", "http://b.kb.acme.com/", "http://c.kb.acme.com/")

    _, document = agentguard_json("policy", "learn")
    monkeypatch.setitem(sys.modules, "publicsuffixlist", None)
    without = agentguard("policy", "learn").stdout

    assert [entry["entry"] for entry in document["agents"][0]["entries"]] == ["*.kb.acme.com"]
    assert "+  a.kb.acme.com" in without
    assert "agentguard[learn]" in without


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_what_a_running_program_is_connected_to_is_learned_too(agentguard_json, written):
    written(CLOSED)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        port = server.getsockname()[1]
        _, document = agentguard_json("policy", "learn", "--pid", str(os.getpid()))

    (bot,) = document["agents"]
    (entry,) = (entry for entry in bot["entries"] if entry["entry"] == f"127.0.0.1:{port}")
    assert "private" in entry["flags"]


def test_a_program_that_is_not_there_is_wrong_usage(agentguard):
    assert agentguard("policy", "learn", "--pid", "999999999").exit_code == 2


def test_an_empty_log_is_said_on_stderr(agentguard):
    done = agentguard("policy", "learn")

    assert (done.exit_code, done.stdout) == (0, "")
    assert "report mode" in done.stderr


def test_a_proxy_that_was_reported_is_learned_and_replayed_as_a_host(agentguard_json, recorded, written, provider):
    written(CLOSED)
    recorded("http://api.acme.com/", document={"mode": "report", "agents": [BOT_CLOSED]})
    proxy = provider.base_url.removeprefix("http://")

    _, learned = agentguard_json("policy", "learn")
    agentguard_json("policy", "allow", "api.acme.com")
    _, without = agentguard_json("policy", "replay")
    agentguard_json("policy", "allow", proxy)
    _, listed = agentguard_json("policy", "replay")

    assert {entry["entry"] for entry in learned["agents"][0]["entries"]} == {"api.acme.com", proxy}
    assert (len(without["allowed"]), len(listed["allowed"])) == (0, 1)


# ------------------------------------------------------------------------------------------------------- allow and deny


def test_a_refused_host_is_allowed_by_the_line_that_learn_prints(agentguard, recorded, written):
    recorded("http://once.example/", times=1)
    written(CLOSED)
    (line,) = [line for line in agentguard("policy", "learn").stdout.splitlines() if "policy allow" in line]

    done = agentguard(*line.split()[1:])

    assert done.exit_code == 0
    assert "once.example may be reached." in done.stdout
    assert agentguard("policy", "explain", "https://once.example", "--agent", "bot").exit_code == 0


def test_allowing_again_is_nothing_to_do(agentguard, written):
    written(CLOSED)
    agentguard("policy", "allow", "a.example")

    assert (
        agentguard("policy", "allow", "A.example.").stdout
        == "Nothing to do: a.example may be reached as agentguard.yaml stands.\n"
    )


def test_a_trial_writes_nothing(agentguard, written):
    file = written(CLOSED)

    done = agentguard("policy", "allow", "a.example", "--dry-run")

    assert "Would write agentguard.yaml" in done.stdout
    assert file.read_text() == CLOSED


def test_what_is_no_entry_is_wrong_usage_with_what_to_write(agentguard, written):
    written(CLOSED)

    done = agentguard("policy", "allow", "https://a.example/x")

    assert done.exit_code == 2
    assert "write 'a.example'" in done.stderr


def test_what_cannot_be_allowed_alone_is_a_finding_and_nothing_is_written(agentguard_json, written):
    file = written(CLOSED)

    code, document = agentguard_json("policy", "allow", "localhost")

    assert (code, document["ok"]) == (1, False)
    assert "allow_private: true" in document["error"]["message"]
    assert file.read_text() == CLOSED


def test_deny_takes_it_away_again(agentguard_json, written):
    written(CLOSED)
    agentguard_json("policy", "allow", "*.a.example")

    code, document = agentguard_json("policy", "deny", "*.a.example")

    assert (code, document["written"]) == (0, True)
    assert [change["direction"] for change in document["changes"]] == ["takes", "takes"]


# -------------------------------------------------------------------------------------------------------------- replay


def test_a_draft_that_refuses_what_was_allowed_is_a_finding(agentguard, recorded, written):
    recorded("http://api.acme.com/", "http://cdn.acme.com/")
    written('agent_config: {name: bot, external_calls: {allowed_domains: [api.acme.com], blocked_domains: ["*"]}}')

    done = agentguard("policy", "replay")

    assert done.exit_code == 1
    assert "4 calls judged under agentguard.yaml." in done.stdout
    assert "2 calls would be refused, and were allowed" in done.stdout
    assert "GET cdn.acme.com" in done.stdout


def test_a_draft_that_decides_as_before_is_ok(agentguard, recorded, written):
    recorded("http://api.acme.com/")
    written('agent_config: {name: bot, external_calls: {allowed_domains: ["*.acme.com"], blocked_domains: ["*"]}}')

    done = agentguard("policy", "replay", "--since", "1h", "--agent", "bot")

    assert done.exit_code == 0
    assert "No call would have been decided otherwise." in done.stdout


def test_what_was_refused_and_would_go_is_told_and_is_no_finding(agentguard_json, recorded, written, provider):
    closed = {"agents": [{"name": "bot", "external_calls": {"allowed_domains": ["127.0.0.1", "api.acme.com"]}}]}
    recorded("http://api.acme.com/", "http://cdn.acme.com/", document=closed)
    written('agent_config: {name: bot, external_calls: {allowed_domains: ["*.acme.com", "127.0.0.1"]}}')

    code, document = agentguard_json("policy", "replay")

    assert (code, document["ok"], document["calls"]) == (0, True, 4)
    assert [(group["rule"], group["calls"]) for group in document["allowed"]] == [("external_calls.allowed_domains", 2)]


def test_a_replay_of_nothing_does_not_pass_for_a_good_one(agentguard, written, tmp_path):
    written(CLOSED)

    done = agentguard("policy", "replay", "--events", str(tmp_path))

    assert done.exit_code == 2
    assert "nothing was judged" in done.stderr

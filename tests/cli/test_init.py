"""`agentguard init`."""

from __future__ import annotations

import pytest

from agentguard import Policy
from agentguard.policy.unenforced import unenforced


def test_the_policy_that_is_written_loads_and_says_nothing_in_vain(agentguard, folder):
    done = agentguard("init", "--agent", "support_bot")

    policy = Policy.from_yaml(folder / "agentguard.yaml")
    assert done.exit_code == 0
    assert [agent.name for agent in policy.agents] == ["support_bot"]
    assert policy.mode == "report"
    assert unenforced(policy) == ()


@pytest.mark.parametrize("name", ["my agent: 'x'", "1.0", "yes", "null", "a-b"])
def test_any_name_is_written_as_text(agentguard, folder, name):
    agentguard("init", "--agent", name)

    assert Policy.from_yaml(folder / "agentguard.yaml").agents[0].name == name


def test_the_two_lines_to_add_are_printed(agentguard):
    text = agentguard("init").stdout

    assert "    import agentguard\n    agentguard.instrument()\n" in text
    assert "agentguard run app.py" in text


def test_a_file_that_is_there_is_left_alone(agentguard, policy):
    before = policy.read_text()

    done = agentguard("init")

    assert done.exit_code == 1
    assert policy.read_text() == before
    assert "--force" in done.stderr


def test_force_overwrites(agentguard, policy):
    assert agentguard("init", "--force").exit_code == 0
    assert "mode: report" in policy.read_text()


def test_json_says_what_was_written(agentguard_json):
    code, document = agentguard_json("init", "--agent", "bot")

    assert code == 0
    assert document["agent"] == "bot"
    assert document["code"] == ["import agentguard", "agentguard.instrument()"]


def test_a_folder_that_is_not_there_is_wrong_usage(agentguard, folder):
    done = agentguard("init", "--output", "sub/x.yaml")

    assert done.exit_code == 2
    assert "make the folder 'sub' first" in done.stderr

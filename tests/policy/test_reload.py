"""A policy file is found where the user put it, and read again when it changes, whole or not at all."""

import os

import pytest

from agentguard.errors import PolicyError
from agentguard.policy import Policy
from agentguard.policy.reload import PolicyFile, find_policy

STRICT = "agents:\n  - name: a\n    external_calls: {allowed_domains: [api.ourservice.com]}\n"
LOOSE = "agents:\n  - name: a\n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "agentguard.yaml"
    path.write_text(STRICT)
    return path


@pytest.fixture
def file(path):
    file = PolicyFile(path)
    file.load()
    assert [file.poll(), file.poll(), file.poll()] == [None, None, None]
    return file


def replace(path, text):
    """As an editor or a deployment does it: write beside, then rename."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.rename(path)


def test_a_file_loads_by_its_suffix(path, tmp_path):
    toml = tmp_path / "agentguard.toml"
    toml.write_text('[[agents]]\nname = "a"\nexternal_calls = {allowed_domains = ["api.ourservice.com"]}\n')

    assert PolicyFile(path).load() == PolicyFile(toml).load() == Policy.from_yaml(path)


def test_a_file_that_is_broken_from_the_start_raises(path):
    path.write_text("agents: 5\n")

    with pytest.raises(PolicyError):
        PolicyFile(path).load()
    path.unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        PolicyFile(path).load()


def test_a_replaced_file_is_read_once_two_polls_agree(file, path):
    replace(path, LOOSE)

    assert [file.poll(), file.poll(), file.poll()] == [None, Policy.from_yaml(path), None]


def test_half_a_file_is_not_taken_for_a_whole_one(file, path):
    path.write_text(LOOSE)
    assert file.poll() is None

    path.write_text(STRICT + "    team: support\n")

    assert file.poll() is None
    assert file.poll() == Policy.from_yaml(path)
    assert file.poll() is None


def test_a_touched_file_that_says_the_same_is_no_change(file, path):
    replace(path, STRICT)
    os.utime(path, (1, 1))

    assert [file.poll(), file.poll(), file.poll()] == [None, None, None]


def test_a_broken_change_is_told_once_and_its_mending_too(file, path):
    replace(path, "agents:\n  - nam: a\n")
    first, fault, later = file.poll(), file.poll(), file.poll()

    replace(path, LOOSE)
    again, policy = file.poll(), file.poll()

    assert (first, later, again) == (None, None, None)
    assert isinstance(fault, PolicyError)
    assert isinstance(policy, Policy)


def test_a_deleted_file_is_told_once_and_its_return_too(file, path):
    path.unlink()
    fault, later = file.poll(), file.poll()

    path.write_text(STRICT)
    first, policy, after = file.poll(), file.poll(), file.poll()

    assert isinstance(fault, PolicyError)
    assert "no such file any more" in str(fault)
    assert (later, first, after) == (None, None, None)
    assert policy == Policy.from_yaml(path)


def test_a_folder_in_the_place_of_the_file_is_told_once(file, path):
    path.unlink()
    path.mkdir()

    told = [file.poll() for _ in range(6)]

    assert len([fault for fault in told if isinstance(fault, PolicyError)]) == 1


def test_a_change_between_load_and_the_first_poll_is_seen(path):
    file = PolicyFile(path)
    file.load()

    replace(path, LOOSE)

    assert [file.poll(), file.poll()] == [None, Policy.from_yaml(path)]


def test_the_argument_comes_first_then_the_variable_then_the_usual_names(tmp_path):
    for name in ("given.yaml", "variable.yaml", "agentguard.yml", "agentguard.toml"):
        (tmp_path / name).write_text("")
    (tmp_path / "pyproject.toml").write_text("[tool.agentguard]\n")
    variable = {"AGENTGUARD_POLICY": "variable.yaml"}

    assert find_policy(tmp_path / "given.yaml", variable, tmp_path) == tmp_path / "given.yaml"
    assert find_policy("given.yaml", variable, tmp_path) == tmp_path / "given.yaml"
    assert find_policy(None, variable, tmp_path) == tmp_path / "variable.yaml"
    assert find_policy(None, {}, tmp_path) == tmp_path / "agentguard.yml"
    (tmp_path / "agentguard.yml").unlink()
    assert find_policy(None, {}, tmp_path) == tmp_path / "agentguard.toml"
    (tmp_path / "agentguard.toml").unlink()
    assert find_policy(None, {}, tmp_path) == tmp_path / "pyproject.toml"


@pytest.mark.parametrize(
    ("text", "is_policy"),
    [
        ("[project]\nname = 'agentguard'\n", False),
        ("[tool.other]\n", False),
        ("[project\n", False),
        ("[tool.agentguard]\n", True),
        ("[tool.agentguard]\nmode = \n", True),
    ],
)
def test_a_pyproject_counts_when_it_carries_a_policy_even_a_broken_one(text, is_policy, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)

    assert (find_policy(None, {}, tmp_path) is not None) is is_policy


def test_nothing_named_and_nothing_there_is_none(tmp_path):
    assert find_policy(None, {}, tmp_path) is None


@pytest.mark.parametrize("name", ["absent.yaml", ""])
def test_a_file_that_is_named_and_absent_raises(name, tmp_path):
    with pytest.raises(PolicyError, match="no such file; it is named by AGENTGUARD_POLICY"):
        find_policy(None, {"AGENTGUARD_POLICY": name}, tmp_path)
    with pytest.raises(PolicyError, match="no such file; it is named by the argument"):
        find_policy(name, {}, tmp_path)

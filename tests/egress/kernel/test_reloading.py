"""`agentguard run --reload`: the supervisor adopts what the file says, when it says it for good."""

from __future__ import annotations

import json

import pytest

from agentguard import Policy
from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel.judge import Judge
from agentguard.egress.kernel.record import Record
from agentguard.egress.kernel.reloading import Reloading
from agentguard.egress.pins import Pins

TEXT = """\
version: 1
agents:
  - name: a
    external_calls:
      allowed_domains: [a.test, b.test]
      blocked_domains: [b.test]
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "agentguard.yaml"
    file.write_text(TEXT)
    return file


@pytest.fixture
def judge(file):
    return Judge(Boundary.of(Policy.from_yaml(file)), Pins(lambda: 0.0), {}, [])


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def reloading(file, judge, log):
    return Reloading(str(file), "enforce", judge, Record(str(log), None, lambda _: None))


def test_a_changed_file_is_adopted_when_it_has_stayed_the_same(reloading, file, judge):
    file.write_text(TEXT.replace("a.test", "c.test"))

    reloading.look()
    before = judge.judge_name("c.test").allowed
    reloading.look()

    assert not before
    assert judge.judge_name("c.test").allowed
    assert not judge.judge_name("a.test").allowed


def test_half_a_file_is_not_adopted(reloading, file, judge):
    file.write_text(TEXT[: TEXT.index("      blocked")])  # valid, and it opens b.test
    reloading.look()
    half = judge.judge_name("b.test").allowed
    file.write_text(TEXT)
    reloading.look()
    reloading.look()

    assert not half
    assert not judge.judge_name("b.test").allowed


def test_a_file_that_does_not_load_changes_nothing_and_is_told_once(reloading, file, judge, log):
    file.write_text("agents: [")

    for _ in range(4):
        reloading.look()

    assert judge.judge_name("a.test").allowed
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["policy_refused"]


def test_a_file_that_is_gone_changes_nothing(reloading, file, judge):
    file.unlink()

    for _ in range(3):
        reloading.look()

    assert judge.judge_name("a.test").allowed

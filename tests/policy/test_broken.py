"""A broken policy says everything that is wrong with it. Each file in broken/ has its message beside it."""

from pathlib import Path

import pytest

from agentguard.errors import PolicyError
from agentguard.policy import Policy

BROKEN = Path(__file__).parent / "broken"


@pytest.mark.parametrize("path", sorted(BROKEN.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_broken_policy_says_everything_that_is_wrong_with_it(path, monkeypatch):
    monkeypatch.chdir(BROKEN)

    with pytest.raises(PolicyError) as refused:
        Policy.from_yaml(path.name)

    assert f"{refused.value}\n" == path.with_suffix(".txt").read_text(encoding="utf-8")


def test_problems_stand_in_the_order_of_the_file():
    with pytest.raises(PolicyError) as refused:
        Policy.from_yaml(BROKEN / "limits.yaml")

    places = [(problem.line, problem.column) for problem in refused.value.problems]
    assert places == sorted(places)
    assert {problem.path for problem in refused.value.problems} == {str(BROKEN / "limits.yaml")}

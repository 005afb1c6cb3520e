"""What a user imports: complete, sorted, typed, and cheap."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import agentguard
from agentguard import errors

IMPORTED = """
import sys
before = set(sys.modules)
import agentguard
after = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(after - set(sys.stdlib_module_names) - {"agentguard"}))
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_import_pulls_in_the_standard_library_alone():
    assert run(IMPORTED) == "[]\n"


@pytest.mark.parametrize("name", ["Policy", "LLMCall", "BudgetExceeded", "session", "propagate", "Guard", "agent", "tool"])
def test_what_describes_and_decides_needs_neither_sdk_nor_telemetry(name):
    foreign = run(IMPORTED.replace("import agentguard\n", f"from agentguard import {name}\n"))

    assert foreign in {"[]\n", "['idna']\n"}


def test_the_exported_names_are_sorted_and_all_there():
    assert agentguard.__all__ == sorted(agentguard.__all__)
    assert set(agentguard.__all__) <= set(dir(agentguard))
    assert all(getattr(agentguard, name) is not None for name in agentguard.__all__)


def test_every_name_that_the_lazy_loader_knows_is_exported():
    assert set(agentguard._HOME) == set(agentguard.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nosuchname'"):
        agentguard.nosuchname  # noqa: B018 - that is the test


def test_every_error_is_exported():
    raised = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}

    assert raised <= set(agentguard.__all__)


@pytest.mark.parametrize("name", agentguard.__all__)
def test_every_exported_name_says_what_it_is(name):
    assert inspect.getdoc(getattr(agentguard, name))


def test_the_package_is_typed():
    from importlib.resources import files

    assert (files("agentguard") / "py.typed").is_file()

"""What holds for every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from agentguard.cli import main

ROOT = Path(__file__).parents[2]
HEAVY = (
    "anthropic",
    "genai_prices",
    "httpx",
    "httpx2",
    "openai",
    "opentelemetry",
    "pydantic",
    "requests",
    "rich",
    "wrapt",
    "yaml",
)


@pytest.mark.parametrize("args", [["--help"], ["policy", "--help"], ["run", "--help"], ["tail"], ["--version"]])
def test_help_and_light_commands_import_nothing_heavy(args):
    program = f"""
import sys
from agentguard.cli import main
try:
    main({args!r}, prog_name="agentguard")
except SystemExit as end:
    assert end.code in (0, None), end.code
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_lists_every_command_under_its_heading(agentguard):
    text = agentguard("--help").stdout

    for name in ("init", "run", "doctor", "policy", "budgets", "tail"):
        assert f"\n  {name} " in text
    assert "Exit codes: 0 ok, 1 a finding" in text


@pytest.mark.parametrize("command", ["init", "run", "doctor", "budgets", "tail", "policy check", "policy explain", "policy diff"])
def test_every_command_helps(agentguard, command):
    done = agentguard(*command.split(), "--help")

    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_a_mistyped_command_is_wrong_usage_and_the_near_one_is_named(agentguard):
    done = agentguard("polcy", "check")

    assert done.exit_code == 2
    assert "did you mean 'policy'?" in done.stderr


def test_no_command_is_shown_that_is_not_there(agentguard, monkeypatch):
    monkeypatch.setattr("agentguard.cli.find_spec", lambda name: None)

    assert agentguard("demo").exit_code == 2


def test_the_reference_names_every_command_and_option():
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()

    for name, command in commands():
        assert f"agentguard {name}" in text
        for option in (flag for param in command.params for flag in param.opts if flag.startswith("--")):
            assert f"`{option}" in text or f"{option} " in text, (name, option)


def commands(group=main, prefix=""):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        elif name != "demo":
            yield f"{prefix}{name}", command


def test_the_package_is_the_command_line_too():
    done = subprocess.run([sys.executable, "-m", "agentguard", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("agentguard ")


@pytest.mark.parametrize(
    "command",
    ["run", "isolate", "policy explain", "policy learn", "policy allow", "policy replay", "budgets adjust"],
)
def test_examples_stand_in_lines_of_their_own(agentguard, command):
    lines = agentguard(*command.split(), "--help").stdout.splitlines()

    assert not [line for line in lines if "\\b" in line]
    assert [line for line in lines if line.startswith(f"      agentguard {command} ")]

"""A folder of its own for each test: no state, policy or variable of this machine is seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import agentguard as agentguard_package
from agentguard.cli import main

HOME = Path(agentguard_package.__file__).parents[1]
"""Where agentguard was imported from: processes that are started in another folder import it from there too."""

POLICY = """\
version: 1
mode: enforce
agents:
  - name: bot
    llm: {providers: [openai], models: ["gpt-5*"]}
    external_calls: {allowed_domains: [api.acme.com, "*.kb.acme.com"], blocked_domains: ["*"]}
    budgets:
      - {limit: $5.00, every: day}
      - {limit: 100 calls, every: hour}
      - {limit: 5000 tokens, per: session}
    tools: {allowed: [search_kb]}
  - name: other
    external_calls: {allowed_domains: [api.acme.com], blocked_domains: ["*"]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AGENTGUARD_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("COLUMNS", raising=False)
    others = [str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(dict.fromkeys([*others, str(HOME)])))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def ctrl_c():
    """Let Ctrl-C reach what the test starts: a run in the background ignores it, and what it starts inherits that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def policy(folder):
    file = folder / "agentguard.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def agentguard():
    """Run a command in this process."""

    def run(*args):
        return CliRunner().invoke(main, list(args), catch_exceptions=False)

    return run


@pytest.fixture
def agentguard_json(agentguard):
    """Run a command with --json; its exit code and its document."""

    def run(*args):
        done = agentguard(*args, "--json")
        return done.exit_code, json.loads(done.stdout)

    return run


@pytest.fixture
def shell():
    """Run a command in a process of its own, without a terminal."""

    def run(*args, **environ):
        return subprocess.run(
            [sys.executable, "-m", "agentguard.cli", *map(str, args)],
            env=os.environ | environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=100,
            check=False,
        )

    return run

"""What README prints is what is printed. Its code blocks run by themselves (`pytest README.md`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_trace_in_the_readme_is_the_one_of_the_example(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    program = [sys.executable, str(ROOT / "examples" / "tracing.py")]

    printed = subprocess.run(program, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout

    assert f"```text\n{printed}```" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tests_of_an_example_run_with_pytest_alone(tmp_path, monkeypatch):
    (tmp_path / "sybil.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    program = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:timeout",
        "-p",
        "no:asyncio",
        str(ROOT / "examples" / "own_tests.py"),
    ]

    ran = subprocess.run(program, capture_output=True, encoding="utf-8", timeout=100, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr

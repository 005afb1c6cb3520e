"""What README prints is what is printed. Its code blocks run by themselves (`pytest README.md`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_trace_in_the_readme_is_the_one_of_the_example(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    program = [sys.executable, str(ROOT / "examples" / "tracing.py")]

    printed = subprocess.run(program, capture_output=True, encoding="utf-8", timeout=60, check=True).stdout

    assert f"```text\n{printed}```" in (ROOT / "README.md").read_text(encoding="utf-8")

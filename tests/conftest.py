"""What all tests share."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are not here. In CI that is a failure: a test that nobody runs guards nothing."""
    needed = {program: None for marker in item.iter_markers("needs") for program in marker.args}
    absent = [program for program in needed if shutil.which(program) is None]
    if not absent:
        return
    reason = f"not on PATH: {', '.join(absent)}"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (with CI=true this is a failure; .ci/run installs what the tests need)", pytrace=False)
    pytest.skip(reason)

from pathlib import Path

import pytest

HOOK = Path(__file__).with_name("conftest.py").read_text(encoding="utf-8")
MARKER = "[pytest]\nmarkers = needs(*programs): programs that the test starts\n"


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini(MARKER)
    pytester.makeconftest(HOOK)
    return pytester


def run_a_test_that_needs(project, program):
    project.makepyfile(f"import pytest\n@pytest.mark.needs('{program}')\ndef test_it(): pass\n")
    return project.runpytest_inprocess("-p", "no:agentguard", "-p", "no:asyncio", "-rsE")


def test_a_test_whose_program_is_here_runs(project):
    result = run_a_test_that_needs(project, "sh")

    result.assert_outcomes(passed=1)


def test_a_test_whose_program_is_absent_is_skipped_by_name(project):
    result = run_a_test_that_needs(project, "no-such-program")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*not on PATH: no-such-program*"])


def test_in_ci_an_absent_program_is_a_failure(project, monkeypatch):
    monkeypatch.setenv("CI", "true")

    result = run_a_test_that_needs(project, "no-such-program")

    result.assert_outcomes(errors=1)  # a failure in the setup
    result.stdout.fnmatch_lines(["*not on PATH: no-such-program*"])

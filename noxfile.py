"""Everything that CI runs, and how to run it here: `pip install "nox[uv]" && nox`.

`nox` runs lint, typing, imports, the tests on every supported Python found, the oldest SDKs, docs and examples.
The oldest Python runs all tests. The others leave out those that start the whole program for every test (PROGRAMS), and those
that look long for a case that breaks a law (SEARCHES): they take two thirds of the time and show little of an interpreter that
the rest does not. `nox -s tests-3.13 -- tests` runs all.
`nox -s demo` shows a guarded agent on bundled fakes. `nox -s storms` and `nox -s bench` take longer and run on demand.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]
OLDEST = PYTHONS[0]
ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

# Every extra but the guarded clients: those are pinned by the groups `sdk-current` and `sdk-oldest`.
OPTIONAL = "apprise,aws,crypto,keyring,learn,prometheus,redis,server,vault"

# Each of these tests starts `agentguard run`, `agentguard demo`, a network or servers of its own, or a collector, and waits.
# rotel's wheels want the interpreter's shared library, which few builds of a Python have.
PROGRAMS = (
    "tests/acceptance/test_agent_config.py",
    "tests/acceptance/test_isolation.py",
    "tests/cli/test_doctor.py",
    "tests/cli/test_run.py",
    "tests/demo",
    "tests/egress/bypass",
    "tests/egress/kernel/test_closed.py",
    "tests/egress/kernel/test_kernel.py",
    "tests/egress/test_own.py",
    "tests/integrations/test_isolation.py",
    "tests/otel/test_collector.py",
    "tests/stores/test_redis_faults.py",
    "tests/stores/test_redis_processes.py",
    "tests/stores/test_redis_topologies.py",
)

# Properties and state machines of what is computed alike by every interpreter, and races over it by processes.
SEARCHES = (
    "tests/acceptance/test_fair_share.py",
    "tests/core/test_fair_share.py",
    "tests/otel/test_facts.py",
    "tests/policy/test_dump.py",
    "tests/stores/test_leased_machine.py",
    "tests/stores/test_leased_processes.py",
    "tests/stores/test_machine.py",
    "tests/stores/test_redis_machine.py",
    "tests/test_metering.py",
    "tests/wire/test_read.py",
    "tests/wire/test_stream.py",
)

# Two workers, a file to one of them: fixtures of a module (a Redis, a provider) start once, and races keep a core.
TWO_WORKERS = ("-n", "2", "--dist", "loadfile")


def find_pyenv_pythons() -> None:
    """Put pyenv's own interpreters in front: its shims answer "not found" unless `pyenv global` names the version."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    homes = [str(home / "bin") for wanted in PYTHONS for home in sorted(versions.glob(f"{wanted}.*"))]
    os.environ["PATH"] = os.pathsep.join([*homes, os.environ.get("PATH", "")])


def name_missing_pythons() -> None:
    """Say which interpreters are not here; their sessions are skipped."""
    if missing := [wanted for wanted in PYTHONS if shutil.which(f"python{wanted}") is None]:
        print(f"nox: no interpreter for Python {', '.join(missing)}: their sessions are skipped", file=sys.stderr)


find_pyenv_pythons()
name_missing_pythons()

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # with CI=true a missing one would fail the run; it is named above
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "imports", "tests", "sdk_oldest", "docs", "examples"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install the project as a user gets it (a built wheel, so missing package data shows) and some groups."""
    session.install(f".[{extras}]" if extras else ".", *nox.project.dependency_groups(PROJECT, *groups))


def here(*paths: str) -> list[str]:
    """Those of the paths that exist."""
    return [path for path in paths if (ROOT / path).exists()]


def programs(session: nox.Session, folder: str, pattern: str) -> list[str]:
    """The programs of a folder, or skip the session when there is none yet."""
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / folder).glob(pattern))
    if not found:
        session.skip(f"no {folder}/{pattern}")
    return found


@nox.session(python=OLDEST)
def demo(session: nox.Session) -> None:
    """Run a guarded agent on bundled fakes: no key, no Docker, no internet. One act is left out where no redis-server is."""
    session.install(".[openai,anthropic,redis]")
    session.run("agentguard", "demo", *session.posargs)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", "--diff")


@nox.session(python=OLDEST)
def typing(session: nox.Session) -> None:
    """Check types with mypy and pyright, and that every public name has one."""
    install(session, "typing", "sdk-current", extras="all")
    users = here("tests/typing")
    session.run("mypy", "src", *users)
    if users:
        session.run("pyright", *users)
    session.run("pyright", "--verifytypes", "agentguard", "--ignoreexternal")


@nox.session(python=OLDEST)
def imports(session: nox.Session) -> None:
    """Check that arrows only point down."""
    install(session, "lint")
    session.run("lint-imports", "--no-logo", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests but the storms, with the current SDKs; on the newer Pythons without PROGRAMS and SEARCHES."""
    install(session, "test", "sdk-current", extras=OPTIONAL)
    left_out = [] if session.posargs or session.python == OLDEST else [f"--ignore={path}" for path in (*PROGRAMS, *SEARCHES)]
    session.run("pytest", *TWO_WORKERS, "-m", "not storm", *left_out, *session.posargs)


def guarded(session: nox.Session, sdks: str) -> None:
    """Run what depends on the guarded packages, against one pin set."""
    install(session, "test", sdks, extras=OPTIONAL)
    folders = here("tests/integrations", "tests/acceptance")
    if not folders:
        session.skip("no tests/integrations, no tests/acceptance")
    left_out = [] if session.posargs else [f"--ignore={path}" for path in SEARCHES]  # they know no SDK
    session.run("pytest", *TWO_WORKERS, "-m", "not storm", *left_out, *(session.posargs or folders))


@nox.session(python=OLDEST)
def sdk_oldest(session: nox.Session) -> None:
    """Run the integrations against the oldest supported SDKs."""
    guarded(session, "sdk-oldest")


@nox.session(python=OLDEST)
def sdk_current(session: nox.Session) -> None:
    """Run the integrations against the current SDKs (`tests` does so too)."""
    guarded(session, "sdk-current")


@nox.session(python=OLDEST)
def storms(session: nox.Session) -> None:
    """Run the slow races and kill -9 storms, one at a time: they want the cores for themselves."""
    install(session, "test", "sdk-current", extras=OPTIONAL)
    session.run("pytest", "-m", "storm", "--timeout", "600", "-o", "faulthandler_timeout=590", *session.posargs)


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """Measure what the tests reach. Started as `coverage run`: pytest loads our plugin before its own options."""
    install(session, "test", "sdk-current", extras=OPTIONAL)
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-m", "not storm", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """Build the documentation, every warning an error, and run its code."""
    install(session, "docs", "sdk-current", extras=OPTIONAL)
    built = ROOT / "docs" / "_build" / "html"
    session.run("sphinx-build", "-W", "-n", "--keep-going", "-b", "html", "docs", str(built))
    # Pages leave a client to the collector where a reader would; when that is noticed depends on the collector.
    session.run("pytest", "-W", "default::pytest.PytestUnraisableExceptionWarning", *here("README.md", "docs"), *session.posargs)


@nox.session(python=OLDEST)
def examples(session: nox.Session) -> None:
    """Run every example as a reader would."""
    found = programs(session, "examples", "*.py")
    install(session, "sdk-current", "pytest", extras="all")  # pytest: one of them is a user's own tests
    for program in session.posargs or found:
        session.run("python", program)


@nox.session(python=OLDEST)
def bench(session: nox.Session) -> None:
    """Measure the numbers of the documentation: ratios within one run, against bare calls and peers."""
    found = programs(session, "benchmarks", "bench_*.py")
    install(session, "bench", "sdk-current", extras="redis")
    for program in session.posargs or found:
        session.run("python", program)


if __name__ == "__main__":
    nox.main()

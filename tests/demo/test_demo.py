"""The demo, run as a user runs it: it is a test itself, so here its exit codes, its control and its screen are tested."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentguard.demo.acts import ACTS
from agentguard.demo.names import resolving
from agentguard.testing import Recorder

CLAIMS = 19
CLAIMS_OF_THE_CONTROL = 11


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run `agentguard demo` with some arguments, in a process and an environment of its own. The same question is asked once."""
    folder = tmp_path_factory.mktemp("demo")

    @functools.cache
    def run(*arguments, columns=80, **settings):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTGUARD_", "OTEL_"))}
        environment |= {"COLUMNS": str(columns), "AGENTGUARD_STATE_DIR": str(folder), "PYTHONIOENCODING": "utf-8", **settings}
        command = [sys.executable, "-m", "agentguard.cli", "demo", "--fast", *arguments]
        return subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, encoding="utf-8", timeout=240, check=False
        )

    return run


@pytest.mark.needs("redis-server")
def test_with_the_guard_every_claim_holds(demo):
    ran = demo("--json")

    report = json.loads(ran.stdout)
    assert [fact for fact in report["facts"] if not fact["holds"]] == []
    assert (ran.returncode, report["ok"], report["mode"], len(report["facts"])) == (0, True, "guard", CLAIMS)
    assert {fact["act"] for fact in report["facts"]} == {act.name for act in ACTS}
    assert any("4 cut, 4 of 4 confirm" in fact["measured"] for fact in report["facts"])


@pytest.mark.needs("redis-server")
def test_without_the_guard_no_claim_holds_and_that_is_a_success(demo):
    ran = demo("--json", "--no-guard")

    report = json.loads(ran.stdout)
    measured = {fact["claim"]: fact["measured"] for fact in report["facts"]}
    assert [fact for fact in report["facts"] if fact["holds"]] == []
    assert (ran.returncode, report["ok"], report["mode"], len(measured)) == (0, True, "control", CLAIMS_OF_THE_CONTROL)
    assert measured["the attacker receives nothing"] == "8 requests"
    assert measured["five ways out, and a child process"] == "6 of 6 reach it"
    assert measured["50 threads, budget for 10 calls"] == "50 served, 0 refused"
    assert measured["52 calls of 4 processes, room for 10"] == "52 arrived, 0 refused"
    assert measured["no further call arrives"] == "4 of 4 arrived"


@pytest.mark.parametrize(("columns", "mode"), [(80, []), (120, []), (80, ["--no-guard"])])
def test_the_screen_fits_and_is_plain_text_where_no_terminal_is(demo, columns, mode):
    ran = demo("--act", "exfiltrate", *mode, columns=columns)

    assert ran.returncode == 0
    assert max(map(len, ran.stdout.splitlines())) <= columns
    assert "\x1b" not in ran.stdout
    assert ran.stderr == ""


def test_a_refusal_is_shown_as_it_is_raised(demo):
    ran = demo("--act", "exfiltrate", columns=120)

    assert re.search(
        r"agent 'support-bot' may not reach 'paste\.evil\.test:\d+': not in external_calls\.allowed_domains \(policy\.yaml:",
        ran.stdout,
    )
    assert ran.stdout.count(" deny ") == len(ways_out())


def test_the_control_shows_the_secret_arriving(demo):
    ran = demo("--act", "exfiltrate", "--no-guard")

    assert ran.stdout.count("paste.evil.test  leaked") == len(ways_out())


def test_settings_of_the_user_do_not_change_what_is_shown(demo):
    ran = demo("--json", "--act", "race", AGENTGUARD_MODE="report", AGENTGUARD_AGENT="somebody", http_proxy="http://127.0.0.1:9")

    assert ran.returncode == 0


def test_without_a_redis_server_an_act_is_left_out_and_says_how_to_get_one(demo):
    ran = demo("--act", "fleet", PATH="/nowhere")

    assert "apt install redis-server" in ran.stdout
    assert (ran.returncode, "Nothing was measured." in ran.stdout, ran.stderr) == (1, True, "")


@pytest.mark.needs("redis-server")
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_demo_that_is_killed_leaves_no_process_behind(tmp_path):
    command = [sys.executable, "-m", "agentguard.cli", "demo", "--fast", "--act", "fleet"]
    running = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(processes_in(tmp_path)) >= 7)  # a Redis and the shell that holds it, a program and its four forks

    running.kill()
    running.wait()

    wait_until(lambda: not processes_in(tmp_path))


def test_otlp_sends_traces_and_not_the_secret(demo):
    with Recorder() as collector:
        ran = demo("--act", "exfiltrate", "--otlp", collector.base_url)
        exported = [request for request in collector.requests if request == "/v1/traces"]

    assert ran.returncode == 0
    assert "agentguard.decision=deny" in ran.stdout
    assert any(b"agentguard.decision" in request.body for request in exported)
    assert not any(b"DEMO-7f3a9c" in request.body for request in collector.requests)


def test_traces_that_nobody_takes_are_not_said_to_be_sent(demo):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        ran = demo("--act", "exfiltrate", "--otlp", url)

    assert ran.returncode == 1
    assert f"Traces could NOT be sent to {url}: Connection refused." in ran.stdout
    assert "were sent" not in ran.stdout


def test_the_control_has_nothing_to_send(demo):
    ran = demo("--no-guard", "--otlp", "http://127.0.0.1:4318")

    assert ran.returncode == 2
    assert "nothing to send" in ran.stderr


def test_a_missing_client_is_named_with_the_command_that_installs_it():
    program = "import sys; sys.modules['anthropic'] = None; from agentguard.cli import main; main(['demo'])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60, check=False)

    assert ran.returncode == 1
    assert "pip install anthropic" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_names_of_the_demo_end_with_it():
    system = socket.getaddrinfo

    with resolving({"paste.evil.test": "127.0.0.2"}):
        found = socket.getaddrinfo("paste.evil.test", 80)[0][4]

    assert found == ("127.0.0.2", 80)
    assert socket.getaddrinfo is system


def processes_in(folder):
    """The processes that work in a folder, or were started with a file of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder) in (process / "cmdline").read_text() + str((process / "cwd").readlink()):
                found.append(process.name)
    return found


def wait_until(is_so, seconds=30):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ways_out():
    from agentguard.demo.exfiltrate import ways_out

    return ways_out()

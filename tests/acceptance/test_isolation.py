"""An isolation by the command line reaches eight processes: four that decide, four whose streams have stalled."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agentguard.stores import open_store
from agentguard.testing import Reply

POLICY = """\
version: 1
agents:
  - name: bot
    llm: {providers: [openai]}
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
    budgets: [{limit: 1000000 tokens}, {limit: 100000 calls}]
"""
WORKER = Path(__file__).with_name("isolated.py")


class Process:
    """A guarded process. A word of it is waited for at most so long."""

    def __init__(self, *arguments, env):
        self.popen = subprocess.Popen([sys.executable, str(WORKER), *arguments], stdout=subprocess.PIPE, text=True, env=env)

    def word(self, seconds=60.0):
        killer = threading.Timer(seconds, self.popen.kill)
        killer.start()
        try:
            return self.popen.stdout.readline().strip()
        finally:
            killer.cancel()

    def end(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()


@pytest.fixture
def env(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTGUARD_", "OTEL_"))}
    return kept | {"AGENTGUARD_STATE_DIR": str(tmp_path / "state"), "AGENTGUARD_POLICY": str(tmp_path / "agentguard.yaml")}


@pytest.fixture
def start(tmp_path, provider, env):
    started = []
    (tmp_path / "agentguard.yaml").write_text(POLICY)
    store = f"sqlite://{tmp_path}/ledger.sqlite"

    def run(what):
        url = provider.url("/v1/chat/completions")
        started.append(Process(str(tmp_path / "agentguard.yaml"), store, url, what, env=env))
        return started[-1]

    yield run
    for process in started:
        process.end()


@pytest.fixture
def listed(tmp_path):
    """Wait until so many processes have said that they are there, soon after their first call."""

    def wait(count):
        deadline = time.monotonic() + 30
        with contextlib.closing(open_store(f"sqlite://{tmp_path}/ledger.sqlite")) as ledger:
            while len(ledger.members()) < count:
                assert time.monotonic() < deadline, ledger.members()
                time.sleep(0.01)

    return wait


@pytest.fixture
def stop(tmp_path):
    """Stop a process while it holds no lock of the ledger: nobody would decide, the command neither, until it goes on."""
    locks = [tmp_path / f"ledger.sqlite.{kind}" for kind in ("lock", "line")]

    def stop(process):
        pid = process.popen.pid
        for _ in range(50):
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
            if all(map(comes_free, locks)):
                return pid
            os.kill(pid, signal.SIGCONT)
        raise AssertionError("it holds a lock of the ledger whenever it is stopped")

    return stop


def comes_free(lock):
    """Whether whoever holds it goes on: it is given back within a millisecond."""
    with lock.open("rb") as file:
        for _ in range(200):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.005)
            else:
                return True
    return False


@pytest.fixture
def operate(tmp_path, env):
    """Run a command; its exit code and its document. What it said is shown when the test fails."""

    def run(*arguments):
        store = f"sqlite://{tmp_path}/ledger.sqlite"
        command = [sys.executable, "-m", "agentguard.cli", *arguments, "--store", store, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
        sys.stdout.write(done.stdout + done.stderr)
        return done.returncode, json.loads(done.stdout)

    return run


def test_an_isolation_reaches_eight_processes_and_their_stalled_streams(start, listed, operate, provider):
    provider.reply(Reply(output_tokens=200, chunk_delay=60.0))
    processes = [start(what) for what in ["stream"] * 4 + ["decide"] * 4]
    assert [process.word() for process in processes] == ["begun"] * 8
    listed(8)

    code, document = operate("isolate", "bot", "--why", "drill", "--wait", "10s")

    assert [process.word() for process in processes] == ["isolated"] * 8
    assert (code, len(document["confirmed"]), document["missing"]) == (0, 8, [])
    assert provider.calls == 4
    assert operate("restore", "bot")[0] == 0
    assert [process.word() for process in processes[4:]] == ["restored"] * 4


def test_a_process_that_is_stopped_is_named_and_refuses_when_it_goes_on(start, listed, stop, operate):
    processes = [start("decide") for _ in range(3)]
    assert [process.word() for process in processes] == ["begun"] * 3
    listed(3)
    stopped = stop(processes[1])

    code, document = operate("isolate", "bot", "--wait", "4s")
    os.kill(stopped, signal.SIGCONT)

    assert (code, [one["pid"] for one in document["missing"]], len(document["confirmed"])) == (4, [stopped], 2)
    assert [process.word() for process in processes] == ["isolated"] * 3

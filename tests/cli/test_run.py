"""`agentguard run`: real programs in real processes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import agentguard.cli
from agentguard.egress.kernel.hold import outlook
from agentguard.testing import Provider

BOOTSTRAP = Path(agentguard.cli.__file__).parent / "bootstrap"

SHOW = """
import agentguard
guard = agentguard.current_guard()
print("guarded", guard.policy.mode, [agent.name for agent in guard.policy.agents])
"""


@pytest.fixture
def script(folder):
    def write(text, name="app.py"):
        file = folder / name
        file.write_text(text)
        return name

    return write


def test_a_script_runs_as_python_would_run_it_and_is_guarded(shell, script, policy, folder):
    script("VALUE = 7", "beside.py")
    script(
        """
import sys, beside
assert __name__ == "__main__" and __file__.endswith("app.py")
assert sys.modules["__main__"].beside.VALUE == 7
print(sys.argv, sys.path[0])
"""
        + SHOW
    )

    done = shell("run", "app.py", "--port", "8", "-x")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"['app.py', '--port', '8', '-x'] {folder}", "guarded enforce ['bot', 'other']"]


def test_the_guard_refuses_in_a_script_that_knows_nothing_of_it(shell, script, policy):
    with Provider() as provider:
        script(f"import httpx\nhttpx.get({provider.url('/v1/models')!r})\n")

        done = shell("run", "--agent", "bot", "app.py")

        assert provider.requests == []
    assert done.returncode == 1
    assert "EgressDenied: agent 'bot' may not reach '127.0.0.1:" in done.stderr


def test_report_mode_by_option_refuses_nothing(shell, script, policy):
    with Provider() as provider:
        script(f"import httpx\nprint(httpx.get({provider.url('/v1/models')!r}).status_code)\n")

        done = shell("run", "--mode", "report", "--agent", "bot", "app.py")

    assert (done.returncode, done.stdout.strip()) == (0, "200"), done.stderr


@pytest.mark.parametrize(
    ("end", "code"), [("raise SystemExit(7)", 7), ("import sys; sys.exit('bye')", 1), ("pass", 0), ("1/0", 1)]
)
def test_the_exit_code_is_the_programs_own(shell, script, policy, end, code):
    script(end)

    assert shell("run", "app.py").returncode == code


def test_an_uncaught_error_shows_the_programs_frames_alone(shell, script, policy):
    script("def f():\n    raise ValueError('boom')\nf()\n")

    done = shell("run", "app.py")

    assert done.stderr.count('  File "') == 2
    assert "agentguard" not in done.stderr
    assert done.stderr.endswith("ValueError: boom\n")


def test_the_programs_own_excepthook_is_called(shell, script, policy):
    script("import sys\nsys.excepthook = lambda kind, error, trace: print('hooked', kind.__name__)\n1/0\n")

    assert shell("run", "app.py").stdout == "hooked ZeroDivisionError\n"


def test_main_stays_main_for_threads_and_exit_hooks(shell, script, policy):
    script(
        """
import atexit, pickle, sys, threading, time
class Thing: pass
def late():
    time.sleep(0.3)
    print(type(pickle.loads(pickle.dumps(Thing()))).__name__, sys.modules["__main__"].__file__.endswith("app.py"))
threading.Thread(target=late).start()
atexit.register(lambda: print("bye"))
"""
    )

    done = shell("run", "app.py")

    assert done.stdout == "Thing True\nbye\n", done.stderr


def test_a_spawned_process_is_guarded_too(shell, script, policy):
    script(
        """
import multiprocessing
def work():
    import agentguard
    print("child", agentguard.current_guard().policy.mode, flush=True)
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=work)
    process.start()
    process.join()
    print(process.exitcode)
"""
    )

    done = shell("run", "app.py")

    assert done.stdout == "child enforce\n0\n", done.stderr


def test_a_module_runs_as_python_m_would_run_it(shell, script, policy, folder):
    (folder / "package").mkdir()
    script("", "package/__init__.py")
    script("import sys\nfrom . import __name__ as parent\nprint(parent, sys.argv[1:], __name__)\n" + SHOW, "package/tool.py")

    done = shell("run", "-m", "package.tool", "--flag", "1")

    assert done.stdout.splitlines() == ["package ['--flag', '1'] __main__", "guarded enforce ['bot', 'other']"], done.stderr


def test_any_other_program_is_started_and_its_python_children_are_guarded(shell, script, policy, folder):
    script(SHOW)

    done = shell("run", "--", "sh", "-c", f"cd / && {sys.executable} {folder}/app.py; exit 5")

    assert done.stdout == "guarded enforce ['bot', 'other']\n", done.stderr
    assert done.returncode == 5


def test_the_childrens_own_sitecustomize_still_runs(shell, script, policy, folder):
    (folder / "site").mkdir()
    script("print('customized')", "site/sitecustomize.py")
    script("import sys; print([entry for entry in sys.path if entry.endswith('bootstrap')])\n" + SHOW)
    path = os.pathsep.join([str(folder / "site"), os.environ["PYTHONPATH"]])

    done = shell("run", "--", sys.executable, "app.py", PYTHONPATH=path)

    lines = done.stdout.splitlines()
    assert lines[-3:] == ["customized", "[]", "guarded enforce ['bot', 'other']"], done.stderr


def test_a_program_does_not_start_under_a_policy_that_does_not_load(shell, script, policy):
    policy.write_text("version: 1\nagents: [{name: bot, toolz: {}}]\n")
    script("print('started')")

    for args in (["app.py"], ["--", sys.executable, "app.py"]):
        done = shell("run", *args)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "PolicyError" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_child_that_cannot_be_guarded_does_not_start(script, folder):
    script("print('started')")
    script("version: 1\nagents: [{name: bot, toolz: {}}]\n", "broken.yaml")
    path = os.pathsep.join([str(BOOTSTRAP), os.environ["PYTHONPATH"]])
    environ = os.environ | {"PYTHONPATH": path, "AGENTGUARD_RUN": "1", "AGENTGUARD_POLICY": str(folder / "broken.yaml")}

    done = subprocess.run([sys.executable, "app.py"], env=environ, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert "not started, since it would not be guarded" in done.stderr


def test_a_foreign_python_without_agentguard_says_so_and_runs(script, folder):
    script("print('started')")
    (folder / "foreign").mkdir()
    script("raise ImportError", "foreign/agentguard.py")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(BOOTSTRAP), str(folder / "foreign")]), "AGENTGUARD_RUN": "1"}

    done = subprocess.run([sys.executable, "app.py"], env=environ, capture_output=True, text=True, check=False)

    assert done.stdout == "started\n"
    assert "this process is not guarded" in done.stderr


@pytest.mark.parametrize("args", [["absent.py"], ["absent-program"], ["-m"], ["--"], []])
def test_nothing_to_run_is_wrong_usage(shell, policy, args):
    assert shell("run", *args).returncode == 2


def test_no_policy_is_said_once_and_the_program_runs(shell, script):
    script("print('started')")

    done = shell("run", "app.py")

    assert done.stdout == "started\n"
    assert done.stderr.count("NOTHING IS REFUSED") == 1


def test_what_a_program_did_is_seen_by_tail_and_budgets_without_naming_anything(shell, script, folder):
    with Provider() as provider:
        host = provider.url("").removeprefix("http://").strip("/")
        script(
            f"""
version: 1
agents:
  - name: bot
    external_calls: {{allowed_domains: ["{host}"], blocked_domains: ["*"], allow_private: true}}
    budgets: [{{limit: 100 calls, every: day}}]
""",
            "agentguard.yaml",
        )
        script(f"import httpx\nfor _ in range(3): httpx.get({provider.url('/v1/models')!r})\n")

        done = shell("run", "app.py")

    assert done.returncode == 0, done.stderr
    assert [limit["spent"] for limit in json.loads(shell("budgets", "--json").stdout)["limits"]] == [3]
    assert shell("tail").stdout.count("ok        GET") == 3


# --------------------------------------------------------------------------------------------------------------- banner


def test_without_a_terminal_there_is_no_banner(shell, script, policy):
    script("pass")

    assert shell("run", "app.py").stderr == ""


def test_the_banner_can_be_asked_for_and_says_what_is_not_guarded(shell, script, policy):
    script("pass")

    done = shell("run", "--agent", "bot", "app.py", AGENTGUARD_BANNER="1")

    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("agentguard ")
    assert lines[0].endswith("agent=bot  mode=enforce  policy=agentguard.yaml")
    assert any(line.startswith("  guarded ") and "httpx2" in line for line in lines)
    assert any(line.startswith("  not guarded ") and "native code" in line for line in lines)


@pytest.mark.parametrize(("variable", "is_shown"), [("", True), ("0", False)])
def test_on_a_terminal_the_banner_is_shown_unless_it_is_switched_off(script, policy, variable, is_shown):
    script("print('started')")
    terminal, end = pty.openpty()
    environ = os.environ | {"AGENTGUARD_BANNER": variable}

    subprocess.run([sys.executable, "-m", "agentguard.cli", "run", "app.py"], env=environ, stderr=end, stdout=end, check=True)
    shown = os.read(terminal, 65536).decode()

    assert ("guarded  " in shown) == is_shown
    assert "started" in shown


def test_the_off_switch_is_loud(shell, script, policy):
    script("print('started')")

    done = shell("run", "app.py", AGENTGUARD_DISABLED="1")

    assert done.stdout == "started\n"
    assert "nothing is guarded" in done.stderr


@pytest.mark.needs("bash")
def test_the_off_switch_switches_the_kernel_off_too(shell, policy, folder):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        done = shell("run", "--egress", "auto", "--", "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}", AGENTGUARD_DISABLED="1")

    assert done.returncode == 0, done.stderr
    assert "nothing is guarded" in done.stderr
    log = [
        json.loads(line) for file in (folder.parent / "state").rglob("events/*.jsonl") for line in file.read_text().splitlines()
    ]
    assert "guard_disabled" in {record["kind"] for record in log}


@pytest.mark.skipif(not outlook(None).is_available, reason=outlook(None).text)
def test_the_banner_says_what_the_kernel_holds(shell, policy):
    done = shell("run", "--egress", "kernel", "--", "env", AGENTGUARD_BANNER="1")

    lines = done.stderr.splitlines()
    assert any(line.startswith("  egress ") and line.endswith("held by the kernel for every process") for line in lines), lines
    assert any(line.startswith("  not guarded  everything else that it starts, but for its egress") for line in lines)


def test_ctrl_c_ends_the_program_as_it_would_without_us(script, policy, ctrl_c):
    script("import time\nprint('started', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "run", "app.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.2)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Aborted" not in errors

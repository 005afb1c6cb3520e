"""With a supervisor that is gone, stopped or not to be had, nothing passes: connects fail or wait, and somebody says so."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentguard import EnforcementUnavailable, Policy
from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel import channel
from agentguard.egress.kernel.activate import availability
from agentguard.egress.kernel.hold import chosen, hold, outlook

pytestmark = [
    pytest.mark.needs("bash"),
    pytest.mark.skipif(bool(availability()), reason=f"no kernel enforcement: {availability()}"),
]


def signal_supervisor(process, number):
    """Send its supervisor a signal, from outside of the tree: from within it is shielded."""
    supervisor = json.loads(process.stdout.readline())["supervisor"]
    os.kill(supervisor, number)
    time.sleep(0.2)
    return supervisor


def answer_of(process, seconds=30, answer=None):
    out, err = process.communicate(answer, timeout=seconds)
    assert out, err
    return json.loads(out.splitlines()[-1]), err


def test_a_killed_supervisor_lets_nothing_pass(program, servers):
    process = program(
        """
activate(Boundary.of(POLICY))
before = connect(), child()
say(supervisor=channel.ask_status().supervisor)
input()
say(before=before, after=[connect(), connect(OTHER)], child=child())
"""
    )

    signal_supervisor(process, signal.SIGKILL)
    said, _ = answer_of(process, answer="go")

    assert said["before"] == ["connected", True]
    assert said["after"] == ["ENOSYS", "ENOSYS"]
    assert said["child"] is False
    assert (servers[0].count, servers[1].count) == (2, 0)


def test_who_has_lost_its_supervisor_is_told(program):
    process = program(
        """
logging.basicConfig()
agentguard.instrument(POLICY, egress="kernel")
time.sleep(0.3)
say(supervisor=channel.ask_status().supervisor)
input()
"""
    )

    signal_supervisor(process, signal.SIGKILL)

    assert any("the supervisor of this process has ended: from now on nothing of it connects" in line for line in process.stderr)


def test_a_stopped_supervisor_makes_connects_wait_and_none_passes(program, servers):
    process = program(
        """
activate(Boundary.of(POLICY))
say(supervisor=channel.ask_status().supervisor)
input()
say(begun=True)
begun = time.monotonic()
one = socket.socket()
one.connect(("127.0.0.1", PORT))
say(waited=time.monotonic() - begun, other=connect(OTHER))
"""
    )

    supervisor = signal_supervisor(process, signal.SIGSTOP)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"begun": True}
    time.sleep(1)
    os.kill(supervisor, signal.SIGCONT)
    said, _ = answer_of(process)

    assert said["waited"] > 0.5
    assert said["other"] == "EACCES"
    assert servers[1].count == 0


def test_a_supervisor_ends_with_its_tree(program):
    process = program("activate(Boundary.of(POLICY)); say(supervisor=channel.ask_status().supervisor)")
    said, _ = answer_of(process)

    deadline = time.monotonic() + 30
    while Path(f"/proc/{said['supervisor']}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)

    assert not Path(f"/proc/{said['supervisor']}").exists()


def test_a_supervisor_is_nobodys_child(program):
    process = program(
        """
activate(Boundary.of(POLICY))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    say(children=0)
"""
    )

    assert answer_of(process)[0] == {"children": 0}


def test_a_second_activation_finds_the_first(program):
    process = program(
        """
wide = Policy.from_mapping({"agents": [{"name": "a", "external_calls": {"allowed_domains": ["127.0.0.1"]}}]})
activate(Boundary.of(POLICY))
first = channel.ask_status().supervisor
activate(Boundary.of(wide))
say(same=channel.ask_status().supervisor == first, other=connect(OTHER))
"""
    )

    assert answer_of(process)[0] == {"same": True, "other": "EACCES"}


def test_under_a_foreign_supervisor_there_is_none_of_ours(program):
    process = program(
        """
from agentguard.egress.kernel import abi, install
from agentguard.egress.kernel.filter import allow_everything
abi.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
install._put_on(allow_everything(), abi.SECCOMP_FILTER_FLAG_NEW_LISTENER)
try:
    activate(Boundary.of(POLICY))
except agentguard.EnforcementUnavailable as error:
    say(said=str(error), connected=connect(OTHER))
"""
    )

    said, _ = answer_of(process)

    assert "another program supervises this process tree" in said["said"]
    assert said["connected"] == "connected"  # nothing was put on


@pytest.mark.parametrize(
    ("opening", "what"),
    [
        ("one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)", "protocol 262"),
        ("one = os.open('/dev/null', 0); one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "family 17"),
    ],
)
def test_a_socket_that_would_send_past_the_filter_has_to_be_closed_first(program, opening, what):
    process = program(
        f"""
try:
    {opening}
except OSError:
    say(said="not here")
    sys.exit()
try:
    activate(Boundary.of(POLICY))
except agentguard.EnforcementUnavailable as error:
    say(said=str(error))
"""
    )

    said = answer_of(process)[0]["said"]

    if said == "not here":
        pytest.skip("this kernel, or this user, makes no such socket")
    assert what in said
    assert "close it first" in said


def test_a_datagram_socket_that_was_open_is_watched(program):
    process = program(
        """
old = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiving = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiving.bind(("127.0.0.1", 0))
receiving.settimeout(0.3)
activate(Boundary.of(POLICY))
outcomes = []
for send in (lambda: old.sendto(b"x", receiving.getsockname()), lambda: old.sendmsg([b"x"], [], 0, receiving.getsockname())):
    try:
        send()
        outcomes.append("sent")
    except OSError as error:
        outcomes.append(errno.errorcode[error.errno])
try:
    heard = receiving.recv(10).decode()
except OSError:
    heard = ""
say(outcomes=outcomes, heard=heard)
"""
    )

    assert answer_of(process)[0] == {"outcomes": ["EACCES", "EACCES"], "heard": ""}


def test_a_refusal_of_a_child_is_an_event_of_the_guard(program):
    process = program(
        """
events = []
agentguard.instrument(POLICY, egress="kernel", observers=[events.append])
child(OTHER)
denied, deadline = [], time.monotonic() + 20
while not denied and time.monotonic() < deadline:
    time.sleep(0.05)
    agentguard.current_guard().flush()
    denied = [event for event in events if type(event).__name__ == "CallDenied"]
say(hosts=[f"{event.call.target.host}:{event.call.target.port}" for event in denied],
    rules=[event.decision.rule for event in denied],
    enforced=[event.enforced for event in denied], agents=[event.caller.agents for event in denied],
    remedy=denied[0].decision.remedy)
"""
    )

    said, err = answer_of(process)

    assert said["hosts"] == [f"127.0.0.1:{process.args[-1]}"], err
    assert said["rules"] == ["external_calls.allowed_domains"]
    assert said["enforced"] == [True]
    assert said["agents"] == [["a"]]
    assert "external_calls.allowed_domains" in said["remedy"]


def test_a_changed_policy_narrows_the_boundary_and_never_widens_it(program, tmp_path, servers):
    file = tmp_path / "agentguard.yaml"
    text = "agents:\n  - name: a\n    external_calls: {{allowed_domains: [{}]}}\n"
    allowed, other = (f"'127.0.0.1:{one.port}'" for one in servers)
    file.write_text(text.format(allowed))
    process = program(
        """
logging.basicConfig()
events = []
agentguard.instrument(os.environ["AGENTGUARD_POLICY"], egress="kernel", observers=[events.append])
say(before=[child(PORT), child(OTHER)])
for loaded in (2, 3):
    input()
    while sum(type(event).__name__ == "PolicyLoaded" for event in events) < loaded:
        time.sleep(0.05)
    deadline = time.monotonic() + 20
    while child(PORT) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    say(after=[child(PORT), child(OTHER)])
""",
        AGENTGUARD_POLICY=str(file),
    )
    before = json.loads(process.stdout.readline())["before"]

    after = []
    for entries in (other, allowed):
        file.write_text(text.format(entries))
        process.stdin.write("go\n")
        process.stdin.flush()
        after.append(json.loads(process.stdout.readline())["after"])
    _, err = process.communicate()

    assert before == [True, False]
    assert after == [[False, False], [False, False]]  # what was taken away stays away
    assert "may open more than the kernel holds open" in err


def test_a_program_sees_signals_and_ends_as_without_us(program, tmp_path):
    process = program(
        """
enter(Boundary.of(POLICY))
signal.signal(signal.SIGTERM, lambda *_: (say(got="SIGTERM"), os.kill(os.getpid(), signal.SIGKILL)))
say(ready=True)
time.sleep(20)
"""
    )
    assert json.loads(process.stdout.readline()) == {"ready": True}

    process.terminate()
    out, _ = process.communicate(timeout=60)

    assert json.loads(out) == {"got": "SIGTERM"}
    assert process.returncode == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------------------- no kernel


def refusing(tmp_path, source, number=317):
    """A program that runs `source` where the kernel refuses a system call."""
    withheld = f"""
import sys
from agentguard.egress.kernel import abi, install
from agentguard.egress.kernel.bpf import NUMBER, Program
program = Program()
program.load(NUMBER)
program.if_equal({number}, then="no")
program.end(abi.SECCOMP_RET_ALLOW)
program.label("no")
program.end(abi.SECCOMP_RET_ERRNO | 1)
abi.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
install._put_on(program.assemble(), 0)
import logging, agentguard
logging.basicConfig()
{source}
"""
    environment = os.environ | {"AGENTGUARD_STATE_DIR": str(tmp_path), "AGENTGUARD_STORE": "memory://"}
    return subprocess.run(
        [sys.executable, "-c", withheld], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


POLICY = {"agents": [{"name": "a", "external_calls": {"allowed_domains": ["a.test"], "enforcement": "kernel"}}]}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of seccomp is that of x86-64")
def test_kernel_says_why_it_cannot_be_had(tmp_path):
    done = refusing(tmp_path, f"agentguard.instrument(agentguard.Policy.from_mapping({POLICY}))")

    assert done.returncode == 1
    assert "EnforcementUnavailable: kernel enforcement is not to be had: seccomp is refused to this process" in done.stderr


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of seccomp is that of x86-64")
def test_auto_goes_on_in_process_with_one_warning(tmp_path):
    done = refusing(
        tmp_path,
        f"""
agentguard.instrument(agentguard.Policy.from_mapping({POLICY}), egress="auto")
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except agentguard.EgressDenied:
    print("refused in process")
""",
    )

    assert done.stdout == "refused in process\n", done.stderr
    assert done.stderr.count("egress is enforced in process only") == 1
    assert "seccomp is refused to this process" in done.stderr


def test_a_boundary_that_would_be_open_is_not_put_on():
    policy = Policy.from_mapping({"agents": [{"name": "open"}]})

    with pytest.raises(EnforcementUnavailable, match="agent 'open' has neither"):
        hold(policy, "kernel")
    assert not hold(policy, "auto")
    assert not outlook(policy).is_available


def test_report_mode_is_left_to_the_process_under_auto(caplog):
    policy = Policy.from_mapping({"mode": "report", "agents": [{"name": "a", "external_calls": {"allowed_domains": ["a.test"]}}]})

    with caplog.at_level(logging.WARNING):
        assert not hold(policy, "auto")
    assert not caplog.records


def test_the_argument_outranks_the_variable_and_the_variable_the_file(monkeypatch):
    policy = Policy.from_mapping(POLICY)
    monkeypatch.delenv("AGENTGUARD_EGRESS", raising=False)

    assert chosen(policy, None) == "kernel"
    assert chosen(Policy(), None, default="auto") == "auto"
    monkeypatch.setenv("AGENTGUARD_EGRESS", "auto")
    assert chosen(policy, None) == "auto"
    assert chosen(policy, "in_process") == "in_process"
    with pytest.raises(ValueError, match="egress is one of"):
        chosen(policy, "iron")


def test_without_a_supervisor_the_channel_says_so():
    with pytest.raises(channel.NoSupervisor):
        channel.ask_status()
    with pytest.raises(channel.NoSupervisor):
        channel.narrow(Boundary(reaches=()))

"""A supervisor lasts as long as its tree: whatever the tree says to it, asks of it, or leaves for it to hold."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from agentguard.egress.kernel.activate import availability

pytestmark = pytest.mark.skipif(bool(availability()), reason=f"no kernel enforcement: {availability()}")

AS_IN_DOCKER = (sys.executable, str(Path(__file__).with_name("as_in_docker.py")))
BLOCKING = """
import collections
def connect_blocking(port=PORT):
    with socket.socket() as one:
        try:
            one.connect(("127.0.0.1", port))
        except OSError as error:
            return errno.errorcode[error.errno]
        return "connected"
"""


def line_of(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


def go_on(process):
    process.stdin.write("go\n")
    process.stdin.flush()
    return line_of(process)


def descriptors_of(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_of(pid):
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmSize"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    "said",
    [
        'b"[" * 200_000',
        'json.dumps({"ask": "narrow", "boundary": "[" * 200_000}).encode()',
        'json.dumps({"ask": "narrow", "boundary": json.dumps(own | {"reaches": [odd]})}).encode()',
        'b"[1]"',
        'b"\\xff"',
    ],
    ids=["nested too deeply", "a boundary nested too deeply", "a boundary of other types", "no question", "no text"],
)
def test_what_cannot_be_understood_ends_nobody_elses_conversation(program, said):
    process = program(
        f"""
activate(Boundary.of(POLICY))
own = json.loads(Boundary.of(POLICY).to_json())
odd = own["reaches"][0] | {{"unix_sockets": [1]}}
with channel._connect() as speaking:
    speaking.sendall({said} + b"\\n")
    sent_away = speaking.recv(10) == b""
say(sent_away=sent_away, supervisor=channel.ask_status().supervisor, connected=connect())
"""
    )

    said = line_of(process)

    assert said["sent_away"] is True
    assert said["supervisor"]
    assert said["connected"] == "connected"


def test_a_boundary_within_cannot_say_that_it_is_of_another_file(program):
    process = program(
        """
activate(Boundary.of(POLICY))
channel.narrow(Boundary(reaches=Boundary.of(POLICY).reaches, path="another.yaml"))
say(path=channel.ask_status().path)
"""
    )

    assert line_of(process) == {"path": ""}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_program_that_is_asked_to_end_with_its_whole_service_still_connects(program, number):
    process = program("activate(Boundary.of(POLICY)); say(supervisor=channel.ask_status().supervisor); input(); say(c=connect())")

    os.kill(line_of(process)["supervisor"], number)

    assert go_on(process) == {"c": "connected"}


def test_more_slow_connects_than_there_are_threads_leave_nothing_open(program):
    process = program(
        BLOCKING
        + """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
activate(Boundary.of(POLICY))
say(supervisor=channel.ask_status().supervisor)
input()
say(again=[connect_blocking() for _ in range(200)])
input()
say(last=connect_blocking())
"""
    )
    supervisor = line_of(process)["supervisor"]
    kept = descriptors_of(supervisor)

    unlimited = resource.prlimit(supervisor, resource.RLIMIT_AS, (memory_of(supervisor) + 65536, resource.RLIM_INFINITY))
    again = go_on(process)["again"]  # without memory for a thread
    resource.prlimit(supervisor, resource.RLIMIT_AS, unlimited)

    assert set(again) == {"EAGAIN"}
    assert descriptors_of(supervisor) <= kept + 20
    assert go_on(process) == {"last": "connected"}


def test_many_may_wait_for_a_slow_host_at_once(program, servers):
    servers[0].listening.listen(0)  # takes one, and lets the others wait
    process = program(
        BLOCKING
        + """
activate(Boundary.of(POLICY))
outcomes = collections.Counter()
for _ in range(300):
    threading.Thread(target=lambda: outcomes.update([connect_blocking()]), daemon=True).start()
say(other=connect(OTHER), outcomes=dict(outcomes))
os._exit(0)
"""
    )

    said = line_of(process)

    assert said["other"] == "EACCES"
    assert set(said["outcomes"]) <= {"connected"}


def test_where_sockets_are_made_for_it_a_tree_may_ask_for_its_supervisor_often(program):
    process = program(
        "activate(Boundary.of(POLICY)); say(found=len({channel.ask_status().supervisor for _ in range(300)}))", *AS_IN_DOCKER
    )

    assert line_of(process) == {"found": 1}


def test_where_sockets_are_made_for_it_look_ups_leave_none_behind(program):
    process = program(
        """
activate(Boundary.of(POLICY))
supervisor = channel.ask_status().supervisor
say(supervisor=supervisor)
for _ in range(2):
    for _ in range(200):
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()  # as every getaddrinfo
    time.sleep(1.1)
socket.socket().close()
say(done=True)
input()
""",
        *AS_IN_DOCKER,
    )
    supervisor = line_of(process)["supervisor"]
    kept = descriptors_of(supervisor)

    assert line_of(process) == {"done": True}
    assert descriptors_of(supervisor) <= kept + 20

"""The connections that a process holds: real sockets on loopback, of this process and of a child."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from agentguard.egress.boundary import Boundary, Endpoint
from agentguard.egress.connections import Connection, connections
from agentguard.egress.held import held
from agentguard.policy import Policy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.fixture
def child():
    """A process that runs some code, says a line, and waits."""
    started = []

    def start(code):
        program = f"import os, socket, sys\n{textwrap.dedent(code)}\nprint('ready', flush=True)\nsys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.communicate("")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def ends(pid=None):
    return {(one.kind, one.address, one.port, one.is_outbound) for one in connections(pid)}


def test_a_connection_of_another_process_is_listed_with_its_far_end(child, listener):
    port = listener.getsockname()[1]
    process = child(f"s = socket.create_connection(('127.0.0.1', {port}))")

    (found,) = connections(process.pid)

    assert found == Connection(process.pid, found.program, "tcp", "127.0.0.1", port, True)
    assert found.program.startswith("python")
    assert str(found) == f"tcp 127.0.0.1:{port}"


def test_connections_of_grandchildren_belong_to_the_tree(child, listener):
    port = listener.getsockname()[1]
    code = f"import socket, sys; s = socket.create_connection(('127.0.0.1', {port})); print(flush=True); sys.stdin.read()"
    process = child(f"""
        import subprocess
        p = subprocess.Popen([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE)
        p.stdout.readline()
    """)

    (found,) = connections(process.pid)

    assert found.port == port
    assert found.pid != process.pid


def test_what_was_accepted_is_not_outbound(listener):
    host, port = listener.getsockname()
    with socket.create_connection((host, port)) as client:
        accepted, _ = listener.accept()
        with accepted:
            found = ends()

            assert ("tcp", host, port, True) in found
            assert ("tcp", host, client.getsockname()[1], False) in found


def test_a_listener_and_an_unconnected_datagram_socket_are_no_connections(child):
    process = child("""
        a = socket.create_server(("127.0.0.1", 0))
        b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.bind(("127.0.0.1", 0))
        c = socket.socketpair()
    """)

    assert connections(process.pid) == ()


def test_ipv6_and_datagrams_are_listed(child):
    process = child("""
        a = socket.create_server(("::1", 0), family=socket.AF_INET6)
        b = socket.create_connection(a.getsockname()[:2])
        c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.connect(("127.0.0.1", 53))
    """)

    kinds = {(one.kind, one.address) for one in connections(process.pid)}

    assert kinds == {("tcp", "::1"), ("udp", "127.0.0.1")}
    assert any(str(one).startswith("tcp [::1]:") for one in connections(process.pid))


def test_an_ipv4_address_within_ipv6_is_that_address(child, listener):
    port = listener.getsockname()[1]
    process = child(f"""
        s = socket.socket(socket.AF_INET6)
        s.connect(("::ffff:127.0.0.1", {port}))
    """)

    assert [one.address for one in connections(process.pid)] == ["127.0.0.1"]


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_a_unix_socket_is_listed_by_the_far_ends_path(child, tmp_path, name):
    path = str(tmp_path / "service.sock")
    address = path if name == "path" else "\0agentguard-test-service"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        process = child(f"s = socket.socket(socket.AF_UNIX); s.connect({address!r})")

        (found,) = connections(process.pid)

        assert (found.kind, found.address, found.is_outbound) == ("unix", address.replace("\0", "@"), True)


def test_a_closed_connection_is_gone(listener):
    with socket.create_connection(listener.getsockname()):
        assert any(one.port == listener.getsockname()[1] for one in connections())

    assert not any(one.port == listener.getsockname()[1] and one.is_outbound for one in connections())


def test_a_process_that_is_gone_is_said(child):
    process = child("")
    process.communicate("")

    with pytest.raises(ProcessLookupError, match=f"no process {process.pid}"):
        connections(process.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_a_process_of_somebody_else_is_said(child):
    mine = child("")
    asking = (
        "import os, sys; from agentguard.egress.connections import connections; os.setuid(65534); connections(int(sys.argv[1]))"
    )

    done = subprocess.run([sys.executable, "-c", asking, str(mine.pid)], capture_output=True, text=True, check=False)

    assert f"PermissionError: [Errno 13] process {mine.pid} belongs to somebody else" in done.stderr


# ------------------------------------------------------------------------------------------------------ under a policy


def boundary(endpoints=(), **external):
    policy = Policy.from_mapping({"agents": [{"name": "bot", "external_calls": external}]})
    return Boundary.of(policy, endpoints)


def to(address, port=5432, kind="tcp", *, is_outbound=True):
    return Connection(1, "app", kind, address, port, is_outbound)


def test_a_listed_address_is_allowed_and_another_says_what_to_write():
    listed, other = held([to("10.0.0.7"), to("10.0.0.8")], boundary(allowed_domains=["10.0.0.7:5432"]))

    assert (listed.verdict.allowed, listed.remedy) == (True, "")
    assert (other.verdict.allowed, other.remedy) == (False, "agentguard policy allow 10.0.0.8:5432")


def test_a_name_that_led_to_the_address_allows_it():
    (found,) = held(
        [to("93.184.216.34", 443)], boundary(allowed_domains=["api.acme.com"]), {"93.184.216.34": ["api.acme.com"]}.get
    )

    assert found.verdict.allowed
    assert found.names == ("api.acme.com",)


def test_the_remedy_names_the_name_when_it_is_known():
    (found,) = held([to("93.184.216.34", 443)], boundary(allowed_domains=[]), lambda _: ["db.acme.com"])

    assert found.remedy == "agentguard policy allow db.acme.com:443"


def test_an_address_without_a_name_is_not_sure_where_a_wildcard_may_mean_it():
    (unsure,) = held([to("93.184.216.34", 443)], boundary(allowed_domains=["*.acme.com"]))
    (sure,) = held([to("93.184.216.34", 443)], boundary(allowed_domains=["api.acme.com"]))

    assert (unsure.is_sure, sure.is_sure) == (False, True)


def test_datagrams_and_services_of_the_host_say_which_key_opens_them():
    udp, unix = held([to("8.8.8.8", 53, "udp"), to("/run/docker.sock", 0, "unix")], boundary(allowed_domains=["8.8.8.8"]))

    assert (udp.verdict.allowed, "allow_udp" in udp.remedy) == (False, True)
    assert (unix.verdict.allowed, "unix_sockets: [/run/docker.sock]" in unix.remedy) == (False, True)


def test_metadata_is_never_proposed_as_an_entry():
    (found,) = held([to("169.254.169.254", 80)], boundary(allowed_domains=["169.254.169.254"]))

    assert "allow_metadata" in found.remedy


def test_own_endpoints_what_was_accepted_and_all_of_it_without_a_list():
    own = held([to("10.0.0.9", 4318)], boundary([Endpoint("10.0.0.9", 4318)], allowed_domains=[]))
    accepted = held([to("10.0.0.9", is_outbound=False)], boundary(allowed_domains=[]))
    unwritten = held([to("10.0.0.9"), to("8.8.8.8", 53, "udp"), to("/run/x.sock", 0, "unix")], boundary())

    assert own[0].verdict.allowed
    assert accepted == ()
    assert all(one.verdict.allowed for one in unwritten)

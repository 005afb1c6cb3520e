"""Behind the filter, as nobody in a network of its own: what is allowed works and nothing else leaves, on every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from agentguard.egress.kernel import landlock
from agentguard.egress.kernel.activate import availability

HERE = Path(__file__).parent
SOURCE = str(HERE.parents[2] / "src")
WAYS = ("run", "activate", "docker", "udp")
DENIED, PRIVATE, METADATA, UDP_ALLOWED = "93.184.215.17", "10.1.2.3", "169.254.169.254", "93.184.215.20"

pytestmark = [
    pytest.mark.needs("unshare", "ip", "mount", "curl"),
    pytest.mark.skipif(bool(availability()), reason=f"no kernel enforcement: {availability()}"),
]


def play(folder, way):
    """What the probe found, and what the servers saw."""
    folder.chmod(0o755)
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", *as_root]
    done = subprocess.run(
        [*command, sys.executable, str(HERE / "inside.py"), str(folder), way],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), SOURCE]))},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found():
    """What came of each way. Nobody may enter pytest's folder: a second run of it on the machine closes that to others."""
    played = {}

    def find(way):
        if way not in played:
            with tempfile.TemporaryDirectory() as folder:
                played[way] = play(Path(folder), way)
        return played[way]

    return find


@pytest.fixture(params=WAYS)
def held(request, found):
    return found(request.param)


def facts_of(held):
    return held["probe"]["facts"]


def test_without_the_filter_everything_leaves(found):
    bare = found("bare")

    facts = facts_of(bare)
    assert facts["denied address"] == facts["denied name"] == facts["private"] == facts["metadata"] == facts["thread"] == "200"
    assert facts["docker"] == "connected"
    assert all(bare["received"].values())
    assert "secret.attacker.test" in bare["asked"]
    assert len(bare["heard"][DENIED]) == 5


def test_nothing_reaches_what_the_policy_does_not_allow(held):
    assert held["received"][DENIED] == held["received"][PRIVATE] == held["received"][METADATA] == 0
    assert held["heard"][DENIED] == []


def test_no_name_is_asked_about_that_is_not_allowed(held):
    assert not {"denied.test", "secret.attacker.test"} & set(held["asked"])


def test_everything_that_is_allowed_works(held):
    facts = facts_of(held)

    assert {facts[way] for way in ("allowed", "allowed, blocking", "streams", "wildcard")} == {"200"}
    assert facts["curl"] == "ok"
    assert facts["python child"] == "connected"
    assert facts["managed"] == [1, 2, 3]
    assert facts["own socket"] == "connected"
    assert facts["port"] == "free"


def test_an_answer_too_long_for_a_datagram_is_whole(held):
    assert facts_of(held)["many"] == 100


def test_what_is_refused_says_permission_denied_or_no_such_name(held):
    facts = facts_of(held)

    for way in ("denied address", "private", "metadata", "mapped", "loopback", "docker", "abstract"):
        assert facts[way] == "EACCES", way
    for way in ("denied name", "secret name", "name to private", "alias to blocked"):
        assert facts[way] == "gaierror -2", way
    assert facts["curl denied"] == "exit 7"


def test_a_link_that_is_swapped_never_leads_to_a_foreign_socket(held):
    assert facts_of(held)["swapped"]
    assert not any("/run/docker.sock" in one for one in facts_of(held)["swapped"])


def test_a_thread_that_was_there_before_is_held(held):
    assert facts_of(held)["thread"] == "EACCES"


def test_a_signal_is_handled_while_a_connect_waits(held):
    assert facts_of(held)["interrupted"]


def test_connects_that_hang_hold_up_no_others(held):
    assert facts_of(held)["meanwhile"]


def test_the_supervisor_cannot_be_looked_into(held):
    attack = facts_of(held)["attack"]

    assert attack["memory"] == attack["descriptors"] == "EACCES"
    assert facts_of(held)["listener"] == []


@pytest.mark.skipif(landlock.version() < 6, reason="Landlock has no scopes before Linux 6.12")
def test_the_supervisor_cannot_be_signalled_by_a_program_that_was_started_under_it(found):
    assert facts_of(found("run"))["attack"]["signal"] == "EPERM"


def test_the_control_channel_only_narrows(held):
    widen = facts_of(held)["widen"]

    assert not widen["whole"]
    assert widen["denied"] == "EACCES"
    assert widen["allowed before"].startswith("gaierror")
    assert widen["kept"] == "200"


def test_datagrams_leave_only_where_the_policy_says_so(found):
    ways = ("sendto", "sendmsg", "connect", "mapped")

    allowed = facts_of(found("udp"))["udp"]
    assert [allowed[f"{how} {UDP_ALLOWED}"] for how in ways] == ["sent"] * 4
    assert [allowed[f"{how} {DENIED}"] for how in ways] == ["EACCES"] * 4
    assert len(found("udp")["heard"][UDP_ALLOWED]) == 4
    for way in ("run", "docker", "activate"):
        assert "sent" not in facts_of(found(way))["udp"].values()
        assert found(way)["heard"][UDP_ALLOWED] == []


def test_an_address_without_a_family_is_none(held):
    """The kernel reads AF_UNSPEC in `sendto` as IPv4."""
    assert "sent" not in {said for how, said in facts_of(held)["udp"].items() if how.startswith("unspecified")}


def test_connects_in_disguise_are_refused(held):
    assert facts_of(held)["fast open"] in {"EOPNOTSUPP", "ENOTSUP"}
    assert facts_of(held)["mptcp"] == "EPROTONOSUPPORT"


def test_every_refusal_is_in_the_log_with_rule_and_remedy(held):
    log = [line for line in held["probe"]["log"] if line["event"] == "refused"]

    by_host = {line["host"]: line for line in log}
    assert by_host[DENIED]["rule"] == "external_calls.allowed_domains"
    assert "agentguard.yaml:6" in by_host[DENIED]["why"]
    assert by_host["denied.test"]["what"] == "resolve"
    assert by_host["inner.partner.test"]["remedy"]
    assert "/run/docker.sock" in by_host
    assert {line["program"] for line in log} >= {"curl"}
    assert not [line for line in held["probe"]["log"] if line["event"] == "fault"]


@pytest.mark.parametrize("way", ["run", "docker", "udp", "report"])
def test_what_the_c_library_asks_before_the_nameserver_is_passed_over_and_not_told(found, way):
    held = found(way)

    assert found("bare")["cache"]
    assert held["cache"] == 0
    assert not [line for line in held["probe"]["log"] if line.get("host") == "/run/nscd/socket"]


def test_a_socket_that_is_refused_is_explained_too(found):
    log = [line for line in found("run")["probe"]["log"] if line.get("what") == "socket"]

    assert log
    assert {line["rule"] for line in log} == {"external_calls.allow_udp"}


def test_the_exit_code_is_the_programs(held):
    assert held["probe"]["exit"] == 23


def test_report_mode_refuses_nothing_and_records_everything(found):
    report = found("report")

    facts = facts_of(report)
    assert facts["denied address"] == facts["denied name"] == facts["private"] == "200"
    assert facts["docker"] == "connected"
    log = [line for line in report["probe"]["log"] if line["event"] == "refused"]
    assert {DENIED, PRIVATE, "denied.test", "/run/docker.sock"} <= {line["host"] for line in log}
    assert not any(line["enforced"] for line in log)

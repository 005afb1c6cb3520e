"""In process: every way out of Python's own is refused before anything leaves, and every legitimate way works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

INSIDE = Path(__file__).with_name("inside.py")

pytestmark = pytest.mark.needs("unshare", "ip", "mount")


def run(folder, mode):
    (folder / "tmp").mkdir()
    unshare = [shutil.which("unshare"), "--net", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    done = subprocess.run(
        [*unshare, sys.executable, INSIDE, folder, mode],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"AGENTGUARD_STATE_DIR": str(folder / "state")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"stderr": done.stderr}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    return run(tmp_path_factory.mktemp("guarded"), "guarded")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return run(tmp_path_factory.mktemp("bare"), "bare")


def test_no_way_out_reaches_anybody(guarded):
    reached = {name: fact["hits"] for name, fact in guarded["out"].items() if fact["hits"] or "got" in fact}

    assert reached == {}


def test_every_way_out_gets_out_where_there_is_no_guard(bare):
    stopped = [name for name, fact in bare["out"].items() if not (fact["hits"] or fact["asked"] or "got" in fact)]

    assert stopped == []


def test_every_way_out_is_refused_with_a_rule(guarded):
    unexplained = {name: fact for name, fact in guarded["out"].items() if "denied" not in fact}

    assert set(unexplained) == {"builtins poisoned"}
    assert "SeamError: builtins." in unexplained["builtins poisoned"]["error"]


def test_no_question_of_a_name_that_is_not_allowed_leaves(guarded):
    by_another_agent = {"another agent's answer", "another agent", "another agent in asyncio"}
    asked = {
        name: fact["asked"]
        for name, fact in guarded["out"].items()
        if name not in by_another_agent and any("evil" in question or "17.215" in question for question in fact["asked"])
    }

    assert asked == {}


def test_what_is_legitimate_works_as_it_does_without_a_guard(guarded, bare):
    names = guarded["legitimate"].keys() - {"answers without the private one", "gethostbyname without the private one"}
    differing = {
        name: (guarded["legitimate"][name], bare["legitimate"][name])
        for name in names
        if guarded["legitimate"][name].get("got") != bare["legitimate"][name]["got"]
        or len(guarded["legitimate"][name]["hits"]) != len(bare["legitimate"][name]["hits"])
    }

    assert differing == {}


@pytest.mark.parametrize("way", ["answers without the private one", "gethostbyname without the private one"])
def test_private_answers_are_taken_out(guarded, bare, way):
    assert guarded["legitimate"][way]["got"] == "93.184.215.14"
    assert "10.9.9.9" in bare["legitimate"][way]["got"]


@pytest.mark.parametrize(
    ("way", "rule"),
    [
        ("an address", "external_calls.allowed_domains"),
        ("a name", "external_calls.allowed_domains"),
        ("an allowed name that leads to metadata", "external_calls.allow_metadata"),
        ("a datagram", "external_calls.allow_udp"),
        ("a Unix socket", "external_calls.unix_sockets"),
        ("an SSH agent", "external_calls.unix_sockets"),
    ],
)
def test_a_refusal_names_its_rule(guarded, way, rule):
    assert guarded["out"][way]["denied"] == rule
    assert guarded["out"][way]["message"].startswith("agent 'bot' may not ")
    assert rule.partition(".")[2] in guarded["out"][way]["message"]


def test_a_denial_is_no_os_error_unless_the_name_of_an_address_was_asked_for(guarded):
    os_errors = [name for name, fact in guarded["out"].items() if fact.get("is_os_error")]

    assert os_errors == ["a reverse look-up"]


def test_every_refusal_is_told(guarded):
    assert len(guarded["told"]) >= len(guarded["out"]) - 1
    assert {"RESOLVE evil.example.com", "CONNECT evil.example.com", "CONNECT 169.254.169.254"} <= set(guarded["told"])


def test_after_uninstrument_nothing_is_refused(guarded):
    assert guarded["after"] == {"got": "HTTP/1.1 200 OK"}


def test_a_child_is_told_of_once_with_what_to_do(guarded):
    told = [line for line in guarded["stderr"].splitlines() if "has started" in line]

    assert len(told) == 1
    assert "'true'" in told[0]
    assert "`agentguard run`" in told[0]
    assert "`enforcement: kernel`" in told[0]


def test_an_event_loop_starts_where_a_pair_of_sockets_is_a_connection():
    program = """
        import _socket
        del _socket.socketpair  # as on Windows
        import asyncio, socket
        import agentguard
        policy = {"agents": [{"name": "bot", "external_calls": {"allowed_domains": [], "blocked_domains": ["*"]}}]}
        agentguard.instrument(agentguard.Policy.from_mapping(policy), store="memory://")
        asyncio.run(asyncio.sleep(0))
        listener = socket.create_server(("127.0.0.1", 0))
        try:
            socket.create_connection(listener.getsockname())
        except agentguard.EgressDenied:
            print("the rest of loopback is judged")
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )

    assert ran.stdout == "the rest of loopback is judged\n", ran.stderr

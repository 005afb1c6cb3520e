"""The audit hook: one in a process, inert when nothing is guarded, and never in the way of a program that is only observed."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import socket
import subprocess
import sys
from multiprocessing import util

import pytest

import agentguard
from agentguard import EgressDenied, Policy
from agentguard.context import own_traffic
from agentguard.egress.audithook import installed_switch
from agentguard.events import CallDenied, ChildStarted

LISTED = {"allowed_domains": ["api.ourservice.com"]}


def policy(mode="enforce", **external_calls):
    return Policy.from_mapping({"mode": mode, "agents": [{"name": "bot", "external_calls": external_calls}]})


@pytest.fixture
def instrument(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    with contextlib.ExitStack() as stack:

        def put(*args, **kwargs):
            told = []
            installed = agentguard.instrument(policy(*args, **kwargs), store="memory://", observers=[told.append])
            stack.callback(installed.uninstrument)
            return installed, told

        yield put


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def connect(address):
    with socket.socket() as client:
        client.settimeout(5)
        client.connect(address)


def told_of(installed, told, kind):
    installed.guard.flush()
    return [event for event in told if isinstance(event, kind)]


def test_there_is_one_hook_however_often_it_is_installed(instrument):
    instrument(**LISTED)
    before = installed_switch()
    agentguard.uninstrument()

    importlib.reload(importlib.import_module("agentguard.egress.audithook"))
    instrument(**LISTED)

    assert importlib.import_module("agentguard.egress.audithook").installed_switch() is before


def test_it_judges_only_between_instrument_and_uninstrument(instrument, listener):
    for _ in range(2):
        connect(listener)
        instrument(**LISTED)
        with pytest.raises(EgressDenied):
            connect(listener)
        agentguard.uninstrument()
    connect(listener)


def test_functions_are_put_back_where_nobody_has_taken_their_place(instrument):
    names = ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
    before = [getattr(socket, name) for name in names]

    instrument(**LISTED)
    agentguard.uninstrument()

    assert [getattr(socket, name) for name in names] == before
    assert not {"connect", "connect_ex", "bind", "sendto", "sendmsg"} & vars(socket.socket).keys()


def test_a_function_that_somebody_has_wrapped_since_is_left_and_goes_inert(instrument, monkeypatch):
    instrument(**LISTED)
    ours = socket.gethostbyname
    monkeypatch.setattr(socket, "gethostbyname", functools.partial(ours))
    agentguard.uninstrument()

    assert socket.gethostbyname("127.0.0.1") == "127.0.0.1"


def test_without_a_list_of_hosts_nothing_is_refused(instrument, listener):
    installed, told = instrument()

    connect(listener)
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.connect("/var/run/docker.sock")
    subprocess.run(["true"], check=True)

    assert told_of(installed, told, (CallDenied, ChildStarted)) == []


def test_report_mode_refuses_nothing_and_tells_all(instrument, listener):
    installed, told = instrument("report", **LISTED)

    connect(listener)

    (denied,) = told_of(installed, told, CallDenied)
    assert not denied.enforced
    assert denied.call.name == "CONNECT 127.0.0.1"
    assert denied.call.target.port == listener[1]
    assert denied.caller.agents == ("bot",)


def test_our_own_traffic_is_not_judged(instrument, listener):
    instrument(**LISTED)

    with own_traffic():
        connect(listener)


def test_an_isolated_agent_connects_nowhere(instrument, listener):
    installed, _ = instrument(allowed_domains=["127.0.0.1"])
    connect(listener)

    installed.guard.isolate("agent:bot", by="ops", why="incident 7")

    with pytest.raises(agentguard.AgentIsolated):
        connect(listener)


def test_a_scoped_guard_judges_with_its_own_policy(instrument, listener):
    instrument(**LISTED)
    own = agentguard.Guard(policy(allowed_domains=["127.0.0.1"]))

    with own:
        connect(listener)

    own.close()


def test_a_denial_below_an_sdk_is_the_sdks_own_error_too(instrument, listener):
    openai = pytest.importorskip("openai")
    instrument(**LISTED)

    with pytest.raises(EgressDenied) as denied:
        connect(listener)

    assert isinstance(denied.value, openai.OpenAIError)
    assert not isinstance(denied.value, OSError)


def test_a_forked_child_is_held_to_the_policy_too(instrument, listener):
    instrument(**LISTED)
    child = os.fork()
    if not child:
        with contextlib.suppress(EgressDenied):
            connect(listener)
            os._exit(1)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(["env", "true"], check=True),
        lambda: os.system("env true"),
        lambda: os.waitpid(os.posix_spawnp("env", ["env", "true"], os.environ), 0),
    ],
    ids=["subprocess", "os.system", "os.posix_spawn"],
)
def test_a_program_that_is_started_is_told_of_once(instrument, caplog, start):
    installed, told = instrument(**LISTED)

    with caplog.at_level(logging.WARNING, logger="agentguard"):
        start()
        start()

    assert sum("has started 'env'" in line for line in caplog.messages) == 1
    assert [event.program for event in told_of(installed, told, ChildStarted)] == ["env"]


def test_an_interpreter_that_multiprocessing_spawns_is_told_of(instrument, caplog):
    instrument(**LISTED)

    with caplog.at_level(logging.WARNING, logger="agentguard"):
        child = util.spawnv_passfds(os.fsencode(sys.executable), [sys.executable, "-S", "-c", ""], [1])

    os.waitpid(child, 0)
    assert any("python" in line and "has started" in line for line in caplog.messages)


def test_what_the_standard_library_asks_of_the_machine_is_not_told_of(instrument, caplog):
    instrument(**LISTED)

    with caplog.at_level(logging.WARNING, logger="agentguard"):
        subprocess.run(["uname"], check=True, capture_output=True)

    assert not [line for line in caplog.messages if "has started" in line]


def test_a_python_child_of_agentguard_run_is_guarded_itself(instrument, caplog, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_RUN", "1")
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    instrument(**LISTED)

    with caplog.at_level(logging.WARNING, logger="agentguard"):
        subprocess.run([sys.executable, "-S", "-c", ""], check=True)

    assert not [line for line in caplog.messages if "has started" in line]

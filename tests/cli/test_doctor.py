"""`agentguard doctor`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agentguard.cli import _checks
from agentguard.cli._libraries import TESTED, _support
from agentguard.core.limits import LimitRow
from agentguard.policy.model import Limit, Unit
from agentguard.stores.redis import RedisStore

from ..stores.redis_server import PROGRAM, Server  # noqa: TID252 - a server that tests of several folders start

ROOT = Path(__file__).parents[2]


def section(document, title):
    return next(part["lines"] for part in document["sections"] if part["title"].startswith(title))


def findings(document):
    return [line["text"] for part in document["sections"] for line in part["lines"] if line["mark"] == "finding"]


def test_a_call_through_each_client_is_seen_and_refused_and_leaves_nothing_in_the_log(shell, policy, folder):
    done = shell("doctor", "--json")

    document = json.loads(done.stdout)
    calls = {line["text"].split()[0]: line for line in section(document, "A call through each client")}
    for client in ("openai", "anthropic", "httpx", "httpx2"):
        assert calls[client]["mark"] == "ok", calls[client]
    assert all(line["mark"] == "ok" for line in section(document, "Seams"))
    assert done.returncode == (1 if findings(document) else 0)
    assert list((folder.parent / "state").glob("events/*")) == []


def test_nothing_wrong_is_exit_code_0_and_says_what_is_not_guarded(agentguard, policy):
    done = agentguard("doctor", "--no-canary")

    assert done.exit_code == 0, done.stdout
    assert "No findings." in done.stdout
    assert "native code" in done.stdout
    assert "agentguard tail -f" in done.stdout


def test_no_policy_is_a_finding(agentguard_json):
    code, document = agentguard_json("doctor", "--no-canary")

    assert code == 1
    assert findings(document) == ["no policy: calls are recorded and nothing is refused"]


def test_a_policy_that_does_not_load_is_a_finding(agentguard_json, policy):
    policy.write_text("version: 1\nagents: [{name: bot, toolz: {}}]\n")

    code, document = agentguard_json("doctor", "--no-canary")

    assert code == 1
    assert "did you mean 'tools'?" in findings(document)[0]


def test_the_off_switch_is_a_finding(agentguard_json, policy, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_DISABLED", "1")

    assert "AGENTGUARD_DISABLED is set: nothing is guarded" in findings(agentguard_json("doctor", "--no-canary")[1])


def test_another_agentguard_on_the_path_is_a_finding(agentguard_json, policy, folder):
    (folder / "agentguard.py").write_text("")

    assert any("another agentguard is on the path" in text for text in findings(agentguard_json("doctor", "--no-canary")[1]))


def test_a_foreign_distribution_that_installs_agentguard_is_a_finding(agentguard_json, policy, folder, monkeypatch):
    info = folder / "agentguard_ai-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: agentguard-ai\nVersion: 9\n")
    (info / "RECORD").write_text("agentguard/__init__.py,,\n")
    (folder / "agentguard").mkdir()
    (folder / "agentguard" / "__init__.py").touch()  # from Python 3.12 on, a listed file that is absent is not told
    monkeypatch.syspath_prepend(str(folder))

    assert any(
        "'agentguard-ai' installs a package named agentguard" in text
        for text in findings(agentguard_json("doctor", "--no-canary")[1])
    )


def test_a_collector_that_does_not_answer_is_a_finding_and_shows_no_password(agentguard, policy, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:CANARY@127.0.0.1:{taken.getsockname()[1]}")

        done = agentguard("doctor", "--no-canary")

    assert done.exit_code == 1
    assert "no collector answers at http://127.0.0.1" in done.stdout
    assert "CANARY" not in done.stdout


def test_a_collector_that_answers_is_ok(agentguard_json, policy, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")

        code, document = agentguard_json("doctor", "--no-canary")

    assert code == 0
    assert section(document, "Telemetry")[0]["mark"] == "ok"


@pytest.mark.needs(PROGRAM)
def test_the_counters_are_those_of_the_policys_fleet_and_the_options_of_the_url_are_not_shown(agentguard_json, policy):
    server = Server()
    url = f"{server.url}?timeout=5"
    store = RedisStore(url, fleet="support")
    store.register([LimitRow.of("fleet", Limit(amount=10, unit=Unit.TOKENS))])
    store.close()
    policy.write_text(f"fleet: support\nstore: {url}\n{policy.read_text()}")

    _, document = agentguard_json("doctor", "--no-canary")
    server.close()

    assert f"store {server.url}: 1 counter" in [line["text"] for line in section(document, "State")]


def test_a_store_that_cannot_be_used_is_a_finding(agentguard_json, policy, folder):
    (folder / "ledger.sqlite").mkdir()

    code, document = agentguard_json("doctor", "--no-canary", "--store", f"sqlite://{folder}/ledger.sqlite")

    assert code == 1
    assert "the store cannot be used" in findings(document)[0]


def test_a_state_directory_that_others_can_read_is_a_finding(agentguard_json, policy, folder):
    state = folder.parent / "state"
    state.mkdir(mode=0o755)
    state.chmod(0o755)

    code, document = agentguard_json("doctor", "--no-canary")

    assert code == 1
    assert "can be read by other users" in findings(document)[0]


def canary(library, **found):
    line = {"library": library, "version": "1", "seen": True, "refused": True, "error": None} | found
    place = _checks.Place(None, None, True)
    place.canary = {"clients": [line], "seams": [{"library": "openai", "version": "1", "seam": "x", "state": "hooked"}]}
    (said,) = _checks._canaries(place)
    return said


@pytest.mark.parametrize(
    ("found", "mark", "words"),
    [
        ({}, "ok", "refused"),
        ({"seen": False, "refused": False}, "finding", "not seen"),
        ({"refused": False}, "finding", "not refused"),
        ({"seen": False, "error": "TypeError: x"}, "finding", "failed: TypeError"),
    ],
)
def test_what_became_of_a_canary(found, mark, words):
    said = canary("openai", **found)

    assert said.mark == mark
    assert words in said.text


def test_a_client_without_a_seam_is_a_finding():
    assert "no seam for it" in canary("pycurl", seen=False, refused=False).text


def test_a_canary_process_that_crashes_is_a_finding():
    place = _checks.Place(None, None, True)
    place.canary = "Segmentation fault"

    assert [line.mark for line in _checks._seams(place)] == ["finding"]


def test_the_tested_versions_are_those_that_the_tests_are_pinned_to():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]

    def pins(name):
        return dict(entry.split("==") for entry in groups[name] if isinstance(entry, str))

    oldest = pins("sdk-others") | pins("sdk-oldest")
    newest = pins("sdk-others") | pins("sdk-current")
    assert {name: (oldest[name], newest[name]) for name in oldest} == {name: TESTED[name] for name in TESTED if name != "httpx2"}


@pytest.mark.parametrize(
    ("version", "support"),
    [
        ("3.54.0", "tested"),
        ("1.109.1", "tested"),
        ("2.0.0rc1", "tested"),
        ("3.54.1", "newer"),
        ("4.0", "newer"),
        ("1.109.0", "older"),
    ],
)
def test_a_version_is_tested_newer_or_older(version, support):
    assert _support("openai", version) == support


# ------------------------------------------------------------------------------------------------------ live connections

GUARDED = """\
import socket, sys, agentguard
agentguard.instrument({policy!r})
allowed = socket.create_connection(("127.0.0.1", {allowed}))
other = socket.create_connection(("127.0.0.1", {other}))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def program(folder):
    """A guarded program with a connection to each of two servers, one of which the policy on disk comes to list alone."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = first.getsockname()[1], second.getsockname()[1]
        file = folder / "agentguard.yaml"
        both = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
        file.write_text(f'agent_config: {{name: bot, external_calls: {{allowed_domains: [{both}], blocked_domains: ["*"]}}}}\n')
        code = GUARDED.format(policy=str(file), allowed=ports[0], other=ports[1])
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            file.write_text(file.read_text().replace(f', "127.0.0.1:{ports[1]}"', ""))
            yield process, ports
            process.communicate("")


def held(document):
    return next(section["lines"] for section in document["sections"] if section["title"] == "Connections held now")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("by", ["its id", "its ledger"])
def test_connections_that_the_policy_would_refuse_are_findings_with_the_line_to_add(agentguard_json, program, by):
    process, (allowed, other) = program

    code, document = agentguard_json("doctor", "--no-canary", *(["--pid", str(process.pid)] if by == "its id" else []))

    marks = {line["text"].partition(" to ")[2].partition(": ")[0]: line for line in held(document)[1:]}
    assert code == 1
    assert held(document)[0]["text"].startswith(f"process {process.pid} ")
    assert marks[f"tcp 127.0.0.1:{allowed}"]["mark"] == "ok"
    assert marks[f"tcp 127.0.0.1:{other}"]["mark"] == "finding"
    assert marks[f"tcp 127.0.0.1:{other}"]["remedy"] == f"agentguard policy allow 127.0.0.1:{other}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_process_that_is_not_there_is_a_finding(agentguard_json, policy):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    _, document = agentguard_json("doctor", "--no-canary", "--pid", str(process.pid))

    assert "there is no process" in held(document)[0]["text"]


def test_without_a_guarded_program_it_says_how_to_look_at_another(agentguard_json, policy):
    _, document = agentguard_json("doctor", "--no-canary")

    assert "--pid" in held(document)[0]["text"]


def test_the_problems_of_a_policy_stand_in_one_line(agentguard, policy):
    policy.write_text("mode: enforced\ntoolz: 1\nagents: [{name: a}]\n")

    text = agentguard("doctor", "--no-canary").stdout

    assert "agentguard.yaml has 2 problems; agentguard.yaml:1:1  mode   expected" in text
    assert "\N{REPLACEMENT CHARACTER}" not in text

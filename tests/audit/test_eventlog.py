"""The event log: what it writes, what it never writes, and what becomes of it when disks and processes fail."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest

from agentguard.audit import EventLog, follow, read_events, record_of
from agentguard.core.call import HTTPCall, LLMCall, Target, ToolCall, Usage
from agentguard.core.caller import Caller
from agentguard.core.decision import Facts, Reason, deny
from agentguard.core.limits import Crossed
from agentguard.events import (
    Attempt,
    BudgetAdjusted,
    BudgetThresholdCrossed,
    CallAdmitted,
    CallDenied,
    CallSettled,
    ChildStarted,
    EstimateBreached,
    Event,
    GuardDisabled,
    PolicyLoaded,
    ScopeEnded,
    SeamChanged,
    SubjectIsolated,
    ToolProposed,
)
from agentguard.policy.model import Rule
from agentguard.wire.answer import Answer

AT = 1_767_225_600.25
CALLER = Caller(agents=("planner", "researcher"), session="s-1", user="u-17", interaction="i-1", tool="search")
TARGET = Target("https", "api.openai.com", 443, "/v1/chat/completions")
CHAT = LLMCall("chat", "openai", "gpt-5-mini", TARGET, stream=True, request={"messages": [{"content": "CANARY-prompt"}]})
POST = HTTPCall("POST", Target("https", "user:CANARY-pw@api.acme.com", 443, "/v1/x?token=CANARY-query#CANARY-fragment"))
TOOL = ToolCall("search_kb", scope="kb", cost_nanos=5)
DENIAL = deny(
    Reason.EGRESS,
    Rule("external_calls.allowed_domains", "agents.yaml", 12),
    "agent 'researcher' may not reach 'https://x/?q=CANARY-message'",
    "run it with CANARY-remedy",
    Facts(limit=10, spent=7, held=2, requested=3, resets_at=AT + 1),
)
ATTEMPTS = (
    Attempt("POST", TARGET, AT - 1, AT, 200),
    Attempt("GET", POST.target, AT - 1, AT, None, "ConnectError"),
    Attempt("GET", POST.target, AT, AT, was_sent=False),
)
ANSWER = Answer(response_id="chatcmpl-1", response_model="gpt-5-mini-2026", finish_reasons=("stop",), tool_calls=("search_kb",))
EVENTS = [
    CallDenied(AT, "p-1", POST, CALLER, DENIAL, True),
    CallAdmitted(AT, "p-2", CHAT, CALLER, 1200, 3_400_000),
    CallSettled(
        AT, "p-2", CHAT, CALLER, AT - 2, Usage(100, 20, 50, 1, 5), 1234, "complete", "", ANSWER, ATTEMPTS, AT - 1, 1200, 4096
    ),
    CallSettled(AT, "p-3", POST, CALLER, AT - 2, Usage(), None, "denied", "ValueError", None, ATTEMPTS, decision=DENIAL),
    CallSettled(AT, "p-4", TOOL, CALLER, AT - 2, Usage(), 5, "complete"),
    EstimateBreached(AT, "p-2", CHAT, CALLER, 1200, 1300),
    ToolProposed(AT, "p-2", CHAT, CALLER, "rm_rf", DENIAL),
    BudgetThresholdCrossed(AT, Crossed("agent:researcher|usd|day|all", 80, 8, 10)),
    ScopeEnded(AT, "execute_tool", "search_kb", CALLER, AT - 1, "KeyError"),
    PolicyLoaded(AT, "agents.yaml", "3f2a", "enforce", ("researcher",)),
    SeamChanged(AT, "openai", "SyncAPIClient.request", "installed"),
    SubjectIsolated(AT, "agent:researcher", True, "ops", "incident 7", 3),
    SubjectIsolated(AT, "agent:researcher", False, "ops", "", 4, probation_until=AT + 3600),
    BudgetAdjusted(AT, "agent:researcher|tokens|day|all", -500, 1500, "ops", "refunded"),
    ChildStarted(AT, "curl", CALLER, "start it with agentguard run"),
    GuardDisabled(AT, "AGENTGUARD_DISABLED"),
]


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "events"


def written(directory, since=None):
    return [found for found in read_events(directory, since) if found["kind"] != "log_opened"]


def seam(number, at=AT):
    return SeamChanged(at, "lib", str(number), "installed")


def admitted(number, at=AT):
    return CallAdmitted(at, str(number), CHAT, CALLER, 1, 1)


# ------------------------------------------------------------------------------------------------------------- records


def test_every_kind_of_event_has_a_record():
    assert {type(event) for event in EVENTS} == set(get_args(Event))

    kinds = {record_of(event)["kind"] for event in EVENTS}

    assert len(kinds) == len(get_args(Event)) + 1  # an isolation and a restoration are two words


def numbers(value):
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_record_is_versioned_and_its_numbers_are_integers(event):
    found = json.loads(json.dumps(record_of(event)))

    assert found["v"] == 1
    assert found["at_us"] == 1_767_225_600_250_000
    assert all(type(number) is int for number in numbers(found))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_kind_and_field_is_in_the_reference(event):
    text = (Path(__file__).parents[2] / "docs" / "reference" / "events.md").read_text()
    found = record_of(event)

    assert f"`{found['kind']}`" in text
    assert [field for field in found if f"`{field}`" not in text] == []


def test_a_settlement_says_what_was_used_and_what_it_cost():
    found = record_of(EVENTS[2])

    assert (
        found
        | {
            "call": "llm",
            "agent": "researcher",
            "agents": ["planner", "researcher"],
            "session": "s-1",
            "user": "u-17",
            "model": "gpt-5-mini",
            "target": "https://api.openai.com/v1/chat/completions",
            "input_tokens": 100,
            "output_tokens": 20,
            "cache_read_tokens": 50,
            "cost_nanos": 1234,
            "outcome": "complete",
            "response_model": "gpt-5-mini-2026",
            "proposed_tools": ["search_kb"],
        }
        == found
    )
    assert [attempt.get("status") for attempt in found["attempts"]] == [200, None, None]


def test_a_denial_names_its_rule_and_the_numbers_behind_it():
    found = record_of(EVENTS[0])

    assert found["rule"] == "external_calls.allowed_domains"
    assert found["place"] == "agents.yaml:12"
    assert (found["limit"], found["spent"], found["held"], found["requested"]) == (10, 7, 2, 3)


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/v1/customers/42?key=secret", "/v1/customers/42"),
        ("/a/b;session=secret", "/a/b"),
        ("/a#secret", "/a"),
        ("/bot123456789:AAF-abcdefghijklmnopqrstuvwx/sendMessage", "/…/sendMessage"),
        ("/services/T0001/B0001/xYz0123456789AbCdEfGhIjK", "/services/T0001/B0001/…"),
        ("/k/sk-proj-0123456789abcdef", "/k/…"),
        ("/k/agk_0123456789abcdef", "/k/…"),
        ("/orders/5f0c3c1e-6b1d-4e53-9d1e-2f9c8f1b7a10", "/orders/5f0c3c1e-6b1d-4e53-9d1e-2f9c8f1b7a10"),
        ("/openai/deployments/gpt-4o-mini/chat/completions", "/openai/deployments/gpt-4o-mini/chat/completions"),
    ],
)
def test_a_path_keeps_what_it_names_and_loses_what_could_be_a_secret(path, kept):
    call = HTTPCall("GET", Target("https", "api.acme.com", 443, path))

    assert record_of(CallAdmitted(AT, "1", call, CALLER, 0, 0))["target"] == f"https://api.acme.com{kept}"


def test_an_ipv6_target_is_written_as_a_url():
    call = HTTPCall("GET", Target("http", "::1", 8080, "/"))

    assert record_of(CallAdmitted(AT, "1", call, CALLER, 0, 0))["target"] == "http://[::1]:8080/"


def test_a_name_from_outside_takes_no_more_than_its_room():
    event = ToolProposed(AT, "1", CHAT, CALLER, "x" * 100_000, DENIAL)

    assert len(json.dumps(record_of(event))) < 2_000


def test_no_prompt_key_query_or_message_reaches_the_file(directory):
    log = EventLog(directory)
    for event in EVENTS:
        log(event)
    log.close()

    content = b"".join(path.read_bytes() for path in directory.iterdir())

    assert b"CANARY" not in content
    assert b"api.acme.com" in content


# -------------------------------------------------------------------------------------------------------------- writing


def test_what_was_told_is_read_back_in_order(directory):
    log = EventLog(directory)

    for event in EVENTS:
        log(event)
    log.close()

    assert written(directory) == [json.loads(json.dumps(record_of(event))) for event in EVENTS]


def test_files_and_directory_are_the_users_own(directory):
    log = EventLog(directory)
    log(seam(1))
    log.close()

    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_denial_is_on_disk_at_once_and_traffic_after_a_flush(directory):
    log = EventLog(directory)
    log(EVENTS[0])
    assert len(written(directory)) == 1
    log(admitted(1))
    assert len(written(directory)) == 1

    log.flush()

    assert len(written(directory)) == 2


def test_what_waits_is_written_when_the_process_ends(directory):
    program = f"""
from agentguard.audit import EventLog
from agentguard.core.call import HTTPCall
from agentguard.core.caller import NOBODY
from agentguard.events import CallAdmitted
log = EventLog({str(directory)!r})
for number in range(3):
    log(CallAdmitted(1.0, str(number), HTTPCall.to("GET", "https://acme.com/"), NOBODY, 0, 0))
"""

    subprocess.run([sys.executable, "-c", program], check=True)

    assert [found["id"] for found in written(directory)] == ["0", "1", "2"]


def test_a_full_batch_is_written_without_a_flush(directory):
    log = EventLog(directory)

    for number in range(1_000):
        log(admitted(number))

    assert len(written(directory)) >= 700


def test_a_full_file_is_followed_by_the_next_and_the_oldest_go(directory):
    log = EventLog(directory, max_file_bytes=10_000, max_total_bytes=50_000)

    for number in range(5_000):
        log(seam(number))
    log.close()

    found = [int(found["seam"]) for found in written(directory)]
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 50_000
    assert max(path.stat().st_size for path in directory.iterdir()) <= 10_500
    assert found == list(range(5_000 - len(found), 5_000))


def test_the_number_of_files_is_bounded_too(directory, monkeypatch):
    monkeypatch.setattr("agentguard.audit.lines._MAX_FILES", 5)

    for number in range(20):
        log = EventLog(directory)
        log(seam(number))
        log.close()

    assert [found["seam"] for found in written(directory)] == ["15", "16", "17", "18", "19"]


def test_a_file_that_another_process_removed_is_followed_by_a_new_one(directory):
    log = EventLog(directory)
    log(seam(1))
    for file in directory.iterdir():
        file.unlink()

    log(seam(2))

    assert [found["seam"] for found in written(directory)] == ["2"]


def test_threads_write_whole_lines(directory):
    log = EventLog(directory)

    def tell(worker):
        for number in range(200):
            log(seam(f"{worker}-{number}"))

    threads = [threading.Thread(target=tell, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()

    assert len({found["seam"] for found in written(directory)}) == 1_600


# --------------------------------------------------------------------------------------------------------------- faults


def test_a_directory_that_cannot_be_made_is_logged_once_and_counted(tmp_path, caplog):
    (tmp_path / "file").write_text("not a directory")
    log = EventLog(tmp_path / "file" / "events")

    with caplog.at_level(logging.WARNING, logger="agentguard"):
        for number in range(10):
            log(seam(number))
        log.flush()

    assert log.lost == 10
    assert len(caplog.records) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_loses_lines_and_says_so_when_it_is_over(directory, monkeypatch):
    log = EventLog(directory)
    log(seam("before"))
    monkeypatch.setattr("agentguard.audit.record._RETRY_SECONDS", 0.0)
    real = log._files._fd
    log._files._fd = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(log._files, "_is_gone", lambda: False)

    log(seam("lost"))
    os.close(log._files._fd)
    log._files._fd = real
    log(seam("after"))

    found = written(directory)
    assert [entry.get("seam") for entry in found] == ["before", None, "after"]
    assert found[1]["kind"] == "events_lost"
    assert found[1]["lost"] == log.lost == 1


def test_a_line_torn_by_a_short_write_does_not_swallow_the_next(directory, monkeypatch):
    log = EventLog(directory)
    log(seam("before"))
    monkeypatch.setattr("agentguard.audit.record._RETRY_SECONDS", 0.0)
    write = os.write
    calls = []

    def torn(fd, lines):
        calls.append(lines)
        if len(calls) == 1:
            return write(fd, bytes(lines)[:20])
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(fd, lines)

    monkeypatch.setattr(os, "write", torn)
    log(seam("torn"))
    log(seam("after"))

    assert [found.get("seam") for found in written(directory)] == ["before", None, "after"]


def test_a_torn_last_line_is_passed_over(directory):
    log = EventLog(directory)
    log(seam(1))
    log(seam(2))
    log.close()
    (file,) = directory.iterdir()

    file.write_bytes(file.read_bytes()[:-10])

    assert [found["seam"] for found in written(directory)] == ["1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_a_file_of_its_own_and_nothing_of_its_parents(directory):
    log = EventLog(directory)
    log(seam("parent"))
    log(admitted("waits in the parent"))
    pid = os.fork()
    if pid == 0:
        log(seam("child"))
        log.close()
        os._exit(0)
    os.waitpid(pid, 0)

    log.close()

    found = written(directory)
    assert len(list(directory.iterdir())) == 2
    assert sorted(entry.get("seam", entry.get("id")) for entry in found) == ["child", "parent", "waits in the parent"]


WRITES_MANY = """
import sys, time
from agentguard.audit import EventLog
from agentguard.events import SeamChanged

log = EventLog(sys.argv[1])
for number in range(100):
    log(SeamChanged(time.time(), "lib", f"{sys.argv[2]}-{number}", "installed"))
log.close()
"""


def test_processes_share_the_directory_and_are_read_as_one(directory):
    processes = [subprocess.Popen([sys.executable, "-c", WRITES_MANY, str(directory), str(name)]) for name in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]

    found = written(directory)

    times = [entry["at_us"] for entry in found]
    assert len(found) == 300
    # Within a process the order of writing stands, and a virtual machine's clock may differ by microseconds between cores.
    assert all(later > earlier - 1000 for earlier, later in pairwise(times))


# -------------------------------------------------------------------------------------------------------------- reading


def test_no_directory_is_an_empty_log(tmp_path):
    assert list(read_events(tmp_path / "absent")) == []


def test_since_leaves_out_what_was_before(directory):
    log = EventLog(directory)
    for second in range(5):
        log(seam(second, AT + second))
    log.close()

    assert [found["seam"] for found in written(directory, AT + 3)] == ["3", "4"]


def test_following_yields_what_is_written_from_now_on(directory):
    log = EventLog(directory)
    log(seam("old", time.time() + 60))
    looks = []

    def wait(seconds):
        looks.append(seconds)
        log(seam(len(looks), time.time() + 60))

    found = follow(directory, wait=wait)

    assert [next(found)["seam"] for _ in range(3)] == ["1", "2", "3"]


def test_following_sees_files_that_come_later_and_no_half_lines(directory):
    def wait(seconds):
        directory.mkdir(exist_ok=True)
        with Path(directory / "20260101T000000.000000Z-1-aa.jsonl").open("ab") as file:
            file.write(lines.pop(0))

    lines = [b'{"v":1,"kind":"x","at_us":1,"n":1}\n{"v":1,"ki', b'nd":"x","at_us":2,"n":2}\n']

    found = follow(directory, since=0, wait=wait)

    assert [next(found)["n"], next(found)["n"]] == [1, 2]


def test_following_skips_to_the_end_between_two_lines(directory):
    directory.mkdir()
    file = directory / "20260101T000000.000000Z-1-aa.jsonl"
    later = round((time.time() + 60) * 1e6)
    file.write_text(f'{{"at_us":{later},"n":1}}\n{{"at_us":{later},"n"')

    def wait(seconds):
        with file.open("a") as end:
            end.write(f':2}}\n{{"at_us":{later},"n":3}}\n')

    assert next(follow(directory, wait=wait))["n"] == 3

"""`agentguard tail`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import get_args

import pytest

from agentguard.audit import EventLog, record_of
from agentguard.cli import _line
from agentguard.core.call import HTTPCall, LLMCall, Target, Usage
from agentguard.core.caller import Caller
from agentguard.core.decision import Facts, Reason, deny
from agentguard.events import (
    Attempt,
    BudgetAdjusted,
    CallAdmitted,
    CallDenied,
    CallSettled,
    Event,
    PolicyLoaded,
    SeamChanged,
)
from agentguard.policy.model import Rule

BOT = Caller(agents=("bot",), session="s-1")
OTHER = Caller(agents=("other",), session="s-2")
GET = HTTPCall.to("GET", "https://paste.evil.example/new")
CHAT = LLMCall("chat", "openai", "gpt-5-mini", Target("https", "api.openai.com", 443, "/v1"))
DENIAL = deny(Reason.EGRESS, Rule("external_calls.allowed_domains", "agents.yaml", 12), "no", "add it")
SPENT = deny(Reason.BUDGET, Rule("budgets[0]", "agents.yaml", 9), "no", "", Facts(5000, 4900, 50, 200))


def write(*events):
    log = EventLog()
    for event in events:
        log(event)
    log.close()


@pytest.fixture
def events():
    now = time.time()
    write(
        CallDenied(now - 7200, "0", GET, BOT, DENIAL, True),
        CallAdmitted(now - 3, "1", CHAT, BOT, 100, 5),
        CallSettled(now - 2, "1", CHAT, BOT, now - 3.5, Usage(1200, 300), 912_000, "complete"),
        CallDenied(now - 1.5, "2", GET, BOT, DENIAL, True),
        CallDenied(now - 1.2, "3", CHAT, OTHER, SPENT, False),
        CallSettled(
            now - 1, "4", GET, OTHER, now - 1, Usage(), None, "complete", attempts=(Attempt("GET", GET.target, 1, 2, 503),)
        ),
    )


def test_a_line_says_who_what_and_what_came_of_it(agentguard, events):
    lines = agentguard("tail").stdout.splitlines()

    assert len(lines) == 5
    assert lines[1].split()[1:] == ["bot", "ok", "chat", "gpt-5-mini", "1,200", "in", "300", "out", "$0.00091", "1.50", "s"]
    assert lines[2].endswith("DENY      GET https://paste.evil.example/new  external_calls.allowed_domains (agents.yaml:12)")
    assert lines[3].endswith("would     chat gpt-5-mini  budgets[0] (agents.yaml:9)  asked 200; spent 4,900, held 50 of 5,000")
    assert lines[4].endswith("0.00 s  503")


@pytest.mark.parametrize(
    ("args", "count"),
    [
        (["-n", "2"], 2),
        (["--denied"], 3),
        (["--agent", "other"], 2),
        (["--session", "s-1"], 3),
        (["--since", "1h"], 4),
        (["--all"], 7),
        (["--denied", "--since", "90s"], 2),
    ],
)
def test_filters(agentguard, events, args, count):
    assert len(agentguard("tail", *args).stdout.splitlines()) == count


def test_money_is_said_as_money(agentguard):
    spent = deny(Reason.BUDGET, Rule("budgets[0]"), "no", "", Facts(2_000_000, 1_602_000, 0, 803_250, unit="usd"))
    write(
        CallDenied(time.time(), "1", CHAT, BOT, spent, True),
        BudgetAdjusted(time.time(), "agent:bot|usd|day|all", -1_500_000_000, 0, "ops", "refunded"),
    )

    denied, adjusted = agentguard("tail").stdout.splitlines()

    assert denied.endswith("asked $0.00080; spent $0.0016, held $0.00 of $0.002")
    assert adjusted.endswith("agent:bot usd day all by -$1.50, now $0.00 spent, by ops: refunded")


def test_the_problems_of_a_policy_stand_in_one_line(agentguard):
    write(PolicyLoaded(time.time(), "a.yaml", "", "enforce", (), "a.yaml has 1 problem\n  a.yaml:1:1  toolz   unknown key"))

    assert agentguard("tail").stdout.endswith("a.yaml has 1 problem; a.yaml:1:1  toolz   unknown key\n")


def test_json_is_one_record_a_line(agentguard, events):
    records = [json.loads(line) for line in agentguard("tail", "--denied", "--json").stdout.splitlines()]

    assert [record["kind"] for record in records] == ["call_denied"] * 3


def test_an_empty_log_is_said_on_stderr(agentguard):
    done = agentguard("tail")

    assert (done.exit_code, done.stdout) == (0, "")
    assert "No such events" in done.stderr


@pytest.mark.parametrize("since", ["yesterday", "10", "5w"])
def test_a_duration_that_is_none_is_wrong_usage(agentguard, since):
    assert agentguard("tail", "--since", since).exit_code == 2


def test_a_name_cannot_move_the_cursor(agentguard):
    write(SeamChanged(time.time(), "evil\x1b]0;title\x07\r\n13:00:00 forged", "x", "lost"))

    text = agentguard("tail").stdout

    assert "\x1b" not in text
    assert len(text.splitlines()) == 1


def test_every_kind_of_record_has_its_words():
    kinds = {record_of(event)["kind"] for event in EVERY_KIND}

    assert kinds | {"subject_restored", "log_opened", "events_lost"} == set(_line._SAYINGS)
    assert {type(event) for event in EVERY_KIND} == set(get_args(Event))


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_following_goes_on_until_ctrl_c(folder, ctrl_c):
    follower = subprocess.Popen(
        [sys.executable, "-m", "agentguard.cli", "tail", "-f", "--denied"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    line = ""
    os.set_blocking(follower.stdout.fileno(), False)
    while not line and time.monotonic() < deadline:
        write(CallDenied(time.time(), "2", GET, BOT, DENIAL, True))
        time.sleep(0.3)
        line = follower.stdout.readline()

    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=60)

    assert "DENY" in line
    assert follower.returncode == 0
    assert "Traceback" not in errors


def _every_kind():
    from agentguard.core.limits import Crossed
    from agentguard.events import (
        BudgetThresholdCrossed,
        ChildStarted,
        EstimateBreached,
        GuardDisabled,
        ScopeEnded,
        SubjectIsolated,
        ToolProposed,
    )

    return [
        CallDenied(1.0, "1", GET, BOT, DENIAL, True),
        CallAdmitted(1.0, "1", CHAT, BOT, 1, 1),
        CallSettled(1.0, "1", CHAT, BOT, 0.5, Usage(), 1, "cut", "X"),
        EstimateBreached(1.0, "1", CHAT, BOT, 1, 2),
        ToolProposed(1.0, "1", CHAT, BOT, "rm", DENIAL),
        BudgetThresholdCrossed(1.0, Crossed("agent:bot|usd|day|all", 80, 8, 10)),
        ScopeEnded(1.0, "execute_tool", "rm", BOT, 0.5, "KeyError"),
        PolicyLoaded(1.0, "a.yaml", "d", "enforce", ("bot",), ""),
        SeamChanged(1.0, "openai", "x", "lost"),
        SubjectIsolated(1.0, "agent:bot", True, "ops", "why", 1),
        BudgetAdjusted(1.0, "agent:bot|usd|day|all", -5, 3, "ops", "refunded"),
        ChildStarted(1.0, "curl", BOT, "start it with agentguard run"),
        GuardDisabled(1.0, "AGENTGUARD_DISABLED"),
    ]


EVERY_KIND = _every_kind()


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: type(event).__name__)
def test_every_record_fits_a_line(event):
    text = _line.line(record_of(event))

    assert text.isprintable() or "\x1b" in text
    assert "\n" not in text

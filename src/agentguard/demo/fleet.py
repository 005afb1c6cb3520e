"""Act 6: four processes with one budget in Redis, and an operator who stops an agent in all of them.

Each process has a guard of its own, which meets the others in the store only. The operator has the commands that a user has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from agentguard.context import own_traffic
from agentguard.demo.crew import Crew
from agentguard.demo.fact import Fact
from agentguard.demo.member import CALLS, RACER, READER
from agentguard.demo.redis_server import PROGRAMS, RedisServer, find_program
from agentguard.demo.tape import Line
from agentguard.testing import Reply

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentguard.demo.stage import Stage

PROCESSES = 4
ROOM = 10

_SECONDS = 60
_SECONDS_TO_SETTLE = 5.0
_SECONDS_TO_CUT = 5.0
_SECONDS_OF_THE_CONTROL = 0.5
_STALLS = 600.0


def fleet(stage: Stage) -> list[Fact]:
    """Let the processes race, then stop the agent whose streams they read; ask the provider what it has seen of it."""
    if reason := _missing():
        stage.tape.show(Line(time.time(), RACER, "not played", "a fleet", "warn", message=reason))
        return []
    with RedisServer(stage.folder) as server:
        policy = stage.folder / "fleet.yaml"
        policy.write_text(policy_with(server.url))
        with Crew(stage, PROCESSES, policy if stage.is_guarded else None) as crew:
            crew.hear()
            crew.ask("call")  # each has called once, so in the race none is late because it has still something to load
            stage.clear()
            return [*race(stage, crew), *isolation(stage, crew, policy)]


def policy_with(store: str) -> str:
    """The policy of the fleet. What its processes share is named here, and nowhere else."""
    return f"""\
version: 1
fleet: demo
store: {store}
defaults:
  external_calls:
    allowed_domains: [llm.demo.test]
    blocked_domains: ["*"]
    allow_private: true # the demo's servers stand on loopback
agents:
  - name: {RACER}
    budgets:
      - limit: 10400 tokens # room for ten calls of 1,000
        per: fleet
  - name: {READER}
"""


def race(stage: Stage, crew: Crew) -> list[Fact]:
    """All calls at once, with room for ten."""
    stage.provider.reply(Reply(output_tokens=500, delay=0.1))
    refused = crew.ask("race")
    stage.settle()
    calls, tokens = stage.provider.calls, stage.provider.tokens
    everyone = PROCESSES * CALLS
    facts = [
        Fact(
            claim=f"{everyone} calls of {PROCESSES} processes, room for {ROOM}",
            measured=f"{calls} arrived, {refused} refused",
            holds=(calls, refused) == (ROOM, everyone - ROOM),
        )
    ]
    if stage.is_guarded:
        charged = _charged(crew, tokens)
        measured = f"{charged:,} charged, {tokens:,} served"
        facts.append(Fact(claim="Redis counts what the provider counts", measured=measured, holds=charged == tokens))
    stage.provider.reply(Reply())
    stage.clear()
    return facts


def isolation(stage: Stage, crew: Crew, policy: Path) -> list[Fact]:
    """Stop the agent while each process reads a stream that has stalled; later, let it go on."""
    provider = stage.provider
    provider.reply(Reply(output_tokens=500, chunk_delay=_STALLS))
    crew.ask("read")
    provider.reply(Reply())
    stopped = _operate(stage, "isolate", policy, "drill")
    _wait(_SECONDS_TO_CUT if stage.is_guarded else _SECONDS_OF_THE_CONTROL, lambda: _cut(stage) == PROCESSES)
    cut, calls = _cut(stage), provider.calls
    crew.ask("call")
    more = provider.calls - calls
    facts = [
        Fact(
            claim=f"isolate cuts {PROCESSES} stalled streams",
            measured=f"{cut} cut, {_confirmed(stopped)}",
            holds=cut == PROCESSES == len(stopped["confirmed"]),
        ),
        Fact(claim="no further call arrives", measured=f"{more} of {PROCESSES} arrived", holds=more == 0),
    ]
    if stage.is_guarded:
        facts.append(restoration(stage, crew, policy))
    return facts


def restoration(stage: Stage, crew: Crew, policy: Path) -> Fact:
    """Let the agent go on, and have one process call."""
    calls = stage.provider.calls
    _operate(stage, "restore", policy, "it was a drill")
    crew.ask("call", of=1)
    again = stage.provider.calls - calls
    return Fact(claim="once restored, a call goes again", measured=f"{again} of 1 arrived", holds=again == 1)


def _charged(crew: Crew, tokens: int) -> int:
    """What the ledger says is spent. Processes settle when they have read the answer, a moment after it was sent."""
    _wait(_SECONDS_TO_SETTLE, lambda: crew.ask("count", of=1) == tokens)
    return crew.ask("count", of=1)


def _operate(stage: Stage, verb: str, policy: Path, why: str) -> dict[str, Any]:
    """Run an operator's command, and show it."""
    began = time.time()
    options = ["--why", why, "--policy", str(policy), "--wait", "10s", "--json"]
    command = [sys.executable, "-m", "agentguard.cli", verb, READER, *options]
    with own_traffic():  # the stage's own hand, not an agent's child
        ran = subprocess.run(command, stdout=subprocess.PIPE, timeout=_SECONDS, check=False)  # noqa: S603 - as written above
    done: dict[str, Any] = json.loads(ran.stdout)
    stage.tape.show(Line(began, "operator", verb, READER, "done", _confirmed(done)))
    return done


def _confirmed(answer: dict[str, Any]) -> str:
    """Who has confirmed what an operator did."""
    confirmed, missing = len(answer["confirmed"]), len(answer["missing"])
    return f"{confirmed} of {confirmed + missing} confirm, {answer['seconds'] * 1000:.0f} ms"


def _missing() -> str:
    """Why there is no Redis here, and how to get one; empty where there is."""
    if os.name != "posix":
        return "It forks its processes, which this system cannot."
    if find_program() is None:
        return f"It needs {' or '.join(PROGRAMS)}: apt install redis-server, brew install redis."
    return "" if find_spec("redis") else "It needs the package redis: pip install 'agentguard[redis]'."


def _cut(stage: Stage) -> int:
    return sum(request.client_disconnected for request in stage.provider.requests)


def _wait(seconds: float, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.005)

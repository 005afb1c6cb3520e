"""Act 5: a program leaves by five ways, the last of which no library sees, and by a child process. The kernel holds it.

It plays in a process of its own, under `agentguard run --egress kernel`; the control runs the same program bare.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentguard.context import own_traffic
from agentguard.demo import leak
from agentguard.demo.fact import Fact
from agentguard.demo.stage import SECRET, carries_secret
from agentguard.demo.tape import Line

if TYPE_CHECKING:
    from agentguard.demo.stage import Stage

_AGENT = "leaker"
_SECONDS = 60


def ways_out(stage: Stage) -> list[Fact]:
    """Run the program, and read in the servers' logs what arrived."""
    if stage.is_guarded and (reason := _missing()):
        stage.tape.show(Line(time.time(), _AGENT, "not played", "the kernel", "warn", reason))
        return []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((stage.attacker.host, stage.attacker.port))
        datagrams.setblocking(False)
        outcomes = _run(stage)
        stage.settle()
        arrived = {request.path.strip("/") for request in stage.attacker.requests if carries_secret(request)}
        if _has_secret(datagrams):
            arrived.add("datagram")
    if stage.is_guarded:
        explained = _explained(stage)
        for outcome in outcomes:
            stage.tape.show(_line(outcome, explained))
    reached = f"{len(arrived)} of {len(leak.WAYS)} reach it"
    return [
        Fact(claim="five ways out, and a child process", measured=reached, holds=not arrived),
        Fact(
            claim="what is allowed works below HTTP too",
            measured=f"{stage.kb.calls} of 2 calls answered",
            holds=stage.kb.calls == 2,
            is_about_guard=True,
        ),
    ]


def _run(stage: Stage) -> list[dict[str, Any]]:
    """What the program says of its ways."""
    places = [stage.attacker.host, stage.attacker.port, stage.kb.host, stage.kb.port]
    command = [sys.executable, str(Path(leak.__file__)), SECRET, *map(str, places)]
    if stage.is_guarded:
        policy = stage.folder / "leaker.yaml"
        policy.write_text(
            f"agent_config:\n  name: {_AGENT}\n  external_calls:\n"
            f'    allowed_domains: ["{stage.kb.host}:{stage.kb.port}"]\n    blocked_domains: ["*"]\n'
        )
        guarded = [sys.executable, "-m", "agentguard.cli", "run", "--policy", str(policy), "--egress", "kernel", "--"]
        command = [*guarded, *command]
    with own_traffic():  # the stage's own hand, not an agent's child
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603 - as written above
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _line(outcome: dict[str, Any], explained: str) -> Line:
    refused: str = outcome["refused"]
    target = "paste.evil.test" if outcome["to"] == "attacker" else "kb.demo.test"
    line = Line(time.time(), _AGENT, outcome["way"], target, "deny" if refused else "allow")
    kind, _, message = refused.partition(": ")
    if not refused:
        return line
    if kind == "EgressDenied":
        return line._replace(detail="in process", note=kind, message=message)
    return line._replace(detail="by the kernel", note="the boundary", message=explained)


def _explained(stage: Stage) -> str:
    """What the supervisor has written down of its first refusal: a program is told no more than an error number."""
    for log in sorted((stage.folder / "egress").glob("*.jsonl")):
        for entry in map(json.loads, log.read_text().splitlines()):
            if entry["event"] == "refused":
                what = f"{entry['program']!r} may not {entry['what']} to {entry['host']}:{entry['port']}"
                return f"{what}: {entry['why']}.\n  {entry['remedy']}"
    return ""


def _has_secret(datagrams: socket.socket) -> bool:
    try:
        return SECRET.encode() in datagrams.recv(4096)
    except BlockingIOError:
        return False


def _missing() -> str:
    """Why the kernel cannot hold a program here; empty where it can."""
    from agentguard.egress.kernel.activate import availability

    return availability()

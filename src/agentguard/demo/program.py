"""The demo as a whole: set the stage, play the acts, and say what was measured."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import agentguard
from agentguard.demo.acts import ACTS
from agentguard.demo.collector import complaints, why_unsent
from agentguard.demo.stage import Stage, plain_environment
from agentguard.demo.tape import Tape
from agentguard.errors import AgentGuardError
from agentguard.policy.load import from_file

if TYPE_CHECKING:
    from collections.abc import Collection

    from agentguard.demo.acts import Act
    from agentguard.demo.fact import Fact
    from agentguard.demo.screen import Screen
    from agentguard.policy import Policy
    from agentguard.testing.server import LoopbackServer

SERVICE = "agentguard-demo"
_PACE_SECONDS = 0.15


class SDKMissing(AgentGuardError):
    """A client that the demo plays with is not installed; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        is_guarded: False for the control.
        facts: What was measured.
        by_act: The same, by the name of the act.
        seconds: How long it took.
        otlp: Where traces were to go; None when nowhere.
        unsent: Why they did not arrive there; empty when they did.
    """

    is_guarded: bool
    by_act: dict[str, list[Fact]]
    seconds: float
    otlp: str | None = None
    unsent: str = ""

    @property
    def facts(self) -> list[Fact]:
        """What was measured, in order."""
        return [fact for facts in self.by_act.values() for fact in facts]

    @property
    def ok(self) -> bool:
        """Whether every claim holds; of the control, whether every claim fails."""
        return bool(self.facts) and all(fact.holds == self.is_guarded for fact in self.facts)

    @property
    def verdict(self) -> str:
        """What it comes to, in a sentence."""
        held, all_of_them = sum(fact.holds for fact in self.facts), len(self.facts)
        took = f"{self.seconds:.1f} s"
        if not self.facts:
            return f"Nothing was measured. ({took})"
        if self.is_guarded:
            return (
                f"All {all_of_them} claims hold. ({took})"
                if self.ok
                else f"{all_of_them - held} of {all_of_them} claims DO NOT HOLD. ({took})"
            )
        if self.ok:
            return f"The control leaks, as it has to: none of the {all_of_them} claims holds. ({took})"
        return f"The control is no control: {held} of {all_of_them} claims hold without a guard. ({took})"

    @property
    def hints(self) -> list[str]:
        """What to do next."""
        if self.otlp is not None and self.unsent:
            return [
                f"Traces could NOT be sent to {self.otlp}: {self.unsent}.",
                "Start a collector there, such as Jaeger, and play again.",
            ]
        if self.otlp is not None:
            return [
                f"Traces were sent to {self.otlp} as service {SERVICE!r}.",
                "In Jaeger (http://localhost:16686): choose that service; what was refused has the tag agentguard.decision=deny.",
            ]
        if self.is_guarded:
            return [
                "The same without the guard: agentguard demo --no-guard",
                "In Jaeger: agentguard demo --otlp http://localhost:4318",
            ]
        return []


def run(screen: Screen, *, guard: bool = True, fast: bool = False, otlp: str | None = None, only: str | None = None) -> Report:
    """Play the acts.

    Args:
        screen: Where it is shown.
        guard: False plays the control: the same acts, without a guard.
        fast: Leave out the rests that let a spectator follow.
        otlp: Where to send traces: `http://localhost:4318`, or port 4317 for gRPC.
        only: The name of one act.

    Raises:
        SDKMissing: openai or anthropic is not installed.
    """
    _require_sdks()
    acts = [act for act in ACTS if only in {None, act.name}]
    began = time.monotonic()
    with ExitStack() as undo:
        state = undo.enter_context(tempfile.TemporaryDirectory(prefix="agentguard-demo-", ignore_cleanup_errors=True))
        undo.enter_context(plain_environment({"AGENTGUARD_STATE_DIR": state, **(_otlp_settings(otlp) if otlp else {})}))
        tape = Tape(screen.line)
        pace = 0.0 if fast else _PACE_SECONDS
        heard = undo.enter_context(complaints())
        stage = undo.enter_context(Stage(tape, pace, Path(state), screen.end_of_scene, None if guard else screen.line))
        policy = demo_policy()
        screen.opening(_title(guard=guard), _notes(stage, policy if guard else None))
        if guard:
            undo.enter_context(agentguard.instrument(policy, store="memory://", observers=[tape]))
        by_act = {act.name: _play(act, number, stage, screen, is_guarded=guard) for number, act in enumerate(acts, 1)}
    seconds = time.monotonic() - began
    unsent = why_unsent(otlp, heard) if otlp and guard else ""
    report = Report(is_guarded=guard, by_act=by_act, seconds=seconds, otlp=otlp if guard else None, unsent=unsent)
    screen.closing(report)
    return report


def demo_policy() -> Policy:
    """The policy that ships with the demo."""
    return from_file("policy.yaml", files("agentguard.demo").joinpath("policy.yaml").read_bytes())


def _play(act: Act, number: int, stage: Stage, screen: Screen, *, is_guarded: bool) -> list[Fact]:
    screen.act(number, act)
    facts = act.play(stage)
    stage.clear()
    return [fact for fact in facts if is_guarded or not fact.is_about_guard]


def _require_sdks() -> None:
    missing = [name for name in ("openai", "anthropic") if find_spec(name) is None]
    if missing:
        raise SDKMissing(
            f"the demo plays with the published clients, and {' and '.join(missing)} cannot be imported: "
            f"pip install {' '.join(missing)}"
        )


def _otlp_settings(url: str) -> dict[str, str]:
    protocol = "grpc" if url.rstrip("/").endswith(":4317") else "http/protobuf"
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRICS_EXPORTER": "none",  # Jaeger takes traces only
        "OTEL_SERVICE_NAME": SERVICE,
    }


def _title(*, guard: bool) -> str:
    if guard:
        return "agentguard demo: every call is judged before it leaves"
    return "agentguard demo, the control: the same program WITHOUT the guard"


def _notes(stage: Stage, policy: Policy | None) -> list[tuple[str, str]]:
    servers = f"llm.demo.test {_at(stage.provider)}, kb.demo.test {_at(stage.kb)}, paste.evil.test {_at(stage.attacker)}"
    rules = (
        f"{len(policy.agents)} agents, each with a budget; paste.evil.test is not an allowed host" if policy else "none in force"
    )
    return [
        ("clients", f"{_versions(('openai', 'anthropic', 'httpx2'))}, as published"),
        ("servers", f"{servers}, all real"),
        ("policy", rules),
    ]


def _versions(names: Collection[str]) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _at(server: LoopbackServer) -> str:
    return f"{server.host}:{server.port}"

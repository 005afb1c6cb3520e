"""The acts, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agentguard.demo.exfiltrate import exfiltrate
from agentguard.demo.fleet import fleet
from agentguard.demo.race import race
from agentguard.demo.stream_cut import stream_cut
from agentguard.demo.traffic import traffic
from agentguard.demo.ways_out import ways_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.demo.fact import Fact
    from agentguard.demo.stage import Stage


@dataclass(frozen=True, slots=True)
class Act:
    """One act.

    Attributes:
        name: What `--act` calls it.
        play: Plays it, and returns what was measured.
        says: What a spectator is told before it.
        folds: Whether lines that differ in their time only are shown as one, with their number.
    """

    name: str
    play: Callable[[Stage], list[Fact]]
    says: str
    folds: bool = False


ACTS = (
    Act("traffic", traffic, "Three agents work: openai and anthropic, plain, streamed and in asyncio."),
    Act("exfiltrate", exfiltrate, "A prompt injection has a tool post a secret to paste.evil.test, every way."),
    Act("race", race, "Fifty threads, then fifty asyncio tasks; the budget has room for ten calls.", folds=True),
    Act("stream-cut", stream_cut, "A provider ignores max_tokens; then a reader leaves a stream early."),
    Act("ways-out", ways_out, "A program tries five ways out, and a child process. The kernel holds it."),
    Act("fleet", fleet, "Four processes share a budget for ten calls; then a command stops all four.", folds=True),
)

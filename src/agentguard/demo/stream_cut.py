"""Act 4: a provider that ignores the bound it was given, and a reader that leaves a stream early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard import BudgetExceeded, agent
from agentguard.demo.fact import Fact
from agentguard.testing import Reply

if TYPE_CHECKING:
    from agentguard.demo.stage import Stage

BUDGET = 2_000
"""What the policy gives the novelist, in tokens."""

TOLD = 5_000
"""What the provider streams, whatever it was asked for."""

CHUNK = 50
LEAVES_AFTER = 100
TOLERANCE = 0.10


def stream_cut(stage: Stage) -> list[Fact]:
    """Read a stream that outgrows its budget, try once more, and leave another stream early."""
    stage.provider.reply(Reply(output_tokens=TOLD, ignore_max_tokens=True, chunks=TOLD // CHUNK, chunk_delay=0.02))
    write_novel(stage)
    stage.settle()
    sent, calls = stage.provider.tokens, stage.provider.calls
    stage.provider.reply(Reply())
    write_novel(stage)
    stage.settle()
    more = stage.provider.calls - calls
    stage.clear()
    return [
        Fact(
            claim=f"a stream of {TOLD:,} is cut at {BUDGET:,}",
            measured=f"{sent:,} sent",
            holds=0 < sent <= BUDGET + CHUNK,
        ),
        Fact(claim="the next call does not arrive", measured=f"{more} arrived", holds=more == 0),
        leaving(stage),
    ]


@agent("novelist")
def write_novel(stage: Stage) -> int:
    """Stream a novel. How many chunks were read before it was cut."""
    chunks = 0
    try:
        for _ in stage.openai_client().chat.completions.create(
            model="gpt-5-mini",
            max_completion_tokens=1_000,
            stream=True,
            messages=[{"role": "user", "content": "A novel, please."}],
        ):
            chunks += 1
    except BudgetExceeded:
        pass  # raised out of the loop that reads; what was read before stays read
    return chunks


def leaving(stage: Stage) -> Fact:
    """Leave a stream early. What was delivered is charged, though the provider never reported it."""
    stage.provider.reply(Reply(output_tokens=TOLD, chunks=TOLD // 5, chunk_delay=0.004))
    skim(stage)
    stage.settle()
    stage.provider.reply(Reply())
    sent, charged = stage.provider.tokens, sum(event.usage.total_tokens for event in stage.tape.llm_calls)
    return Fact(
        claim="a stream left early is charged",
        measured=f"{charged:,} charged, {sent:,} sent",
        holds=0 < sent < TOLD and abs(charged - sent) <= TOLERANCE * sent,
        is_about_guard=True,
    )


@agent("researcher")
def skim(stage: Stage) -> None:
    """Read the beginning of a stream, and leave."""
    with stage.anthropic_client().messages.stream(
        model="claude-haiku-4-5", max_tokens=TOLD, messages=[{"role": "user", "content": "All you know."}]
    ) as stream:
        for number, _ in enumerate(stream.text_stream):
            if number == LEAVES_AFTER:
                break

"""Act 3: fifty callers at once, and a budget for ten of them. Never an eleventh, and all ten are served."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from agentguard import BudgetExceeded, agent
from agentguard.demo.fact import Fact
from agentguard.testing import Reply, text_of

if TYPE_CHECKING:
    from agentguard.demo.stage import Stage

CALLERS = 50
ROOM = 10
"""The policy gives each racer 10,400 tokens, and a call uses 1,000."""

PROMPT = text_of(500)


def race(stage: Stage) -> list[Fact]:
    """Race in threads, then in asyncio, and ask the provider whom it has served."""
    stage.provider.reply(Reply(output_tokens=500, delay=0.1))
    facts = _facts(stage, "threads", in_threads(stage))
    stage.clear()
    facts += _facts(stage, "asyncio tasks", asyncio.run(in_asyncio(stage)))
    stage.provider.reply(Reply())
    return facts


def _facts(stage: Stage, callers: str, refused: int) -> list[Fact]:
    stage.settle()
    served, tokens = stage.provider.served, stage.provider.tokens
    charged = sum(event.usage.total_tokens for event in stage.tape.llm_calls)
    return [
        Fact(
            claim=f"{CALLERS} {callers}, budget for {ROOM} calls",
            measured=f"{served} served, {refused} refused",
            holds=(served, refused) == (ROOM, CALLERS - ROOM),
        ),
        Fact(
            claim="the ledger equals the provider's",
            measured=f"{charged:,} charged, {tokens:,} served",
            holds=charged == tokens,
            is_about_guard=True,
        ),
    ]


def in_threads(stage: Stage) -> int:
    """Fifty threads, one call each. How many were refused."""
    client = stage.openai_client()
    refused = []

    @agent("racer-threads")  # a thread starts without identity, so it enters the agent itself
    def call() -> None:
        try:
            client.chat.completions.create(
                model="gpt-5-mini", max_completion_tokens=500, messages=[{"role": "user", "content": PROMPT}]
            )
        except BudgetExceeded as denied:
            refused.append(denied)

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(refused)


@agent("racer-asyncio")
async def in_asyncio(stage: Stage) -> int:
    """Fifty tasks, one call each. How many were refused."""
    async with stage.async_openai_client() as client:

        async def call() -> None:
            await client.chat.completions.create(
                model="gpt-5-mini", max_completion_tokens=500, messages=[{"role": "user", "content": PROMPT}]
            )

        outcomes = await asyncio.gather(*(call() for _ in range(CALLERS)), return_exceptions=True)
    unexpected = [
        outcome for outcome in outcomes if isinstance(outcome, BaseException) and not isinstance(outcome, BudgetExceeded)
    ]
    if unexpected:
        raise unexpected[0]
    return sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes)

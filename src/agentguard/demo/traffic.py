"""Act 1: three agents at their normal work, over both SDKs, streaming and not. Nothing is in the way of any of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx2

from agentguard import agent, session, tool
from agentguard.demo.fact import Fact
from agentguard.testing import Reply

if TYPE_CHECKING:
    from agentguard.demo.stage import Stage


def traffic(stage: Stage) -> list[Fact]:
    """Have the agents work, then compare what the guard has seen with what the provider has served."""
    for number in range(2):
        with session(user=f"u-{17 + number}"):
            research(stage)
            support(stage)
        asyncio.run(report(stage))
    stage.settle()
    seen, provider = stage.tape.llm_calls, stage.provider
    tokens = sum(event.usage.total_tokens for event in seen)
    return [
        Fact(
            claim="every LLM call is seen",
            measured=f"{len(seen)} seen, {provider.served} served",
            holds=len(seen) == provider.served > 0,
            is_about_guard=True,
        ),
        Fact(
            claim="every token is charged",
            measured=f"{tokens:,} charged, {provider.tokens:,} served",
            holds=tokens == provider.tokens > 0,
            is_about_guard=True,
        ),
    ]


@agent("researcher")
def research(stage: Stage) -> None:
    """Ask, look something up, and stream an answer: openai."""
    client = stage.openai_client()
    stage.provider.reply_next(Reply(output_tokens=120), Reply(output_tokens=400, chunks=20))
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "What is known about X?"}])
    stage.rest()
    search(stage, "X")
    stage.rest()
    for _ in client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Sum it up."}], stream=True):
        pass
    stage.rest()


@tool
def search(stage: Stage, words: str) -> str:
    """Search the knowledge base, with a plain HTTP client."""
    return httpx2.get(stage.kb_url("/search"), params={"q": words}).text


@agent("support-bot")
def support(stage: Stage) -> None:
    """Read a ticket and answer it: anthropic, streamed."""
    client = stage.anthropic_client()
    stage.provider.reply_next(Reply(output_tokens=90), Reply(output_tokens=250, chunks=20))
    ticket = read_ticket(stage, 4711)
    client.messages.create(
        model="claude-haiku-4-5", max_tokens=300, messages=[{"role": "user", "content": f"Classify: {ticket}"}]
    )
    stage.rest()
    with client.messages.stream(
        model="claude-sonnet-4-5", max_tokens=800, messages=[{"role": "user", "content": f"Answer: {ticket}"}]
    ) as stream:
        stream.get_final_message()
    stage.rest()


@tool
def read_ticket(stage: Stage, number: int) -> str:
    """Read a ticket from the allowed API."""
    return httpx2.get(stage.kb_url(f"/tickets/{number}")).text


@agent("report-bot")
async def report(stage: Stage) -> None:
    """Three things at once, in asyncio: the Responses API, and embeddings."""
    async with stage.async_openai_client() as client:
        await asyncio.gather(
            client.responses.create(model="gpt-5-mini", input="The week in one paragraph."),
            client.responses.create(model="gpt-5-mini", input="The week in one sentence."),
            client.embeddings.create(model="text-embedding-3-small", input=["tickets", "answers"]),
        )
    stage.rest()

"""A guarded program whose counters live in Redis: the server is agentguard's own endpoint, which no policy has to name."""

from __future__ import annotations

import asyncio

import openai
import pytest

import agentguard
from agentguard.context import own_traffic
from agentguard.testing import Provider, Reply

from ..stores.redis_server import Server  # noqa: TID252 - a server that two folders of tests start

pytestmark = pytest.mark.needs("redis-server")

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server():
    running = Server()
    yield running
    running.kill()


@pytest.fixture
def provider():
    with Provider() as running:
        yield running


@pytest.fixture
def guarded(server, provider, monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    bot = {
        "name": "bot",
        "llm": {"models": ["gpt-*"]},
        "external_calls": {"allowed_domains": [f"127.0.0.1:{provider.port}"], "blocked_domains": ["*"]},
        "budgets": [{"limit": "10400 tokens"}],
    }
    policy = agentguard.Policy.from_mapping({"version": 1, "fleet": "test", "agents": [bot]})
    with agentguard.instrument(policy, store=f"{server.url}?timeout=5") as installed:
        yield installed.guard


def test_of_fifty_tasks_ten_reach_the_provider(guarded, provider):
    provider.reply(Reply(input_tokens=20, output_tokens=980))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test", max_retries=0) as client:

            async def call():
                await client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=980)

            return await asyncio.gather(*(call() for _ in range(50)), return_exceptions=True)

    outcomes = asyncio.run(main())

    assert sum(isinstance(outcome, agentguard.BudgetExceeded) for outcome in outcomes) == 40, outcomes
    assert provider.calls == 10
    [(_, balance)] = guarded.usage()
    assert (balance.spent, balance.held) == (10_000, 0)


def test_after_the_server_has_lost_its_memory_a_call_goes_again_and_what_was_spent_still_counts(guarded, provider, server):
    client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", max_retries=0)

    def call():
        client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=50)

    call()
    guarded.flush()
    [(_, before)] = guarded.usage()
    server.kill()
    with own_traffic():  # the test's own look at the server
        server.start()

    for _ in range(100):
        try:
            call()
        except (agentguard.BudgetExceeded, agentguard.StoreUnavailable):
            asyncio.run(asyncio.sleep(0.1))
        else:
            break
    else:
        pytest.fail("no call goes any more")

    guarded.flush()
    [(_, after)] = guarded.usage()
    assert before.spent > 0
    assert after.spent == 2 * before.spent

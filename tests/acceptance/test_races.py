"""Fifty callers, room for ten: ten reach the provider, whoever races."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest

from agentguard import BudgetExceeded
from agentguard.events import CallDenied
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import Reply

CALLERS = 50
CALL = 1000
"""Tokens of one call: a prompt of 100, an answer of 900."""

BUDGETS = [("10400 tokens", {10}), ("10000 tokens", {9, 10})]
"""The estimate of a prompt is a high one, so the tenth call needs a little room that it does not use."""

RACER = Path(__file__).with_name("racer.py")


@pytest.fixture
def provider(provider):
    provider.reply(Reply(output_tokens=900, delay=0.005))
    return provider


def race(callers, call):
    """Let every caller make one call at the same moment; returns what became of them."""
    barrier = threading.Barrier(callers)
    results = []

    def run():
        barrier.wait()
        try:
            call()
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            results.append(error)
        else:
            results.append(None)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a caller hangs"
    return results


def check(results, provider, guarded, admitted):
    served = results.count(None)
    refused = [error for error in results if error is not None]
    assert len(results) == CALLERS
    assert {type(error) for error in refused} <= {BudgetExceeded}, refused
    assert served in admitted
    assert provider.calls == provider.served == served
    assert guarded.spent() == provider.tokens == served * CALL
    assert len(guarded.told(CallDenied)) == len(refused)


def test_without_a_guard_all_fifty_reach_the_provider(provider, openai_client, messages):
    results = race(CALLERS, lambda: openai_client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900))

    assert results == [None] * CALLERS
    assert provider.calls == CALLERS


@pytest.mark.parametrize(("budget", "admitted"), BUDGETS)
def test_of_fifty_bare_threads_ten_reach_the_provider(provider, guarded, openai_client, messages, budget, admitted):
    one = guarded(budget)

    results = race(CALLERS, lambda: openai_client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900))

    check(results, provider, one, admitted)


@pytest.mark.parametrize(("budget", "admitted"), BUDGETS)
def test_of_fifty_calls_in_a_thread_pool_ten_reach_the_provider(provider, guarded, openai_client, messages, budget, admitted):
    from agentguard import agent, propagate

    one = guarded(budget)
    results = []

    def call():
        try:
            openai_client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900)
        except BudgetExceeded as error:
            results.append(error)
        else:
            results.append(None)

    with agent("worker"), ThreadPoolExecutor(CALLERS) as pool:
        for _ in range(CALLERS):
            pool.submit(propagate(call))

    check(results, provider, one, admitted)


@pytest.mark.parametrize(("budget", "admitted"), BUDGETS)
def test_of_fifty_anthropic_calls_ten_reach_the_provider(provider, guarded, anthropic_client, messages, budget, admitted):
    one = guarded(budget)

    results = race(CALLERS, lambda: anthropic_client.messages.create(model="claude-sonnet-5", messages=messages, max_tokens=900))

    check(results, provider, one, admitted)


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize(("budget", "admitted"), BUDGETS)
def test_of_fifty_tasks_ten_reach_the_provider(provider, guarded, messages, budget, admitted, store, tmp_path):
    one = guarded(budget, store=None if store == "memory" else SqliteStore(tmp_path / "ledger.sqlite"))

    async def main():
        async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            calls = [client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900) for _ in range(CALLERS)]
            return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)

    results = [error if isinstance(error, Exception) else None for error in asyncio.run(main())]

    check(results, provider, one, admitted)


def test_of_fifty_calls_in_four_processes_ten_reach_the_provider(provider, tmp_path):
    command = [sys.executable, str(RACER), provider.url("/v1")]
    environment = os.environ | {"AGENTGUARD_STATE_DIR": str(tmp_path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with ExitStack() as stack:
        racers = [stack.enter_context(subprocess.Popen([*command, share], **pipes)) for share in ("13", "13", "12", "12")]
        for number, (budget, admitted) in enumerate(BUDGETS):
            provider.clear()
            ledger = tmp_path / f"{number}.sqlite"
            ask(racers, f"{ledger} {budget}")
            results = [result for told in ask(racers, "go") for result in told.split()]

            assert len(results) == CALLERS
            assert set(results) <= {"served", "BudgetExceeded"}
            assert provider.calls == results.count("served")
            assert results.count("served") in admitted
            assert ledger_of(ledger) == (provider.tokens, 0)


def ask(racers, line):
    """Say a line to every process, and return what each answers."""
    for racer in racers:
        racer.stdin.write(f"{line}\n")
        racer.stdin.flush()
    return [racer.stdout.readline() for racer in racers]


def ledger_of(path):
    store = SqliteStore(path)
    [(_, balance)] = store.rows()
    store.close()
    return balance.spent, balance.held


@pytest.mark.parametrize("budget", ["10400 tokens", "10000 tokens"])
def test_of_twenty_calls_in_a_row_none_is_sent_after_the_budget_is_spent(provider, guarded, openai_client, messages, budget):
    one = guarded(budget)
    outcomes = []

    for _ in range(20):
        try:
            openai_client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900)
        except BudgetExceeded:
            outcomes.append("refused")
        else:
            outcomes.append("served")

    assert outcomes == ["served"] * provider.calls + ["refused"] * (20 - provider.calls)
    assert provider.calls in {9, 10}
    assert one.spent() == provider.tokens <= one.guard.usage()[0][1].amount


def test_calls_without_a_bound_of_their_own_never_pass_the_budget(provider, guarded, openai_client, messages):
    one = guarded("10000 tokens")
    provider.reply(Reply(output_tokens=100_000, delay=0.005))

    results = race(10, lambda: openai_client.chat.completions.create(model="gpt-4.1", messages=messages))

    assert None in results
    assert {type(error) for error in results} <= {type(None), BudgetExceeded}
    assert one.spent() == provider.tokens <= 10_000

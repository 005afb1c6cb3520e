"""The garbage collector may end streams in the middle of anything: nothing deadlocks, nothing is lost or settled twice.

A stream that is left by a bare `break` is a cycle. Whoever allocates next may collect it, whatever locks it holds.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import anthropic
import openai
import pytest

import agentguard
from agentguard import BudgetExceeded
from agentguard.events import CallAdmitted, CallSettled
from agentguard.stores.sqlite import SqliteStore
from agentguard.testing import Reply

OURS = str(Path(agentguard.__file__).parent)
SERVER = f"{OURS}/testing"
HELLO = [{"role": "user", "content": "hello"}]
SHORT = Reply(output_tokens=20)


@contextmanager
def collecting(every=1):
    """Collect at every call that our code makes or takes, in every thread started meanwhile.

    Only there: inside of the SDKs' own HTTP pools a collection deadlocks without us too. What exists before is frozen, so that
    a collection takes microseconds.
    """
    counts = {"seen": 0, "collected": 0, "is_over": False}

    def hook(frame, event, argument):
        if counts["is_over"]:
            sys.setprofile(None)
        elif event in {"call", "c_call"} and (file := frame.f_code.co_filename).startswith(OURS) and not file.startswith(SERVER):
            counts["seen"] += 1
            if counts["seen"] % every == 0:
                counts["collected"] += 1
                gc.collect()

    gc.collect()
    gc.freeze()
    gc.disable()
    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        yield counts
    finally:
        counts["is_over"] = True
        sys.setprofile(None)
        threading.setprofile(None)
        gc.enable()
        gc.unfreeze()
        gc.collect()


def check(one, calls):
    """Every call was settled once, and the ledger is their sum."""
    gc.collect()
    one.settle(20)
    settled = one.told(CallSettled)
    assert len({event.id for event in settled}) == len(settled) == len(one.told(CallAdmitted)) == calls
    assert sum(event.usage.total_tokens for event in settled) == one.spent()


def leave(stream, way):
    iterator = iter(stream)
    if way == 0:
        next(iterator)  # and the rest is garbage
    elif way == 1:
        for _ in iterator:
            break
    elif way == 2:
        next(iterator)
        stream.close()
    else:
        for _ in iterator:
            pass


def storm(provider, guarded, store, threads, rounds, every=1):
    """Threads that stream, and leave their streams in every way; returns how many calls were made."""
    provider.reply(SHORT)
    one = guarded("10000000 tokens", "4 concurrent_calls", store=store)
    errors = []
    made = []

    def run(number):
        for turn in range(rounds):
            try:
                made.append(number)
                stream = client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=50, stream=True)
                leave(stream, (number + turn) % 4)
                del stream
            except Exception as error:  # noqa: BLE001 - it is what is looked at
                errors.append(error)

    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
        run(3)  # what is built on first use is frozen too
        with collecting(every) as counts:
            workers = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join(90)
            assert not any(worker.is_alive() for worker in workers), "a thread hangs"
    assert errors == []
    assert counts["collected"] > 10 * len(made) / every
    check(one, len(made))


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_streams_that_the_collector_ends_inside_of_our_code_are_settled_once(backend, provider, guarded, tmp_path):
    storm(provider, guarded, SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else None, threads=4, rounds=4)


@pytest.mark.storm
@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_sixteen_threads_of_streams_that_the_collector_ends_inside_of_our_code(backend, provider, guarded, tmp_path):
    storm(
        provider, guarded, SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else None, threads=16, rounds=8, every=7
    )


async def consume(client, number):
    stream = await client.messages.create(model="claude-sonnet-5", messages=HELLO, max_tokens=50, stream=True)
    way = number % 4
    async for _ in stream:
        if way == 0:
            break
        if way == 1:
            asyncio.current_task().cancel()
            await asyncio.sleep(60)
        if way == 2:
            await stream.close()
            break


def astorm(provider, guarded, store, tasks):
    provider.reply(SHORT)
    one = guarded("10000000 tokens", "8 concurrent_calls", store=store)

    async def main():
        async with anthropic.AsyncAnthropic(base_url=provider.base_url, api_key="sk-test") as client:
            await consume(client, 3)  # what is built on first use is frozen too
            with collecting() as counts:
                for start in range(0, tasks, 8):
                    group = [consume(client, number) for number in range(start, start + 8)]
                    ended = await asyncio.wait_for(asyncio.gather(*group, return_exceptions=True), 60)
                    assert {type(end) for end in ended} <= {type(None), asyncio.CancelledError}
            return counts["collected"]

    assert asyncio.run(main()) > 10 * tasks
    check(one, tasks + 1)


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_tasks_that_are_cancelled_in_the_consumers_body_are_settled_once(backend, provider, guarded, tmp_path):
    astorm(provider, guarded, SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else None, 16)


@pytest.mark.storm
@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_many_tasks_that_are_cancelled_in_the_consumers_body(backend, provider, guarded, tmp_path):
    astorm(provider, guarded, SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else None, 96)


def test_a_budget_holds_while_the_collector_runs_everywhere(provider, guarded, openai_client, messages):
    one = guarded("3400 tokens")
    provider.reply(Reply(output_tokens=900))
    results = []

    def run():
        try:
            openai_client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900)
        except BudgetExceeded as error:
            results.append(error)
        else:
            results.append(None)

    with collecting():
        workers = [threading.Thread(target=run, daemon=True) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert len(results) == 8, "a thread hangs"

    assert results.count(None) == provider.calls == 3
    assert one.spent() == provider.tokens == 3000


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_a_stream_that_dies_while_its_own_guard_is_deciding_is_only_queued(backend, provider, guarded, tmp_path):
    """The one deadlock that was seen: a settlement inside of the collector, while the thread held the store's lock."""
    store = SqliteStore(tmp_path / "ledger.sqlite") if backend == "sqlite" else None
    one = guarded("100000 tokens", store=store)
    lock = one.guard.store._database._mutex if store else one.guard.store._lock
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:

        def leave_one():
            for _ in client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=50, stream=True):
                break

        gc.disable()
        try:
            leave_one()
            done = threading.Event()

            def decide():
                with lock:
                    gc.collect()
                done.set()

            threading.Thread(target=decide, daemon=True).start()
            assert done.wait(10), "it deadlocked"
        finally:
            gc.enable()

    check(one, 1)

"""How long an isolation takes to reach eight processes that share a store.

    python benchmarks/bench_isolation.py [store url] [rounds]

Each process hosts a guard and decides all the time: `paced`, every five milliseconds, or `busy`, computing in between, so that
eight of them fight for the machine. In `deaf` rounds the bells of SQLite are taken down, or the subscriptions of Redis are
killed, at the moment of the isolation: the listener has to find out by itself. Times run from just before `isolate` on the
operator's side (the clock is the machine's): until a process acts on it (`heard`), until its first refused decision (`refused`:
it may be pausing), and until the operator has read that all have confirmed. `floor` is what the machine takes in the same run to
wake eight idle processes by a pipe. Without a url a SQLite file is used; a Redis server needs `redis://host:port/0`, best with
`?timeout=2`: where eight processes compute for all they are worth, an answer may take longer than the 50 ms that a call waits.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.call import HTTPCall
from agentguard.core.isolation import IsolationMode
from agentguard.errors import AgentIsolated
from agentguard.fleet import await_confirmation, isolate, restore
from agentguard.guard import Guard
from agentguard.policy import Policy
from agentguard.stores import open_store
from agentguard.stores._bell import ISOLATION, Bell, ring

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentguard.stores.base import Isolation, Store

PROCESSES = 8
SUBJECT = "agent:bench"
CALL = HTTPCall.to("GET", "https://api.example.com/")
POLICY = {
    "agents": [
        {
            "name": "bench",
            "external_calls": {"allowed_domains": ["api.example.com"], "blocked_domains": ["*"]},
            "budgets": [{"limit": "1000000000 calls"}, {"limit": "100000000 calls", "every": "day"}],
        }
    ]
}
TARGETS_MS = {"paced": (5.0, 20.0), "busy": (None, 100.0), "deaf": (None, 50.0)}
"""The median and the longest of `heard` by all processes."""


class Heard(NamedTuple):
    """When a process acted on an isolation, and when it first refused a decision. Monotonic seconds."""

    heard: float
    refused: float


class TimedGuard(Guard):
    """A guard that notes when it has acted on an isolation."""

    heard = 0.0

    def _act_on(self, isolations: Mapping[str, Isolation]) -> None:
        is_news = SUBJECT in isolations and SUBJECT not in self.isolated
        super()._act_on(isolations)
        if is_news:
            self.heard = time.monotonic()


def work(url: str, kind: str) -> None:
    """Decide for ever; say when a decision is granted again, and at each isolation when it was heard of, and refused."""
    guard = TimedGuard(Policy.from_mapping(POLICY), store=open_store(url))
    is_free = False
    while True:
        try:
            guard.begin(CALL).settle()
            if not is_free:
                print("free", flush=True)
            is_free = True
        except AgentIsolated:
            if is_free:  # else it is the last isolation still
                tell(guard, time.monotonic())
            is_free = False
        if kind == "busy":
            sum(range(20_000))
        else:
            time.sleep(0.005)


def tell(guard: TimedGuard, refused: float) -> None:
    """Say when an isolation was heard of, and refused; then wait until it is over."""
    while guard.heard < refused - 10:
        time.sleep(0.001)
    print(json.dumps(Heard(guard.heard, refused)), flush=True)
    while SUBJECT in guard.isolated:
        time.sleep(0.001)
    guard.heard = 0.0


def idle(url: str) -> None:
    """Wait for a bell, and nothing else; say when it rang."""
    bell = Bell(url.removeprefix("sqlite://"))
    while True:
        if ISOLATION in bell.wait(1.0):
            print(json.dumps([time.monotonic()]), flush=True)


class Round(NamedTuple):
    """One isolation: for each process the time until it acted and until it refused, and that until all had confirmed."""

    heard: list[float]
    refused: list[float]
    confirmed: float


def run(url: str, kind: str, rounds: int) -> list[Round]:
    """Isolate and restore, a number of times."""
    command = [sys.executable, __file__, "work", url, kind]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    store = open_store(url)
    deafen = deafener(url)
    try:
        while len(store.members()) < PROCESSES:
            if any(worker.poll() is not None for worker in workers):
                raise SystemExit("a process has died")
            time.sleep(0.05)
        return [one_round(store, workers, deafen if kind == "deaf" else None) for _ in range(rounds)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        for member in store.members():
            store.leave(member.name)
        store.close()


def floor(rounds: int) -> list[float]:
    """The time to wake the last of eight idle processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "nothing")
        command = [sys.executable, __file__, "work", f"sqlite://{file}", "idle"]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
        while len(list(file.parent.iterdir())) < PROCESSES:
            time.sleep(0.05)
        taken = []
        for _ in range(rounds):
            time.sleep(0.1 + random.random() / 20)
            began = time.monotonic()
            ring(str(file), ISOLATION)
            taken.append(max(json.loads(worker.stdout.readline())[0] for worker in workers) - began)  # type: ignore[union-attr]  # a pipe
        for worker in workers:
            worker.kill()
            worker.wait()
        return taken


def deafener(url: str) -> Callable[[], object]:
    """What keeps every process from hearing of the next isolation."""
    if url.startswith("sqlite://"):
        file = Path(url.removeprefix("sqlite://"))
        return lambda: [bell.unlink() for bell in file.parent.glob(f"{file.name}.bell-*")]
    import redis

    client = redis.Redis.from_url(url.partition("?")[0])
    return lambda: client.client_kill_filter(_type="pubsub")


def one_round(store: Store, workers: list[subprocess.Popen[str]], deafen: Callable[[], object] | None) -> Round:
    """One isolation."""
    for worker in workers:
        worker.stdout.readline()  # type: ignore[union-attr]  # a pipe; it says that it is free
    time.sleep(0.1 + random.random() / 20)  # not in step with anybody's tick
    if deafen is not None:
        deafen()
    began = time.monotonic()
    done = isolate(store, SUBJECT, IsolationMode.BLOCK_ALL, by="bench", why="bench", now=time.time())
    said = await_confirmation(store, done.epoch, 5.0)
    confirmed = time.monotonic() - began
    if not said.is_complete:
        raise SystemExit(f"not confirmed by {said.missing}")
    told = [Heard(*json.loads(worker.stdout.readline())) for worker in workers]  # type: ignore[union-attr]  # a pipe
    restore(store, SUBJECT, by="bench", why="bench", now=time.time())
    return Round([one.heard - began for one in told], [one.refused - began for one in told], confirmed)


def at(share: float, values: list[float]) -> str:
    """A quantile, in milliseconds."""
    ordered = sorted(values)
    return f"{ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000:8.1f}"


def show(kind: str, measured: list[Round]) -> None:
    """Print one kind of rounds."""
    for name in ("heard", "refused"):
        of_one = [value for one in measured for value in getattr(one, name)]
        of_all = [max(getattr(one, name)) for one in measured]
        print(f"{kind:6} {name:10}{at(0.5, of_one)}{at(0.99, of_one)}    {at(0.5, of_all)}{at(1.0, of_all)}")
    confirmed = [one.confirmed for one in measured]
    median, longest = TARGETS_MS[kind]
    target = f"{f'p50 < {median:g}, ' if median else ''}max < {longest:g}"
    print(f"{kind:6} {'confirmed':10}{'':16}    {at(0.5, confirmed)}{at(1.0, confirmed)}    target for all who hear: {target} ms")


def main(url: str | None, rounds: int) -> None:
    """Measure every kind."""
    with tempfile.TemporaryDirectory() as folder:
        store_url = url or f"sqlite://{folder}/ledger.sqlite"
        print(f"{PROCESSES} processes, {rounds} isolations each, {store_url.partition(':')[0]}; milliseconds")
        print(f"{'':17}{'one p50':>8}{'p99':>8}    {'all p50':>8}{'max':>8}")
        idle_ones = floor(rounds)
        print(f"{'floor':17}{'':16}    {at(0.5, idle_ones)}{at(1.0, idle_ones)}")
        for kind in TARGETS_MS:
            show(kind, run(store_url, kind, rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"] and sys.argv[3] == "idle":
        idle(sys.argv[2])
    elif sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:4])
    else:
        urls = [argument for argument in sys.argv[1:] if "://" in argument]
        counts = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
        main(urls[0] if urls else None, counts[0] if counts else 30)

"""The other process, with slices: `leased_worker.py <what> <database or URL>`. It says `ready`, and starts at a line of input."""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from pathlib import Path

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import Reserve
from agentguard.stores.leased import LeasedStore
from agentguard.stores.redis import RedisStore
from agentguard.stores.sqlite import SqliteStore

ROWS = [
    LimitRow.of("fleet", Limit(amount=20_001, unit=Unit.TOKENS, window=Window("day"))),
    LimitRow.of("team:t", Limit(amount=20_003, unit=Unit.USD, window=Window("day"))),
    LimitRow.of("agent:a", Limit(amount=19_999, unit=Unit.TOKENS)),
    LimitRow.of("session:s", Limit(amount=10**9, unit=Unit.TOKENS, window=Window(seconds=3600.0))),
]
"""Of odd sizes: the third is the one that ends a race."""


def opened(place: str) -> RedisStore | SqliteStore:
    """What slices are taken of."""
    return RedisStore(place) if "://" in place else SqliteStore(Path(place))


def charges(amount: int) -> tuple[Charge, ...]:
    return tuple(Charge(row.key, amount) for row in ROWS)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def ready() -> None:
    say("ready")
    sys.stdin.readline()


def race(store: LeasedStore) -> None:
    """Use by mixed costs until the limit is spent, waiting for what others hold; says what was used, and how often."""
    dice = random.Random(os.getpid())
    used = 0
    held: dict[str, int] = {}
    names = map(f"{os.getpid()}-{{}}".format, itertools.count())

    def settle_one() -> int:
        name, amount = held.popitem()
        actual = dice.randint(0, amount)
        store.settle(name, Amounts(actual, actual))
        return actual

    ready()
    amount = 9
    count = 0
    while True:
        name = next(names)
        answer = store.reserve(Reserve(name, charges(amount)))
        if not isinstance(answer, Refused):
            held[name] = amount
            count += 1
            if len(held) > 5:
                used += settle_one()
            amount = dice.randint(1, 9)
        elif held:
            used += settle_one()
        elif answer.kind is RefusalKind.CONTENDED:
            time.sleep(0.002)  # what others have lying idle was recalled
        elif amount > 1:
            amount = 1  # nine may not fit where one does
        else:
            break
    store.close()
    say(used, count)


def storm(store: LeasedStore, log: str) -> None:
    """Reserve 10 and settle 4 for ever; before and after each step a line in a log that only grows."""
    with open(log, "a", buffering=1, encoding="ascii") as lines:  # noqa: PTH123 - line-buffered
        ready()
        for number in itertools.count():
            name = f"{os.getpid()}-{number}"
            lines.write(f"start {name}\n")
            if isinstance(store.reserve(Reserve(name, charges(10))), Refused):
                time.sleep(0.001)
                continue
            lines.write(f"reserved {name}\n")
            store.settle(name, Amounts(4, 4))
            lines.write(f"settled {name}\n")


def fork(store: LeasedStore) -> None:
    """Admit from slices, fork, and admit in the child; both say what they used."""
    for number in range(50):
        store.reserve(Reserve(f"parent-{number}", charges(5)))
        store.settle(f"parent-{number}", Amounts(5, 5))
    child = os.fork()
    who = "parent" if child else "child"
    for number in range(50):
        store.reserve(Reserve(f"{who}-again-{number}", charges(5)))
        store.settle(f"{who}-again-{number}", Amounts(5, 5))
    if child:
        os.waitpid(child, 0)
    store.close()
    if not child:
        os._exit(0)


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    verbs = [race, storm, fork]
    leased = LeasedStore(opened(place))
    leased.register(ROWS)
    next(verb for verb in verbs if verb.__name__ == what)(leased, *rest)

"""The other process: `worker.py <what> <database> ...`. It says `ready`, and starts at a line on its standard input."""

from __future__ import annotations

import itertools
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from agentguard.core.limits import Amounts, Charge, LimitRow, Refused
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, Unit, Window
from agentguard.stores.base import Reserve
from agentguard.stores.sqlite import SqliteStore

ROWS = [
    LimitRow.of("fleet", Limit(amount=4001, unit=Unit.TOKENS, window=Window("day"))),
    LimitRow.of("team:t", Limit(amount=4003, unit=Unit.USD, window=Window("day"))),
    LimitRow.of("agent:a", Limit(amount=3999, unit=Unit.TOKENS)),
    LimitRow.of("session:s", Limit(amount=10**9, unit=Unit.TOKENS, window=Window(seconds=3600.0))),
]
"""Of odd sizes: the third is the one that ends a race."""


def charges(amount: int) -> tuple[Charge, ...]:
    return tuple(Charge(row.key, amount) for row in ROWS)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def ready() -> None:
    say("ready")
    sys.stdin.readline()


def race(store: SqliteStore) -> None:
    """Take by mixed costs until not even one unit fits; says what was taken, and how often."""
    dice = random.Random(os.getpid())
    taken = count = 0
    amount = 9
    ready()
    while amount:
        name = f"{os.getpid()}-{count}"
        if isinstance(store.reserve(Reserve(name, charges(amount))), Refused):
            amount -= 1 if amount == 1 else amount - 1  # nine may not fit where one does
            continue
        count += 1
        taken += amount
        if dice.random() < 0.5:
            store.settle(name, Amounts(amount, amount))
        amount = dice.randint(1, 9) if amount > 1 else 1
    say(taken, count)


def storm(store: SqliteStore, log: str) -> None:
    """Reserve 10 and settle 4 for ever; before and after each step a line in a log that only grows."""
    with open(log, "a", buffering=1, encoding="ascii") as lines:  # noqa: PTH123 - line-buffered
        ready()
        for number in itertools.count():
            name = f"{os.getpid()}-{number}"
            lines.write(f"start {name}\n")
            if isinstance(store.reserve(Reserve(name, charges(10), force=True)), Refused):
                raise SystemExit("refused")
            lines.write(f"reserved {name}\n")
            store.settle(name, Amounts(4, 4))
            lines.write(f"settled {name}\n")


def hold(store: SqliteStore) -> None:
    """Reserve, and stay."""
    say(store.reserve(Reserve(f"{os.getpid()}", charges(100))))
    ready()


def stay_in_a_decision(store: SqliteStore) -> None:
    """Take the lock, and keep it until told to go."""
    store._database.run(lambda db: ready())


def wait_in_line(store: SqliteStore) -> None:
    """Decide once, at a line on standard input."""
    ready()
    store.reserve(Reserve("waited", charges(1)))


def tell(store: SqliteStore) -> None:
    """Settle at a line on standard input; says when."""
    store.reserve(Reserve("told", charges(1)))
    ready()
    store.settle("told", Amounts(1, 1))
    say(time.time())


def without_rights(store_path: str) -> None:
    """As a user who may not write: says what is raised."""
    with tempfile.TemporaryDirectory() as folder:
        SqliteStore(Path(folder, "other")).close()  # what is imported now need not be readable afterwards
    os.setuid(65534)
    try:
        SqliteStore(store_path)
    except StoreUnavailable as error:
        say(type(error).__name__, error)


if __name__ == "__main__":
    what, database, *rest = sys.argv[1:]
    if what == "without_rights":
        without_rights(database)
    else:
        verbs = [race, storm, hold, stay_in_a_decision, wait_in_line, tell]
        next(verb for verb in verbs if verb.__name__ == what)(SqliteStore(Path(database)), *rest)

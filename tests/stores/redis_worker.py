"""The other process on a Redis: `redis_worker.py <what> <url> ...`, as `worker.py` on a file."""

from __future__ import annotations

import os
import sys
import time

import worker

from agentguard.core.limits import Amounts, RefusalKind
from agentguard.stores.base import Granted, Reserve
from agentguard.stores.redis import RedisStore


def race_and_register(store: RedisStore) -> None:
    """Take until nothing fits, and tell the store of the rows again whenever it has lost them; says what was taken."""
    taken = number = refused = 0
    store.register(worker.ROWS)
    worker.ready()
    while refused < 20:
        number += 1
        answer = store.reserve(Reserve(f"{os.getpid()}-{number}", worker.charges(1)))
        if isinstance(answer, Granted):
            taken += 1
            if number % 2:
                store.settle(f"{os.getpid()}-{number}", Amounts(1, 1))
        elif answer.kind is RefusalKind.UNREGISTERED:
            store.register(worker.ROWS)
            time.sleep(0.02)
        else:
            refused += 1
        if taken == 400 and number == 400:
            worker.say("half")
            sys.stdin.readline()
    worker.say(taken)


if __name__ == "__main__":
    what, url, *rest = sys.argv[1:]
    verb = race_and_register if what == "race_and_register" else getattr(worker, what)
    verb(RedisStore(url), *rest)

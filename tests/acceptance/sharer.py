"""One agent of a fleet, in a process of its own: `sharer.py AGENT`. Each round is a line of input, a Round in JSON.

It is answered by `ready`; a line of input later by `refused`, when that happens first; and by what the agent was given in all.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import NamedTuple

import agentguard
from agentguard import BudgetExceeded, Policy, RateLimited
from agentguard.core.call import HTTPCall, LLMCall, Target, Usage
from agentguard.guard import Guard
from agentguard.stores import open_store
from agentguard.stores.leased import LeasedStore

AGENTS = ("rogue", "a", "b", "c", "d")


class Round(NamedTuple):
    """What to race for.

    Attributes:
        store: A URL.
        is_leased: Whether to take slices of a store that has none by itself.
        limit: The fleet's.
        fair: Whether agents have shares.
        calls: How often to ask.
        tokens: How many each call asks for, and uses; 0 for calls that use none.
    """

    store: str
    is_leased: bool
    limit: dict[str, str]
    fair: bool
    calls: int
    tokens: int = 0


def policy(what: Round) -> Policy:
    agents = [{"name": name, "external_calls": {"allowed_domains": ["api.test"]}} for name in AGENTS]
    return Policy.from_mapping({"agents": agents, "limits": {"fleet": [what.limit], "fair_share": what.fair}})


def say(word: object) -> None:
    print(word, flush=True)  # noqa: T201 - it is asked


def given(guard: Guard, what: Round) -> int:
    """How many tokens, or calls, the agent is given when it asks as often as it shall."""
    call = HTTPCall.to("GET", "https://api.test/")
    if what.tokens:
        call = LLMCall("chat", "other", "m", Target.of("https://api.test/"), max_output_tokens=what.tokens)
    total = refused = 0
    for _ in range(what.calls):
        try:
            with guard.admit(call) as admission:
                admission.settle(Usage(0, what.tokens))
        except (BudgetExceeded, RateLimited):
            refused += 1
            if refused == 1:
                say("refused")
        else:
            total += what.tokens or 1
    return total


def main(agent: str) -> None:
    for line in sys.stdin:
        what = Round(*json.loads(line))
        store = open_store(what.store)
        guard = Guard(policy(what), store=LeasedStore(store) if what.is_leased else store)
        with contextlib.closing(guard), agentguard.agent(agent):
            say("ready")
            sys.stdin.readline()
            say(given(guard, what))


if __name__ == "__main__":
    main(sys.argv[1])

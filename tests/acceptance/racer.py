"""One of several processes that share a budget: `racer.py PROVIDER CALLS`.

Each round is two lines of input: `LEDGER BUDGET`, answered when the guard stands, and `go`, answered by what became of each call.
"""

from __future__ import annotations

import sys
import threading

import openai

import agentguard
from agentguard.testing import text_of

provider, calls = sys.argv[1:]
client = openai.OpenAI(base_url=provider, api_key="sk-test")
messages = [{"role": "user", "content": text_of(100)}]


def call(results: list[str]) -> None:
    try:
        client.chat.completions.create(model="gpt-5", messages=messages, max_tokens=900)
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        results.append(type(error).__name__)
    else:
        results.append("served")


for line in sys.stdin:
    ledger, _, budget = line.strip().partition(" ")
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}, "budgets": [{"limit": budget}]}
    with agentguard.instrument(agentguard.Policy.from_mapping({"agents": [worker]}), store=f"sqlite:///{ledger}"):
        results: list[str] = []
        threads = [threading.Thread(target=call, args=(results,)) for _ in range(int(calls))]
        print("ready", flush=True)  # noqa: T201 - it is asked
        sys.stdin.readline()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(*results, flush=True)  # noqa: T201 - as above

"""A guarded process of its own: `isolated.py <policy> <store> <url> stream|decide`. It says what it meets, a word a line."""

from __future__ import annotations

import json
import signal
import sys
import time
import urllib.request

import agentguard
from agentguard import AgentIsolated

STREAM = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 400, "stream": True}


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def stream(url: str) -> None:
    """Read a stream by bare urllib until it ends."""
    request = urllib.request.Request(url, json.dumps(STREAM).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            next(iter(response))
            say("begun")
            response.read()
            say("ended")
    except AgentIsolated:
        say("isolated")
    time.sleep(60)  # a process that ends leaves the list, and need not confirm


def decide(url: str) -> None:
    """Make calls until one is refused, and again until one goes."""
    say("begun")
    while True:
        try:
            with agentguard.current_guard().admit(agentguard.core.call.HTTPCall.to("GET", url)):
                pass
        except AgentIsolated:
            say("isolated")
            while agentguard.current_guard().isolated:
                time.sleep(0.005)
            say("restored")
        time.sleep(0.005)


if __name__ == "__main__":
    import agentguard.core.call

    signal.alarm(300)  # a run of tests that was killed ends nobody
    policy, store, url, what = sys.argv[1:]
    agentguard.instrument(policy, store=store)
    (stream if what == "stream" else decide)(url)

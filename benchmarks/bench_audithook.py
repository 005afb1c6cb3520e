"""What the audit hook costs: an event of no concern to it, with and without; a connection and a look-up that it judges.

    python benchmarks/bench_audithook.py

Ratios in one run: the arms take turns, and the best of each counts. Target: 0.5 us a foreign event (DESIGN 14, issue "egress").
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import time

EVENTS = 200_000
ROUNDS = 7
CONNECTS = 300

BARE = "bare"
GUARDED = "guarded"


def foreign_event() -> float:
    """Seconds of one `sys.audit` that concerns nobody."""
    audit = sys.audit
    start = time.perf_counter()
    for _ in range(EVENTS):
        audit("bench.foreign", 1)
    return (time.perf_counter() - start) / EVENTS


def connect(port: int) -> list[float]:
    """Seconds of each of some connects to a listening socket."""
    taken = []
    for _ in range(CONNECTS):
        with socket.socket() as client:
            start = time.perf_counter()
            client.connect(("127.0.0.1", port))
            taken.append(time.perf_counter() - start)
    return taken


def look_up() -> list[float]:
    """Seconds of each of some look-ups of a name that no server is asked for."""
    taken = []
    for _ in range(CONNECTS):
        start = time.perf_counter()
        socket.getaddrinfo("localhost", 80)
        taken.append(time.perf_counter() - start)
    return taken


def arm(mode: str) -> None:
    """One arm, in a process of its own, since a hook cannot be removed. Prints foreign event, connect and look-up, in us."""
    with socket.create_server(("127.0.0.1", 0), backlog=CONNECTS) as server:
        port = server.getsockname()[1]
        if mode == GUARDED:
            import agentguard

            hosts = {"allowed_domains": ["localhost", "127.0.0.1"], "allow_private": True}
            policy = agentguard.Policy.from_mapping({"agents": [{"name": "bench", "external_calls": hosts}]})
            agentguard.instrument(policy, store="memory://")
        foreign_event()
        event = min(foreign_event() for _ in range(3))
        connects, lookups = connect(port), look_up()
    print(f"{event * 1e6:.4f} {statistics.median(connects) * 1e6:.2f} {statistics.median(lookups) * 1e6:.2f}")


def main() -> None:
    """Run the arms in turns, and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=[BARE, GUARDED])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    if asked.arm:
        arm(asked.arm)
        return
    measured: dict[str, list[list[float]]] = {BARE: [], GUARDED: []}
    for _ in range(asked.rounds):
        for mode, results in measured.items():
            done = subprocess.run([sys.executable, __file__, "--arm", mode], check=True, capture_output=True, text=True)
            results.append([float(figure) for figure in done.stdout.split()])
    on = f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    print(f"{on}; us, the best of {asked.rounds} rounds (of a connect and a look-up: of their medians)")
    print(f"{'':28}{BARE:>10}{GUARDED:>10}{'more':>10}")
    for place, what in enumerate(("a foreign event", "a connect on loopback", "a look-up of localhost")):
        bare, guarded = (min(result[place] for result in measured[mode]) for mode in (BARE, GUARDED))
        print(f"{what:28}{bare:>10.3f}{guarded:>10.3f}{guarded - bare:>+10.3f}")


if __name__ == "__main__":
    main()

"""What kernel enforcement costs: connects, writes, activation and memory, with bare ones as the floor of the same run.

The target and the server are processes of their own, so that no arm waits for the other's interpreter.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONNECTS = 1000
WRITES = 5000
STARTS = 15

SERVER = """
import socket, sys, threading
server = socket.create_server(("127.0.0.1", 0), backlog=4096)
print(server.getsockname()[1], flush=True)
def drain(connection):
    while connection.recv(1 << 16):
        pass
while True:
    connection, _ = server.accept()
    if sys.argv[1] == "drain":
        threading.Thread(target=drain, args=(connection,), daemon=True).start()
    else:
        connection.close()
"""


def start_server(kind: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def timed(times: int, work) -> float:
    """The median of many single runs, in microseconds."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found) * 1e6


def measure(port: int, drain: int) -> dict[str, float]:
    """One arm: what it finds of connects and writes."""

    def connect(*, blocking: bool) -> None:
        with socket.socket() as one:
            one.setblocking(blocking)
            one.connect_ex(("127.0.0.1", port))

    def refused() -> None:
        with socket.socket() as one:
            one.connect_ex(("127.0.0.2", 9))

    content = b"x" * 1024
    with socket.create_connection(("127.0.0.1", drain)) as one:
        return {
            "connect": timed(CONNECTS, lambda: connect(blocking=True)),
            "connect, non-blocking": timed(CONNECTS, lambda: connect(blocking=False)),
            "connect, refused": timed(CONNECTS, refused),
            "send 1 KiB": timed(WRITES, lambda: one.send(content)),
            "sendmsg 1 KiB": timed(WRITES, lambda: one.sendmsg([content])),
            "getppid": timed(WRITES, os.getppid),
        }


def arm() -> None:
    """Runs in a process of its own: held by the kernel, or not."""
    kind, port, drain = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    found: dict[str, float] = {}
    if kind != "bare":
        from agentguard.egress.boundary import Boundary
        from agentguard.egress.kernel.activate import activate
        from agentguard.egress.kernel.channel import ask_status
        from agentguard.policy import Policy

        external = {"allowed_domains": ["127.0.0.1"], "blocked_domains": ["*"], "allow_udp": kind == "full"}
        boundary = Boundary.of(Policy.from_mapping({"agents": [{"name": "bench", "external_calls": external}]}))
        begun = time.perf_counter()
        activate(boundary)
        found["activation, ms"] = (time.perf_counter() - begun) * 1e3
        if len(sys.argv) > 5:
            print(json.dumps(found))
            return
    found |= measure(port, drain)
    if kind != "bare":
        status = Path(f"/proc/{ask_status().supervisor}/status").read_text(encoding="ascii")
        found["supervisor, MB"] = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    print(json.dumps(found))


def run_arm(kind: str, *more: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--arm", kind, *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(done.stdout))


def interpreter_start() -> float:
    """Milliseconds that a bare interpreter takes to start and end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - begun) * 1e3


def main() -> None:
    os.environ["AGENTGUARD_STATE_DIR"] = tempfile.mkdtemp(prefix="bench-egress-")
    server, port = start_server("close")
    drainer, drain = start_server("drain")
    try:
        arms = {kind: run_arm(kind, port, drain) for kind in ("bare", "connect-only", "full")}
        again = run_arm("bare", port, drain)
        starts, activations = [], []
        for _ in range(STARTS):
            starts.append(interpreter_start())
            activations.append(run_arm("connect-only", port, drain, "activation only")["activation, ms"])
    finally:
        server.kill()
        drainer.kill()
    print(f"load {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores; Python {sys.version.split()[0]}; Linux {os.uname().release}")
    print(f"{'p50, us':24}{'bare':>10}{'bare again':>12}{'connect-only':>14}{'full':>10}{'added':>10}")
    for what, bare in arms["bare"].items():
        held = arms["connect-only"][what]
        print(f"{what:24}{bare:10.1f}{again[what]:12.1f}{held:14.1f}{arms['full'][what]:10.1f}{held - bare:+10.1f}")
    start, activation = statistics.median(starts), statistics.median(activations)
    plain, full = (arms[arm]["supervisor, MB"] for arm in ("connect-only", "full"))
    print(f"supervisor: {plain:.1f} MB resident, {full:.1f} MB in full")
    print(f"activation: {activation:.1f} ms, a bare interpreter's start: {start:.1f} ms, ratio {activation / start:.2f}")
    print("targets: connect <= +80 us, send and sendmsg +0, activation <= 3 x, supervisor <= 20 MB")


if __name__ == "__main__":
    arm() if "--arm" in sys.argv else main()

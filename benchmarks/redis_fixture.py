"""What benchmarks over Redis share: a server of their own on loopback, and a call that is charged to four limits."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import redis

from agentguard.core.limits import Amounts, Charge, LimitRow
from agentguard.policy.model import Limit, Per, Unit, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = (
    LimitRow.of("fleet", Limit(amount=10**12, unit=Unit.TOKENS, per=Per.FLEET, window=Window("day"))),
    LimitRow.of("team:support", Limit(amount=10**12, unit=Unit.USD, per=Per.TEAM, window=Window("month"))),
    LimitRow.of("agent:bot", Limit(amount=10**12, unit=Unit.TOKENS, window=Window("hour"))),
    LimitRow.of("session:s", Limit(amount=10**12, unit=Unit.TOKENS, per=Per.SESSION)),
)
CHARGES = tuple(Charge(row.key, 500) for row in ROWS)
USED = Amounts(400, 400)


class Running(NamedTuple):
    """A server, and a client that looks at it."""

    url: str
    client: redis.Redis
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def redis_server() -> Iterator[Running]:
    """A server without persistence, that is ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = redis.Redis(port=port)
    try:
        _wait_for(client)
        yield Running(f"redis://127.0.0.1:{port}/0", client, process)
    finally:
        client.close()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(client: redis.Redis) -> None:
    for _ in range(500):
        with contextlib.suppress(redis.ConnectionError):
            client.ping()
            return
        time.sleep(0.01)
    sys.exit("redis-server does not answer")

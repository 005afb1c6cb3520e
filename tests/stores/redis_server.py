"""A redis-server of our own, on a free port, and a store whose clock is the test's."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from agentguard.stores.redis import RedisStore
from agentguard.stores.redis._scripts import Scripts

PROGRAM = "redis-server"


class Server:
    """A real server that can be killed, stopped and started again."""

    def __init__(self, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="agentguard-redis-"))
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", *self.options]
        self.process = subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while not self.answers():
            assert self.process.poll() is None, f"redis-server ended: {arguments}"
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=0.5) as probe:
            probe.sendall(b"PING\r\n")
            return bool(probe.recv(64))
        return False

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def ask(self, *words: object) -> object:
        with self.client() as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process.poll() is None:
            self.go_on()
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class ClockedScripts(Scripts):
    """The scripts with a clock that the test sets: an argument that the real ones do not have."""

    def __init__(self, clock) -> None:
        super().__init__()
        self.clock = clock

    def arguments(self, arguments):
        return [*arguments, round(self.clock.time() * 1_000_000)]

    def read_clock(self) -> str:
        return "local function micros() return tonumber(ARGV[#ARGV]) end"


def clocked(url: str, clock, fleet: str = "test") -> RedisStore:
    """With patience: what is tested with it is not the time that an answer takes."""
    return RedisStore(f"{url}?timeout=5", fleet=fleet, scripts=ClockedScripts(clock))


def free_port() -> int:
    """A port that is free, and so low that a cluster's own, 10,000 above it, is one too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port

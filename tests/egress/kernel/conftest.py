"""Programs that put the boundary around themselves, and two servers: one that they may reach, and one that they may not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

PRELUDE = """
import errno, json, logging, os, signal, socket, subprocess, sys, threading, time
import agentguard
from agentguard import Policy
from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel import channel
from agentguard.egress.kernel.activate import activate, enter

PORT, OTHER = map(int, sys.argv[1:3])
POLICY = Policy.from_mapping({"agents": [{"name": "a", "external_calls": {"allowed_domains": [f"127.0.0.1:{PORT}"]}}]})

def connect(port=PORT, seconds=3):
    with socket.socket() as one:
        one.settimeout(seconds)
        try:
            one.connect(("127.0.0.1", port))
        except OSError as error:
            return errno.errorcode.get(error.errno, type(error).__name__)
        return "connected"

def child(port=PORT):
    return subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], stderr=subprocess.DEVNULL).returncode == 0

def say(**facts):
    print(json.dumps(facts), flush=True)
"""


class Counting:
    """A server that counts who connects."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listening.getsockname()[1]

    @property
    def count(self) -> int:
        self.listening.setblocking(False)
        count = 0
        while True:
            try:
                self.listening.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


@pytest.fixture
def servers():
    pair = Counting(), Counting()
    yield pair
    for one in pair:
        one.listening.close()


@pytest.fixture
def program(tmp_path, servers):
    started = []

    def start(source, *prefix, **more):
        environment = os.environ | {"AGENTGUARD_STATE_DIR": str(tmp_path), "AGENTGUARD_STORE": "memory://"} | more
        environment = {name: value for name, value in environment.items() if not name.startswith("OTEL_")}
        command = [*prefix, sys.executable, "-c", PRELUDE + source, str(servers[0].port), str(servers[1].port)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()

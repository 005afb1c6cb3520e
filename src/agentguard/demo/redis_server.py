"""A Redis of the demo's own, for the few seconds of act 6."""

from __future__ import annotations

import secrets
import shutil
import socket
from typing import TYPE_CHECKING, Self

from agentguard.demo.held import held

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path
    from types import TracebackType

PROGRAMS = ("redis-server", "valkey-server")

_TRIES = 3


def find_program() -> str | None:
    """The server that is installed here; None when there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class RedisServer:
    """A server on a free port of the loopback interface, behind a password, that writes nothing to disk.

    Args:
        folder: Where its configuration is written; nobody else may look in.

    Attributes:
        url: What a policy says under `store`.
    """

    def __init__(self, folder: Path) -> None:
        program = find_program() or PROGRAMS[0]
        self.url: str = ""
        for _ in range(_TRIES):  # a port that was free a moment ago may be somebody else's now
            self._held = self._start(program, folder)
            if self._is_ready():
                return
            self._held.communicate()
        raise RuntimeError(f"{program} does not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._held.communicate()

    def _start(self, program: str, folder: Path) -> subprocess.Popen[str]:
        port, password = _free_port(), secrets.token_hex(16)
        self.url = f"redis://:{password}@127.0.0.1:{port}/0?timeout=5"  # patient: a stage may be a busy laptop
        settings = folder / "redis.conf"
        settings.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir "{folder}"\n')
        return held([program, str(settings)])

    def _is_ready(self) -> bool:
        assert self._held.stdout is not None  # noqa: S101 - a pipe was asked for
        return any("ready to accept connections" in line.lower() for line in self._held.stdout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

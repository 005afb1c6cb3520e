"""This process's end of the control channel: what holds, one bound more, and word of what was refused."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from agentguard.context import own_traffic

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.boundary import Boundary

NAME = "\0agentguard"
_SECONDS = 10.0


class Status(NamedTuple):
    """What the supervisor of this process tree says of itself."""

    supervisor: int
    log: str
    is_full: bool
    is_enforced: bool
    path: str
    reloads: bool


class NoSupervisor(OSError):
    """This process has no supervisor, or it does not answer."""


def ask_status() -> Status:
    """What holds for this process.

    Raises:
        NoSupervisor: Nothing does.
    """
    found = _ask({"ask": "status"})
    return Status(found["supervisor"], found["log"], found["full"], found["enforced"], found["path"], found["reloads"])


def narrow(boundary: Boundary) -> bool:
    """Hold one more boundary from now on. False when parts of it go beyond what is held already, and stay closed.

    Raises:
        NoSupervisor: There is none that could, or it holds too many already.
    """
    found = _ask({"ask": "narrow", "boundary": boundary.to_json()})
    if not found["narrowed"]:
        raise NoSupervisor
    return bool(found["is_whole"])


class Listening:
    """Hears what is refused to this process and its children, on a thread of its own, until it is ended.

    Args:
        on_refusal: Told each refusal.
        on_loss: Told when the supervisor has ended: from then on nothing of this process connects.
    """

    def __init__(self, on_refusal: Callable[[dict[str, Any]], None], on_loss: Callable[[], None]) -> None:
        self._on_refusal = on_refusal
        self._on_loss = on_loss
        self._connection: socket.socket | None = None
        self._has_ended = False
        threading.Thread(target=self._run, name="agentguard-egress", daemon=True).start()

    def end(self) -> None:
        """Hear nothing more."""
        self._has_ended = True
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with suppress(OSError, ValueError):
            self._connection = _connect()
            with self._connection, self._connection.makefile("rb") as lines:
                self._connection.sendall(b'{"ask":"listen"}\n')
                self._connection.settimeout(None)
                for line in lines:
                    if self._has_ended:
                        return
                    self._hear(json.loads(line))
        if not self._has_ended:
            self._on_loss()

    def _hear(self, message: dict[str, Any]) -> None:
        if "refused" in message:
            self._on_refusal(message["refused"])


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    with _connect() as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        try:
            with connection.makefile("rb") as lines:
                found = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise NoSupervisor(str(error)) from error
    if not isinstance(found, dict) or "error" in found:
        raise NoSupervisor
    return found


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_SECONDS)
    try:
        with own_traffic():
            connection.connect(NAME)
    except OSError as error:
        connection.close()
        raise NoSupervisor(error.errno, str(error)) from error
    return connection

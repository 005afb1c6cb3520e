"""How the supervisor lays hands on a task's socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Protocol

from agentguard.egress.kernel.tasks import Duplicates

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.kernel.supervisor import Notice, Outcome


class Sockets(Protocol):
    """A way to a task's socket."""

    def take(self, tid: int, descriptor: int) -> socket.socket:
        """A socket of this process that is the task's own, to be closed by who takes it.

        Raises:
            OSError: It is none, or cannot be had.
        """

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """Further system calls that this way has to be asked about."""


class DuplicatedSockets:
    """Takes a duplicate of the task's descriptor: any socket, however the task came by it."""

    def __init__(self) -> None:
        self._duplicates = Duplicates()

    def take(self, tid: int, descriptor: int) -> socket.socket:
        """A duplicate of a task's socket."""
        return socket.socket(fileno=self._duplicates.take(tid, descriptor))

    def calls(self) -> dict[str, Callable[[Notice], Outcome]]:
        """None."""
        return {}

"""The supervisor's control channel: who is under the filter may ask what holds, narrow it, and listen to refusals.

It is reached by connecting to an abstract name that the supervisor itself connects on the task's behalf, so that nobody
else can stand behind it, and nobody outside of the tree in front of it. There is no word by which it could widen.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any

from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel import tasks

if TYPE_CHECKING:
    from agentguard.egress.kernel.judge import Judge
    from agentguard.egress.kernel.record import Refusal

_LARGEST = 1024 * 1024
_MOST_GUESTS = 256
_OLDEST_ANCESTORS = 64


class _Guest:
    """A process that is connected to the channel."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.received = b""
        self.listens = False


class Control:
    """Serves the channel.

    Args:
        judge: What holds, and is narrowed.
        facts: What is told about the supervisor: its log, its way to sockets, the policy file that it began with.
    """

    def __init__(self, judge: Judge, facts: dict[str, Any]) -> None:
        self._judge = judge
        self._facts = facts
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind("")  # an abstract name that the kernel chooses
        self._listener.listen(16)
        self._selector = selectors.DefaultSelector()
        self._guests: list[_Guest] = []
        self._one_at_a_time = threading.Lock()

    def start(self) -> None:
        """Begin to serve, on a thread of its own."""
        threading.Thread(target=self._serve, daemon=True).start()

    def invite(self, tid: int, descriptor: int) -> int:
        """Connect a task's socket to the channel; an error number, or 0."""
        with self._one_at_a_time, socket.socket(fileno=os.dup(descriptor)) as theirs:
            if theirs.type != socket.SOCK_STREAM or len(self._guests) >= _MOST_GUESTS:
                return 111
            error = theirs.connect_ex(self._listener.getsockname())
            if error:
                return error
            while True:
                ours, _ = self._listener.accept()
                if _peer(ours) == os.getpid():  # somebody else who has found the name is sent away
                    break
                ours.close()
            guest = _Guest(ours, tasks.process_of(tid))
            self._guests.append(guest)
            self._selector.register(ours, selectors.EVENT_READ, guest)
        return 0

    def tell(self, refusal: Refusal) -> None:
        """Pass a refusal on to the process it concerns, or to the nearest of its ancestors that listens."""
        listening = {guest.pid: guest for guest in self._guests if guest.listens}
        if not listening:
            return
        pid = refusal.pid
        for _ in range(_OLDEST_ANCESTORS):
            if pid in listening or pid <= 1:
                break
            pid = tasks.parent_of(pid)
        guest = listening.get(pid) or next(iter(listening.values()))
        self._send(guest, {"refused": refusal._asdict()})

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                guest: _Guest = key.data
                try:
                    alive = self._hear(guest)
                except Exception:  # noqa: BLE001 - a guest may say anything: it is sent away, and the others are served on
                    alive = False
                if not alive:
                    self._selector.unregister(guest.connection)
                    guest.connection.close()
                    self._guests.remove(guest)

    def _hear(self, guest: _Guest) -> bool:
        received = guest.connection.recv(65_536)
        guest.received += received
        while b"\n" in guest.received:
            line, _, guest.received = guest.received.partition(b"\n")
            self._send(guest, self._reply(guest, json.loads(line)))
        return bool(received) and len(guest.received) <= _LARGEST

    def _reply(self, guest: _Guest, request: dict[str, Any]) -> dict[str, Any]:
        match request["ask"]:
            case "status":
                return self._facts | {"enforced": self._judge.is_enforced}
            case "narrow":
                asked = Boundary.from_json(request["boundary"])
                is_whole = asked.narrows(self._judge.boundary)
                return {"narrowed": self._judge.narrow(asked), "is_whole": is_whole}
            case "listen":
                guest.listens = True
                return {"listening": True}
            case other:
                return {"error": f"{other!r} cannot be asked for"}

    def _send(self, guest: _Guest, message: dict[str, Any]) -> None:
        """Send, unless the guest does not read: the supervisor waits for nobody."""
        with contextlib.suppress(OSError):
            guest.connection.send(json.dumps(message, separators=(",", ":")).encode() + b"\n", socket.MSG_DONTWAIT)


def _peer(connection: socket.socket) -> int:
    pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid

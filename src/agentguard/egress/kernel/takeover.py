"""The first moments of a supervisor: it is told what to hold, looks whether it can, and is handed the listener.

As soon as it has the listener nothing passes any more, and the program goes on. What judges is imported after that, which
takes longer; who connects meanwhile waits.
"""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

from agentguard.egress.kernel import abi, tasks

_LARGEST_MESSAGE = 4 * 1024 * 1024
_ONE_DESCRIPTOR = struct.calcsize("i")


def take_over(descriptor: int) -> tuple[dict[str, Any], int | None]:
    """What the program at the other end of `descriptor` asks for, and its listener; None when it could not be taken."""
    abi.prctl(abi.PR_SET_DUMPABLE, 0)  # nobody of this user may look into us, or take our descriptors
    _take_all_descriptors()
    link = _socket.socket(fileno=descriptor)
    order: dict[str, Any] = json.loads(_receive(link))
    if order["detached"]:
        _leave_the_family()
    try:
        injects = _look_at(order["probe"])
        os.close(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError as error:
        _send(link, {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error)})
        return order, None
    _send(link, {"ready": os.getpid(), "injects": injects})
    message, control, _, _ = link.recvmsg(64, _socket.CMSG_SPACE(_ONE_DESCRIPTOR))
    if not message or not control:
        return order, None
    listener: int = struct.unpack("i", control[0][2][:_ONE_DESCRIPTOR])[0]
    os.set_inheritable(listener, False)
    _send(link, {"on": True})
    link.close()
    return order | {"injects": injects}, listener


def _take_all_descriptors() -> None:
    """Have as many as we may: some are held for every task of a tree."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(OSError, ValueError):  # more than the system allows by now
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _leave_the_family() -> None:
    """Be nobody's child: a program that waits for all of its children must not meet us. Nor are we hit by its Ctrl-C.

    What asks a whole service to end (systemd asks every process of it) leaves us too: a program that ends in order still
    connects, and we end with the last task of its tree.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def _look_at(probe: dict[str, int]) -> bool:
    """Try on the task that asks what every call will need; whether we have to make its sockets ourselves.

    Raises:
        OSError: The kernel does not let us; the message names the cause.
    """
    try:
        tasks.read_memory(probe["tid"], probe["address"], probe["length"])
    except OSError as error:
        cause = "the kernel lets no process look into another of the same user"
        with contextlib.suppress(OSError), open("/proc/sys/kernel/yama/ptrace_scope", encoding="ascii") as file:
            cause += f" (kernel.yama.ptrace_scope is {file.read().strip()})"
        raise OSError(error.errno, f"{cause}: {error.strerror}") from None
    try:
        os.close(tasks.Duplicates().take(probe["tid"], probe["descriptor"]))
    except OSError:
        return True
    return False


def _receive(link: _socket.socket) -> bytes:
    length = int.from_bytes(_receive_exactly(link, 4))
    if length > _LARGEST_MESSAGE:
        sys.exit(1)
    return _receive_exactly(link, length)


def _receive_exactly(link: _socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = link.recv(length - len(received))
        if not part:
            sys.exit(1)  # the program has ended before it began
        received += part
    return received


def _send(link: _socket.socket, message: dict[str, Any]) -> None:
    link.sendall(json.dumps(message).encode() + b"\n")

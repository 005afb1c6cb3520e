"""Turning kernel enforcement on: from inside of a running process, or in front of a program that is about to start.

Both put the same filter on, with the same supervisor behind it. From inside, the supervisor is nobody's child. In front of
a program it is the program's parent, so that also a kernel that lets only ancestors look into a process (Yama) lets it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentguard.egress.kernel import abi, channel
from agentguard.egress.kernel.cut_off import CutOff
from agentguard.egress.kernel.filter import build
from agentguard.egress.kernel.install import install
from agentguard.egress.kernel.lookups import looks_up_over_tcp
from agentguard.egress.kernel.survey import look_at_descriptors
from agentguard.errors import EnforcementUnavailable
from agentguard.stores.state import state_dir

if TYPE_CHECKING:
    import io

    from agentguard.egress.boundary import Boundary
    from agentguard.egress.kernel.abi import Machine

_START = str(Path(__file__).with_name("start.py"))
_SECONDS = 15.0
_NO_DATAGRAMS = (
    "kernel enforcement is not to be had: datagrams need pidfd_getfd, which is forbidden here (Docker allows it with --cap-add "
    "SYS_PTRACE); they are there because of external_calls.allow_udp, a datagram socket that is open, or a name that was looked "
    "up before: call agentguard.instrument() first of all, or start the program by `agentguard run`"
)
_LINK = 3  # where the supervisor finds its end of the link


def availability() -> str:
    """Why kernel enforcement is not to be had here; empty where it is. Asks the kernel, and changes nothing."""
    if not sys.platform.startswith("linux"):
        return f"it needs Linux, and this is {sys.platform}"
    if abi.this_machine() is None:
        return f"it knows x86-64 and aarch64, and this is {os.uname().machine}"
    action = ctypes.create_string_buffer(abi.SECCOMP_RET_USER_NOTIF.to_bytes(4, sys.byteorder), 4)
    try:
        abi.syscall("seccomp", abi.SECCOMP_GET_ACTION_AVAIL, 0, action)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EINVAL}:
            return "the kernel knows no seccomp user notification (before Linux 5.0, or gVisor)"
        return f"seccomp is refused to this process ({error.strerror})"
    return ""


def activate(boundary: Boundary) -> None:
    """Hold a boundary around this process and all that it starts, from now on and for good.

    Inside of a tree that is held already, that one goes on holding.

    Raises:
        EnforcementUnavailable: It cannot be held; the message names the cause. Nothing is held then, or nothing can connect.
    """
    machine = _check(boundary)
    if _is_held_already():
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        started = _spawn(theirs)
        theirs.close()
        _hand_over(machine, boundary, ours, {"detached": True}, started)


def enter(boundary: Boundary, *, reload: str = "") -> None:
    """Go on as a child that the boundary is held around; the process that calls becomes the supervisor, and ends as the child.

    Args:
        boundary: What may be reached.
        reload: A policy file whose changes the supervisor adopts, also those that widen; empty: none.

    Raises:
        EnforcementUnavailable: As in `activate`; raised in the child.
    """
    machine = _check(boundary)
    if _is_held_already():
        return
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    kept_back = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kept_back)  # the supervisor will pass them on
    if os.fork():
        _become_supervisor(theirs)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    with ours:
        _hand_over(machine, boundary, ours, {"detached": False, "child": os.getpid(), "reload": reload}, 0)


def _check(boundary: Boundary) -> Machine:
    reason = availability()
    machine = abi.this_machine()
    if reason or machine is None:
        msg = f"kernel enforcement is not to be had: {reason}"
        raise EnforcementUnavailable(msg)
    if boundary.is_enforced and boundary.is_open:
        who = f"agent {boundary.unwritten[0]!r} has" if boundary.unwritten else "the policy has no agent with"
        lists = "neither external_calls.allowed_domains nor blocked_domains" if boundary.unwritten else "external_calls"
        msg = f"kernel enforcement needs to know what may be reached: {who} {lists}"
        raise EnforcementUnavailable(msg)
    return machine


def _is_held_already() -> bool:
    try:
        channel.ask_status()
    except channel.NoSupervisor:
        return False
    return True


def _hand_over(machine: Machine, boundary: Boundary, link: socket.socket, role: dict[str, Any], started: int) -> None:
    """Start to hold: the supervisor is told what, this process puts the filter on, and the supervisor says that it answers."""
    has_datagrams = look_at_descriptors()
    # Without datagrams names have to be looked up over TCP; where the C library does not, the supervisor watches messages.
    makes_datagrams = boundary.allows_udp or not boundary.is_enforced or not looks_up_over_tcp()
    is_full = makes_datagrams or has_datagrams
    link.settimeout(_SECONDS)
    probe = ctypes.create_string_buffer(b"agentguard")
    order = role | {
        "boundary": boundary.to_json(),
        "folders": list(dict.fromkeys([tempfile.gettempdir(), "/tmp"])),  # noqa: S108 - where sockets may be, not what is written
        "full": is_full,
        "log": str(_log_path()),
        "probe": {
            "tid": threading.get_native_id(),
            "address": ctypes.addressof(probe),
            "length": len(probe),
            "descriptor": link.fileno(),
        },
        "terminal": 2 if os.isatty(2) else None,
    }
    with link.makefile("rb") as replies:
        ready = _ask(link, order, replies, started)
        if is_full and ready["injects"]:
            raise EnforcementUnavailable(_NO_DATAGRAMS)
        program = build(machine, is_full=is_full, makes_datagrams=makes_datagrams, injects=ready["injects"])
        install(program, link, shields=_is_alone())
        try:
            _expect("on", replies.readline())
        except OSError as error:
            msg = f"kernel enforcement has lost its supervisor while it began ({error}): from now on nothing connects"
            raise CutOff(msg) from error


def _ask(link: socket.socket, order: dict[str, Any], replies: io.BufferedReader, started: int) -> dict[str, Any]:
    message = json.dumps(order).encode()
    try:
        link.sendall(len(message).to_bytes(4) + message)
        line = replies.readline()
    except OSError as error:
        msg = f"kernel enforcement is not to be had: its supervisor does not answer ({error})"
        raise EnforcementUnavailable(msg) from error
    finally:
        if started:
            os.waitpid(started, 0)
    return _expect("ready", line)


def _expect(word: str, line: bytes) -> dict[str, Any]:
    reply = json.loads(line) if line else {"error": "its supervisor has ended"}
    if word not in reply:
        msg = f"kernel enforcement is not to be had: {reply.get('error')}"
        raise EnforcementUnavailable(msg)
    return dict(reply)


def _spawn(link: socket.socket) -> int:
    """Start a supervisor; the process that is returned makes it and ends."""
    terminal = [] if os.isatty(2) else [(os.POSIX_SPAWN_DUP2, 1, 2)]
    actions = [
        (os.POSIX_SPAWN_DUP2, link.fileno(), _LINK),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        *terminal,
    ]
    return os.posix_spawn(sys.executable, _command(), _environment(), file_actions=actions)


def _become_supervisor(link: socket.socket) -> None:
    """Replace this process, which has just forked the program, by its supervisor."""
    os.dup2(link.fileno(), _LINK)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.execve(sys.executable, _command(), _environment())  # noqa: S606 - ourselves


def _command() -> list[str]:
    return [sys.executable, "-I", "-S", _START, str(_LINK)]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _is_alone() -> bool:
    """Whether this process has one thread and no child: Landlock would keep it from signalling others of its own."""
    tasks = [task.name for task in Path("/proc/self/task").iterdir()]
    try:
        return len(tasks) == 1 and not Path(f"/proc/self/task/{tasks[0]}/children").read_bytes()
    except OSError:
        return False


def _log_path() -> Path:
    folder = state_dir() / "egress"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.jsonl"

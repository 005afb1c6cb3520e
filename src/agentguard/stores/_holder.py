"""Who holds amounts in a store that outlives its processes, and whether that process still lives."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

_DEAD_STATES = frozenset("ZXx")
"""A zombie has ended; only its parent has not looked."""


class Holder(NamedTuple):
    """A process, named so that a later process with the same number is another.

    Attributes:
        boot: The kernel's boot id; empty where there is none to read.
        namespace: The namespace in which `pid` counts.
        pid: The process.
        started: When it started, in the kernel's ticks since boot; empty where there is none to read.
    """

    boot: str
    namespace: str
    pid: int
    started: str

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Read what `str` wrote."""
        boot, namespace, pid, started = text.split(":")
        return cls(boot, namespace, int(pid), started)

    @classmethod
    def of_this_process(cls) -> Holder:
        """This process."""
        pid = os.getpid()
        return cls(_boot_id(), _pid_namespace(), pid, _start_and_state(pid)[0])

    def is_dead(self, me: Holder) -> bool:
        """Whether this process is certainly gone. False when `me` cannot know: another namespace, boot or system."""
        if (self.boot, self.namespace) != (me.boot, me.namespace) or sys.platform == "win32":
            return False
        if not self.started:
            return not _answers(self.pid)
        started, state = _start_and_state(self.pid)
        if not started:  # a /proc that hides the processes of others is no proof
            return not _answers(self.pid)
        return started != self.started or state in _DEAD_STATES


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - follows the link, as Path.stat does, at a third of the cost
    except OSError:
        return ""


def _start_and_state(pid: int) -> tuple[str, str]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets; what follows starts at field 3
    return fields[19], fields[0]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

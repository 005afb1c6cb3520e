"""`agentguard run --reload`: the supervisor reads the policy anew when its file changes, and may widen by it.

Only the supervisor can: at the control channel, which the programs of the tree can reach, a boundary only narrows.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from agentguard.egress.boundary import Boundary

if TYPE_CHECKING:
    from agentguard.egress.kernel.judge import Judge
    from agentguard.egress.kernel.record import Record

_EVERY_SECONDS = 1.0
_LONGEST_SECONDS = 30.0
_COMPILE = __file__.replace("reloading.py", "compile.py")


class Reloading:
    """Watches a policy file.

    Args:
        path: The file.
        mode: `enforce` or `report`; what held when the supervisor started.
        judge: What judges by it.
        record: Told of every reading.
    """

    def __init__(self, path: str, mode: str, judge: Judge, record: Record) -> None:
        self._path = path
        self._mode = mode
        self._judge = judge
        self._record = record
        self._endpoints = judge.boundary.endpoints
        self._read_at = self._seen = self._stamp()

    def start(self) -> None:
        """Begin to watch, on a thread of its own."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(_EVERY_SECONDS)
            self.look()

    def look(self) -> None:
        """Read the file if it has changed, and looks twice as it does: half a file can be valid YAML with half the rules."""
        stamp = self._stamp()
        if stamp is None or stamp == self._read_at:
            return
        if stamp == self._seen:
            self._read_at = stamp
            self._read()
        self._seen = stamp

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None  # it is being replaced
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> None:
        """Hold what the file says now; what does not load changes nothing."""
        command = [sys.executable, "-I", _COMPILE, self._path, self._mode]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_LONGEST_SECONDS, check=False)
            if done.returncode:
                self._record.note("policy_refused", path=self._path, why=done.stderr.decode("utf-8", "replace"))
                return
            boundary = dataclasses.replace(Boundary.from_json(done.stdout), endpoints=self._endpoints)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            self._record.note("policy_refused", path=self._path, why=str(error))
            return
        self._judge.replace(boundary)
        self._record.note("policy_loaded", path=self._path)

"""What was refused, and why: a line in the supervisor's log, a word to who listens, and one per host on the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.kernel import tasks
from agentguard.policy.hosts import in_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.policy.hosts import Verdict

_MOST_BYTES = 32 * 1024 * 1024
_MOST_HOSTS_TOLD = 512


class Refusal(NamedTuple):
    """One thing that was refused.

    Attributes:
        at: Unix seconds.
        pid: The process.
        program: What it runs.
        what: `connect`, `send`, `resolve`, `unix` or `socket`.
        host: The name that was asked for or that the address stands for; else the address or path itself.
        ip: The address; empty for names and paths.
        port: The port; 0 where there is none.
        rule, why, remedy: By which rule, why, and what to do.
        enforced: False when it was recorded only.
    """

    at: float
    pid: int
    program: str
    what: str
    host: str
    ip: str
    port: int
    rule: str
    why: str
    remedy: str
    enforced: bool

    def __str__(self) -> str:
        verbs = {"resolve": "may not resolve", "unix": "may not connect to", "socket": "may not open"}
        verb = verbs.get(self.what, "may not reach")
        port = f":{self.port}" if self.port else ""
        told = "" if self.enforced else " (report mode: it may)"
        who = f"{self.program or 'a process'} ({self.pid})" if self.pid else "a process"
        return f"agentguard: {who} {verb} {self.host!r}{port}: {self.why}{told}.\n  {self.remedy}"


class Who(NamedTuple):
    """A process and its program, read while it waits: once it has its answer it may end."""

    pid: int = 0
    program: str = ""

    @classmethod
    def of(cls, tid: int) -> Who:
        """The process of a task."""
        pid = tasks.process_of(tid)
        return cls(pid, tasks.program_of(pid))


NOBODY_KNOWN = Who()


class Record:
    """Writes refusals down and passes them on. Used by several threads; a full disk stops no decision.

    Args:
        path: The log, one JSON object a line; it starts anew beyond 32 MiB, and one older file is kept.
        terminal: A descriptor to tell people on, once per host; None: nobody looks.
        listener: Told every refusal.
    """

    def __init__(self, path: str, terminal: int | None, listener: Callable[[Refusal], None]) -> None:
        self._path = path
        self._terminal = terminal
        self._listener = listener
        self._told: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._file = self._open()

    def refuse(
        self, what: str, who: Who, host: str, verdict: Verdict, *, ip: str = "", port: int = 0, enforced: bool = True
    ) -> None:
        """Take down one refusal."""
        refusal = Refusal(
            at=time.time(),
            pid=who.pid,
            program=who.program,
            what=what,
            host=host,
            ip=ip,
            port=port,
            rule=verdict.rule,
            why=verdict.why,
            remedy=_remedy(what, host, port, verdict),
            enforced=enforced,
        )
        self.note("refused", **refusal._asdict())
        self._tell(refusal)
        self._listener(refusal)

    def note(self, event: str, **facts: object) -> None:
        """Write a line."""
        line = json.dumps({"event": event, "at": time.time()} | facts, separators=(",", ":")).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if os.fstat(self._file).st_size > _MOST_BYTES:
                self._start_anew()
            os.write(self._file, line)

    def _start_anew(self) -> None:
        """Closes the old file last: a number that was closed would soon be some socket of the tree's, and be written to."""
        os.replace(self._path, self._path + ".1")
        full, self._file = self._file, self._open()
        os.close(full)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _tell(self, refusal: Refusal) -> None:
        if self._terminal is None or (refusal.what, refusal.host) in self._told or len(self._told) >= _MOST_HOSTS_TOLD:
            return
        self._told.add((refusal.what, refusal.host))
        with contextlib.suppress(OSError):
            os.write(self._terminal, f"{_printable(str(refusal))}\n".encode())


def _remedy(what: str, host: str, port: int, verdict: Verdict) -> str:
    if what == "unix":
        return f"Add {host!r}, or the folder that it is in, to external_calls.unix_sockets."
    if what == "socket":
        return f"Write {verdict.rule}: true, if datagrams are meant. Looking up names does without."
    if verdict.rule.endswith(("allow_private", "allow_metadata", "allow_udp")):
        return f"Write {verdict.rule}: true, if that is meant."
    if verdict.rule.endswith("blocked_domains"):
        return f"Remove it from {verdict.rule}, if it is meant to be reached."
    return f"Add {host!r} to external_calls.allowed_domains, or run `agentguard policy explain {_url(host, port)}`."


def _url(host: str, port: int) -> str:
    """A host and a port as `policy explain` asks for them: an entry may speak of one port alone."""
    shown = in_url(host)
    return f"http://{shown}/" if port == 80 else shown if port in {0, 443} else f"{shown}:{port}"


def _printable(text: str) -> str:
    """Without what would steer a terminal: names come from the programs that are guarded."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)

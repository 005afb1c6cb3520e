"""The processes of act 6, as the stage sees them."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agentguard.demo import member
from agentguard.demo.held import held
from agentguard.demo.tape import Line

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

    from agentguard.demo.stage import Stage

    _Said = queue.SimpleQueue[int | None]

_SECONDS = 60.0
_SECONDS_TO_LEAVE = 5.0


class Crew:
    """Processes that do what they are asked, all at the same time. They end with its `with` block.

    Args:
        stage: Where they play.
        size: How many.
        policy: The policy of their guards; None for none.
    """

    def __init__(self, stage: Stage, size: int, policy: Path | None) -> None:
        self._said: list[_Said] = [queue.SimpleQueue() for _ in range(size)]
        self._stage = stage
        pairs = [socket.socketpair() for _ in range(size)]
        self._channels = [ours for ours, _ in pairs]
        self._held = self._start(policy, [theirs for _, theirs in pairs])
        listening = zip(self._channels, self._said, strict=True)
        self._listeners = [threading.Thread(target=self._listen, args=both, daemon=True) for both in listening]
        for thread in self._listeners:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with contextlib.ExitStack() as undo:
            for channel in self._channels:
                undo.enter_context(channel)
                with contextlib.suppress(OSError):  # it has ended already
                    channel.shutdown(socket.SHUT_WR)
            if error is None:
                self._await_end()
        self._held.communicate()

    def ask(self, deed: str, of: int | None = None) -> int:
        """Have every process do it, or the first few, and wait for all of them. The sum of what they say: refusals, mostly."""
        for channel in self._channels[:of]:
            channel.sendall(f"{deed}\n".encode())
        return sum(self.hear(of))

    def hear(self, of: int | None = None) -> list[int]:
        """The next number that every process says, or the first few."""
        deadline = time.monotonic() + _SECONDS
        return [_next(said, deadline) for said in self._said[:of]]

    def _await_end(self) -> None:
        """Let them tell what is left to tell, and leave."""
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        for thread in self._listeners:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _start(self, policy: Path | None, theirs: list[socket.socket]) -> subprocess.Popen[str]:
        numbers = [channel.fileno() for channel in theirs]
        stage = self._stage
        arguments = [stage.llm_url("/v1"), stage.provider.host, str(policy or ""), *map(str, numbers)]
        command = [sys.executable, "-P", str(Path(member.__file__)), *arguments]
        with contextlib.ExitStack() as undo:
            for channel in theirs:
                undo.enter_context(channel)
            return held(command, numbers)

    def _listen(self, channel: socket.socket, said: _Said) -> None:
        for word in map(json.loads, channel.makefile()):
            if "line" in word:
                self._stage.tape.show(Line(*word["line"]))
            else:
                said.put(word["number"])
        said.put(None)


def _next(said: _Said, deadline: float) -> int:
    number = None
    with contextlib.suppress(queue.Empty):
        number = said.get(timeout=max(deadline - time.monotonic(), 0.0))
    if number is None:
        raise RuntimeError("a process of the demo's fleet has ended, or says nothing; what it met stands above")
    return number

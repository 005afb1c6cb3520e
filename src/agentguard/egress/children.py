"""Children that in-process enforcement cannot govern: said once for each program, with what to do about it."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any, Final

from agentguard.context import CALLER, OWN_TRAFFIC
from agentguard.core.wording import who
from agentguard.events import ChildStarted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agentguard.guard import Guard

REMEDY: Final = "Start the program with `agentguard run`, or write `enforcement: kernel`: then its children are governed too."

_ASKED_BY_PYTHON = frozenset({"arp", "cc", "gcc", "ifconfig", "ip", "ld", "ldconfig", "netstat", "objdump", "uname"})
"""Programs that `platform`, `ctypes.util` and `uuid` ask about the machine: nobody has thought of starting them."""

_PYTHON = re.compile(r"python[0-9.]*(\.exe)?")

logger: logging.Logger = logging.getLogger("agentguard")


class Children:
    """Tells of the programs that this process starts.

    Args:
        resolve: The guard in scope.
        are_governed: Whether the kernel holds this process and its children to the policy, so that there is nothing to tell.
    """

    def __init__(self, resolve: Callable[[], Guard | None], *, are_governed: bool = False) -> None:
        self.are_governed: bool = are_governed
        self._resolve = resolve
        self._told: set[str] = set()

    def started(self, program: object, _args: object = None, *more: Any) -> None:
        """A program is about to be started, or to take this process's place; of a command line its first word is one."""
        self._tell(_name_of(program), more[-1] if more else None)

    def spawned(self, _mode: int, program: object, *more: Any) -> None:
        """`os.spawn*` names its mode first."""
        self.started(program, *more)

    def started_shell(self, argv: object) -> None:
        """`pty.spawn` starts what its arguments begin with."""
        self.started(argv[0] if isinstance(argv, list | tuple) and argv else argv)

    def _tell(self, program: str, env: Any) -> None:
        if self.are_governed or program in self._told or program in _ASKED_BY_PYTHON:
            return
        guard = self._resolve()
        if guard is None or OWN_TRAFFIC.get() or all(agent.external_calls.is_unwritten for agent in guard.policy.agents):
            return
        if _is_instrumented(program, env):
            return
        self._told.add(program)
        caller = guard.identified(CALLER.get())
        logger.warning(
            "agentguard: %s has started %r, which the policy does not hold: in process, only this interpreter is governed. %s",
            who(caller), program, REMEDY,
        )  # fmt: skip
        guard.tell(ChildStarted(guard.clock.time(), program, caller, REMEDY))


def _name_of(program: object) -> str:
    try:
        text = os.fsdecode(program)  # type: ignore[arg-type]  # what is no path is refused here, and by what starts it
    except TypeError:
        return repr(program)
    return os.path.basename(text.split()[0]) if text.strip() else text  # noqa: PTH119 - in an audit hook: nothing heavy


def _is_instrumented(program: str, env: Mapping[Any, Any] | None) -> bool:
    """Whether a child is an interpreter that `agentguard run` instruments as it starts."""
    environ: Mapping[Any, Any] = os.environ if env is None else env
    return bool(_PYTHON.fullmatch(program)) and environ.get("AGENTGUARD_RUN") == "1" and "PYTHONPATH" in environ

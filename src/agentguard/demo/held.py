"""Programs that end with the demo, whatever ends that."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from agentguard.context import own_traffic

if TYPE_CHECKING:
    from collections.abc import Collection

# Its input ends when nobody holds the other end any more. Zero is its group: the program, and all that this has started.
_HOLD = '"$@" & exec >&-; read -r _; kill -9 0'


def held(command: list[str], pass_fds: Collection[int] = ()) -> subprocess.Popen[str]:
    """Start a program, and a shell that holds it: `communicate()` ends both."""
    shell = ["/bin/sh", "-c", _HOLD, "sh", *command]
    with own_traffic():  # the stage's own hand, not an agent's child
        return subprocess.Popen(  # noqa: S603 - a program of the demo
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds, start_new_session=True
        )

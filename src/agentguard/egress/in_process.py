"""In-process enforcement as a whole: put in place with the guard, and taken away with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from agentguard.egress.audithook import installed_switch, judge_of
from agentguard.egress.children import Children
from agentguard.egress.loops import Loops
from agentguard.egress.net import Net
from agentguard.egress.pins import Pins
from agentguard.egress.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.guard import Guard


class InProcess:
    """The resolver, the audit hook, and the watch over children.

    Args:
        resolve: The guard in scope.
        governs_children: Whether the kernel holds this process and its children too.

    Attributes:
        net: What judges.
        loops: Wrappers for event loops that connect in C.
        children: What tells of the programs that are started.
    """

    def __init__(self, resolve: Callable[[], Guard | None], *, governs_children: bool = False) -> None:
        self.net: Net = Net(resolve, Pins(time.monotonic))
        self.loops: Loops = Loops(self.net)
        self.children: Children = Children(resolve, are_governed=governs_children)
        self._resolver = Resolver(self.net)
        self._judge = judge_of(self.net, self.children)

    def install(self) -> None:
        """Judge from now on."""
        installed_switch().judge = self._judge
        self._resolver.install()

    def remove(self) -> None:
        """Judge nothing any more. The hook stays, and passes everything."""
        self._resolver.remove()
        switch = installed_switch()
        if switch.judge is self._judge:
            switch.judge = None

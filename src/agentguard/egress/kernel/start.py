"""Where the supervisor's process begins: `python -I -S start.py DESCRIPTOR`. It imports little, and none of the user's code."""

from __future__ import annotations

import sys
from types import ModuleType

_PACKAGES = ("agentguard", "agentguard.policy", "agentguard.egress", "agentguard.egress.kernel")


def _make_bare_packages(root: str) -> None:
    """Let modules be found below their packages without running the packages' own code, which the supervisor has no use for.

    It would import the policy's model and cost half of the time that starting takes.
    """
    for name in _PACKAGES:
        package = ModuleType(name)
        package.__path__ = [f"{root}/{name.replace('.', '/')}"]
        sys.modules[name] = package


def _begin(descriptor: int) -> None:
    from agentguard.egress.kernel.takeover import take_over

    order, listener = take_over(descriptor)

    from agentguard.egress.kernel.main import main

    main(order, listener)


if __name__ == "__main__":
    _make_bare_packages(__file__.rsplit("/", 4)[0])
    _begin(int(sys.argv[1]))

"""What `enforcement` asks for, done: kernel, in process, or whichever of both can be had."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel.install import CutOff
from agentguard.egress.own import own_endpoints
from agentguard.errors import EnforcementUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.policy import Policy

logger = logging.getLogger("agentguard")

CHOICES = ("in_process", "auto", "kernel")


def chosen(policy: Policy, egress: str | None, default: str = "in_process") -> str:
    """The enforcement that holds: that of the argument, else of AGENTGUARD_EGRESS, else the strictest of the policy's agents.

    Raises:
        ValueError: It is none.
    """
    named = egress or os.environ.get("AGENTGUARD_EGRESS")
    if named and named not in CHOICES:
        msg = f"egress is one of {', '.join(CHOICES)}, not {named!r}"
        raise ValueError(msg)
    written = [agent.external_calls.enforcement for agent in policy.agents]
    return named or max([default, *written], key=CHOICES.index)


def hold(policy: Policy, enforcement: str, put_on: Callable[[Boundary], None]) -> bool:
    """Hold the policy's boundary around this process as far as `enforcement` asks for it; whether it is held.

    Args:
        policy: What may be reached.
        enforcement: `kernel`, `auto` or `in_process`.
        put_on: `activate` or `enter`.

    Raises:
        EnforcementUnavailable: `kernel` is asked for, and is not to be had.
    """
    if enforcement == "in_process":
        return False
    boundary = Boundary.of(policy, own_endpoints(os.environ.get("AGENTGUARD_STORE") or policy.store))
    if enforcement == "auto" and (boundary.is_open or not boundary.is_enforced):
        return False  # nothing would be refused
    try:
        put_on(boundary)
    except EnforcementUnavailable as error:
        if enforcement == "kernel" or isinstance(error, CutOff):
            raise
        logger.warning(
            "agentguard: %s; egress is enforced in process only: native code and other programs pass. See `agentguard doctor`",
            error,
        )
        return False
    return True

"""What `enforcement` asks for, done: kernel, in process, or whichever of both can be had. Imports on every system."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agentguard.egress.boundary import Boundary
    from agentguard.policy import Policy

logger: logging.Logger = logging.getLogger("agentguard")

_NO_LINUX = f"it needs Linux, and this is {sys.platform}"
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


def hold(policy: Policy, enforcement: str, *, store: str | None = None) -> bool:
    """Hold the policy's boundary around this process, as far as `enforcement` asks for it; whether it is held.

    Args:
        policy: What may be reached.
        enforcement: `kernel`, `auto` or `in_process`.
        store: The URL of the store that is used, where it is another than AGENTGUARD_STORE or the policy say: its servers may be
            reached.

    Raises:
        EnforcementUnavailable: `kernel` is asked for, and is not to be had.
    """
    return _hold(policy, enforcement, store, is_program=False, reload="")


def hold_program(policy: Policy, enforcement: str, *, reload: str = "") -> bool:
    """The same for a program that this process is about to become: what goes on is a child, and this process its supervisor.

    Args:
        policy: What may be reached.
        enforcement: `kernel`, `auto` or `in_process`.
        reload: A policy file whose changes the supervisor adopts; empty: none.

    Raises:
        EnforcementUnavailable: As in `hold`.
    """
    return _hold(policy, enforcement, None, is_program=True, reload=reload)


def _hold(policy: Policy, enforcement: str, store: str | None, *, is_program: bool, reload: str) -> bool:
    if enforcement == "in_process":
        return False
    from agentguard.egress.kernel.cut_off import CutOff  # only for who needs it: most programs are held in process
    from agentguard.errors import EnforcementUnavailable

    boundary = _boundary(policy, store)
    if enforcement == "auto" and (boundary.is_open or not boundary.is_enforced):
        return False  # nothing would be refused
    try:
        _put_on(boundary, is_program=is_program, reload=reload)
    except EnforcementUnavailable as error:
        if enforcement == "kernel" or isinstance(error, CutOff):
            raise
        logger.warning(
            "agentguard: %s; egress is enforced in process only: native code and other programs pass. See `agentguard doctor`",
            error,
        )
        return False
    return True


def _boundary(policy: Policy, store: str | None) -> Boundary:
    from agentguard.egress.boundary import Boundary
    from agentguard.egress.own import own_endpoints

    return Boundary.of(policy, own_endpoints(store or os.environ.get("AGENTGUARD_STORE") or policy.store))


def _put_on(boundary: Boundary, *, is_program: bool, reload: str) -> None:
    if not sys.platform.startswith("linux"):
        from agentguard.errors import EnforcementUnavailable

        msg = f"kernel enforcement is not to be had: {_NO_LINUX}"
        raise EnforcementUnavailable(msg)
    from agentguard.egress.kernel.activate import activate, enter  # Linux alone has what they call

    if is_program:
        enter(boundary, reload=reload)
    else:
        activate(boundary)


def follow(policy: Policy, *, store: str | None = None) -> None:
    """Hold a changed policy too: what it takes away is closed at once, what it adds stays closed, and is told."""
    from agentguard.egress.kernel.channel import NoSupervisor, ask_status, narrow

    try:
        status = ask_status()
        if status.reloads or status.path != policy.path:
            return  # the supervisor reads the file itself, or holds another one
        is_whole = narrow(_boundary(policy, store))
    except NoSupervisor:
        logger.exception("agentguard: the changed policy is in force in process; the kernel could not be told of it")
        return
    if not is_whole:
        logger.warning(
            "agentguard: the changed policy may open more than the kernel holds open, which only narrows while it runs; "
            "start the program anew, or by `agentguard run --reload`"
        )


class Outlook(NamedTuple):
    """Whether kernel enforcement can be had here, in words for `doctor`."""

    is_available: bool
    text: str
    remedy: str = ""


def outlook(policy: Policy | None) -> Outlook:
    """What `enforcement: auto` would come to here, and why. Nothing is put on."""
    reason = _NO_LINUX if not sys.platform.startswith("linux") else _reason()
    if reason:
        remedy = "Put a network policy around the program: native code and other programs pass what is enforced in process."
        return Outlook(False, f"no kernel enforcement: {reason}; `auto` enforces in process only", remedy)
    from agentguard.egress.boundary import Boundary
    from agentguard.egress.kernel import landlock
    from agentguard.egress.kernel.channel import NoSupervisor, ask_status

    try:
        status = ask_status()
    except NoSupervisor:
        pass
    else:
        return Outlook(True, f"held by the kernel: supervisor {status.supervisor}, log {status.log}")
    if policy is not None and Boundary.of(policy).is_open:
        lists = "Write external_calls.allowed_domains for every agent."
        return Outlook(False, "kernel enforcement can be had, but an agent of the policy lists no hosts", lists)
    is_shielded = landlock.version() >= landlock.SCOPED_SINCE
    shield = "" if is_shielded else "; programs can kill the supervisor (no Landlock scopes here), and nothing connects then"
    return Outlook(True, f"kernel enforcement can be had: `agentguard run` uses it{shield}")


def _reason() -> str:
    from agentguard.egress.kernel.activate import availability

    return availability()

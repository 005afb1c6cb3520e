"""The supervisor's refusals as the guard's own events: spans, metrics and records know them as any other denial."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from agentguard.core.call import HTTPCall, Target
from agentguard.core.caller import Caller
from agentguard.core.decision import Reason, deny
from agentguard.egress.kernel.channel import Listening
from agentguard.events import CallDenied
from agentguard.policy.model import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.guard import Guard

logger: logging.Logger = logging.getLogger("agentguard")

_SCHEMES = {"resolve": "dns", "unix": "unix", "send": "udp"}


def tell_refusals(guard: Guard) -> Callable[[], None]:
    """Have a guard tell what the supervisor refuses to this process and its children. What is returned ends it."""
    return Listening(lambda refused: guard.tell(_event(guard, refused)), _tell_loss).end


def _tell_loss() -> None:
    logger.error("agentguard: the supervisor of this process has ended: from now on nothing of it connects; start it again")


def _event(guard: Guard, refused: dict[str, Any]) -> CallDenied:
    """The event of a refusal. The kernel knows processes, not agents: it is told of the process's agent."""
    what, host = refused["what"], refused["host"]
    caller = Caller(agents=(guard.home_agent,)) if guard.home_agent else Caller()
    sentence = f"{refused['program'] or 'a process'} ({refused['pid']}) may not reach {host!r}: {refused['why']}."
    decision = deny(Reason.EGRESS, Rule(refused["rule"]), sentence, refused["remedy"])
    call = HTTPCall(what.upper(), Target(_SCHEMES.get(what, "tcp"), host, refused["port"], ""))
    return CallDenied(refused["at"], next(guard.ids), call, caller, decision, refused["enforced"])

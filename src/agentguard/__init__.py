"""agentguard makes AI agents safe to run in production: seen, controlled, answered for.

import agentguard; agentguard.instrument("agentguard.yaml")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard._default import Instrumentation, budget, current_guard, instrument, uninstrument
    from agentguard.context import BudgetBlock, Session, propagate, session, waiting
    from agentguard.core.call import HTTPCall, LLMCall, ToolCall, Usage
    from agentguard.core.decision import Decision
    from agentguard.decorators import agent, tool
    from agentguard.errors import (
        AgentGuardError,
        AgentIsolated,
        AuditError,
        BudgetExceeded,
        Denied,
        EgressDenied,
        EnforcementUnavailable,
        KeyDenied,
        ModelDenied,
        NotInstrumented,
        PolicyError,
        RateLimited,
        SeamError,
        StoreUnavailable,
        ToolDenied,
    )
    from agentguard.guard import Guard
    from agentguard.policy import Policy

_HOMES = {
    "agentguard._default": ("Instrumentation", "budget", "current_guard", "instrument", "uninstrument"),
    "agentguard.context": ("BudgetBlock", "Session", "propagate", "session", "waiting"),
    "agentguard.core.call": ("HTTPCall", "LLMCall", "ToolCall", "Usage"),
    "agentguard.core.decision": ("Decision",),
    "agentguard.decorators": ("agent", "tool"),
    "agentguard.errors": (
        "AgentGuardError",
        "AgentIsolated",
        "AuditError",
        "BudgetExceeded",
        "Denied",
        "EgressDenied",
        "EnforcementUnavailable",
        "KeyDenied",
        "ModelDenied",
        "NotInstrumented",
        "PolicyError",
        "RateLimited",
        "SeamError",
        "StoreUnavailable",
        "ToolDenied",
    ),
    "agentguard.guard": ("Guard",),
    "agentguard.policy": ("Policy",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AgentGuardError",
    "AgentIsolated",
    "AuditError",
    "BudgetBlock",
    "BudgetExceeded",
    "Decision",
    "Denied",
    "EgressDenied",
    "EnforcementUnavailable",
    "Guard",
    "HTTPCall",
    "Instrumentation",
    "KeyDenied",
    "LLMCall",
    "ModelDenied",
    "NotInstrumented",
    "Policy",
    "PolicyError",
    "RateLimited",
    "SeamError",
    "Session",
    "StoreUnavailable",
    "ToolCall",
    "ToolDenied",
    "Usage",
    "agent",
    "budget",
    "current_guard",
    "instrument",
    "propagate",
    "session",
    "tool",
    "uninstrument",
    "waiting",
]


def __getattr__(name: str) -> object:
    """Load a name when it is first asked for (PEP 562): importing agentguard costs next to nothing."""
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The exception of a refusal that has to pass through an SDK: one that neither retries nor wraps it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from agentguard.guard import denial

if TYPE_CHECKING:
    from agentguard.core.call import Call
    from agentguard.core.decision import Decision
    from agentguard.errors import Denied

_SDK_ERRORS = (("openai", "OpenAIError"), ("anthropic", "AnthropicError"), ("groq", "GroqError"), ("together", "TogetherError"))


def sdk_error_bases() -> tuple[type, ...]:
    """The base errors of the SDKs that are imported. A denial that is raised below one has them as bases, so that it passes
    through: anthropic 2.12 retries any foreign exception three times and shows it as a connection error."""  # noqa: D205, D209
    return tuple(
        getattr(module, name) for library, name in _SDK_ERRORS if (module := sys.modules.get(library)) and hasattr(module, name)
    )


def refuse(decision: Decision, call: Call | None, *bases: type) -> Denied:
    """The exception for a denial below an SDK; `bases` are further ones that whoever is above expects."""
    return denial(decision, call, (*sdk_error_bases(), *bases))

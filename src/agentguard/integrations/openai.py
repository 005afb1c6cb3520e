"""openai, and the SDKs of its shape that take the same requests: groq and together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.integrations._sdk import sdk_integration

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Integration


def integrations(verify: Callable[[str], None]) -> tuple[Integration, ...]:
    """The integrations of openai, groq and together."""
    return tuple(sdk_integration(library, None, verify) for library in ("openai", "groq", "together"))

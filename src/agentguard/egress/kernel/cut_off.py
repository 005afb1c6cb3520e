"""The one failure of activation after which there is no way back."""

from __future__ import annotations

from agentguard.errors import EnforcementUnavailable


class CutOff(EnforcementUnavailable):
    """The filter stands, and nobody answers behind it: from now on nothing of this process connects."""

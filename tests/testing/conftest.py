"""The fixtures of `agentguard.testing.plugin`, also where agentguard is not installed but only on the path."""

from agentguard.testing.plugin import frozen_clock, provider, recorder

__all__ = ["frozen_clock", "provider", "recorder"]

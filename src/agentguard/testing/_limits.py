"""The rate limits that the loopback provider says it has."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where a client stands with its rate limits. They are told, never enforced: tests script their 429s."""

    requests: int = 10_000
    tokens: int = 2_000_000
    requests_left: int = 10_000
    tokens_left: int = 2_000_000
    reset_seconds: int = 0

    def as_duration(self) -> str:
        """Time until the limits are whole again, as OpenAI writes it: `6m0s`."""
        minutes, seconds = divmod(self.reset_seconds, 60)
        return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"

    def as_instant(self) -> str:
        """When the limits are whole again, as Anthropic writes it: RFC 3339."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self.reset_seconds))

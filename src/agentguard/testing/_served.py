"""What the loopback provider has served, in total."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.testing.records import RecordedRequest


class Served:
    """Running totals since the provider started or was cleared."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0
        self.served = 0
        self.input_tokens = 0
        self.output_tokens = 0

    @property
    def tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def count_call(self) -> None:
        """An LLM call arrived."""
        with self._lock:
            self.calls += 1

    def count_served(self, request: RecordedRequest, input_tokens: int) -> None:
        """The model began to answer a request."""
        with self._lock:
            self.served += 1
            self.input_tokens += input_tokens
        request.input_tokens = input_tokens

    def count_output(self, request: RecordedRequest, tokens: int) -> None:
        """So many output tokens leave; a negative number takes back those that could not."""
        with self._lock:
            self.output_tokens += tokens
        request.output_tokens_sent += tokens

    def totals(self) -> dict[str, int]:
        """All counters by name, of one moment."""
        with self._lock:
            return {
                "calls": self.calls,
                "served": self.served,
                "tokens": self.tokens,
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
            }

"""How many tokens a call will use, before it is made. No tokenizer is downloaded: bytes are counted, and answers teach.

The default is high on purpose, and learns. A hard limit must not rest on an average: characters / 4, the usual rule,
is 70 % too low for Chinese and 63 % too low for base64 (measured against o200k).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.model import Bound

if TYPE_CHECKING:
    from agentguard.core.call import LLMCall, Usage

BYTES_PER_TOKEN_HIGH = 3
"""A high estimate of text: English is 60 % over, Chinese 23 %, German 42 % (measured against o200k)."""

DENSE_BYTES_PER_TOKEN_HIGH = 1.4
"""Base64 takes a token for each 1.48 bytes, hexadecimal for each 1.9 (the same measurement)."""

BYTES_PER_TOKEN_TYPICAL = 4
"""A middling estimate, for output that was delivered and that nobody counted."""

REQUEST_OVERHEAD_TOKENS = 8
"""What a chat format adds around the text: role words and separators."""

OPAQUE_PART_TOKENS = 1600
"""An image of 1.15 megapixels, the largest that Anthropic does not scale down, is about 1,600 tokens (width x height / 750)."""

_STRICT = Bound.STRICT  # named once: through its class it costs Python 3.11 as much as three comparisons
_LOWEST, _HIGHEST = 0.2, 8.0
_HEADROOM = 1.05
_DECAY = 0.3
_OUTPUT_WEIGHT = 0.3
_MIN_SAMPLE_TOKENS = 16


class Factors(NamedTuple):
    """What was learned of a model: actual over estimated tokens, for input (a high one) and for output (a typical one)."""

    input: float = 1.0
    output: float = 1.0


class Estimator:
    """Estimates tokens and learns from what providers report. Threads may share it: a lost lesson is harmless."""

    def __init__(self) -> None:
        self._factors: dict[tuple[str, str], Factors] = {}

    def input_tokens(self, call: LLMCall, bound: Bound = Bound.CALIBRATED) -> int:
        """Input tokens to reserve for a call: the calibrated high estimate, or the true bound of visible text."""
        if bound is _STRICT:
            return call.input_bytes + REQUEST_OVERHEAD_TOKENS
        learned = self._factors.get((call.provider, call.model), _UNTAUGHT)
        return int(_raw_input(call) * learned.input) + 1

    def output_tokens(self, call: LLMCall, output_bytes: int, bound: Bound = Bound.CALIBRATED) -> int:
        """Output tokens that a number of bytes of generated text stands for."""
        if bound is _STRICT:
            return output_bytes
        return round(output_bytes / BYTES_PER_TOKEN_TYPICAL * self.factors(call).output)

    def output_bytes(self, call: LLMCall, tokens: int, bound: Bound = Bound.CALIBRATED) -> int:
        """How much generated text a number of output tokens pays for: the inverse of `output_tokens`."""
        if bound is _STRICT:
            return tokens
        return int(tokens * BYTES_PER_TOKEN_TYPICAL / self.factors(call).output)

    def learn(self, call: LLMCall, usage: Usage, output_bytes: int = 0) -> None:
        """Compare a report with the estimate.

        The input factor rises to an observation at once and falls slowly, so that it stays on the high side;
        the output factor follows the middle. Input that the request does not show teaches nothing.
        """
        factors = self.factors(call)
        learned_input, learned_output = factors
        if call.input_visible and not call.opaque_parts and usage.input_tokens >= _MIN_SAMPLE_TOKENS:
            seen = usage.input_tokens / _raw_input(call) * _HEADROOM
            learned_input = seen if seen > learned_input else learned_input + _DECAY * (seen - learned_input)
        visible_tokens = usage.output_tokens - usage.reasoning_tokens
        if output_bytes and visible_tokens >= _MIN_SAMPLE_TOKENS:
            seen = visible_tokens * BYTES_PER_TOKEN_TYPICAL / output_bytes
            learned_output += _OUTPUT_WEIGHT * (seen - learned_output)
        learned = Factors(_clamp(learned_input), _clamp(learned_output))
        if learned != factors:
            self._factors[call.provider, call.model] = learned

    def factors(self, call: LLMCall) -> Factors:
        """What was learned of a call's model so far."""
        return self._factors.get((call.provider, call.model), _UNTAUGHT)


_UNTAUGHT = Factors()


def _raw_input(call: LLMCall) -> float:
    return (
        (call.input_bytes - call.dense_bytes) / BYTES_PER_TOKEN_HIGH
        + call.dense_bytes / DENSE_BYTES_PER_TOKEN_HIGH
        + call.opaque_parts * OPAQUE_PART_TOKENS
        + REQUEST_OVERHEAD_TOKENS
    )


def _clamp(factor: float) -> float:
    return min(max(factor, _LOWEST), _HIGHEST)

"""What tokens cost, in integer nano-USD."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from agentguard.core.call import Usage
    from agentguard.policy.model import LLM, Price

_PER = 1_000_000


class PriceSource(Protocol):
    """A list of prices."""

    def price(self, provider: str, model: str, input_tokens: int) -> Price | None:
        """The price of a model for a prompt of this size (some cost more beyond a threshold); None when it is not listed."""


def price_of(llm: LLM, source: PriceSource, provider: str, model: str, input_tokens: int) -> Price | None:
    """The price that holds for a call: the policy's own, else the list's, else what the policy says of unknown models."""
    for pattern, price in llm.prices.items():
        if _matches(model, pattern):
            return price
    return source.price(provider, model, input_tokens) or llm.unknown_price


_matches = lru_cache(maxsize=4096)(fnmatchcase)


def cost_nanos(price: Price, usage: Usage) -> int:
    """What a usage costs, rounded up. Cached input is priced apart; reasoning is output."""
    read = usage.cache_read_tokens
    written = usage.cache_write_tokens
    plain = max(usage.input_tokens - read - written, 0)
    total = (
        plain * price.input
        + read * (price.input if price.cache_read is None else price.cache_read)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + usage.output_tokens * price.output
    )
    return -(-total // _PER)


def bound_nanos(price: Price, input_tokens: int, output_tokens: int) -> int:
    """The most that a call of this size can cost: input at the dearest of its prices, rounded up."""
    dearest = max(price.input, price.cache_write or 0)
    return -(-(input_tokens * dearest + output_tokens * price.output) // _PER)


def affordable_output(price: Price, nanos: int, input_tokens: int) -> int:
    """How many output tokens an amount of money pays for, after the input."""
    left = nanos * _PER - input_tokens * max(price.input, price.cache_write or 0)
    if left <= 0:
        return 0
    return left // price.output if price.output else left

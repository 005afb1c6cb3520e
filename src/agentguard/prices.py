"""The bundled price list: what genai-prices knows of a model, in integer nano-USD per million tokens."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.model import NANOS_PER_USD, Price

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

_LISTED_AS: Mapping[str, str] = MappingProxyType(
    {
        "aws.bedrock": "aws",
        "azure.ai.inference": "azure",
        "azure.ai.openai": "azure",
        "gcp.gemini": "google",
        "gcp.gen_ai": "google",
        "gcp.vertex_ai": "google",
        "gemini": "google",
        "mistral_ai": "mistral",
        "moonshot_ai": "moonshotai",
        "x_ai": "x-ai",
        "xai": "x-ai",
    }
)
"""The list's id of a provider where it differs from OpenTelemetry's name, or from the policy's word."""

_INPUT = ("input_mtok", "input_image_mtok", "input_audio_mtok", "input_video_mtok")
_OUTPUT = ("output_mtok", "output_image_mtok", "output_audio_mtok", "output_video_mtok")
_MAX_CACHED = 4096
_FOREVER = float("inf")
_MINUTE_SECONDS = 60
_DAY_SECONDS = 86_400


class _Bracket(NamedTuple):
    """What holds for prompts of more than `above` tokens."""

    above: int
    price: Price


class _Known(NamedTuple):
    """What a model costs until a moment (Unix time), largest prompts first. Empty: nobody prices it."""

    until: float
    brackets: tuple[_Bracket, ...]


class BundledPrices:
    """A `PriceSource` over the data that genai-prices ships: never over the network, nor over what the app has fetched.

    The list is imported with the first price that is asked for. An answer is remembered, an unknown model too.
    A provider is matched by its name alone: a model of an unknown provider has no price, whatever it is called.
    Cache writes are priced as those of the shortest life, since usage does not tell them apart.

    Args:
        now: Unix time; some prices depend on the date or on the hour.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._known: dict[tuple[str, str], _Known] = {}

    def price(self, provider: str, model: str, input_tokens: int) -> Price | None:
        """The price of a model for a prompt of this size; None when it is not listed by the token."""
        known = self._known.get((provider, model))
        if known is None or known.until <= self._now():
            known = self._look_up(provider, model)
        for above, price in known.brackets:
            if input_tokens > above:
                return price
        return None

    def _look_up(self, provider: str, model: str) -> _Known:
        # Two threads may look up the same model: they find the same, and each step on the dict is atomic.
        now = self._now()
        listed = _find(_LISTED_AS.get(provider, provider), model)
        known = _Known(_FOREVER, ()) if listed is None else _Known(_valid_until(listed, now), _brackets(_prices_at(listed, now)))
        if len(self._known) >= _MAX_CACHED:
            self._known.clear()
        self._known[provider, model] = known
        return known


def _providers() -> list[Provider]:
    from genai_prices.data import providers  # 0.3 s, which only who limits money needs

    return providers


def _find(provider_id: str, model: str) -> ModelInfo | None:
    providers = _providers()
    provider = next((provider for provider in providers if provider.id == provider_id), None)
    return provider.find_model(model, all_providers=providers) if provider is not None else None


def _prices_at(listed: ModelInfo, now: float) -> ModelPrice:
    return listed.get_prices(datetime.fromtimestamp(now, UTC))


def _valid_until(listed: ModelInfo, now: float) -> float:
    """Prices change at a UTC midnight or, for some, at a minute of the day."""
    if not isinstance(listed.prices, list):
        return _FOREVER
    constraints = [entry.constraint for entry in listed.prices]
    step = _MINUTE_SECONDS if any(hasattr(constraint, "start_time") for constraint in constraints) else _DAY_SECONDS
    return (now // step + 1) * step


def _brackets(prices: ModelPrice) -> tuple[_Bracket, ...]:
    """The prices by size of the prompt. The whole call is priced by its bracket, as providers do."""
    by_key: dict[str, Decimal | TieredPrices] = {key: value for key, value in vars(prices).items() if value is not None}
    if not any(key in by_key for key in (*_INPUT, *_OUTPUT)):
        return ()  # priced by the second, the page or the request
    starts = {tier.start for value in by_key.values() for tier in getattr(value, "tiers", ())}
    return tuple(_Bracket(above, _price(by_key, above + 1)) for above in sorted({-1, *starts}, reverse=True))


def _price(by_key: Mapping[str, Decimal | TieredPrices], tokens: int) -> Price:
    nanos = {key: _nanos(_rate(value, tokens)) for key, value in by_key.items() if key.endswith("_mtok")}
    return Price(
        input=_first(nanos, _INPUT),
        output=_first(nanos, _OUTPUT),
        cache_read=nanos.get("cache_read_mtok"),
        cache_write=nanos.get("cache_write_mtok"),
    )


def _first(nanos: Mapping[str, int], keys: tuple[str, ...]) -> int:
    """The price of text; of a model that has none, the dearest of the others; 0 where that side is not charged."""
    return nanos[keys[0]] if keys[0] in nanos else max((nanos[key] for key in keys if key in nanos), default=0)


def _rate(value: Decimal | TieredPrices, tokens: int) -> Decimal:
    from genai_prices.types import TieredPrices

    if not isinstance(value, TieredPrices):
        return value
    reached = [tier.price for tier in value.tiers if tokens > tier.start]
    return reached[-1] if reached else value.base


def _nanos(usd: Decimal) -> int:
    """Exact, and rounded up to a nano-USD. Decimal arithmetic would round to the calling thread's context."""
    numerator, denominator = usd.as_integer_ratio()
    return -(-numerator * NANOS_PER_USD // denominator)

"""The bundled price list, held against genai-prices' own arithmetic."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal, localcontext

import pytest
from genai_prices import Usage, data_snapshot
from genai_prices.data import providers
from genai_prices.types import ModelPrice, TimeOfDateConstraint, calc_unit_price

from agentguard.policy.model import Price
from agentguard.prices import BundledPrices, _brackets
from agentguard.testing.clock import FrozenClock

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture
def prices():
    return BundledPrices(NOW.timestamp)


def listed_cost(provider, model, **usage):
    """What genai-prices itself says, in nano-USD."""
    snapshot = data_snapshot.DataSnapshot(providers=providers, from_auto_update=False)
    calculation = snapshot.calc(Usage(**usage), model, provider, None, NOW)
    return calculation.total_price * 1_000_000_000


@pytest.mark.parametrize(
    ("provider", "listed_as", "model"),
    [
        ("openai", "openai", "gpt-4o-mini"),
        ("anthropic", "anthropic", "claude-sonnet-4-5"),
        ("azure.ai.openai", "azure", "gpt-4o"),
        ("mistral_ai", "mistral", "mistral-large-latest"),
        ("x_ai", "x-ai", "grok-4"),
        ("gcp.gemini", "google", "gemini-2.5-pro"),
        ("gcp.vertex_ai", "google", "gemini-2.5-flash"),
        ("deepseek", "deepseek", "deepseek-chat"),
        ("groq", "groq", "llama-3.3-70b-versatile"),
    ],
)
def test_a_price_by_opentelemetrys_provider_name_is_what_the_list_says(prices, provider, listed_as, model):
    price = prices.price(provider, model, 1_000)

    assert price is not None
    assert price.input * 1_000 == listed_cost(listed_as, model, input_tokens=1_000) * 1_000_000
    assert price.output * 1_000 == listed_cost(listed_as, model, output_tokens=1_000) * 1_000_000


def test_cached_input_has_its_own_prices(prices):
    assert prices.price("anthropic", "claude-sonnet-4-5", 1) == Price(
        input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000, cache_write=3_750_000_000
    )


@pytest.mark.parametrize("tokens", [0, 1, 200_000, 200_001, 1_000_000])
def test_a_large_prompt_is_priced_by_its_bracket_to_the_token(prices, tokens):
    price = prices.price("gcp.gemini", "gemini-2.5-pro", tokens)

    assert price is not None
    assert price.input * tokens == listed_cost("google", "gemini-2.5-pro", input_tokens=tokens) * 1_000_000


def test_every_listed_price_is_taken_over_exactly():
    for provider in providers:
        for model in provider.models:
            listed = model.get_prices(NOW)
            for above, price in _brackets(listed):
                if listed.input_mtok is not None:
                    value = calc_unit_price(listed.input_mtok, 1_000_000_000, above + 1, 1)
                    assert Decimal(price.input) == value.to_integral_value(ROUND_CEILING)  # some carry a float's dust


def test_prices_do_not_depend_on_the_threads_decimal_context():
    with localcontext(prec=2):
        (bracket,) = _brackets(ModelPrice(input_mtok=Decimal("1.23456789"), output_mtok=Decimal("0.0000000001")))

    assert bracket.price == Price(input=1_234_567_890, output=1)


def test_an_unknown_model_has_no_price_and_is_looked_up_once(prices, monkeypatch):
    assert prices.price("openai", "my-own-model", 1) is None
    monkeypatch.setattr("agentguard.prices._find", None)

    assert prices.price("openai", "my-own-model", 1) is None


def test_a_model_of_an_unknown_provider_has_no_price_whatever_it_is_called(prices):
    assert prices.price("my-openai-proxy", "gpt-4o", 1) is None


def test_a_model_that_is_not_sold_by_the_token_has_no_price(prices):
    assert _brackets(ModelPrice(audio_hours=Decimal(1))) == ()
    assert prices.price("groq", "whisper-large-v3", 1) is None


def test_a_price_of_the_day_is_looked_up_anew_on_the_next_day(monkeypatch):
    clock = FrozenClock(NOW.timestamp())
    prices = BundledPrices(clock.time)
    listed = next(model for provider in providers for model in provider.models if isinstance(model.prices, list))
    asked = []
    monkeypatch.setattr("agentguard.prices._find", lambda provider, model: asked.append(model) or listed)
    prices.price("any", "model", 1)
    prices.price("any", "model", 1)

    clock.advance(12 * 3600)
    prices.price("any", "model", 1)

    assert len(asked) == 2


def test_a_price_of_the_hour_changes_within_the_day(monkeypatch):
    clock = FrozenClock(NOW.timestamp())
    prices = BundledPrices(clock.time)
    model = next(model for provider in providers for model in provider.models if is_priced_by_the_hour(model))
    monkeypatch.setattr("agentguard.prices._find", lambda provider, name: model)

    for _ in range(96):
        price = prices.price("any", "model", 1)

        listed = model.get_prices(datetime.fromtimestamp(clock.time(), UTC))
        assert price is not None
        assert Decimal(price.input) == listed.input_mtok * 1_000_000_000
        clock.advance(15 * 60)


def is_priced_by_the_hour(model):
    return isinstance(model.prices, list) and any(isinstance(entry.constraint, TimeOfDateConstraint) for entry in model.prices)


def test_prices_that_the_app_has_fetched_are_not_used(prices):
    data_snapshot.set_custom_snapshot(data_snapshot.DataSnapshot(providers=[], from_auto_update=True))
    try:
        assert prices.price("openai", "gpt-4o", 1) is not None
    finally:
        data_snapshot.set_custom_snapshot(None)


def test_many_threads_get_one_answer(prices):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(prices.price("openai", "gpt-4o", 1))) for _ in range(20)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 20
    assert len(set(answers)) == 1
    assert answers[0] is not None


def test_memory_is_bounded(prices):
    for number in range(10_000):
        prices.price("nobody", f"model-{number}", 1)

    assert len(prices._known) <= 4096


def test_importing_the_module_does_not_import_the_list():
    program = """
import sys
from agentguard.prices import BundledPrices
BundledPrices()
print("genai_prices" in sys.modules, "pydantic" in sys.modules)
"""

    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["False", "False"]


def test_the_network_is_not_used():
    program = """
import sys
def refuse(event, args):
    if event.startswith("socket."):
        raise SystemExit(f"the network was used: {event} {args}")
sys.addaudithook(refuse)
from agentguard.prices import BundledPrices
print(BundledPrices().price("openai", "gpt-4o", 1).input)
"""

    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert int(printed) > 0

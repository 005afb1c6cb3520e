"""Amounts, durations, percentages and ranges are read exactly and written back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.policy import grammar
from agentguard.policy.model import Limit, Per, Unit, Window

LAW = settings(max_examples=60, deadline=None)
AMOUNTS = st.integers(1, grammar.MAX_AMOUNT)


@pytest.mark.parametrize(
    ("text", "amount", "unit", "rate_seconds"),
    [
        ("5000 tokens", 5000, Unit.TOKENS, None),
        ("1 token", 1, Unit.TOKENS, None),
        ("10_000 tokens", 10_000, Unit.TOKENS, None),
        ("200k tokens", 200_000, Unit.TOKENS, None),
        ("1.5M tokens", 1_500_000, Unit.TOKENS, None),
        ("$20.00", 20_000_000_000, Unit.USD, None),
        ("$0.5", 500_000_000, Unit.USD, None),
        ("$0.000000001", 1, Unit.USD, None),
        ("$1_000", 1_000_000_000_000, Unit.USD, None),
        ("50 calls", 50, Unit.CALLS, None),
        ("4 concurrent_calls", 4, Unit.CONCURRENT_CALLS, None),
        ("4 concurrent calls", 4, Unit.CONCURRENT_CALLS, None),
        ("1000_requests_per_hour", 1000, Unit.CALLS, 3600.0),
        ("1000 requests per hour", 1000, Unit.CALLS, 3600.0),
        ("10_000_requests_per_day", 10_000, Unit.CALLS, 86_400.0),
        ("1_request_per_second", 1, Unit.CALLS, 1.0),
        ("60_requests_per_minute", 60, Unit.CALLS, 60.0),
    ],
)
def test_an_amount_says_what_it_counts(text, amount, unit, rate_seconds):
    assert grammar.read_amount(text) == (amount, unit, rate_seconds, text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ten", r'expected an amount such as "\$5\.00" or "5000 tokens", found \'ten\''),
        ("5000", r"expected an amount"),
        ("-5 tokens", r"expected an amount"),
        ("5 tokens per hour", r"expected an amount"),
        ("5 dollars", r"expected an amount"),
        ("٥ tokens", r"expected an amount"),
        ("0 calls", r"more than nothing"),
        ("$0", r"more than nothing"),
        ("1.5 calls", r"expected a whole number"),
        ("$0.0000000001", r"billionths of a dollar"),
        ("$9007199.26", r"more than can be counted exactly"),
        ("1" * 50 + " tokens", r"is too large"),
        ("50 calls per hour", r"write '50_requests_per_hour'"),
    ],
)
def test_what_is_no_amount_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        grammar.read_amount(text)


@LAW
@given(AMOUNTS, st.sampled_from(Unit))
def test_an_amount_comes_back_as_it_was_written(amount, unit):
    written = grammar.write_amount(Limit(amount=amount, unit=unit))

    assert grammar.read_amount(written)[:2] == (amount, unit)


@LAW
@given(AMOUNTS, st.sampled_from([1.0, 60.0, 3600.0, 86_400.0]))
def test_a_rate_comes_back_as_it_was_written(amount, seconds):
    written = grammar.write_amount(Limit(amount=amount, unit=Unit.CALLS, window=Window(seconds=seconds)))

    assert grammar.read_amount(written)[:3] == (amount, Unit.CALLS, seconds)


def test_the_text_of_a_limit_is_kept_only_while_it_says_the_same():
    assert grammar.write_amount(Limit(amount=10_000, unit=Unit.TOKENS, text="10k tokens")) == "10k tokens"
    assert grammar.write_amount(Limit(amount=5_000, unit=Unit.TOKENS, text="10k tokens")) == "5000 tokens"
    assert grammar.write_amount(Limit(amount=5_000, unit=Unit.TOKENS, text="half of it")) == "5000 tokens"
    hourly = Limit(amount=5, unit=Unit.CALLS, window=Window(every="hour"), text="5_requests_per_hour", per=Per.USER)
    assert grammar.write_amount(hourly) == "5 calls"


@LAW
@given(st.integers(0, 10**18))
def test_money_comes_back_to_the_nano_dollar(nanos):
    assert grammar.read_money(grammar.write_money(nanos)) == nanos


@pytest.mark.parametrize("value", [0.5, 5, "5", "$", "$-1", None, "USD 5"])
def test_money_is_text_with_a_dollar_sign(value):
    with pytest.raises(ValueError, match=r'expected money .*"\$1\.25"'):
        grammar.read_money(value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("90s", 90.0), ("5m", 300.0), ("24h", 86_400.0), ("30d", 2_592_000.0)]
)
def test_a_duration_has_a_unit(text, seconds):
    assert grammar.read_duration(text) == seconds


@pytest.mark.parametrize("value", ["90", 90, "s", "-5s", "0s", "1w", None, "1e3s"])
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(ValueError, match="duration"):
        grammar.read_duration(value)


@LAW
@given(st.integers(1, 10**15).map(lambda millis: millis / 1000))
def test_a_duration_comes_back_as_it_was_written(seconds):
    assert grammar.read_duration(grammar.write_duration(seconds)) == seconds


@pytest.mark.parametrize("window", [Window(every="day"), Window(every="month"), Window(seconds=90.0), Window(seconds=2e6)])
def test_a_window_comes_back_as_it_was_written(window):
    assert grammar.read_window(grammar.write_window(window)) == window


@pytest.mark.parametrize("text", ["week", "Day", "", "90"])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError, match="expected minute, hour, day, month or a rolling duration"):
        grammar.read_window(text)


def test_percentages_run_from_one_to_a_hundred():
    assert [grammar.read_percent("1%"), grammar.read_percent("80 %"), grammar.read_percent("100%")] == [1, 80, 100]
    for value in ("0%", "101%", "80", 80, 0.8, "8.5%"):
        with pytest.raises(ValueError, match="percentage"):
            grammar.read_percent(value)


def test_ranges_go_up():
    assert grammar.read_range("500-1000") == (500.0, 1000.0)
    assert grammar.read_range("0.5 - 2") == (0.5, 2.0)
    for value in ("1000-500", "500", "a-b", [500, 1000], 500):
        with pytest.raises(ValueError, match="range"):
            grammar.read_range(value)

"""The laws of counting, on rows alone."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.core.limits import (
    BUCKETS,
    Amounts,
    Charge,
    Refused,
    Row,
    State,
    charge,
    charges_of,
    decide,
    give,
    portion,
    take,
)
from agentguard.policy.model import Limit, Unit, Window

NOW = 1_767_225_600.0


def new_row(amount=100, unit=Unit.TOKENS, window=Window.LIFE, key="r", warn_at=()):
    return Row.of(key, Limit(amount=amount, unit=unit, window=window, warn_at=warn_at))


def ask(row, amount, now, crossed=None):
    """Decide and take, as a store does; what is held, or None."""
    charges = (Charge(row.key, amount),)
    rows = decide({row.key: row}, charges, now)
    return None if isinstance(rows, Refused) else take(rows.values(), charges, [] if crossed is None else crossed)


moments = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 4)), max_size=80)


@given(gaps=moments, seconds=st.sampled_from([1.0, 60.0, 90.0, 3600.0]), limit=st.integers(1, 12))
def test_no_rolling_window_ever_admits_more_than_its_amount(gaps, seconds, limit):
    row = new_row(limit, Unit.CALLS, Window(seconds=seconds))
    admitted: list[tuple[float, int]] = []
    now = NOW
    for gap, amount in gaps:
        now += gap * seconds / 1000
        if ask(row, amount, now) is not None:
            admitted.append((now, amount))

    for start, _ in admitted:
        assert sum(amount for at, amount in admitted if start <= at < start + seconds) <= limit


@given(gaps=moments, seconds=st.sampled_from([60.0, 3600.0]), limit=st.integers(1, 12))
def test_a_rolling_window_refuses_only_what_a_window_longer_by_a_sixtieth_would(gaps, seconds, limit):
    row = new_row(limit, Unit.CALLS, Window(seconds=seconds))
    admitted: list[tuple[float, int]] = []
    now = NOW
    for gap, amount in gaps:
        now += gap * seconds / 1000
        if ask(row, amount, now) is not None:
            admitted.append((now, amount))
        else:
            assert sum(taken for at, taken in admitted if at > now - seconds * (1 + 1 / BUCKETS)) + amount > limit


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 20))
def test_what_was_refused_fits_at_the_moment_the_refusal_names_and_not_before(history, amount):
    row = new_row(20, Unit.CALLS, Window(seconds=60.0))
    now = NOW
    for gap, taken in history:
        now += gap
        ask(row, taken, now)
    refused = decide({"r": row}, (Charge("r", amount),), now)
    if not isinstance(refused, Refused):
        return

    assert isinstance(decide({"r": row}, (Charge("r", amount),), refused.retry_at - 0.01), Refused)
    assert not isinstance(decide({"r": row}, (Charge("r", amount),), refused.retry_at), Refused)


def test_a_clock_that_goes_back_leaves_a_rolling_window_where_it_was():
    row = new_row(2, Unit.CALLS, Window(seconds=60.0))
    ask(row, 2, NOW)

    assert ask(row, 1, NOW - 3600) is None
    assert ask(row, 1, NOW + 60) is None
    assert ask(row, 1, NOW + 61) is not None


def test_tokens_in_a_rolling_window_settle_in_the_bucket_in_which_they_were_taken():
    row = new_row(100, window=Window(seconds=60.0))
    items = ask(row, 100, NOW)
    give(items, Amounts(tokens=40), NOW + 30, [])

    assert (row.spent, row.held) == (40, 0)
    assert ask(row, 60, NOW + 30) is not None
    row.advance(NOW + 61)
    assert (row.spent, row.held) == (0, 60)


def test_a_settlement_in_a_bucket_that_is_over_no_longer_counts():
    row = new_row(100, window=Window(seconds=60.0))
    items = ask(row, 100, NOW)

    give(items, Amounts(tokens=90), NOW + 120, [])

    assert (row.spent, row.held, row.taken) == (0, 0, 0)


@pytest.mark.parametrize(
    ("every", "moment", "start", "end"),
    [
        ("minute", (2026, 3, 5, 10, 7, 59), (2026, 3, 5, 10, 7), (2026, 3, 5, 10, 8)),
        ("hour", (2026, 3, 5, 10, 7), (2026, 3, 5, 10), (2026, 3, 5, 11)),
        ("day", (2026, 3, 5, 10, 7), (2026, 3, 5), (2026, 3, 6)),
        ("month", (2026, 12, 31, 23, 59), (2026, 12, 1), (2027, 1, 1)),
        ("month", (2028, 2, 29), (2028, 2, 1), (2028, 3, 1)),
        ("month", (2026, 11, 1), (2026, 11, 1), (2026, 12, 1)),
    ],
)
def test_calendar_windows_follow_the_clock_in_utc(every, moment, start, end):
    row = new_row(window=Window(every))
    row.advance(datetime(*moment, tzinfo=UTC).timestamp())

    assert row.start == datetime(*start, tzinfo=UTC).timestamp()
    assert row.ends == datetime(*end, tzinfo=UTC).timestamp()


def test_a_window_that_nobody_knows_is_an_error_not_a_month():
    with pytest.raises(ValueError, match="'week' is no window"):
        new_row(window=Window("week")).advance(NOW)


def test_calls_at_once_do_not_end_with_a_window():
    for window in (Window("minute"), Window(seconds=60.0)):
        row = new_row(1, Unit.CONCURRENT_CALLS, window)
        items = ask(row, 1, NOW)

        assert ask(row, 1, NOW + 3600) is None
        give(items, Amounts(5, 5), NOW + 3600, [])
        assert (row.spent, row.held) == (0, 0)


def test_a_rolling_window_that_comes_and_goes_over_a_step_tells_it_once_in_its_length():
    row = new_row(10, Unit.CALLS, Window(seconds=60.0), warn_at=(50,))
    history = [(0, 4), (30, 1), (62, 4), (100, 1), (130, 1), (131, 4)]  # spent 4, 5, 5, 5, 2, 6
    told = []
    for second, amount in history:
        crossed = []
        ask(row, amount, NOW + second, crossed)
        told.append([step.spent for step in crossed])

    assert told == [[], [5], [], [5], [], []]


@given(
    st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**53), st.integers(1, 2**53)), min_size=1, max_size=5),
)
def test_a_share_never_passes_any_row_and_one_unit_more_would(numbers):
    rows, charges = [], []
    for number, (amount, taken, asked) in enumerate(numbers):
        row = new_row(amount + 1, key=str(number))
        row.restore(State(held=taken, ends=float("inf")))
        rows.append(row)
        charges.append(Charge(row.key, asked))

    share = portion(rows, charges)

    left = [row.amount - row.taken for row in rows]
    ratio = min(1, *(Fraction(room, asked.amount) for room, asked in zip(left, charges, strict=True)))
    exact = [int(asked.amount * ratio) for asked in charges]
    if share:
        assert [part.amount for part in share] == exact
        assert all(part.amount <= room for part, room in zip(share, left, strict=True))
    else:
        assert min(exact) < 1


def test_what_nobody_settles_is_spent_but_for_the_place_among_calls_at_once():
    tokens, at_once = new_row(key="t"), new_row(3, Unit.CONCURRENT_CALLS, key="c")
    items = take([tokens, at_once], [Charge("t", 30), Charge("c", 1)], [])

    charge(items)

    assert (tokens.spent, tokens.held, at_once.spent, at_once.held) == (30, 0, 0, 0)


def test_a_row_goes_on_from_what_was_written_down():
    row = new_row(100, window=Window(seconds=60.0), warn_at=(50, 80))
    give(ask(row, 60, NOW), Amounts(tokens=60), NOW, [])
    ask(row, 7, NOW + 20)

    other = new_row(100, window=Window(seconds=60.0), warn_at=(50, 80))
    other.restore(row.state())

    assert other.state() == row.state()
    assert (other.taken, other.warn_next, other.retry_at(90)) == (67, 80, row.retry_at(90))


def test_a_row_is_charged_what_the_call_asks_for_in_its_unit():
    charges = charges_of([("tokens", 0), ("usd", 1), ("calls", 2), ("more tokens", 0)], (5, 0, 1, 1))

    assert charges == (("tokens", 5), ("calls", 1), ("more tokens", 5))
    assert all(isinstance(charge, Charge) for charge in charges)


def test_amounts_by_unit():
    assert [Amounts(3, 4).of(unit) for unit in (Unit.TOKENS, Unit.USD, Unit.CALLS, Unit.CONCURRENT_CALLS)] == [3, 4, 0, 0]

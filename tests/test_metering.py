"""A meter gives every byte on, grows its call's reservation to the last token, and settles it once."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import AgentIsolated, BudgetExceeded, Guard, LLMCall, Policy
from agentguard.core.call import Target
from agentguard.events import Attempt, CallDenied, CallSettled
from agentguard.integrations._decoding import decoder
from agentguard.metering import Meter
from agentguard.wire import recognise

HERE = Target("http", "127.0.0.1", 80, "/v1/chat/completions")
FAMILY = recognise(HERE.path, {"model": "gpt-5", "messages": []})


def guard_of(tokens):
    worker = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}}
    return Guard(Policy.from_mapping({"agents": [worker | {"budgets": [{"limit": f"{tokens} tokens"}]}]}))


def begun(guard, max_tokens=100, hides=False):
    """A call whose response has begun."""
    admission = guard.begin(LLMCall("chat", "openai", "gpt-5", HERE, stream=True, max_output_tokens=max_tokens))
    admission.attempts.append(Attempt("POST", HERE, 0.0, 0.0, 200))
    admission.family = FAMILY
    admission.hides_usage = hides
    return admission


def event(text=None, **more):
    delta = {} if text is None else {"content": text}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "model": "gpt-5", "choices": [{"index": 0, "delta": delta}]} | more
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()


USAGE = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12})
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def guard():
    made = []

    def make(tokens):
        made.append(guard_of(tokens))
        return made[-1]

    yield make
    for one in made:
        one.close()


def settled(guard):
    guard.ledger.settle_ended()
    [(_, balance)] = guard.usage()
    assert balance.held == 0
    return balance.spent


STREAM = event("Hello ") + event("there, ") + event("you.") + USAGE + DONE


def fed(cuts, hides):
    """What a caller gets of the stream cut in these places, and what is spent."""
    guard = guard_of(1000)
    try:
        meter = Meter(begun(guard, hides=hides), FAMILY, is_events=True, is_countable=True)
        bounds = [0, *sorted(cuts), len(STREAM)]
        got = b"".join(meter.feed(STREAM[start:end]) for start, end in pairwise(bounds))
        return got + meter.end(), settled(guard)
    finally:
        guard.close()


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_it_is_cut_every_byte_is_given_on_and_usage_is_found(cuts):
    assert fed(cuts, hides=False) == (STREAM, 12)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_however_it_is_cut_the_usage_that_was_not_asked_for_is_withheld(cuts):
    assert fed(cuts, hides=True) == (STREAM.replace(USAGE, b""), 12)


def test_a_stream_may_use_all_that_is_left_to_the_last_token(guard):
    one = guard(1009)
    meter = Meter(begun(one, max_tokens=100), FAMILY, is_events=True, is_countable=True)

    for _ in range(1000):
        meter.feed(event("four"))
    with pytest.raises(BudgetExceeded):
        meter.feed(event("four"))

    assert 1009 <= settled(one) <= 1012


def test_two_streams_leave_nothing_stranded(guard):
    one = guard(1018)
    meters = [Meter(begun(one, max_tokens=100), FAMILY, is_events=True, is_countable=True) for _ in range(2)]
    passed = 0

    while meters:
        meter = meters.pop(0)
        try:
            meter.feed(event("four"))
        except BudgetExceeded:
            continue
        passed += 1
        meters.append(meter)

    assert 998 <= passed <= 1000
    assert settled(one) <= 1018 + 6


def test_an_isolation_cuts_at_the_next_chunk(guard):
    one = guard(1000)
    meter = Meter(begun(one), FAMILY, is_events=True, is_countable=True)
    meter.feed(event("four"))

    one.isolate("agent:worker", by="on call", why="a drill")

    with pytest.raises(AgentIsolated):
        meter.feed(event("four"))
    assert settled(one) < 20


@pytest.mark.parametrize(
    "ends", [("end", "abandon"), ("abandon", "end"), ("abandon", "abandon"), ("fail", "abandon"), ("end", "fail")]
)
def test_the_first_end_settles(guard, ends):
    one = guard(1000)
    events = []
    one.observe(events.append)
    meter = Meter(begun(one), FAMILY, is_events=True, is_countable=True)
    meter.feed(event("x" * 400))

    for end in ends:
        meter.fail(ZeroDivisionError()) if end == "fail" else getattr(meter, end)()
    spent = settled(one)
    one.flush()

    [told] = [event for event in events if type(event) is CallSettled]
    assert told.outcome == {"end": "complete", "abandon": "abandoned", "fail": "error"}[ends[0]]
    assert spent == 109


def test_the_terminal_event_settles_although_the_stream_is_never_drained(guard):
    one = guard(1000)
    meter = Meter(begun(one), FAMILY, is_events=True, is_countable=True)

    meter.feed(STREAM)

    assert settled(one) == 12


def test_a_compressed_stream_is_counted_and_given_on_as_it_is(guard):
    one = guard(1000)
    packed = gzip.compress(STREAM)
    meter = Meter(begun(one), FAMILY, is_events=True, is_countable=True, decode=decoder("gzip"))

    got = b"".join(meter.feed(packed[at : at + 7]) for at in range(0, len(packed), 7)) + meter.end()

    assert got == packed
    assert settled(one) == 12


def test_a_body_that_is_no_stream_is_read_when_it_is_over(guard):
    one = guard(1000)
    body = json.dumps({"id": "c1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}})
    meter = Meter(begun(one), FAMILY, is_events=False, is_countable=False)

    got = b"".join(meter.feed(bytes([byte])) for byte in body.encode()) + meter.end()

    assert got == body.encode()
    assert settled(one) == 12


def test_an_isolation_that_the_reader_passes_on_is_told_once(guard):
    one = guard(1000)
    told = []
    one.observe(told.append)
    meter = Meter(begun(one), FAMILY, is_events=True, is_countable=True)
    one.isolate("worker", by="me", why="a test")

    with pytest.raises(AgentIsolated) as isolated:
        meter.feed(event("more"))
    meter.fail(isolated.value)  # as a stream does with whatever its loop raises

    one.flush()
    assert [type(one_event) for one_event in told].count(CallDenied) == 1


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.integers(1, 60), st.booleans())
def test_gzip_in_many_members_is_undone_however_it_is_cut(members, size, has_garbage):
    packed = b"".join(map(gzip.compress, members)) + (b"\0\0 no member" if has_garbage else b"")
    undo = decoder("gzip")

    plain = b"".join(undo(packed[start : start + size]) for start in range(0, len(packed), size))

    assert plain == b"".join(members)


def test_a_response_that_is_not_in_the_encoding_it_names_is_handed_on_and_charged_in_full(guard):
    one = guard(1000)
    admission = begun(one)
    meter = Meter(admission, FAMILY, is_events=True, is_countable=True, decode=decoder("gzip"))

    assert meter.feed(DONE) == DONE
    meter.end()

    assert settled(one) == admission.estimate.input_tokens + admission.reserved_output


def test_a_response_that_cannot_be_decoded_to_take_the_usage_out_is_a_broken_connection(guard):
    meter = Meter(begun(guard(1000), hides=True), FAMILY, is_events=True, is_countable=True, decode=decoder("gzip"))

    with pytest.raises(OSError, match="not in the encoding that it names"):
        meter.feed(DONE)

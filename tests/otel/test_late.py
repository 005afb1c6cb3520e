"""Late spans: whatever a reader sees of one, it is as if it had been started with its call."""

from __future__ import annotations

import threading

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_OFF, DEFAULT_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from agentguard.otel.late import LateSpan, LateTracer

START = 1_790_000_000_000_000_000
NOWHERE = context.Context()


class Counting(RandomIdGenerator):
    """Ids that can be told from random ones, as those of AWS X-Ray can."""

    def generate_trace_id(self):
        return 0x5EED << 100 | super().generate_trace_id() >> 32


@pytest.fixture
def exported():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported):
    return provider_with(exported)


def provider_with(exported, **given):
    made = TracerProvider(shutdown_on_exit=False, **given)
    made.add_span_processor(SimpleSpanProcessor(exported))
    return made


def written(tracer, late, name="chat gpt-5", **attributes):
    tracer.write(late, name, SpanKind.CLIENT, attributes, START, START + 5, failed=False)


def inside(*, sampled=True, remote=False):
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    parent = SpanContext(7, 8, remote, flags, TraceState([("vendor", "x")]))
    return trace.set_span_in_context(NonRecordingSpan(parent), NOWHERE)


def test_the_span_that_is_written_is_the_one_that_was_promised(provider, exported):
    tracer = LateTracer.of(provider.get_tracer("t"))

    late = tracer.begin(NOWHERE)
    assert late.is_recording()
    assert exported.get_finished_spans() == ()
    written(tracer, late, kept=1)

    (span,) = exported.get_finished_spans()
    assert span.context == late.get_span_context()
    assert span.parent is None
    assert (span.name, span.kind, span.start_time, span.end_time) == ("chat gpt-5", SpanKind.CLIENT, START, START + 5)
    assert span.attributes["kept"] == 1
    assert span.instrumentation_scope.name == "t"


@pytest.mark.parametrize("remote", [False, True])
def test_inside_of_another_span_it_is_its_child(provider, exported, remote):
    tracer = LateTracer.of(provider.get_tracer("t"))

    late = tracer.begin(inside(remote=remote))
    written(tracer, late)

    (span,) = exported.get_finished_spans()
    assert span.context == late.get_span_context()
    assert (span.context.trace_id, span.parent.span_id) == (7, 8)
    assert span.context.trace_state["vendor"] == "x"


def test_a_span_that_was_started_inside_of_it_is_its_child(provider, exported):
    tracer = LateTracer.of(provider.get_tracer("t"))
    late = tracer.begin(NOWHERE)

    provider.get_tracer("other").start_span("inner", trace.set_span_in_context(late, NOWHERE)).end()
    written(tracer, late)

    inner, outer = exported.get_finished_spans()
    assert inner.parent == outer.context


def test_below_an_unsampled_span_nothing_is_written_and_nothing_is_sampled(provider, exported):
    late = LateTracer.of(provider.get_tracer("t")).begin(inside(sampled=False))

    assert not isinstance(late, LateSpan)
    assert not late.is_recording()
    assert not late.get_span_context().trace_flags.sampled
    assert late.get_span_context().trace_id == 7


def test_a_sampler_that_takes_all_takes_the_child_of_an_unsampled_span_too(exported):
    tracer = LateTracer.of(provider_with(exported, sampler=ALWAYS_ON).get_tracer("t"))

    late = tracer.begin(inside(sampled=False))
    written(tracer, late)

    (span,) = exported.get_finished_spans()
    assert span.context == late.get_span_context()
    assert span.context.trace_flags.sampled


@pytest.mark.parametrize(
    "sampler",
    [ALWAYS_OFF, DEFAULT_OFF, TraceIdRatioBased(0.5), ParentBased(TraceIdRatioBased(0.5)), ParentBased(ALWAYS_ON, ALWAYS_OFF)],
)
def test_a_sampler_that_has_to_be_asked_is_asked_at_the_start(sampler):
    assert LateTracer.of(TracerProvider(sampler=sampler, shutdown_on_exit=False).get_tracer("t")) is None


def test_a_tracer_that_is_not_the_sdks_begins_its_own_spans():
    assert LateTracer.of(trace.NoOpTracer()) is None
    assert LateTracer.of(trace.get_tracer("proxy")) is None


@pytest.mark.parametrize("sampler", [ALWAYS_ON, DEFAULT_ON])
def test_ids_come_from_the_providers_own_generator(exported, sampler):
    tracer = LateTracer.of(provider_with(exported, sampler=sampler, id_generator=Counting()).get_tracer("t"))

    late = tracer.begin(NOWHERE)
    written(tracer, late)

    assert late.get_span_context().trace_id >> 100 == 0x5EED
    assert exported.get_finished_spans()[0].context == late.get_span_context()


def test_what_is_said_of_it_meanwhile_stands_on_it(provider, exported):
    tracer = LateTracer.of(provider.get_tracer("t"))
    late = tracer.begin(NOWHERE)

    late.set_attribute("one", 1)
    late.set_attributes({"two": 2})
    late.add_event("seen", {"where": "hook"})
    late.add_link(SpanContext(1, 2, is_remote=True))
    late.set_status(StatusCode.ERROR, "bad")
    late.record_exception(ValueError("x"))
    late.update_name("renamed")
    late.end()
    written(tracer, late, one="first")

    (span,) = exported.get_finished_spans()
    assert (span.attributes["one"], span.attributes["two"], span.name) == (1, 2, "renamed")
    assert [event.name for event in span.events] == ["seen", "exception"]
    assert span.links[0].context.span_id == 2
    assert span.status.status_code is StatusCode.ERROR


def test_other_spans_of_the_same_tracer_keep_ids_of_their_own(provider, exported):
    plain = provider.get_tracer("t")
    tracer = LateTracer.of(plain)
    lates = [tracer.begin(NOWHERE) for _ in range(200)]
    other = threading.Thread(target=lambda: [plain.start_span("plain").end() for _ in range(200)])

    other.start()
    for late in lates:
        written(tracer, late)
    other.join()

    spans = exported.get_finished_spans()
    assert len({span.context.span_id for span in spans}) == 400
    ours = {span.context.span_id for span in spans if span.name != "plain"}
    assert ours == {late.get_span_context().span_id for late in lates}

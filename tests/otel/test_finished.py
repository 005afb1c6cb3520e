"""Spans that are over when they are made: nobody can tell them from those that the SDK has started."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.span import TraceState

from agentguard.otel.finished import FinishedSpans
from agentguard.otel.late import LateTracer

START = 1_790_000_000_000_000_000
NOWHERE = context.Context()


class Watching(SpanProcessor):
    """Looks at spans when they start, as those do that copy baggage onto them."""

    def __init__(self):
        self.started = []

    def on_start(self, span, parent_context=None):
        self.started.append(span.name)
        span.set_attribute("seen", True)


def provider_of(*processors, **given):
    made = TracerProvider(shutdown_on_exit=False, resource=Resource({"service.name": "bot"}), **given)
    for processor in processors:
        made.add_span_processor(processor)
    return made


def exporting(*more, **given):
    exporter = InMemorySpanExporter()
    return provider_of(SimpleSpanProcessor(exporter), *more, **given), exporter


def finished(provider):
    return FinishedSpans(provider.get_tracer("t"))


def inside(flags=TraceFlags.SAMPLED):
    parent = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(flags), trace_state=TraceState([("vendor", "x")]))
    return trace.set_span_in_context(NonRecordingSpan(parent), NOWHERE)


VALUES = st.one_of(
    st.text(max_size=20), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.tuples(st.text(max_size=5))
)


@given(
    name=st.text(min_size=1, max_size=20),
    attributes=st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=10),
    kind=st.sampled_from(SpanKind),
    seconds=st.integers(0, 10**12),
    failed=st.booleans(),
    is_root=st.booleans(),
)
def test_what_is_exported_is_what_the_sdk_exports(name, attributes, kind, seconds, failed, is_root):
    direct, shown = exporting()
    by_the_sdk, expected = exporting()
    tracer, slow = (LateTracer.of(provider.get_tracer("t", "1.2", "https://schema.test")) for provider in (direct, by_the_sdk))
    assert finished(direct).are_enough
    late = tracer.begin(NOWHERE if is_root else inside())
    said = LateTracer.of(by_the_sdk.get_tracer("t")).begin(NOWHERE)
    said._context, said.around = late.get_span_context(), late.around
    said.set_attributes({})  # something was said, so the SDK makes the span

    tracer.write(late, name, kind, attributes, START, START + seconds, failed=failed)
    slow.write(said, name, kind, attributes, START, START + seconds, failed=failed)

    assert encode_spans(shown.get_finished_spans()) == encode_spans(expected.get_finished_spans())


def test_a_processor_that_looks_at_the_start_sees_it_and_what_it_writes_is_exported():
    watching = Watching()
    provider, exported = exporting(watching)
    tracer = LateTracer.of(provider.get_tracer("t"))

    assert not finished(provider).are_enough
    tracer.write(tracer.begin(NOWHERE), "chat", SpanKind.CLIENT, {}, START, START, failed=False)

    assert watching.started == ["chat"]
    assert exported.get_finished_spans()[0].attributes["seen"] is True


def test_a_processor_that_is_added_later_is_seen():
    provider, _ = exporting()
    spans = finished(provider)
    assert spans.are_enough

    provider.add_span_processor(Watching())

    assert not spans.are_enough


def test_a_processor_whose_instance_looks_at_the_start_is_seen():
    processor = SimpleSpanProcessor(InMemorySpanExporter())
    processor.on_start = lambda span, parent_context=None: None

    assert not finished(provider_of(processor)).are_enough


def test_processors_inside_of_another_one_may_look():
    nested = ConcurrentMultiSpanProcessor()
    nested.add_span_processor(Watching())
    try:
        assert not finished(provider_of(nested)).are_enough
    finally:
        nested.shutdown()


def test_a_batch_is_enough():
    processor = BatchSpanProcessor(InMemorySpanExporter())
    try:
        assert finished(provider_of(processor)).are_enough
    finally:
        processor.shutdown()


@pytest.mark.parametrize("limits", [SpanLimits(max_span_attribute_length=10), SpanLimits(max_span_attributes=5)])
def test_attributes_that_the_sdk_would_cut_are_the_sdks_to_cut(limits):
    provider, exported = exporting(span_limits=limits)
    tracer = LateTracer.of(provider.get_tracer("t"))

    assert not finished(provider).are_enough
    tracer.write(
        tracer.begin(NOWHERE), "chat", SpanKind.CLIENT, {f"k{n}": "x" * 30 for n in range(9)}, START, START, failed=False
    )

    (span,) = exported.get_finished_spans()
    assert len(span.attributes) == 5 or set(map(len, span.attributes.values())) == {10}


def test_spans_that_the_sdk_counts_are_started_by_it(monkeypatch):
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")

    assert not finished(provider_of()).are_enough

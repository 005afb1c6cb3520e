"""Spans that have their identity from the start and are made when they are over, on the worker.

A call's span must exist when the call starts, because it is the parent of what happens inside. All that a child needs of it
is its `SpanContext`; the rest of starting a span of the SDK is a third of what telemetry costs the caller.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from agentguard.otel.finished import FAILED, FinishedSpans

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
    from opentelemetry.util.types import Attributes, AttributeValue

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_RANDOM = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)  # since 1.40

_PLAIN_SAMPLERS = {
    "AlwaysOnSampler": False,
    "ParentBased{root:AlwaysOnSampler,remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,"
    "localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}": True,
}
"""The samplers whose answer is plain without asking them, by description, and whether they follow the parent."""


class LateSpan(Span):
    """A recording span that a `LateTracer` makes when it is over. What is said of it meanwhile is kept for then.

    Attributes:
        around: The context that was current when it began, which holds its parent.
    """

    def __init__(self, context: SpanContext, around: Context) -> None:
        self._context = context
        self.around: Context = around
        self._said: list[tuple[str, tuple[Any, ...]]] = []

    def get_span_context(self) -> SpanContext:
        """Its identity."""
        return self._context

    def is_recording(self) -> bool:
        """Whether what is said of it is kept."""
        return True

    def end(self, end_time: int | None = None) -> None:
        """Nothing: the guard ends it, when the call is settled."""

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Keep an attribute."""
        self._said.append(("set_attribute", (key, value)))

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Keep attributes."""
        self._said.append(("set_attributes", (attributes,)))

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Keep an event."""
        self._said.append(("add_event", (name, attributes, timestamp or time.time_ns())))

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Keep a link."""
        self._said.append(("add_link", (context, attributes)))

    def update_name(self, name: str) -> None:
        """Keep a name."""
        self._said.append(("update_name", (name,)))

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Keep a status."""
        self._said.append(("set_status", (status, description)))

    def record_exception(
        self, exception: BaseException, attributes: Attributes = None, timestamp: int | None = None, escaped: bool = False
    ) -> None:
        """Keep an exception."""
        self._said.append(("record_exception", (exception, attributes, timestamp or time.time_ns(), escaped)))

    @property
    def is_as_it_began(self) -> bool:
        """Whether nothing was said of it."""
        return not self._said

    def repeat(self, span: Span) -> None:
        """Say to a span what was said to this one."""
        for name, args in self._said:
            getattr(span, name)(*args)


class LateTracer:
    """Begins late spans and writes them, with a tracer of the SDK."""

    def __init__(self, tracer: Any, *, follows_parent: bool) -> None:
        self._finished = FinishedSpans(tracer)
        self._ids = _Promised(tracer.id_generator)
        self._tracer: Any = copy.copy(tracer)
        self._tracer.id_generator = self._ids
        self._follows_parent = follows_parent
        self._root_flags = TraceFlags(_SAMPLED | _RANDOM) if self._ids.is_trace_id_random() else _SAMPLED
        self._lock = threading.Lock()

    @classmethod
    def of(cls, tracer: Tracer) -> LateTracer | None:
        """The late tracer of a tracer; None when it is not the SDK's, or its sampler has to be asked at the start."""
        sampler: Any = getattr(tracer, "sampler", None)
        if type(tracer).__module__ != "opentelemetry.sdk.trace" or not hasattr(tracer, "id_generator") or sampler is None:
            return None
        is_own = type(sampler).__module__ == "opentelemetry.sdk.trace.sampling"
        follows_parent = _PLAIN_SAMPLERS.get(sampler.get_description()) if is_own else None
        return None if follows_parent is None else cls(tracer, follows_parent=follows_parent)

    def begin(self, around: Context) -> Span:
        """A span inside of what is current in a context: it is as if it was started now."""
        ids = self._ids.real
        if not around or not (parent := trace.get_current_span(around).get_span_context()).is_valid:
            return LateSpan(SpanContext(ids.generate_trace_id(), ids.generate_span_id(), False, self._root_flags), around)
        flags = parent.trace_flags
        is_sampled = bool(flags & _SAMPLED) or not self._follows_parent
        if is_sampled:
            flags = TraceFlags(flags | _SAMPLED)
        own = SpanContext(parent.trace_id, ids.generate_span_id(), False, flags, parent.trace_state)
        return LateSpan(own, around) if is_sampled else NonRecordingSpan(own)

    def write(
        self, late: LateSpan, name: str, kind: SpanKind, attributes: dict[str, Any], start: int, end: int, *, failed: bool
    ) -> None:
        """Make the real span of a late one, and end it. Times are Unix nanoseconds."""
        if late.is_as_it_began and self._finished.are_enough:
            parent = trace.get_current_span(late.around).get_span_context()
            around = parent if parent.is_valid else None
            self._finished.write(late.get_span_context(), around, name, kind, attributes, start, end, failed=failed)
            return
        with self._lock:
            self._ids.promised = late.get_span_context()
            span: Span = self._tracer.start_span(name, late.around, kind, attributes, start_time=start)
        late.repeat(span)
        if failed:
            span.set_status(FAILED)
        span.end(end)


class _Promised:
    """An id generator that gives the ids which a late span has already."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.promised: SpanContext

    def generate_trace_id(self) -> int:
        return self.promised.trace_id

    def generate_span_id(self) -> int:
        return self.promised.span_id

    def is_trace_id_random(self) -> bool:
        is_random = getattr(self.real, "is_trace_id_random", None)
        return bool(is_random is not None and is_random())

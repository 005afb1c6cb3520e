"""Spans that are over when they are made.

The SDK starts a span, judges each of its attributes, and copies it at its end. That is two thirds of what a span costs, and
for nothing where nobody sees the span in between and its attributes are of the types that the SDK lets pass.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Status, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import SpanContext, SpanKind

FAILED = Status(StatusCode.ERROR)

_UNSET = Status(StatusCode.UNSET)
_SEEING = ("on_start", "_on_ending")
_MEASURES = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
_MOST_ATTRIBUTES = 64
"""More than any span of ours has. The SDK's limit is 128 by default."""


class FinishedSpans:
    """Gives spans that are over to the processors of a tracer of the SDK.

    Args:
        tracer: A tracer of the SDK.
    """

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.sdk import trace as sdk  # somebody has imported it, or there was no such tracer
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        self._tracer: Any = tracer
        self._make = sdk.ReadableSpan
        # What the SDK's own classes do when a span starts, or is about to end: nothing.
        kinds = (sdk.SpanProcessor, BatchSpanProcessor, SimpleSpanProcessor)
        self._idle = {getattr(kind, name) for kind in kinds for name in _SEEING if hasattr(kind, name)}
        self._is_allowed = _has_room(getattr(tracer, "_span_limits", None)) and not os.environ.get(_MEASURES)
        self._is_enabled: Callable[[], bool] = getattr(tracer, "_is_enabled", lambda: True)  # since 1.38
        self._processors: tuple[object, ...] | None = None
        self._see_ends_alone = False

    @property
    def are_enough(self) -> bool:
        """Whether nobody sees a difference: no processor looks at spans before they end, and nothing limits or counts them."""
        processors: tuple[object, ...] | None = getattr(self._tracer.span_processor, "_span_processors", None)
        if processors is not self._processors:  # the provider has been given another one
            self._see_ends_alone = processors is not None and all(self._sees_ends_alone(one) for one in processors)
            self._processors = processors
        return self._is_allowed and self._see_ends_alone and self._is_enabled()

    def _sees_ends_alone(self, processor: object) -> bool:
        seeing = (getattr(processor, name) for name in _SEEING if hasattr(processor, name))
        return all(getattr(method, "__func__", None) in self._idle for method in seeing)

    def write(
        self,
        context: SpanContext,
        parent: SpanContext | None,
        name: str,
        kind: SpanKind,
        attributes: dict[str, Any],
        start: int,
        end: int,
        *,
        failed: bool,
    ) -> None:
        """Write one. Times are Unix nanoseconds; attributes are strings, numbers, truth values, or sequences of strings."""
        tracer = self._tracer
        span = self._make(
            name,
            context,
            parent,
            tracer.resource,
            MappingProxyType(attributes),
            kind=kind,
            instrumentation_info=tracer.instrumentation_info,
            status=FAILED if failed else _UNSET,
            start_time=start,
            end_time=end,
            instrumentation_scope=tracer._instrumentation_scope,  # noqa: SLF001 - what start_span gives to its spans
        )
        tracer.span_processor.on_end(span)


def _has_room(limits: Any) -> bool:
    """Whether the SDK's limits would leave our attributes as they are. Limits that are not known would not."""
    most = getattr(limits, "max_span_attributes", 0)
    return getattr(limits, "max_span_attribute_length", 0) is None and (most is None or most >= _MOST_ATTRIBUTES)

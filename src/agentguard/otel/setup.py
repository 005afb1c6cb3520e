"""Providers and exporters: the program's own where it has some, ours where it has none and asks for OTLP."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics as metrics_api
from opentelemetry import trace

from agentguard.otel import semconv as names
from agentguard.otel.content import content_asked_for
from agentguard.otel.exporters import Signal, is_asked_for, is_wanted, metric_exporter, span_exporter
from agentguard.otel.metrics import MetricNames, Metrics
from agentguard.otel.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import TracerProvider

FLUSH_SECONDS = 2.0
"""How long the end of the program waits for a collector, at most."""

logger: logging.Logger = logging.getLogger("agentguard")


class Telemetry:
    """Spans and metrics, with the providers that were built for them.

    Attributes:
        spans: The observer that writes spans. There is one in a guard at most.
        metrics: The observer that records metrics.
    """

    def __init__(self, spans: Spans, metrics: Metrics) -> None:
        self.spans = spans
        self.metrics = metrics
        self._bounded: _Bounded | None = None
        self._flushes: list[Callable[[], object]] = []
        self._removals: list[Callable[[], object]] = []

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Export what we have written, for so long at most. False when time ran out. Never called on the way of a call."""
        return self._bounded is None or self._bounded.run([*self._flushes], seconds)

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Export what we have written, and take away what was added to a provider of the program.

        A global provider that we have set stays, since OpenTelemetry lets nobody replace it; it ends with the program.
        """
        if self._bounded is not None:
            self._bounded.run([*self._flushes, *self._removals], seconds)

    def own(self, flush: Callable[[], object], shutdown: Callable[[], object], *, until_exit: bool) -> None:
        """Take charge of something that exports: flushed when we close, shut down at exit or when we close."""
        if self._bounded is None:
            self._bounded = _Bounded()
        self._flushes.append(flush)
        if until_exit:
            bounded = self._bounded
            atexit.register(lambda: bounded.run([shutdown], FLUSH_SECONDS))
        else:
            self._removals.append(shutdown)


def set_up(
    *,
    service_name: str | None = None,
    endpoint: str | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    metric_names: str | None = None,
    capture_content: str | None = None,
    http_spans: bool | None = None,
) -> Telemetry:
    """Make the observers of spans and metrics.

    A provider that is passed, or that the program has set, is used, and nothing is added to it; except that an `endpoint`
    beside a provider of the program gets our own spans, and only those. Where there is none, one is built and set when
    OTLP is asked for: by `endpoint`, or by OTEL_EXPORTER_OTLP_* or OTEL_*_EXPORTER. Otherwise spans and metrics go
    wherever a provider that is set later sends them.

    Args:
        service_name: The agent of this process: `service.name`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES name it.
        endpoint: An OTLP endpoint, `http://host:4318`. The protocol is OTEL_EXPORTER_OTLP_PROTOCOL, or http/protobuf.
        tracer_provider: Where spans go instead of the global provider.
        meter_provider: Where metrics go instead.
        logger_provider: Where the events `agentguard.policy.decision` go instead.
        metric_names: `legacy`, `new` or `dup`; None: AGENTGUARD_METRIC_NAMES, or `legacy`.
        capture_content: A word of OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT, which stands in when it is None.
        http_spans: Whether HTTP requests get spans and metrics of their own; None: unless AGENTGUARD_HTTP_SPANS is `false`.

    Raises:
        ValueError: `metric_names` is none of the three.
    """
    if http_spans is None:
        http_spans = os.environ.get("AGENTGUARD_HTTP_SPANS", "").strip().lower() not in {"0", "false"}
    is_app_traced = tracer_provider is not None or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    telemetry = Telemetry(
        Spans(tracer_provider, logger_provider, content=content_asked_for(capture_content), http_spans=http_spans),
        Metrics(meter_provider, metric_names=metric_names or _metric_names(), http_metrics=http_spans),
    )
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return telemetry
    resource: Resource | None = None
    if is_wanted(Signal.TRACES, endpoint):
        if not is_app_traced:
            resource = _resource(service_name)
            _build_tracing(telemetry, resource, endpoint)
        elif endpoint is not None:
            _export_ours_too(telemetry, tracer_provider or trace.get_tracer_provider(), endpoint)
    # A program that has set up its tracing has made up its mind about metrics too, unless it names them.
    is_metering_asked_for = endpoint is not None or not is_app_traced or is_asked_for(Signal.METRICS)
    if meter_provider is None and is_metering_asked_for and is_wanted(Signal.METRICS, endpoint) and _has_no_meter_provider():
        _build_metering(telemetry, resource or _resource(service_name), endpoint)
    return telemetry


def _metric_names() -> str:
    word = os.environ.get("AGENTGUARD_METRIC_NAMES", "").strip().lower()
    if word and word not in set(MetricNames):  # a fault of telemetry's settings stops no program
        logger.warning("agentguard: AGENTGUARD_METRIC_NAMES=%r is none of %s", word, ", ".join(MetricNames))
    return word if word in set(MetricNames) else MetricNames.LEGACY


def _resource(service_name: str | None) -> Resource:
    from opentelemetry.sdk.resources import Resource

    is_named = os.environ.get("OTEL_SERVICE_NAME") or f"{names.SERVICE_NAME}=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if is_named or not service_name else {names.SERVICE_NAME: service_name})


def _build_tracing(telemetry: Telemetry, resource: Resource, endpoint: str | None) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # its own would wait 30 s for a dead collector
    provider.add_span_processor(BatchSpanProcessor(span_exporter(endpoint)))
    trace.set_tracer_provider(provider)
    telemetry.own(provider.force_flush, provider.shutdown, until_exit=True)


def _build_metering(telemetry: Telemetry, resource: Resource, endpoint: str | None) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    provider = MeterProvider([PeriodicExportingMetricReader(metric_exporter(endpoint))], resource, shutdown_on_exit=False)
    metrics_api.set_meter_provider(provider)
    telemetry.own(provider.force_flush, provider.shutdown, until_exit=True)


def _export_ours_too(telemetry: Telemetry, provider: Any, endpoint: str) -> None:
    """Send our own spans, and none of the program's, from its provider to an endpoint that was named for us."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not hasattr(provider, "add_span_processor"):
        logger.warning("agentguard: %s takes no span processor; nothing is sent to %s", type(provider).__name__, endpoint)
        return

    class OursOnly(BatchSpanProcessor):
        def on_end(self, span: Any) -> None:
            if span.instrumentation_scope is not None and span.instrumentation_scope.name == names.SCOPE:
                super().on_end(span)

    processor = OursOnly(span_exporter(endpoint))
    provider.add_span_processor(processor)
    telemetry.own(processor.force_flush, processor.shutdown, until_exit=False)


def _has_no_meter_provider() -> bool:
    # The API keeps the class of its placeholder to itself.
    return type(metrics_api.get_meter_provider()).__name__ == "_ProxyMeterProvider"


class _Bounded:
    """Runs what may hang on a thread of its own, and waits so long at most.

    The SDK's flushes and shutdowns have no time limit that holds, and from Python 3.12 on no thread can be started at
    exit: so there is one from the beginning.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[list[Callable[[], object]], threading.Event]] = queue.SimpleQueue()
        self._start()
        ref = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: None if (bounded := ref()) is None else bounded._start())  # noqa: SLF001 - its own

    def run(self, jobs: list[Callable[[], object]], seconds: float) -> bool:
        """Run jobs, one after another. False when they are not done in time; they go on nevertheless."""
        done = threading.Event()
        self._jobs.put((jobs, done))
        return done.wait(seconds)

    def _start(self) -> None:
        threading.Thread(target=self._work, name="agentguard-telemetry", daemon=True).start()

    def _work(self) -> None:
        while True:
            jobs, done = self._jobs.get()
            for job in jobs:
                try:
                    job()
                except Exception:  # a collector's fault must not keep the other providers from being flushed
                    logger.exception("agentguard: telemetry could not be flushed")
            done.set()

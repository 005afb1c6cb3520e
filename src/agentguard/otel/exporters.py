"""OTLP exporters of our own: imported when one is built, and exempt from our own seams while they export."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from agentguard.context import own_traffic

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

_GRPC: Final = "grpc"
_PROTOCOLS: Final = frozenset({_GRPC, "http/protobuf"})


class Signal(StrEnum):
    """What is exported, as the variables of OpenTelemetry call it."""

    TRACES = "TRACES"
    METRICS = "METRICS"


def is_wanted(signal: Signal, endpoint: str | None) -> bool:
    """Whether a signal is to be exported over OTLP: by argument, or by the variables that OpenTelemetry defines for it."""
    exporters = _variable(f"OTEL_{signal}_EXPORTER")
    if exporters and "otlp" not in exporters.split(","):
        return False
    return endpoint is not None or is_asked_for(signal) or bool(_variable("OTEL_EXPORTER_OTLP_ENDPOINT"))


def is_asked_for(signal: Signal) -> bool:
    """Whether a variable names this signal, rather than OTLP in general."""
    return bool(_variable(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")) or "otlp" in _variable(f"OTEL_{signal}_EXPORTER").split(",")


def span_exporter(endpoint: str | None) -> SpanExporter:
    """An exporter of spans to an endpoint; None: to the one that the variables name."""
    if _protocol(Signal.TRACES) == _GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return _exempt(Grpc)(endpoint=endpoint)  # type: ignore[no-any-return]  # the class keeps its base's signature
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return _exempt(Http)(endpoint=_path(endpoint, "v1/traces"))  # type: ignore[no-any-return]


def metric_exporter(endpoint: str | None) -> MetricExporter:
    """An exporter of metrics to an endpoint; None: to the one that the variables name."""
    if _protocol(Signal.METRICS) == _GRPC:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc

        return _exempt(Grpc)(endpoint=endpoint)  # type: ignore[no-any-return]
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http

    return _exempt(Http)(endpoint=_path(endpoint, "v1/metrics"))  # type: ignore[no-any-return]


def _exempt(exporter: type[Any]) -> type[Any]:
    """The exporter's class, with its exports marked as our own traffic: on its own thread, for as long as one takes."""

    def export(self: Any, *args: Any, **kwargs: Any) -> Any:
        with own_traffic():
            return exporter.export(self, *args, **kwargs)

    return type(exporter.__name__, (exporter,), {"export": export, "__module__": __name__})


def _protocol(signal: Signal) -> str:
    protocol = _variable(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL") or _variable("OTEL_EXPORTER_OTLP_PROTOCOL")
    return protocol if protocol in _PROTOCOLS else "http/protobuf"


def _path(endpoint: str | None, path: str) -> str | None:
    """The URL of a signal below a base URL. An endpoint that names its own path is left as it is."""
    if endpoint is None or "/v1/" in endpoint:
        return endpoint
    return f"{endpoint.rstrip('/')}/{path}"


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip().lower()

"""Where agentguard itself connects to: these endpoints are part of every boundary."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agentguard.egress.boundary import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PORTS = {"http": 4318, "https": 4318, "grpc": 4317, "redis": 6379}
_SENTINEL = 26379
_SIGNALS = ("", "TRACES_", "METRICS_", "LOGS_")


def own_endpoints(store: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Endpoint, ...]:
    """The collector that OpenTelemetry's variables name, and the nodes of a store that its URL names.

    Args:
        store: The URL of the store, where one is named.
        environ: The variables.
    """
    return tuple(dict.fromkeys(_endpoints(store, environ)))


def _endpoints(store: str | None, environ: Mapping[str, str]) -> Iterator[Endpoint]:
    if environ.get("OTEL_SDK_DISABLED", "").lower() != "true":
        for signal in _SIGNALS:
            named = environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") or _usual(signal, environ)
            protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http"
            if named:
                yield from _endpoint(named if "://" in named else f"{protocol.partition('/')[0]}://{named}", protocol)
    scheme, _, rest = (store or "").partition("://")
    if "redis" in scheme:
        usual = _SENTINEL if "sentinel" in scheme else _PORTS["redis"]
        for node in rest.partition("/")[0].rpartition("@")[2].split(","):
            parts = urlsplit(f"//{node}")
            if parts.hostname:
                yield Endpoint(parts.hostname, parts.port or usual)


def _usual(signal: str, environ: Mapping[str, str]) -> str:
    """Where telemetry goes when it is asked for and no place is named."""
    asked = "otlp" in environ.get(f"OTEL_{signal}EXPORTER", "").split(",") if signal else False
    return "http://localhost" if asked and not environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else ""


def _endpoint(url: str, protocol: str) -> Iterator[Endpoint]:
    parts = urlsplit(url)
    usual = _PORTS["grpc"] if protocol == "grpc" else _PORTS.get(parts.scheme, 443)
    if parts.hostname:
        yield Endpoint(parts.hostname, parts.port or usual)

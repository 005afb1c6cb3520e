"""Where agentguard itself connects to: these endpoints are part of every boundary."""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from agentguard.egress.boundary import Endpoint
from agentguard.errors import StoreUnavailable
from agentguard.policy.hosts import HostError, canonical

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger: logging.Logger = logging.getLogger("agentguard")

_PORTS = {"http": 4318, "https": 4318, "grpc": 4317, "redis": 6379}
_SENTINEL = 26379
_SIGNALS = ("", "TRACES_", "METRICS_", "LOGS_")


def own_endpoints(store: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Endpoint, ...]:
    """The collector that OpenTelemetry's variables name, and the servers of a store.

    Those are what its URL names, also by `?hosts=HOST:PORT,...`; and of sentinels or a cluster what they know of others when this
    process first asks. A server that joins later is none of them.

    Args:
        store: The URL of the store, where one is named.
        environ: The variables.
    """
    return tuple(dict.fromkeys(filter(_is_readable, _endpoints(store, environ))))


def _is_readable(place: Endpoint) -> bool:
    try:
        canonical(place.host)
    except HostError as error:
        _say_unreadable(error)
        return False
    return True


def _say_unreadable(error: ValueError) -> None:
    """Whoever uses it says what is wrong with it; what is held is what can be read."""
    logger.warning("agentguard: an endpoint of OTEL_EXPORTER_OTLP_* or of the store names no place (%s): it stays closed", error)


def _split(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL; no host where it cannot be read."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port
    except ValueError as error:
        _say_unreadable(error)
        return "", "", None


def _endpoints(store: str | None, environ: Mapping[str, str]) -> Iterator[Endpoint]:
    if environ.get("OTEL_SDK_DISABLED", "").lower() != "true":
        for signal in _SIGNALS:
            named = environ.get(f"OTEL_EXPORTER_OTLP_{signal}ENDPOINT") or _usual(signal, environ)
            protocol = environ.get(f"OTEL_EXPORTER_OTLP_{signal}PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http"
            if named:
                yield from _endpoint(named if "://" in named else f"{protocol.partition('/')[0]}://{named}", protocol)
    if store is not None and "redis" in store.partition("://")[0]:
        yield from _of_redis(store)


def _of_redis(url: str) -> Iterator[Endpoint]:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        _say_unreadable(error)
        return
    kind = parts.scheme.partition("+")[2]
    yield from _listed(parts.netloc.rpartition("@")[2], _SENTINEL if kind == "sentinel" else _PORTS["redis"])
    for more in parse_qs(parts.query).get("hosts", ()):
        yield from _listed(more, _PORTS["redis"])
    if kind:
        yield from _told(url)


def _listed(places: str, usual: int) -> Iterator[Endpoint]:
    for place in places.split(","):
        _, host, port = _split(f"//{place}")
        if host:
            yield Endpoint(host, port or usual)


def _told(url: str) -> tuple[Endpoint, ...]:
    try:
        return _asked(url)
    except StoreUnavailable as error:
        logger.warning("agentguard: %s; only those of its URL can be reached. Name the others by `?hosts=HOST:PORT,...`", error)
        return ()


@functools.cache  # the kernel's boundary never widens: what was known first is what holds
def _asked(url: str) -> tuple[Endpoint, ...]:
    from agentguard.stores.redis import servers

    return tuple(Endpoint(host, port) for host, port in servers(url))


def _usual(signal: str, environ: Mapping[str, str]) -> str:
    """Where telemetry goes when it is asked for and no place is named."""
    asked = "otlp" in environ.get(f"OTEL_{signal}EXPORTER", "").split(",") if signal else False
    return "http://localhost" if asked and not environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else ""


def _endpoint(url: str, protocol: str) -> Iterator[Endpoint]:
    scheme, host, port = _split(url)
    usual = _PORTS["grpc"] if protocol == "grpc" else _PORTS.get(scheme, 443)
    if host:
        yield Endpoint(host, port or usual)

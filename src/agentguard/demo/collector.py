"""Whether the traces of the demo arrive: the exporters say so to the log alone."""

from __future__ import annotations

import logging
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPORTERS = "opentelemetry.exporter"
_CONNECT_SECONDS = 1.5
_PORTS = {"http": 80, "https": 443}


class Complaints(logging.Handler):
    """What the exporters have complained of."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)  # a warning is an attempt that is made again
        self.last: str = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the newest."""
        self.last = record.getMessage()


@contextmanager
def complaints() -> Iterator[Complaints]:
    """Listen to the exporters for the duration of a block."""
    heard = Complaints()
    logging.getLogger(_EXPORTERS).addHandler(heard)
    try:
        yield heard
    finally:
        logging.getLogger(_EXPORTERS).removeHandler(heard)


def why_unsent(url: str, heard: Complaints) -> str:
    """Why traces did not arrive at a collector; empty when nothing speaks against it."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or _PORTS.get(parts.scheme, 80)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return heard.last.strip().partition("\n")[0].rstrip(".")

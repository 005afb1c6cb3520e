"""The demo's own names, so that what a failing guard lets through really arrives."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@contextmanager
def resolving(addresses: Mapping[str, str]) -> Iterator[None]:
    """Answer a few names in this process, as lines in /etc/hosts would; all others are the system's to answer.

    Every client resolves through `socket.getaddrinfo`, whichever library it comes from. The guard knows nothing of
    this: it judges `paste.evil.test` as any other name.
    """
    system = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return system(addresses.get(name, host), *args, **kwargs)

    socket.getaddrinfo = getaddrinfo
    try:
        yield
    finally:
        socket.getaddrinfo = system

"""The connections of an event loop that has ended: closed without it."""
# ruff: noqa: SLF001 - redis-py and asyncio have no public way to close what belongs to a closed loop

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis.asyncio as aio

if TYPE_CHECKING:
    from collections.abc import Iterator


def cut(client: Any) -> None:
    """Close the sockets of a client whose loop is closed."""
    for connection in _connections(client):
        writer, connection._writer, connection._reader = connection._writer, None, None
        if writer is not None:
            _close(writer.transport)
    if isinstance(client, aio.RedisCluster):
        client._initialize = True  # as its `aclose` leaves it: there is nothing to close any more


def _close(transport: Any) -> None:
    # asyncio's transports have their socket closed by `call_soon`, which a closed loop refuses with a RuntimeError: so they
    # are told here what the loop would have told them. Those of uvloop were closed with the loop.
    with suppress(RuntimeError):
        transport.abort()
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport  # of TLS: what has the socket
    if hasattr(below, "_call_connection_lost"):
        with suppress(RuntimeError):  # it would wake whoever still reads, and closes the socket all the same
            below._call_connection_lost(None)


def _connections(client: Any) -> Iterator[Any]:
    """All connections of a client, to every server that it knows."""
    if isinstance(client, aio.RedisCluster):
        nodes: Any = client.nodes_manager
        for node in (*nodes.nodes_cache.values(), *nodes.startup_nodes.values()):
            yield from node._connections
        return
    sentinels = getattr(getattr(client.connection_pool, "sentinel_manager", None), "sentinels", ())
    for one in (client, *sentinels):
        yield from (*one.connection_pool._available_connections, *one.connection_pool._in_use_connections)

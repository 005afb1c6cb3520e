"""From a URL to clients: one server, one behind sentinels, or a cluster; with timeouts that a call can bear."""

from __future__ import annotations

import re
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio as aio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from agentguard.context import own_traffic
from agentguard.errors import PolicyError, Problem, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_SECONDS = 0.05
"""How long a connection or an answer may take. The client's own default lets a frozen server block a call for ever."""

SCHEMES = frozenset({"redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"})
_PATIENT_SECONDS = 1.0
_PORT = 6379
_SENTINEL_PORT = 26379
_SECONDS = re.compile(r"\d+(\.\d+)?|\.\d+")


class Address(NamedTuple):
    """What a URL says.

    Attributes:
        url: As redis-py reads it, without what is ours.
        shown: Without credentials, for messages.
        fleet: The fleet that it names; empty when it names none.
        kind: `single`, `sentinel` or `cluster`.
        hosts: The sentinels, or the cluster's nodes to begin with.
        service: The name that the sentinels know the server by.
        timeout_seconds: How long a connection or an answer may take.
        is_leased: Whether processes are to lease parts of the limits.
        as_watcher: The credentials that sentinels ask for, which are not the server's.
    """

    url: str
    shown: str
    fleet: str
    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    service: str = ""
    timeout_seconds: float = TIMEOUT_SECONDS
    is_leased: bool = True
    as_watcher: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL: `redis://`, `rediss://`, `redis+sentinel://HOST,HOST/SERVICE/DB`, `redis+cluster://HOST,HOST`.

        `?fleet=NAME`, `?timeout=SECONDS`, `?leases=on|off`, `?sentinel_username=`, `?sentinel_password=` and `?hosts=` (which
        `egress.own` reads) are ours; the other options are redis-py's (`ssl_ca_certs`, `ssl_certfile`, ...).

        Raises:
            PolicyError: It is none of these.
        """
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        options = parse_qs(parts.query)
        options.pop("hosts", None)
        as_watcher = tuple((name, said) for name in ("username", "password") for said in options.pop(f"sentinel_{name}", ()))
        fleet = options.pop("fleet", [""])[0]
        timeout = options.pop("timeout", [str(TIMEOUT_SECONDS)])[0]
        leases = options.pop("leases", ["on"])[0]
        query = urlencode(options, doseq=True)
        credentials, _, places = parts.netloc.rpartition("@")
        shown = urlunsplit((parts.scheme, places, parts.path, "", ""))
        is_ours = _SECONDS.fullmatch(timeout) and leases in {"on", "off"}
        if parts.scheme not in SCHEMES or not places or not is_ours:
            raise _no_url(shown)
        if not kind:
            url = urlunsplit((scheme, parts.netloc, parts.path, query, ""))
            return cls(url, shown, fleet, "single", timeout_seconds=float(timeout), is_leased=leases == "on")
        hosts = tuple(_place(place, _SENTINEL_PORT if kind == "sentinel" else _PORT) for place in places.split(","))
        service, _, database = parts.path.strip("/").partition("/")
        if kind == "sentinel" and not service:
            raise _no_url(shown)
        if kind == "cluster":
            service, database = "", ""
        host, port = hosts[0]
        netloc = f"{credentials}@{host}:{port}" if credentials else f"{host}:{port}"
        path = f"/{database}" if database else ""
        url = urlunsplit((scheme, netloc, path, query, ""))
        return cls(url, shown, fleet, kind, hosts, unquote(service), float(timeout), leases == "on", as_watcher)


def open_client(address: Address) -> Any:
    """A client that never waits longer than the address says, and never asks again by itself."""
    options: dict[str, Any] = _timeouts(address) | {"retry": Retry(NoBackoff(), 0)}
    if address.kind == "single":
        return redis.Redis.from_url(address.url, **options)
    if address.kind == "cluster":
        nodes = [_untyped(redis.cluster.ClusterNode)(host, port) for host, port in address.hosts]
        return redis.RedisCluster(startup_nodes=nodes, **_of_cluster(address), **options)
    sentinel = _untyped(redis.Sentinel)(address.hosts, sentinel_kwargs=options | _transport(address), **options)
    return sentinel.master_for(address.service, Watched, **_said(address))


def open_async_client(address: Address) -> Any:
    """The same for an event loop."""
    options: dict[str, Any] = _timeouts(address) | {"retry": AsyncRetry(NoBackoff(), 0)}
    if address.kind == "single":
        return aio.Redis.from_url(address.url, **options)
    if address.kind == "cluster":
        nodes = [aio.cluster.ClusterNode(host, port) for host, port in address.hosts]
        return AsyncCluster(startup_nodes=nodes, **_of_cluster(address), **options)
    sentinel = _untyped(aio.Sentinel)(address.hosts, sentinel_kwargs=options | _transport(address), **options)
    return sentinel.master_for(address.service, AsyncWatched, **_said(address))


def servers(url: str) -> tuple[tuple[str, int], ...]:
    """All servers behind a URL as they are now, also those that may take over: what the sentinels or the cluster's nodes say.

    Raises:
        StoreUnavailable: None of them says so within a second.
    """
    address = Address.parse(url)
    try:
        with own_traffic(), closing(open_client(address._replace(timeout_seconds=_PATIENT_SECONDS))) as client:
            if address.kind == "cluster":
                return tuple((node.host, node.port) for node in client.get_nodes())
            return _told_by(client.connection_pool.sentinel_manager.sentinels, address.service)
    except (redis.RedisError, redis.exceptions.RedisClusterException, OSError) as error:
        message = f"the store {address.shown} does not say which servers it has: {error}"
        raise StoreUnavailable(message) from error


def _told_by(sentinels: Sequence[Any], service: str) -> tuple[tuple[str, int], ...]:
    """What the first sentinel says that answers: the server, its replicas, and the other sentinels."""
    for sentinel in sentinels[:-1]:
        with suppress(redis.RedisError, OSError):
            return _known_to(sentinel, service)
    return _known_to(sentinels[-1], service)


def _known_to(sentinel: Any, service: str) -> tuple[tuple[str, int], ...]:
    states = [sentinel.sentinel_master(service), *sentinel.sentinel_slaves(service), *sentinel.sentinel_sentinels(service)]
    return tuple((state["ip"], state["port"]) for state in states)


class Watched(redis.Redis):
    """A client of the server that sentinels name. Closing it frees the connections to them too."""

    def close(self) -> None:
        """Free all connections."""
        super().close()
        for sentinel in _untyped(self.connection_pool).sentinel_manager.sentinels:
            sentinel.close()


class AsyncWatched(aio.Redis):
    """The same for an event loop."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Free all connections."""
        await super().aclose(close_connection_pool)
        for sentinel in _untyped(self.connection_pool).sentinel_manager.sentinels:
            await sentinel.aclose()


class AsyncCluster(aio.RedisCluster):
    """A client of a cluster. Closing it frees the connections too by which it was looking for nodes, and was called off."""

    async def aclose(self) -> None:
        """Free all connections."""
        await super().aclose()
        nodes = _untyped(self.nodes_manager)
        await nodes.aclose()
        await nodes.aclose("startup_nodes")


def _timeouts(address: Address) -> dict[str, Any]:
    seconds = address.timeout_seconds
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds, "socket_keepalive": True}


def _untyped(callee: Any) -> Any:
    """A part of redis-py that has no types."""
    return callee


def _said(address: Address) -> dict[str, Any]:
    """What the URL says of the connection: credentials, database, TLS."""
    said = dict(_untyped(redis.connection.parse_url)(address.url))
    is_tls = said.pop("connection_class", None) is redis.SSLConnection
    for name in ("host", "port"):
        said.pop(name, None)
    return said | ({"ssl": True} if is_tls else {})


def _of_cluster(address: Address) -> dict[str, Any]:
    return {name: value for name, value in _said(address).items() if name != "db"}


def _transport(address: Address) -> dict[str, Any]:
    """Sentinels speak TLS when the server does; they have credentials of their own, if any."""
    return {name: value for name, value in _said(address).items() if name.startswith("ssl")} | dict(address.as_watcher)


def _place(place: str, usual: int) -> tuple[str, int]:
    parts = urlsplit(f"//{place}")
    return parts.hostname or "localhost", parts.port or usual


def _no_url(shown: str) -> PolicyError:
    message = (
        "expected redis://HOST:6379/0, rediss://... for TLS, redis+sentinel://HOST:26379,HOST/SERVICE/0 "
        "or redis+cluster://HOST:6379,HOST; of options, timeout is in seconds, and leases is on or off"
    )
    return PolicyError(shown, (Problem("", 0, 0, "store", message),))

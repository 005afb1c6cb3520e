"""websockets: the HTTP upgrade is a call. Where it goes, and through which proxy, is judged before anything is connected.

A redirect opens another connection with an upgrade of its own, and counts as another call. What goes over the connection
afterwards is not seen.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from agentguard.admission import Admission, InProgress
from agentguard.core.call import Target
from agentguard.integrations._calls import Judging, is_own_traffic, judge_connection, note_unseen, other_hosts, part_of
from agentguard.integrations._seam import Hook, Integration, Seam
from agentguard.policy.model import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.guard import Guard
    from agentguard.integrations._seam import Resolve, Wrapper


def _target(uri: Any) -> Target:
    return Target("wss" if uri.secure else "ws", uri.host.strip("[]"), uri.port, uri.path or "/")


def _touched(connecting: Any, target: Target) -> Iterator[Target]:
    """What a connection touches beside its target: its proxy, and hosts that its arguments name instead of the URI's."""
    options: dict[str, Any] = getattr(connecting, "open_socket_kwargs", None) or getattr(
        connecting, "create_connection_kwargs", {}
    )
    server_name = getattr(connecting, "server_hostname", None) or options.get("server_hostname")
    yield from other_hosts(target, _host_header(connecting.additional_headers), server_name)
    if isinstance(options.get("host"), str) and options["host"].lower() != target.host:
        yield target._replace(host=options["host"], port=options.get("port") or target.port)
    if not options.get("unix") and (proxy := _proxy(connecting)) is not None:
        yield Target(proxy.scheme, proxy.host, proxy.port, "/")


def _proxy(connecting: Any) -> Any:
    """The proxy that it will use, as the library itself finds it; None when there is none."""
    library = sys.modules["websockets.proxy"]
    sock = getattr(connecting, "sock", None) or getattr(connecting, "create_connection_kwargs", {}).get("sock")
    found = library.get_proxy(connecting.ws_uri) if connecting.proxy is True else connecting.proxy
    return None if found is None or sock is not None else library.parse_proxy(found)


def _host_header(headers: Any) -> str | None:
    items = headers.raw_items() if hasattr(headers, "raw_items") else headers.items() if hasattr(headers, "items") else headers
    return next((value for name, value in items or () if name.lower() == "host"), None)


def _judge_ahead(guard: Guard, connecting: Any) -> None:
    target = _target(connecting.ws_uri)
    others = tuple(_touched(connecting, target))
    # In report mode the upgrade will tell of its target: here only what it does not know of.
    judge_connection(guard, *(others if guard.policy.mode is Mode.REPORT else (target, *others)))


def _open(resolve: Resolve) -> Wrapper:
    def opens(wrapped: Callable[..., Any], connecting: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is not None and not is_own_traffic():
            _judge_ahead(guard, connecting)
        return wrapped(*args, **kwargs)

    return opens


def _passed(_resolve: Resolve) -> Wrapper:
    """Stands where an older version has nothing to judge ahead by: its upgrade is judged, and its sockets are."""

    def passes(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return wrapped(*args, **kwargs)

    return passes


def _upgrade(resolve: Resolve) -> Wrapper:
    def handshake(wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or is_own_traffic():
            return wrapped(*args, **kwargs)
        target = _target_of(connection)
        part = part_of(guard, "GET", target, lambda: None)
        if isinstance(part, Admission):
            with Judging(part, target), note_unseen(part, "GET", target) as seen:
                answer = wrapped(*args, **kwargs)
                seen.status = _status(connection)
            return answer
        admitted = guard.begin(part.call)
        with InProgress(admitted), note_unseen(admitted, "GET", target) as seen:
            answer = wrapped(*args, **kwargs)
            seen.status = _status(connection)
        admitted.settle()
        return answer

    return handshake


def _aupgrade(resolve: Resolve) -> Wrapper:
    async def handshake(wrapped: Callable[..., Any], connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        guard = resolve()
        if guard is None or is_own_traffic():
            return await wrapped(*args, **kwargs)
        target = _target_of(connection)
        part = part_of(guard, "GET", target, lambda: None)
        if isinstance(part, Admission):
            with Judging(part, target), note_unseen(part, "GET", target) as seen:
                answer = await wrapped(*args, **kwargs)
                seen.status = _status(connection)
            return answer
        admitted = await guard.abegin(part.call)
        with InProgress(admitted), note_unseen(admitted, "GET", target) as seen:
            answer = await wrapped(*args, **kwargs)
            seen.status = _status(connection)
        admitted.settle()
        return answer

    return handshake


def _target_of(connection: Any) -> Target:
    protocol = connection.protocol
    return _target(getattr(protocol, "uri", None) or protocol.wsuri)  # its name before version 15


def _status(connection: Any) -> int | None:
    response = connection.response
    return None if response is None else response.status_code


def _hooks(module: str, path: str, wrap: Callable[[Resolve], Wrapper]) -> tuple[Hook, ...]:
    upgrade = Seam(module, "ClientConnection.handshake", ("additional_headers", "user_agent_header"))
    return Hook(Seam(module, path, fallback=upgrade), _open, _passed), Hook(upgrade, wrap)


WEBSOCKETS = Integration(
    "websockets",
    (
        *_hooks("websockets.sync.client", "reconnect.open_connection", _upgrade),
        *_hooks("websockets.asyncio.client", "connect.open_tcp_connection", _aupgrade),
    ),
)

"""Event loops that look up and connect in C, where no audit event is raised: judged at the loop's own methods (uvloop)."""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any

from agentguard.egress.resolver import answers, queried

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.net import Net

    Args = tuple[Any, ...]
    Kwargs = dict[str, Any]


class Loops:
    """Wrappers for the methods of such a loop. Those of Python's own loops need none: they use Python's sockets."""

    def __init__(self, net: Net) -> None:
        self._net = net

    async def getaddrinfo(self, wrapped: Callable[..., Any], _loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Judge a name before it is looked up, filter the answers, and pin them."""
        name = queried(args[0] if args else kwargs.get("host"))
        if name is None:
            return await wrapped(*args, **kwargs)
        asker = self._net.judge_lookup(name)
        flags = kwargs.get("flags", 0)
        found = await wrapped(*args, **{**kwargs, "flags": flags | socket.AI_CANONNAME})
        take = functools.partial(self._net.take_answers, asker, name)
        return answers(found, take, is_canonical_wanted=bool(flags & socket.AI_CANONNAME))

    async def getnameinfo(self, wrapped: Callable[..., Any], _loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Judge an address before its name is looked up."""
        sockaddr, flags = (*args, kwargs.get("flags", 0))[:2] if args else (kwargs["sockaddr"], kwargs.get("flags", 0))
        if not flags & socket.NI_NUMERICHOST:
            self._net.judge_reverse_lookup(str(sockaddr[0]))
        return await wrapped(*args, **kwargs)

    async def create_connection(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Connect to addresses that have been judged, one after another, instead of to a name that C looks up again."""
        factory, host, port = (*args, None, None, None)[:3]
        host, port = kwargs.pop("host", host), kwargs.pop("port", port)
        factory = kwargs.pop("protocol_factory", factory)
        if host is None or not self._net.is_judging:
            return await wrapped(factory, host, port, **kwargs)
        family = kwargs.get("family", 0)
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, proto=kwargs.get("proto", 0))
        if kwargs.get("ssl"):
            kwargs.setdefault("server_hostname", host)
        failed: OSError | None = None
        for _, _, _, _, (address, number, *_) in found:
            self._net.judge_connection(address, number, is_stream=True)
            try:
                return await wrapped(factory, address, number, **kwargs)
            except OSError as error:  # the next address may be better
                failed = error
        raise failed or OSError(f"getaddrinfo({host!r}) returned nothing")

    async def create_datagram_endpoint(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Judge where datagrams go."""
        remote = args[2] if len(args) > 2 else kwargs.get("remote_addr")
        if isinstance(remote, tuple) and self._net.is_judging:
            found = await loop.getaddrinfo(*remote[:2], type=socket.SOCK_DGRAM)
            self._net.judge_connection(found[0][4][0], found[0][4][1], is_stream=False)
        elif isinstance(remote, str | bytes):
            self._net.judge_socket(remote)
        else:
            self._net.judge_datagrams()  # where it will send to, nobody sees
        return await wrapped(*args, **kwargs)

    async def create_unix_connection(self, wrapped: Callable[..., Any], _loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Judge a Unix socket by its path."""
        path = args[1] if len(args) > 1 else kwargs.get("path")
        if path is not None:
            self._net.judge_socket(path if isinstance(path, str | bytes) else str(path))
        return await wrapped(*args, **kwargs)

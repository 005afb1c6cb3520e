"""Event loops: where look-ups leave the caller's thread (asyncio), and where they never come to Python (uvloop).

asyncio looks names up in a thread of its pool, which knows no caller. There the caller's context is carried over.
"""

from __future__ import annotations

import contextvars
import functools
import socket
from typing import TYPE_CHECKING, Any, Protocol

from agentguard.integrations._seam import Hook, Integration, Seam

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Resolve, Wrapper

    Args = tuple[Any, ...]
    Kwargs = dict[str, Any]

_LOOKUPS = frozenset({"getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "_getaddrinfo_debug"})


class LoopJudge(Protocol):
    """What judges the methods of a loop that connects in C: wrappers, as a seam takes them."""

    async def getaddrinfo(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Look a name up."""

    async def getnameinfo(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Look the name of an address up."""

    async def create_connection(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Connect a stream."""

    async def create_datagram_endpoint(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Connect a socket of datagrams."""

    async def create_unix_connection(self, wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
        """Connect a Unix socket."""


def integrations(loops: LoopJudge) -> tuple[Integration, ...]:
    """The seams of event loops; `loops` judges what uvloop does in C."""
    uvloop = (
        (Seam("uvloop", "Loop.getaddrinfo", ("host", "port")), loops.getaddrinfo),
        (Seam("uvloop", "Loop.getnameinfo", ("sockaddr", "flags")), loops.getnameinfo),
        (Seam("uvloop", "Loop.create_connection", ("host", "port")), loops.create_connection),
        (Seam("uvloop", "Loop.create_datagram_endpoint", ("remote_addr",)), loops.create_datagram_endpoint),
        (Seam("uvloop", "Loop.create_unix_connection", ("path",)), loops.create_unix_connection),
    )
    return (
        Integration(
            "python", (Hook(Seam("asyncio.base_events", "BaseEventLoop.run_in_executor", ("executor", "func")), _carrying),)
        ),
        Integration("uvloop", tuple(Hook(seam, _judged_by(judged)) for seam, judged in uvloop)),
    )


def _judged_by(judged: Wrapper) -> Callable[[Resolve], Wrapper]:
    def wrap(resolve: Resolve) -> Wrapper:
        def method(wrapped: Callable[..., Any], loop: Any, args: Args, kwargs: Kwargs) -> Any:
            return wrapped(*args, **kwargs) if resolve() is None else judged(wrapped, loop, args, kwargs)

        return method

    return wrap


def _carrying(_resolve: Resolve) -> Wrapper:
    def run_in_executor(wrapped: Callable[..., Any], _loop: Any, args: Args, kwargs: Kwargs) -> Any:
        if len(args) > 1 and _is_lookup(args[1]):
            args = (args[0], functools.partial(contextvars.copy_context().run, args[1]), *args[2:])
        return wrapped(*args, **kwargs)

    return run_in_executor


def _is_lookup(func: Any) -> bool:
    name = getattr(func, "__name__", None)
    return name in _LOOKUPS and (name == "_getaddrinfo_debug" or func is getattr(socket, name, None))

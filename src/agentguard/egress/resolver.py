"""Python's own look-ups: judged before they leave, their answers filtered and pinned.

`socket.getaddrinfo` asks `_socket.getaddrinfo` for its name at each call, so the one below serves saved references to the
one above too. A method of a socket that is given a name looks it up in C, before any audit event: it is given an address.
"""

from __future__ import annotations

import _socket
import functools
import socket
from typing import TYPE_CHECKING, Any

from agentguard.context import own_traffic
from agentguard.policy.hosts import HostError, address_of, canonical

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from agentguard.egress.net import Net, Take

    Function = Callable[..., Any]

_SPECIAL = frozenset({"", "<broadcast>"})
"""What a socket takes for a host without a look-up."""

_to_bytes = socket.inet_pton

_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})


def is_dotted_quad(text: str) -> bool:
    """Whether a text is an IPv4 address in its one canonical spelling, which most addresses are."""
    try:
        _to_bytes(socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def queried(host: object) -> str | None:
    """The name that a look-up of a host asks a server for, as it leaves; None when nothing leaves.

    Raises:
        UnicodeError: It is no text that a socket takes.
    """
    if isinstance(host, bytes | bytearray):
        name = bytes(host).decode("ascii")
    elif isinstance(host, str):
        text = str.__str__(host)  # what a subclass says of itself is not what is looked up
        name = text if text.isascii() else text.encode("idna").decode("ascii")
    else:
        return None
    if name in _SPECIAL or ":" in name or is_dotted_quad(name):
        return None
    try:
        return None if address_of(canonical(name)) is not None else name
    except HostError:
        return name


def answers(found: list[Any], take: Take, *, is_canonical_wanted: bool = False) -> list[Any]:
    """What `getaddrinfo` found with its canonical name, as far as it may be reached; without that name unless it was wanted."""
    good = take((entry[4][0] for entry in found if entry[0] in _INTERNET), [entry[3] for entry in found])
    kept = found if good is None else [entry for entry in found if entry[4][0] in good]
    return kept if is_canonical_wanted else [(*entry[:3], "", entry[4]) for entry in kept]


class Resolver:
    """Stands in the place of Python's functions that look names up. Inert once removed, wherever somebody has kept one."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._is_active = False
        self._placed: list[tuple[ModuleType | type, str, Function, Function | None]] = []

    def install(self) -> None:
        """Take the functions' places."""
        self._is_active = True
        for module in (_socket, socket):
            self._place(module, "getaddrinfo", self._getaddrinfo)  # above: whatever an app has put in its place answers too
            self._place(module, "gethostbyname", self._gethostbyname)
            self._place(module, "gethostbyname_ex", self._gethostbyname_ex)
            self._place(module, "gethostbyaddr", self._gethostbyaddr)
            self._place(module, "getnameinfo", self._getnameinfo)
        for method in ("connect", "connect_ex", "bind"):
            self._place(socket.socket, method, self._with_address_first)
        if not hasattr(_socket, "socketpair"):  # Windows makes a pair by a connection to itself: every event loop has one
            self._place(socket, "socketpair", self._socketpair)
        self._place(socket.socket, "sendto", self._with_address_last)
        self._place(socket.socket, "sendmsg", self._with_address_fourth)

    def remove(self) -> None:
        """Put back what was there, unless somebody else has taken the place since."""
        self._is_active = False
        for owner, name, ours, before in reversed(self._placed):
            if vars(owner).get(name) is not ours:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
        self._placed.clear()

    def _place(self, owner: ModuleType | type, name: str, stand_in: Function) -> None:
        inner: Function = getattr(owner, name)
        before: Function | None = vars(owner).get(name)

        @functools.wraps(inner)
        def outer(*args: Any, **kwargs: Any) -> Any:
            if not self._is_active or self._net.is_looking_up:
                return inner(*args, **kwargs)
            return stand_in(inner, *args, **kwargs)

        setattr(owner, name, outer)
        self._placed.append((owner, name, outer, before))

    # --- functions --------------------------------------------------------------------------------------------------

    def _getaddrinfo(
        self, inner: Function, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        name = queried(host)
        if name is None:
            return inner(plain(host), port, family, type, proto, flags)
        with self._net.looking_up(name) as take:
            found = inner(name, port, family, type, proto, flags | socket.AI_CANONNAME)
            return answers(found, take, is_canonical_wanted=bool(flags & socket.AI_CANONNAME))

    def _gethostbyname(self, inner: Function, host: Any) -> Any:
        name = queried(host)
        if name is None:
            return inner(plain(host))
        with self._net.looking_up(name) as take:
            # The one address that this gives may be the one that may not be reached, beside others that may.
            official, aliases, found = _socket.gethostbyname_ex(name)
            good = take(found, (official, *aliases))
        return next(address for address in found if good is None or address in good)

    def _gethostbyname_ex(self, inner: Function, host: Any) -> Any:
        name = queried(host)
        if name is None:
            return inner(plain(host))
        with self._net.looking_up(name) as take:
            official, aliases, found = inner(name)
            good = take(found, (official, *aliases))
        return official, aliases, found if good is None else [address for address in found if address in good]

    def _gethostbyaddr(self, inner: Function, host: Any) -> Any:
        if queried(host) is not None:
            return self._gethostbyname_ex(inner, host)
        self._net.judge_reverse_lookup(_text(host))
        return inner(plain(host))

    def _getnameinfo(self, inner: Function, sockaddr: Any, flags: Any) -> Any:
        if not flags & socket.NI_NUMERICHOST:
            self._net.judge_reverse_lookup(_text(sockaddr[0]))
        return inner(sockaddr, flags)

    def _socketpair(self, inner: Function, *args: Any, **kwargs: Any) -> Any:
        with own_traffic():
            return inner(*args, **kwargs)

    # --- methods of sockets -----------------------------------------------------------------------------------------

    def _with_address_first(self, inner: Function, sock: socket.socket, address: Any) -> Any:
        return inner(sock, self._looked_up(sock, address))

    def _with_address_last(self, inner: Function, sock: socket.socket, *args: Any) -> Any:
        return inner(sock, *args[:-1], self._looked_up(sock, args[-1])) if args else inner(sock)

    def _with_address_fourth(self, inner: Function, sock: socket.socket, *args: Any) -> Any:
        return inner(sock, *args[:3], self._looked_up(sock, args[3])) if len(args) == 4 else inner(sock, *args)

    def _looked_up(self, sock: socket.socket, address: Any) -> Any:
        """An address of a socket with its name looked up; anything else as it is."""
        if sock.family not in _INTERNET or not isinstance(address, tuple) or len(address) < 2:
            return address
        name = queried(address[0])
        if name is None:
            return (plain(address[0]), *address[1:]) if type(address[0]) is not str else address
        if not self._net.is_judging:
            return address
        found = socket.getaddrinfo(name, None, sock.family, sock.type)
        return (found[0][4][0], *address[1:])


def plain(host: Any) -> Any:
    """A host as exactly `str`, where it is text: a subclass may be encoded as another one."""
    return str.__str__(host) if isinstance(host, str) else host


def _text(host: Any) -> str:
    return bytes(host).decode("ascii") if isinstance(host, bytes | bytearray) else str.__str__(host)

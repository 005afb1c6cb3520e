"""The net's eye: Python's audit events (PEP 578). Every socket of the interpreter passes here, whoever made it.

A hook cannot be removed, so there is one in a process whatever happens: it asks a switch that `uninstrument()` turns off.
What it needs is bound when it is made, types are looked at as they are and not as they say, and a fault of its own ends
what it was looking at (a hook that raises stops the event). It is no boundary against native code, which raises no events.
"""

from __future__ import annotations

import _socket
import builtins
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

from agentguard.egress.resolver import answers, queried
from agentguard.errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.children import Children
    from agentguard.egress.net import Net

    Judge = Callable[[str, tuple[Any, ...]], None]

logger: logging.Logger = logging.getLogger("agentguard")

_ROLL_CALL: Final = "agentguard.egress"
"""The event by which a hook that is in place is found: it puts its switch into the list that comes along."""


class Switch:
    """What the hook of this process asks: a judge, or nobody."""

    __slots__ = ("judge",)

    def __init__(self) -> None:
        self.judge: Judge | None = None


def installed_switch() -> Switch:
    """The switch of this process's hook, which is put in place if there is none yet."""
    found: list[Switch] = []
    sys.audit(_ROLL_CALL, found)
    if found:
        return found[0]
    switch = Switch()
    sys.addaudithook(_hook(switch))
    return switch


def _hook(switch: Switch) -> Callable[[str, tuple[Any, ...]], None]:
    governed = frozenset({_ROLL_CALL, *_EVENTS})

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in governed:  # all that a foreign event costs
            if event == _ROLL_CALL:
                args[0].append(switch)
            elif switch.judge is not None:
                switch.judge(event, args)

    return hook


def judge_of(net: Net, children: Children) -> Judge:
    """What judges events for a net."""
    check = _soundness()
    sockets = _Sockets(net)
    ways: dict[str, Callable[..., None]] = {
        "socket.__new__": sockets.made,
        "socket.connect": sockets.connects,
        "socket.sendto": sockets.sends,
        "socket.sendmsg": sockets.sends,
        "socket.getaddrinfo": sockets.looks_up,
        "socket.gethostbyname": sockets.looks_up,
        "socket.gethostbyaddr": sockets.looks_up_name_of,
        "socket.getnameinfo": sockets.looks_up_name_of_socket,
        "subprocess.Popen": children.started,
        "os.system": children.started,
        "os.posix_spawn": children.started,
        "os.spawn": children.spawned,
        "os.startfile": children.started,
        "os.exec": children.started,
        "pty.spawn": children.started_shell,
    }
    find = ways.__getitem__

    def judge(event: str, args: tuple[Any, ...]) -> None:
        if not net.is_judging:
            return
        try:
            check()
            find(event)(*args)
        except Exception as fault:
            # A fault of ours stops what could not be judged; where nothing is refused, it is logged and the program goes on.
            if net.is_enforcing:
                raise
            logger.warning("agentguard: %s could not be judged: %r", event, fault)

    return judge


_EVENTS = (
    "socket.__new__", "socket.connect", "socket.sendto", "socket.sendmsg",
    "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo",
    "subprocess.Popen", "os.system", "os.posix_spawn", "os.spawn", "os.startfile", "os.exec", "pty.spawn",
)  # fmt: skip


def _soundness() -> Callable[[], None]:
    """What sees whether the built-in functions that a judgement rests on are still Python's own."""
    namespace = vars(builtins)
    names = (
        "all", "any", "bool", "bytes", "dict", "frozenset", "getattr", "hasattr", "id", "int", "isinstance", "iter", "len",
        "list", "map", "max", "min", "next", "property", "set", "sorted", "str", "sum", "super", "tuple", "type", "vars", "zip",
    )  # fmt: skip
    sound = tuple((name, namespace[name]) for name in names)
    get = namespace.get

    def check() -> None:
        for name, own in sound:
            if get(name) is not own:
                raise SeamError(f"builtins.{name} has been replaced, so connections cannot be judged: nothing connects")

    return check


class _Sockets:
    """Reads the events of sockets: what really goes to the kernel, whatever the objects say of themselves."""

    def __init__(self, net: Net) -> None:
        self._net = net
        plain = _socket.socket
        self._family_of = plain.family.__get__  # a descriptor in C, which no subclass changes
        self._type_of = plain.type.__get__
        self._option_of = plain.getsockopt
        self._allowed_families = frozenset({socket.AF_UNSPEC, *_INTERNET, *_LOCAL})

    def made(self, _sock: object, family: int, _type: int, _protocol: int) -> None:
        """A socket is made. A packet socket sends without a further event."""
        if family == _PACKET:
            self._net.judge_family("AF_PACKET")

    def connects(self, sock: Any, address: object) -> None:
        """A socket is about to be connected."""
        family = self._family_of(sock)
        if family in _INTERNET:
            self._judge_internet(sock, family, address)
        elif family == _UNIX:
            if type(address) not in (str, bytes):
                self._net.judge_family("AF_UNIX, with an address that may change")
            else:
                self._net.judge_socket(address)  # type: ignore[arg-type]  # of the exact types
        elif family not in self._allowed_families:
            self._net.judge_family(_name_of(family))

    def sends(self, sock: Any, address: object) -> None:
        """A socket is about to send to an address, if it is given one."""
        if address is not None:
            self.connects(sock, address)

    def _judge_internet(self, sock: Any, family: int, address: Any) -> None:
        host, port = tuple.__getitem__(address, 0), tuple.__getitem__(address, 1)
        if isinstance(port, int):
            port = int.__index__(port)
        else:
            self._net.judge_family("AF_INET, with a port that may change")
            return
        if type(host) not in (str, bytes):  # its bytes may change, or its class encode it as another host
            self._net.judge_hidden_lookup(repr(type(host)), port)
            return
        name = queried(host)
        if name is not None:
            self._net.judge_hidden_lookup(name, port)
            return
        self._net.judge_connection(_address(host, family), port, is_stream=self._is_stream(sock))

    def _is_stream(self, sock: Any) -> bool:
        try:
            kind = self._option_of(sock, _LEVEL, _TYPE)  # the kernel knows; the object may have been told
        except OSError:
            kind = self._type_of(sock)
        return bool(kind == _STREAM)

    def looks_up(self, host: object, *_: object) -> None:
        """A name is about to be looked up, by a function that was kept from before ours took its place."""
        if self._net.is_looking_up or host is None:
            return
        if type(host) not in (str, bytes):
            self._net.judge_hidden_lookup(repr(type(host)), 0)
        name = queried(host)
        if name is None:
            return
        with self._net.looking_up(name) as take:
            try:
                found = _socket.getaddrinfo(name, None, flags=socket.AI_CANONNAME)
            except OSError:
                return  # whoever asks will be told so
            answers(found, take)

    def looks_up_name_of(self, host: object) -> None:
        """The name of an address is about to be looked up; `gethostbyaddr` takes names too."""
        if queried(host) is not None:
            self.looks_up(host)
        elif not self._net.is_looking_up:
            self._net.judge_reverse_lookup(_address(host, socket.AF_INET))

    def looks_up_name_of_socket(self, sockaddr: Any) -> None:
        """The name of a socket's address is about to be looked up, or written out: the event does not say which."""


def _address(host: object, family: int) -> str:
    """A host that is no name, as an address."""
    text = bytes(host).decode("ascii") if isinstance(host, bytes | bytearray) else str.__str__(host)
    if not text:
        return "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - what the kernel takes for this host
    return "255.255.255.255" if text == "<broadcast>" else text


def _name_of(family: int) -> str:
    try:
        return socket.AddressFamily(family).name
    except ValueError:
        return str(family)


_INTERNET = frozenset({socket.AF_INET, socket.AF_INET6})
_LEVEL, _TYPE, _STREAM = socket.SOL_SOCKET, socket.SO_TYPE, socket.SOCK_STREAM
_UNIX = getattr(socket, "AF_UNIX", -1)
_PACKET = getattr(socket, "AF_PACKET", -1)
_LOCAL = (_UNIX, getattr(socket, "AF_NETLINK", -1))

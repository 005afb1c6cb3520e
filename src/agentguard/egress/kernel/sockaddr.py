"""Socket addresses, read strictly: what is not exactly one of the known shapes is no address."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address
from typing import NamedTuple

LONGEST = 128  # sizeof(struct sockaddr_storage): the kernel refuses longer ones
_IPV4 = 16
_IPV6 = 28
_IPV6_WITHOUT_SCOPE = 24
_PATH_AT = 2
_LONGEST_UNIX = 110
_MAPPED = bytes(10) + b"\xff\xff"


class Inet(NamedTuple):
    """An address of the internet, a mapped IPv4 address as itself; `raw` is what the kernel is given."""

    ip: str
    port: int
    raw: bytes
    family: int


class UnixPath(NamedTuple):
    """A Unix socket in the file system, relative to the process that named it."""

    path: bytes


class UnixAbstract(NamedTuple):
    """A Unix socket by an abstract name."""

    name: bytes


class Unspecified(NamedTuple):
    """No address: connecting to it takes a connection back."""

    raw: bytes


class Netlink(NamedTuple):
    """The kernel itself, or a process that listens to it."""

    raw: bytes


class Unknown(NamedTuple):
    """Nothing that may be connected to."""

    why: str


Address = Inet | UnixPath | UnixAbstract | Unspecified | Netlink | Unknown


def parse(raw: bytes) -> Address:
    """Read an address as the kernel would, and refuse what two readers could take for two addresses."""
    if len(raw) < 2:
        return Unknown("it is too short for an address")
    family = struct.unpack_from("=H", raw)[0]
    match family:
        case socket.AF_INET:
            return _inet(raw)
        case socket.AF_INET6:
            return _inet6(raw)
        case socket.AF_UNIX:
            return _unix(raw[_PATH_AT:_LONGEST_UNIX])
        case socket.AF_UNSPEC:
            return Unspecified(raw)
        case socket.AF_NETLINK:
            return Netlink(raw)
        case _:
            return Unknown(f"address family {family} is not one of IPv4, IPv6 and Unix")


def _inet(raw: bytes) -> Address:
    if len(raw) < _IPV4:
        return Unknown("it is too short for an IPv4 address")
    port, packed = struct.unpack_from("!H4s", raw, 2)
    if packed == b"\0\0\0\0":
        packed = b"\x7f\0\0\1"  # the kernel takes it for this host, which is what is judged
    return Inet(socket.inet_ntoa(packed), port, raw[:4] + packed + bytes(8), socket.AF_INET)


def _inet6(raw: bytes) -> Address:
    if len(raw) < _IPV6_WITHOUT_SCOPE:
        return Unknown("it is too short for an IPv6 address")
    port, flow, packed = struct.unpack_from("!HI16s", raw, 2)
    scope = raw[_IPV6_WITHOUT_SCOPE:_IPV6] if len(raw) >= _IPV6 else bytes(4)
    if packed == bytes(16):
        packed = bytes(15) + b"\1"
    elif packed == _MAPPED + bytes(4):
        packed = _MAPPED + b"\x7f\0\0\1"
    built = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16s", port, flow, packed) + scope
    address = IPv6Address(packed)
    return Inet(str(address.ipv4_mapped or address), port, built, socket.AF_INET6)


def _unix(path: bytes) -> Address:
    if not path:
        return Unknown("it names no socket")
    if path[0] == 0:
        return UnixAbstract(path)
    return UnixPath(path.split(b"\0", 1)[0])


def inet(ip: str, port: int) -> bytes:
    """An address as the kernel takes it."""
    if ":" in ip:
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + socket.inet_pton(socket.AF_INET6, ip) + bytes(4)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(ip) + bytes(8)

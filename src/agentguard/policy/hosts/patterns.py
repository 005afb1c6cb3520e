"""One entry of a list of hosts: what it means, how specific it is, and what to write instead of what cannot be meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Network, ip_address, ip_network

from agentguard.policy.hosts.spaces import TRANSLATED_V6, IPNetwork, lies_in_private_space
from agentguard.policy.hosts.spelling import IPAddress, address_of, canonical, in_url


class Kind(IntEnum):
    """What an entry stands for, from the least to the most specific."""

    ANY = 0
    SUFFIX = 1
    NETWORK = 2
    NAME = 3
    ADDRESS = 4


@dataclass(frozen=True, slots=True)
class HostPattern:
    """One entry of a list of hosts: `host`, `*.host`, `host:port`, an address, a network, `network:port`, or `*`.

    `*.x` is every name below x, never x itself. No port means any port. `str()` gives the entry back in canonical form.

    Attributes:
        kind: What it stands for.
        host: The name, the suffix without its `*.`, the address or network, or `*`: canonical.
        port: The only port it speaks of; None: any.
        network: The address or network as one; None for names.
    """

    kind: Kind
    host: str
    port: int | None = None
    network: IPNetwork | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        is_address = self.kind in (Kind.NETWORK, Kind.ADDRESS)
        object.__setattr__(self, "network", ip_network(self.host) if is_address else None)

    @classmethod
    def parse(cls, text: str) -> HostPattern:
        """Read an entry.

        Raises:
            ValueError: It is none; the message says what to write.
        """
        if text == "*":
            return cls(Kind.ANY, "*")
        _refuse_url(text)
        host, port = _split_port(text)
        if host == "*":
            raise ValueError(f"{text!r}: '*' stands alone; write the hosts that may be reached on that port")
        if "/" in host:
            network = _network(host)
            if network.prefixlen == network.max_prefixlen:
                return cls(Kind.ADDRESS, canonical(str(network.network_address)), port)
            return cls(Kind.NETWORK, str(network), port)
        if host.startswith("*."):
            return cls(Kind.SUFFIX, _suffix(text, host[2:]), port)
        if "*" in host:
            raise ValueError(f"{text!r}: '*' stands alone or as the first label; write {_first_label_glob(host)!r}")
        name = canonical(host)
        return cls(Kind.NAME if address_of(name) is None else Kind.ADDRESS, name, port)

    def matches(self, host: str, port: int | None = None) -> bool:
        """Whether a host is one of those meant. Without a port, an entry that names one does not match.

        Raises:
            HostError: It is no host.
        """
        name = canonical(host)
        return self.port in (None, port) and self.covers(name, address_of(name))

    def covers(self, name: str, address: IPAddress | None) -> bool:
        """Whether a canonical host is one of those meant on some port; `address` is the host as an address, if it is one."""
        match self.kind:
            case Kind.ANY:
                return True
            case Kind.NAME:
                return name == self.host
            case Kind.SUFFIX:
                return address is None and name.endswith("." + self.host)
            case Kind.NETWORK | Kind.ADDRESS:
                return address is not None and self.network is not None and address in self.network

    @property
    def rank(self) -> tuple[int, int, bool]:
        """How specific the entry is. Names and networks never compete: a host is either a name or an address."""
        match self.kind:
            case Kind.ANY:
                return 0, 0, False
            case Kind.SUFFIX:
                return 1, self.host.count(".") + 1, self.port is not None
            case Kind.NETWORK:
                return 1, self.network.prefixlen if self.network else 0, self.port is not None
            case Kind.NAME | Kind.ADDRESS:
                return 2, 0, self.port is not None

    @property
    def reaches_private(self) -> bool:
        """Whether the entry names private space itself: an address or a network within it. A wildcard never does."""
        return self.network is not None and lies_in_private_space(self.network)

    def __str__(self) -> str:
        host = f"*.{self.host}" if self.kind is Kind.SUFFIX else self.host
        if self.port is None:
            return host
        return f"{in_url(host)}:{self.port}"


def _refuse_url(text: str) -> None:
    if text != text.strip() or not text:
        raise ValueError(f"{text!r} is no host: write a name such as 'api.ourservice.com'")
    scheme, found, rest = text.partition("://")
    if found:
        raise ValueError(f"{text!r}: a scheme is no part of a host; write {_authority(rest, scheme)!r}")
    if "@" in text:
        raise ValueError(f"{text!r}: a user is no part of a host; write {_authority(text)!r}")


def _authority(rest: str, scheme: str = "") -> str:
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0].rpartition("@")[2]
    return host.removesuffix({"http": ":80", "https": ":443"}.get(scheme.lower(), "")) or "api.ourservice.com"


def _split_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: write an IPv6 address with a port as '[2001:db8::1]:443'")
        return host, _port(text, rest[1:]) if rest else None
    address, slash, length = text.partition("/")
    if slash:
        head, colon, port = length.partition(":")
        return f"{address}/{head}", _port(text, port) if colon else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _port(text, port)
    return text, None


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535; leave it out for any port")
    return int(port)


def _network(text: str) -> IPNetwork:
    address, _, length = text.partition("/")
    if not re.fullmatch(r"[0-9]+", length, re.ASCII) or not re.fullmatch(r"[0-9a-fA-F:.]+", address):
        raise ValueError(f"{text!r}: a path is no part of a host; write {address or 'api.ourservice.com'!r}")
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is no network: write one such as '10.1.0.0/16'") from None
    if network.network_address != ip_address(address):
        raise ValueError(f"{text!r}: the address has bits beyond its length; write '{network}', or '{address}' alone")
    if isinstance(network, IPv6Network) and any(network.subnet_of(block) for block in TRANSLATED_V6):
        raise ValueError(f"{text!r}: such addresses are read as the IPv4 address they carry; write its IPv4 network")
    return network


def _suffix(text: str, rest: str) -> str:
    if "*" in rest:
        raise ValueError(f"{text!r}: '*' stands alone or as the first label; write '*.{rest.replace('*.', '')}'")
    name = canonical(rest)
    if address_of(name) is not None:
        raise ValueError(f"{text!r}: a wildcard stands for names; write a network such as '10.0.0.0/8'")
    if _is_public_suffix(name):
        raise ValueError(f"{text!r} is open to anyone who registers a name; write '*.yourcompany.{name}'")
    return name


_OWN_SUFFIXES = frozenset({"corp", "example", "home", "internal", "intranet", "lan", "local", "localhost", "test"})
# fmt: off
_SECOND_LEVELS = frozenset({
    "ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "gv", "ltd", "me", "mil",
    "ne", "net", "nic", "nom", "or", "org", "plc", "sch",
})
# fmt: on


def _is_public_suffix(name: str) -> bool:
    """Whether everybody may register below: a top-level name, or one like `co.uk`. No list is shipped: it would age."""
    top, _, second = name.rpartition(".")[::-1]
    if not second:
        return top not in _OWN_SUFFIXES
    return len(top) == 2 and second in _SECOND_LEVELS


def _first_label_glob(host: str) -> str:
    parent = host.rpartition("*")[2].partition(".")[2]
    return f"*.{parent if '.' in parent else 'ourservice.com'}"

"""Hosts: one spelling for each, patterns over them, and the verdict of a policy's lists.

`canonical` gives every way of writing a host one form, so that what is compared is what is connected to.
`HostPattern` is one entry of a list; `HostRules` are the lists of an agent, compiled.

The most specific entry wins, and a refusal wins ties: exact name or address, the longer network or suffix, `*`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agentguard.policy.model import ExternalCalls

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class HostError(ValueError):
    """What was given names no host: nothing that is connected to can be compared with it, so it is refused."""


# ------------------------------------------------------------------------------------------------------ canonical form

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_OCTAL = re.compile(r"0[0-7]*")


def canonical(host: str | bytes) -> str:
    """The one spelling of a host: lower case, ASCII, no trailing dot, an address in its shortest form.

    An address is read as `inet_aton` reads it (`0x7f.1` is 127.0.0.1), and an IPv6 address that carries an IPv4 address
    is that address.

    Raises:
        HostError: No host can be spelled like this, or two clients would read it as different hosts.
    """
    text = _text(host)
    if text.startswith("[") and text.endswith("]"):
        if ":" not in text:
            raise HostError(f"{text!r} is no IPv6 address")
        text = text[1:-1]
    if ":" in text:
        return str(fold(_ipv6(text)))
    name = _ascii(text).removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return str(_ipv4(name, labels))
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise HostError(f"{text!r} is no host: {_fault_of(label)}")
    if len(name) > 253:
        raise HostError(f"{text[:40]!r}... is no host: it is longer than 253 characters")
    return name


def fold(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address carries (mapped, compatible, NAT64, SIIT, 6to4, Teredo), or the address."""
    if isinstance(address, IPv4Address):
        return address
    value = int(address)
    if value >> 32 in _EMBEDS_IN_LAST_32 and value > 1:  # `::` and `::1` are addresses of their own
        return IPv4Address(value & 0xFFFFFFFF)
    if value >> 112 == 0x2002:
        return IPv4Address(value >> 80 & 0xFFFFFFFF)
    if value >> 96 == 0x20010000:
        return IPv4Address(~value & 0xFFFFFFFF)
    return IPv6Address(value)  # a scope id says which interface, not which host


_EMBEDS_IN_LAST_32 = frozenset(int(IPv6Address(prefix)) >> 32 for prefix in ("::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::"))


def _text(host: str | bytes) -> str:
    # Called on the exact type: a subclass of `str` may say something else than what the socket gets.
    if isinstance(host, bytes):
        try:
            return bytes.decode(host, "ascii")
        except UnicodeDecodeError:
            raise HostError(f"{bytes(host)!r} is no host: bytes must be ASCII") from None
    return str.__str__(host)


def _ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    import idna

    try:
        name = idna.encode(text, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise HostError(f"{text!r} is no host: {error}") from None
    try:
        legacy = text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return name
    if legacy.removesuffix(".") != name.removesuffix("."):
        # The socket module still encodes by IDNA 2003, in which ß is ss: the name judged would not be the one reached.
        raise HostError(f"{text!r} is {name!r} to some clients and {legacy!r} to others: write the one that is meant")
    return name


def _ipv6(text: str) -> IPv6Address:
    address, _, scope = text.partition("%")
    if not scope and "%" in text:
        raise HostError(f"{text!r} is no IPv6 address")
    try:
        return IPv6Address(address)
    except ValueError:
        raise HostError(f"{text!r} is no IPv6 address") from None


def _ipv4(name: str, labels: Sequence[str]) -> IPv4Address:
    """What `inet_aton` makes of one to four numbers, decimal, octal or hexadecimal, the last filling the rest."""
    if len(labels) > 4 or not all(map(_NUMBER.fullmatch, labels)) or any(len(label) > 32 for label in labels):
        raise HostError(f"{name[:80]!r} is no host: it ends in a number and is no IPv4 address")
    *heads, last = (_number(name, label) for label in labels)
    if any(head > 255 for head in heads) or last >= 256 ** (4 - len(heads)):
        raise HostError(f"{name!r} is no IPv4 address: a number is too large")
    return IPv4Address(sum(head << 8 * (3 - place) for place, head in enumerate(heads)) + last)


def _number(name: str, label: str) -> int:
    if label.startswith("0x"):
        return int(label[2:] or "0", 16)
    if label.startswith("0"):
        if not _OCTAL.fullmatch(label):
            raise HostError(f"{name!r} is no IPv4 address: {label!r} is no octal number")
        return int(label, 8)
    return int(label)


def _fault_of(label: str) -> str:
    if not label:
        return "it has an empty label"
    strays = sorted(set(re.sub(r"[a-z0-9_-]", "", label)))
    if strays:
        return "it contains " + " ".join(map(repr, strays))
    return "a label is longer than 63 characters" if len(label) > 63 else "a label begins or ends with '-'"


# -------------------------------------------------------------------------------------------------------------- spaces


class Space(StrEnum):
    """Where an address leads."""

    PUBLIC = "public"
    PRIVATE = "private"
    METADATA = "metadata"


# Written out, because `ipaddress.is_private` changes its mind between Python's patch releases.
# fmt: off
_PRIVATE_V4 = tuple(map(IPv4Network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
)))
# fmt: on
_GLOBAL_V6 = IPv6Network("2000::/3")  # all that IANA has given out for public use; everything else is special
_PRIVATE_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_TRANSLATED_V6 = tuple(map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")))

_METADATA_ADDRESSES: frozenset[IPAddress] = frozenset(
    map(
        ip_address,
        (
            "169.254.169.254",  # AWS, Google, Azure, DigitalOcean, OpenStack
            "169.254.169.253",  # AWS's resolver, which answers for its private zones
            "169.254.170.2",  # ECS task credentials
            "169.254.170.23",  # EKS pod identity
            "100.100.100.200",  # Alibaba
            "168.63.129.16",  # Azure's wire server, in public space
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",
            "fd00:ec2::253",
            "fd00:ec2::23",
            "fd20:ce::254",  # Google
            "fe80::a9fe:a9fe",  # OpenStack
        ),
    )
)
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_PRIVATE_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_PRIVATE_SUFFIXES = (".localhost", ".localdomain")


def space_of(address: IPAddress) -> Space:
    """Where an address leads; loopback, local networks, multicast and reserved space are private."""
    address = fold(address)
    if address in _METADATA_ADDRESSES:
        return Space.METADATA
    if isinstance(address, IPv4Address):
        return Space.PRIVATE if any(address in network for network in _PRIVATE_V4) else Space.PUBLIC
    is_public = address in _GLOBAL_V6 and not any(address in network for network in _PRIVATE_V6)
    return Space.PUBLIC if is_public else Space.PRIVATE


def _space_of_name(name: str) -> Space:
    """What a name says by itself; where it resolves to is seen when it is connected to."""
    if name in _METADATA_NAMES:
        return Space.METADATA
    if name in _PRIVATE_NAMES or name.endswith(_PRIVATE_SUFFIXES):
        return Space.PRIVATE
    return Space.PUBLIC


def _lies_in_private_space(network: IPNetwork) -> bool:
    if isinstance(network, IPv4Network):
        return any(network.subnet_of(block) for block in _PRIVATE_V4) or network.network_address in _METADATA_ADDRESSES
    return not network.overlaps(_GLOBAL_V6) or any(network.subnet_of(block) for block in _PRIVATE_V6)


# ------------------------------------------------------------------------------------------------------------ patterns


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
        return self.port in (None, port) and self._covers(name, address_of(name))

    def _covers(self, name: str, address: IPAddress | None) -> bool:
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
    def _rank(self) -> tuple[int, int, bool]:
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
        return self.network is not None and _lies_in_private_space(self.network)

    def __str__(self) -> str:
        host = f"*.{self.host}" if self.kind is Kind.SUFFIX else self.host
        if self.port is None:
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def address_of(name: str) -> IPAddress | None:
    """The address that a canonical host is; None for a name."""
    if ":" in name or name[-1:].isdigit():
        try:
            return ip_address(name)
        except ValueError:
            return None
    return None


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
    if isinstance(network, IPv6Network) and any(network.subnet_of(block) for block in _TRANSLATED_V6):
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


# --------------------------------------------------------------------------------------------------------------- rules

ALLOWED_DOMAINS = "external_calls.allowed_domains"
BLOCKED_DOMAINS = "external_calls.blocked_domains"
ALLOW_PRIVATE = "external_calls.allow_private"
ALLOW_METADATA = "external_calls.allow_metadata"
PROVIDERS = "llm.providers"

UNKNOWN_PORT = 0
"""A port that nobody knows: entries that open a port do not match it, entries that close one do."""


class Verdict(NamedTuple):
    """Whether a host may be reached.

    Attributes:
        allowed: The answer.
        why: A clause for a message: `not in external_calls.allowed_domains`.
        rule: The rule that decided, as the policy file spells it.
        entry: The entry that decided; None when none did.
    """

    allowed: bool
    why: str
    rule: str
    entry: HostPattern | None = None


class Look(NamedTuple):
    """One entry that was looked at for an explanation: whether it matches, and whether it decides."""

    rule: str
    entry: HostPattern
    allows: bool
    matches: bool
    decides: bool


class _Entry(NamedTuple):
    pattern: HostPattern
    allows: bool
    rule: str

    @property
    def weight(self) -> tuple[tuple[int, int, bool], bool]:
        return self.pattern._rank, not self.allows  # noqa: SLF001 - one file, one idea; a refusal wins ties

    def covers(self, name: str, address: IPAddress | None, port: int | None) -> bool:
        return self._covers_port(port) and self.pattern._covers(name, address)  # noqa: SLF001

    def _covers_port(self, port: int | None) -> bool:
        if self.pattern.port is None or self.pattern.port == port:
            return True
        # None asks for the name alone: is any port open? 0 is a port that nobody knows: every refusal holds for it.
        return self.allows if port is None else not self.allows and port == UNKNOWN_PORT


_CACHED_VERDICTS = 4096


class HostRules:
    """The lists of an agent, compiled. Asking is thread-safe, and free of I/O.

    Args:
        external_calls: The agent's lists.
        providers: Hosts of the LLM providers that the agent may use; they need no entry of their own.
    """

    __slots__ = ("_any", "_cache", "_entries", "_external", "_names", "_networks", "_suffixes")

    def __init__(self, external_calls: ExternalCalls, providers: Iterable[HostPattern] = ()) -> None:
        self._external = external_calls
        self._entries = tuple(_entries(external_calls, providers))
        self._cache: dict[tuple[str, int | None], Verdict] = {}
        self._names: dict[str, list[_Entry]] = {}
        self._suffixes: dict[str, list[_Entry]] = {}
        self._networks: list[_Entry] = []
        self._any: list[_Entry] = []
        for entry in self._entries:
            self._file(entry)

    def judge(self, host: str | bytes, port: int | None = None) -> Verdict:
        """Whether a host may be reached by this name or address. What is no host is refused.

        Args:
            host: As the transport will use it.
            port: The port; None asks whether the name may be reached on any port (what resolving it needs to know).
        """
        if type(host) is not str:
            try:
                host = _text(host)
            except HostError as error:
                return self._refuse_spelling(error)
        try:
            return self._cache[host, port]
        except KeyError:
            verdict = self._judge(host, port)
        if len(self._cache) >= _CACHED_VERDICTS:
            self._cache.clear()
        self._cache[host, port] = verdict
        return verdict

    def judge_ip(self, address: str | IPAddress, port: int | None = None, name: str | None = None) -> Verdict:
        """Whether an address may be connected to, as itself or as what `name` resolved to.

        A name that is allowed does not carry into private space, nor past an entry that refuses the address.
        """
        if name is None:
            return self.judge(str(address), port)
        verdict = self.judge(name, port)
        if not verdict.allowed or self._external.is_unwritten:
            return verdict
        try:
            found = address_of(canonical(str(address)))
        except HostError as error:
            return Verdict(False, str(error), ALLOWED_DOMAINS)
        if found is None:
            return Verdict(False, f"{address} is no address", ALLOWED_DOMAINS)
        best = self._best(entry for entry in self._networks if entry.covers("", found, port))
        if best is not None and not best.allows and not _is_everything(best.pattern):
            return Verdict(False, f"{name!r} leads to {found}, and {best.pattern} is in {best.rule}", best.rule, best.pattern)
        space = space_of(found)
        if best is not None and best.allows and best.pattern.reaches_private and space is Space.PRIVATE:
            return verdict
        return self._enter(space, verdict, f"{name!r} leads to {found}, which is")

    def trace(self, host: str, port: int | None = None) -> tuple[Look, ...]:
        """Every entry of the lists, in their order, with what it says of the host."""
        try:
            name = canonical(host)
        except HostError:
            return tuple(Look(entry.rule, entry.pattern, entry.allows, False, False) for entry in self._entries)
        address = address_of(name)
        best = self._decider(name, address, port)
        return tuple(
            Look(entry.rule, entry.pattern, entry.allows, entry.covers(name, address, port), entry is best)
            for entry in self._entries
        )

    def _file(self, entry: _Entry) -> None:
        match entry.pattern.kind:
            case Kind.ANY:
                self._any.append(entry)
            case Kind.SUFFIX:
                self._suffixes.setdefault(entry.pattern.host, []).append(entry)
            case Kind.NAME:
                self._names.setdefault(entry.pattern.host, []).append(entry)
            case Kind.NETWORK | Kind.ADDRESS:
                self._networks.append(entry)

    def _judge(self, host: str, port: int | None) -> Verdict:
        try:
            name = canonical(host)
        except HostError as error:
            return self._refuse_spelling(error)
        address = address_of(name)
        best = self._decider(name, address, port)
        verdict = self._default() if best is None else self._said_by(best)
        if not verdict.allowed or self._external.is_unwritten:
            return verdict
        if address is None:
            return self._enter(_space_of_name(name), verdict, f"{name!r} is")
        space = space_of(address)
        if best is not None and best.pattern.reaches_private and space is Space.PRIVATE:
            return verdict
        return self._enter(space, verdict, f"{name} is")

    def _decider(self, name: str, address: IPAddress | None, port: int | None) -> _Entry | None:
        return self._best(entry for entry in self._candidates(name, address) if entry.covers(name, address, port))

    def _candidates(self, name: str, address: IPAddress | None) -> Iterator[_Entry]:
        yield from self._any
        if address is not None:
            yield from self._networks
            return
        yield from self._names.get(name, ())
        parent = name
        while parent := parent.partition(".")[2]:
            yield from self._suffixes.get(parent, ())

    def _refuse_spelling(self, error: HostError) -> Verdict:
        return self._default() if self._external.is_unwritten else Verdict(False, str(error), ALLOWED_DOMAINS)

    @staticmethod
    def _best(entries: Iterable[_Entry]) -> _Entry | None:
        return max(entries, key=lambda entry: entry.weight, default=None)

    def _said_by(self, entry: _Entry) -> Verdict:
        if entry.pattern.kind is Kind.ANY and not entry.allows and self._external.allowed_domains is not None:
            # `*` refuses what nothing else allows: the list to look at, and to add to, is the other one.
            return Verdict(False, f"not in {ALLOWED_DOMAINS}", ALLOWED_DOMAINS, entry.pattern)
        return Verdict(entry.allows, f"{entry.pattern} is in {entry.rule}", entry.rule, entry.pattern)

    def _default(self) -> Verdict:
        if self._external.allowed_domains is not None:
            return Verdict(False, f"not in {ALLOWED_DOMAINS}", ALLOWED_DOMAINS)
        if self._external.is_unwritten:
            return Verdict(True, "no list is written", ALLOWED_DOMAINS)
        return Verdict(True, f"not in {BLOCKED_DOMAINS}", BLOCKED_DOMAINS)

    def _enter(self, space: Space, verdict: Verdict, what: str) -> Verdict:
        """An allowed verdict, unless it would lead where the policy must say so expressly."""
        entry = verdict.entry
        if space is Space.PUBLIC:
            return verdict
        where = f"{what} a cloud metadata service" if space is Space.METADATA else f"{what} in private space"
        if space is Space.METADATA and not self._external.allow_metadata:
            return Verdict(False, where, ALLOW_METADATA, entry)
        if _is_wildcard(entry):
            return Verdict(False, f"{where}, which {entry} does not reach", ALLOWED_DOMAINS, entry)
        if space is Space.PRIVATE and not self._external.allow_private:
            return Verdict(False, where, ALLOW_PRIVATE, entry)
        return verdict


def _entries(external_calls: ExternalCalls, providers: Iterable[HostPattern]) -> Iterator[_Entry]:
    for pattern in external_calls.allowed_domains or ():
        yield _Entry(pattern, True, ALLOWED_DOMAINS)
    for pattern in external_calls.blocked_domains or ():
        yield _Entry(pattern, False, BLOCKED_DOMAINS)
    for pattern in providers:
        yield _Entry(pattern, True, PROVIDERS)


def _is_wildcard(entry: HostPattern | None) -> bool:
    """Whether an entry covers more than what it spells out: it then opens public space only."""
    return entry is not None and entry.kind is not Kind.NAME and not entry.reaches_private


def _is_everything(pattern: HostPattern) -> bool:
    """Whether a network is a wildcard in other words: `0.0.0.0/0` says no more of an address than `*`."""
    return pattern.network is not None and pattern.network.prefixlen == 0

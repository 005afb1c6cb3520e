"""One spelling for each host, so that what is compared is what is connected to."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

IPAddress = IPv4Address | IPv6Address


class HostError(ValueError):
    """What was given names no host: nothing that is connected to can be compared with it, so it is refused."""


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
    text = plain_text(host)
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


def plain_text(host: str | bytes) -> str:
    """A host as exactly `str`; bytes are ASCII.

    Raises:
        HostError: The bytes are not.
    """
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


def in_url(host: str) -> str:
    """A host as URLs and `host:port` have it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def address_of(name: str) -> IPAddress | None:
    """The address that a canonical host is; None for a name."""
    if ":" in name or name[-1:].isdigit():
        try:
            return ip_address(name)
        except ValueError:
            return None
    return None

"""Where an address leads: out into public space, into a private network, or to a cloud's metadata service."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

from agentguard.policy.hosts.spelling import IPAddress, fold

IPNetwork = IPv4Network | IPv6Network


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
TRANSLATED_V6 = tuple(map(IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")))

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


def space_of_name(name: str) -> Space:
    """What a name says by itself; where it resolves to is seen when it is connected to."""
    if name in _METADATA_NAMES:
        return Space.METADATA
    if name in _PRIVATE_NAMES or name.endswith(_PRIVATE_SUFFIXES):
        return Space.PRIVATE
    return Space.PUBLIC


def lies_in_private_space(network: IPNetwork) -> bool:
    """Whether all of a network is private, so that naming it cannot have meant the public."""
    if isinstance(network, IPv4Network):
        return any(network.subnet_of(block) for block in _PRIVATE_V4) or network.network_address in _METADATA_ADDRESSES
    return not network.overlaps(_GLOBAL_V6) or any(network.subnet_of(block) for block in _PRIVATE_V6)

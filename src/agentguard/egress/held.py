"""Live connections under a policy: which of them it would refuse if they were made now, and what to write for those."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.egress.unix_sockets import UNIX_SOCKETS, own_folders, path_of, refuses_path
from agentguard.policy.hosts import Kind, Verdict, in_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agentguard.egress.boundary import Boundary
    from agentguard.egress.connections import Connection

    NamesOf = Callable[[str], Iterable[str]]

_ALLOW_UDP = "external_calls.allow_udp"


class Held(NamedTuple):
    """A live connection, as a policy sees it.

    Attributes:
        connection: The connection.
        names: What is known to have resolved to its address.
        verdict: Whether it would be allowed, and why not.
        remedy: What to do to allow it; empty when it is.
        is_sure: False for an address without a known name, where a wildcard of the policy may have meant its name.
    """

    connection: Connection
    names: tuple[str, ...]
    verdict: Verdict
    remedy: str
    is_sure: bool


def held(connections: Iterable[Connection], boundary: Boundary, names_of: NamesOf = lambda _: ()) -> tuple[Held, ...]:
    """What a boundary says of each connection that was made from here. What was accepted is left out.

    Args:
        connections: As `egress.connections.connections` gives them.
        boundary: What may be reached.
        names_of: The names that resolved to an address, as `Pins.names_of`.
    """
    outbound = (one for one in connections if one.is_outbound)
    return tuple(_unix(one, boundary) if one.kind == "unix" else _inet(one, boundary, names_of) for one in outbound)


def _unix(one: Connection, boundary: Boundary) -> Held:
    path = one.address if one.address.startswith("@") else path_of(one.address)
    why = None if boundary.unwritten else refuses_path(path, boundary.unix_sockets, own_folders())
    remedy = "" if why is None else f"Add it to {UNIX_SOCKETS}: [{one.address}]"
    return Held(one, (), Verdict(why is None, why or "may be connected to", UNIX_SOCKETS), remedy, is_sure=True)


def _inet(one: Connection, boundary: Boundary, names_of: NamesOf) -> Held:
    names = tuple(sorted(names_of(one.address)))
    verdict = boundary.judge_address(one.address, one.port, names)
    if verdict.allowed and one.kind == "udp" and not boundary.allows_udp and not boundary.unwritten:
        verdict = Verdict(False, "it is a datagram socket", _ALLOW_UDP)
    is_sure = bool(names) or not _has_wildcards(boundary)
    return Held(one, names, verdict, "" if verdict.allowed else _remedy(one, names, verdict), is_sure)


def _remedy(one: Connection, names: tuple[str, ...], verdict: Verdict) -> str:
    if ".allow_" in verdict.rule:
        return f"Write `{verdict.rule.rpartition('.')[2]}: true` under external_calls, if it is meant"
    host = names[0] if names else in_url(one.address)
    return f"agentguard policy allow {host}:{one.port}"


def _has_wildcards(boundary: Boundary) -> bool:
    return any(entry.kind is Kind.SUFFIX for reach in boundary.reaches for entry in reach.opened)

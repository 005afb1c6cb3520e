"""An allowlist from what was seen: which entries would let happen what has happened, and which of them to look at twice."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.hosts import HostError, HostPattern, HostRules, Kind, Space, address_of, canonical, space_of, space_of_name
from agentguard.policy.providers import patterns_of, provider_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from agentguard.policy.model import AgentPolicy, Policy

    Registrable = Callable[[str], str | None]

_STANDARD_PORTS = frozenset({0, 80, 443})
"""Ports that an entry need not name; 0 is one that nobody knows."""


class Flag(StrEnum):
    """Why an entry is for a person to decide. It is shown, and not written."""

    ONE_OFF = "one-off"
    PRIVATE = "private"
    METADATA = "metadata"
    REFUSED = "refused"


class Sighting(NamedTuple):
    """A host that was called, or was to be. `agents` all need it; `went`: it was reached for, not refused."""

    agents: tuple[str, ...]
    host: str
    port: int
    at: float
    went: bool = True


class Entry(NamedTuple):
    """One thing to write.

    Attributes:
        provider: The word for `llm.providers`; None for a host.
        pattern: The entry of `allowed_domains`; None for a provider.
        hosts: What it stands for, as it was seen.
        calls: How many calls.
        first, last: Unix seconds.
        flags: Why it is not written unasked.
        is_allowed: Whether the policy allows it as it stands.
    """

    provider: str | None
    pattern: HostPattern | None
    hosts: tuple[str, ...]
    calls: int
    first: float
    last: float
    flags: tuple[Flag, ...] = ()
    is_allowed: bool = False

    @property
    def word(self) -> str:
        """What would be written."""
        return self.provider if self.provider is not None else str(self.pattern)

    @property
    def is_proposed(self) -> bool:
        """Whether it is to be written: new, and nothing stands against it."""
        return not self.flags and not self.is_allowed


class Proposal(NamedTuple):
    """What one agent was seen to need; providers first, then by how often."""

    agent: str
    entries: tuple[Entry, ...]


def learn(
    sightings: Iterable[Sighting],
    policy: Policy | None = None,
    *,
    registrable: Registrable | None = None,
    least_calls: int = 2,
    least_names: int = 3,
) -> list[Proposal]:
    """What each agent was seen to need.

    Args:
        sightings: In any order. Hosts that cannot be read are passed over.
        policy: What is allowed already.
        registrable: The part of a name that one party has registered (`ourservice.com` of `a.b.ourservice.com`), by the
            public suffix list; None: no wildcard is proposed, since it might be open to anyone.
        least_calls: Fewer calls than this are a one-off.
        least_names: As many names below one domain become a wildcard. What is flagged is never part of one, so that
            names made up to carry data out do not open a door.
    """
    seen: dict[str, dict[tuple[str, int], _Seen]] = {}
    for sighting in sightings:
        try:
            name = canonical(sighting.host)
        except HostError:
            continue
        for agent in sighting.agents or ("",):
            place = seen.setdefault(agent, {}).setdefault(
                (name, 0 if _is_standard(name, sighting.port) else sighting.port), _Seen()
            )
            place.add(sighting)
    proposals = []
    for agent, hosts in sorted(seen.items()):
        named = policy.agent(agent) if policy is not None else None
        single = [_entry(host, port, found, named, least_calls) for (host, port), found in hosts.items()]
        entries = _grouped(_by_provider(single), registrable, least_names)
        proposals.append(Proposal(agent, tuple(sorted(entries, key=_order))))
    return proposals


class _Seen:
    """What was seen of one host on one port."""

    __slots__ = ("calls", "first", "last", "ports", "went")

    def __init__(self) -> None:
        self.calls = 0
        self.first = float("inf")
        self.last = 0.0
        self.went = False
        self.ports: set[int] = set()

    def add(self, sighting: Sighting) -> None:
        self.calls += 1
        self.first = min(self.first, sighting.at)
        self.last = max(self.last, sighting.at)
        self.went = self.went or sighting.went
        self.ports.add(sighting.port)


def _is_standard(name: str, port: int) -> bool:
    """Whether an entry goes without its port. Into private space it never does: 10.0.0.7 is many services."""
    return port in _STANDARD_PORTS and (port == 0 or _space(name) is Space.PUBLIC)


def _space(name: str) -> Space:
    address = address_of(name)
    return space_of_name(name) if address is None else space_of(address)


def _entry(host: str, port: int, seen: _Seen, agent: AgentPolicy | None, least_calls: int) -> Entry:
    kind = Kind.NAME if address_of(host) is None else Kind.ADDRESS
    pattern = HostPattern(kind, host, port or None)
    space = _space(host)
    flags = (
        *([Flag.METADATA] if space is Space.METADATA else [Flag.PRIVATE] if space is Space.PRIVATE else []),
        *([Flag.REFUSED] if not seen.went else []),
        *([Flag.ONE_OFF] if seen.calls < least_calls else []),
    )
    is_allowed = agent is not None and _allows(agent, host, seen.ports)
    return Entry(None, pattern, (host,), seen.calls, seen.first, seen.last, flags, is_allowed)


def _allows(agent: AgentPolicy, host: str, ports: Iterable[int]) -> bool:
    rules = HostRules(agent.external_calls, patterns_of(agent.llm.providers if agent.llm else ()))
    return not agent.external_calls.is_unwritten and all(rules.judge(host, port).allowed for port in ports)


def _by_provider(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Hosts of known providers become one word for `llm.providers`."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        pattern = entry.pattern
        provider = provider_of(pattern.host) if pattern is not None and pattern.port is None else None
        if provider is None:
            yield entry
        else:
            found.setdefault(provider, []).append(entry)
    for provider, parts in found.items():
        merged = _merged(parts)
        flags = tuple(flag for flag in Flag if all(flag in part.flags for part in parts))
        yield merged._replace(provider=provider, pattern=None, flags=flags, is_allowed=all(part.is_allowed for part in parts))


def _grouped(entries: Iterable[Entry], registrable: Registrable | None, least_names: int) -> Iterator[Entry]:
    """Names below one domain become a wildcard, at the narrowest place that holds enough of them."""
    below: dict[str, list[Entry]] = {}
    for entry in entries:
        parents = list(_parents(entry, registrable)) if registrable is not None and least_names > 0 else []
        if not parents:
            yield entry
        for parent in parents:
            below.setdefault(parent, []).append(entry)
    taken: set[Entry] = set()
    for parent in sorted(below, key=lambda name: (-name.count("."), name)):
        left = [entry for entry in below[parent] if entry not in taken]
        if len(left) >= least_names and (pattern := _wildcard(parent)) is not None:
            taken.update(left)
            yield _merged(left)._replace(pattern=pattern)
    yield from dict.fromkeys(entry for listed in below.values() for entry in listed if entry not in taken)


def _parents(entry: Entry, registrable: Registrable) -> Iterator[str]:
    """The domains that a wildcard for this entry might stand below."""
    if entry.pattern is None or entry.pattern.kind is not Kind.NAME or entry.pattern.port is not None or not entry.is_proposed:
        return
    name = entry.pattern.host
    top = registrable(name)
    while top is not None and name != top:
        name = name.partition(".")[2]
        yield name


def _wildcard(parent: str) -> HostPattern | None:
    try:
        return HostPattern.parse(f"*.{parent}")
    except ValueError:  # a public suffix by our own rule too
        return None


def _merged(parts: Sequence[Entry]) -> Entry:
    return Entry(
        None,
        None,
        tuple(sorted(host for part in parts for host in part.hosts)),
        sum(part.calls for part in parts),
        min(part.first for part in parts),
        max(part.last for part in parts),
    )


def _order(entry: Entry) -> tuple[bool, bool, bool, int, str]:
    return entry.is_allowed, bool(entry.flags), entry.provider is None, -entry.calls, entry.word

"""The judgement of names and addresses for a whole process tree: what at least one of its agents may reach.

The kernel cannot tell one agent of a process from another, so the boundary is the union of all; what a single agent may
not do is refused by the layers above. The supervisor loads a boundary from JSON: it never reads YAML, and imports little.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agentguard.policy.hosts import HostError, HostPattern, HostRules, Kind, Verdict, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentguard.policy.hosts import IPAddress
    from agentguard.policy.model import AgentPolicy, Policy

OWN_ENDPOINTS = "agentguard's own endpoints"
_UNREADABLE = "a boundary that cannot be read"


class Place(NamedTuple):
    """Where a clause of the policy stands, as the supervisor needs to know it."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


NOWHERE = Place("", 0)


class Endpoint(NamedTuple):
    """An address of agentguard's own: its collector, its store, its control plane. Every process of the tree may reach it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReach:
    """What one agent may reach: the part of its policy that the kernel can hold. Satisfies what `HostRules` asks of lists."""

    agent: str
    allowed_domains: tuple[HostPattern, ...] | None
    blocked_domains: tuple[HostPattern, ...] | None
    providers: tuple[HostPattern, ...] = ()
    allow_private: bool = False
    allow_metadata: bool = False
    allow_udp: bool = False
    unix_sockets: tuple[str, ...] = ()
    allowed_at: Place = NOWHERE
    blocked_at: Place = NOWHERE

    @classmethod
    def of(cls, agent: AgentPolicy) -> Self:
        """The reach of an agent of a policy."""
        from agentguard.core.rights import provider_hosts

        external = agent.external_calls
        blocked = external.blocked_rule or external.rule
        return cls(
            agent=agent.name,
            allowed_domains=external.allowed_domains,
            blocked_domains=external.blocked_domains,
            providers=tuple(provider_hosts(agent)),
            allow_private=external.allow_private,
            allow_metadata=external.allow_metadata,
            allow_udp=external.allow_udp,
            unix_sockets=external.unix_sockets,
            allowed_at=Place(external.rule.path, external.rule.line),
            blocked_at=Place(blocked.path, blocked.line),
        )

    @property
    def is_unwritten(self) -> bool:
        """Neither list was written: nothing is refused."""
        return self.allowed_domains is None and self.blocked_domains is None

    @property
    def opened(self) -> tuple[HostPattern, ...]:
        """Every entry that opens something."""
        return (*(self.allowed_domains or ()), *self.providers)

    def place_of(self, rule: str) -> Place:
        """The line to look at for a rule that a verdict names."""
        return self.blocked_at if rule.endswith("blocked_domains") else self.allowed_at

    def lies_within(self, other: AgentReach) -> bool:
        """Whether this reach provably allows nothing that the other refuses. False may mean that it cannot be shown."""
        if other.is_unwritten or self.is_unwritten:
            return other.is_unwritten
        if (self.allowed_domains is None) != (other.allowed_domains is None):
            return False
        if self.allow_private > other.allow_private or self.allow_metadata > other.allow_metadata:
            return False
        if not set(other.blocked_domains or ()) <= set(self.blocked_domains or ()):
            return False
        return all(_is_opened_by(entry, other) for entry in self.opened)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Which names and addresses a process tree may reach: what one of its agents may, and agentguard's own endpoints.

    Attributes:
        reaches: What each agent may reach.
        endpoints: Where agentguard itself connects to.
        is_enforced: Whether a refusal refuses; False in report mode, where it is recorded only.
        path: The policy file, for messages; empty for a policy that was built by hand.
    """

    reaches: tuple[AgentReach, ...]
    endpoints: tuple[Endpoint, ...] = ()
    is_enforced: bool = True
    path: str = ""
    _rules: tuple[HostRules, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rules", tuple(HostRules(reach, reach.providers) for reach in self.reaches))

    @classmethod
    def of(cls, policy: Policy, endpoints: Iterable[Endpoint] = ()) -> Self:
        """The boundary of a policy: the union of its agents."""
        return cls(
            reaches=tuple(map(AgentReach.of, policy.agents)),
            endpoints=tuple(Endpoint(canonical(host), port) for host, port in endpoints),
            is_enforced=policy.mode == "enforce",
            path=policy.path,
        )

    @property
    def unwritten(self) -> tuple[str, ...]:
        """The agents whose policy lists no hosts: one of them leaves the whole tree unbounded."""
        return tuple(reach.agent for reach in self.reaches if reach.is_unwritten)

    @property
    def is_open(self) -> bool:
        """Whether nothing is refused: there is no agent, or one whose policy lists no hosts."""
        return not self.reaches or bool(self.unwritten)

    @property
    def allows_udp(self) -> bool:
        """Whether an agent may send datagrams."""
        return any(reach.allow_udp for reach in self.reaches)

    @property
    def unix_sockets(self) -> tuple[str, ...]:
        """The path prefixes below which Unix sockets may be connected to, as the policy writes them."""
        return tuple(dict.fromkeys(prefix for reach in self.reaches for prefix in reach.unix_sockets))

    def judge_name(self, host: str, port: int | None = None) -> Verdict:
        """Whether a name may be resolved, or reached on a port. None: on any port."""
        if self._is_own(host, port):
            return _OWN
        return self._union(rules.judge(host, port) for rules in self._rules)

    def judge_address(self, ip: str | IPAddress, port: int | None, names: Iterable[str] = ()) -> Verdict:
        """Whether an address may be connected to: as itself, or as what one of `names` resolved to.

        Args:
            ip: The address, as it will be connected to.
            port: The port; None asks for any (what a resolver needs to know of an answer).
            names: The names that are pinned to the address. One that is allowed suffices.
        """
        address, names = str(ip), tuple(names)
        if any(self._is_own(name, port) for name in (address, *names)):
            return _OWN
        return self._union(
            rules.judge_ip(address, port, name)
            for name in (*names, None)  # the last refusal is told: that of the address, unless a name says more
            for rules in self._rules
        )

    def narrows(self, other: Boundary) -> bool:
        """Whether this boundary provably allows nothing that the other refuses. False may mean that it cannot be shown."""
        return (
            set(self.endpoints) <= set(other.endpoints)
            and self.is_enforced >= other.is_enforced
            and self.allows_udp <= other.allows_udp
            and all(any(_is_below(path, top) for top in other.unix_sockets) for path in self.unix_sockets)
            and all(any(reach.lies_within(wider) for wider in other.reaches) for reach in self.reaches)
        )

    def to_json(self) -> str:
        """The boundary as text for the supervisor."""
        document = {
            "reaches": [_written(reach) for reach in self.reaches],
            "endpoints": self.endpoints,
            "is_enforced": self.is_enforced,
            "path": self.path,
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The boundary that `to_json` wrote.

        Raises:
            ValueError: It is none.
        """
        try:
            document = json.loads(text)
            return cls(
                reaches=tuple(map(_read, document["reaches"])),
                endpoints=tuple(Endpoint(host, port) for host, port in document["endpoints"]),
                is_enforced=document["is_enforced"],
                path=document["path"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(_UNREADABLE) from error

    def _is_own(self, host: str, port: int | None) -> bool:
        if not self.endpoints:
            return False
        try:
            name = canonical(host)
        except HostError:
            return False
        return any(name == own.host and port in (None, own.port) for own in self.endpoints)

    def _union(self, verdicts: Iterator[Verdict]) -> Verdict:
        """The first verdict that allows; else the refusal that says most, with its place."""
        told: Verdict | None = None
        at = NOWHERE
        for number, verdict in enumerate(verdicts):
            if verdict.allowed:
                return verdict
            if told is None or _says_more(verdict, told):
                told, at = verdict, self.reaches[number % len(self.reaches)].place_of(verdict.rule)
        if told is None:
            return Verdict(False, "the policy names no agent", "agents")
        return told._replace(why=f"{told.why} ({at})") if str(at) else told


_OWN = Verdict(True, f"one of {OWN_ENDPOINTS}", OWN_ENDPOINTS)


def _says_more(new: Verdict, told: Verdict) -> bool:
    """An entry, or a key that would have to be written, says more than that no list names the host."""
    return told.why.startswith("not in ") and not new.why.startswith("not in ")


def _is_opened_by(entry: HostPattern, other: AgentReach) -> bool:
    if entry in other.opened:
        return True
    # A more specific entry than the other's may stand above what blocks there, and may carry into private space.
    if any(_overlap(entry, blocked) for blocked in other.blocked_domains or () if blocked.kind is not Kind.ANY):
        return False
    return any(_covers(wider, entry) and (not other.allow_private or entry.network is not None) for wider in other.opened)


def _covers(wider: HostPattern, entry: HostPattern) -> bool:
    if wider.port not in (None, entry.port) or wider.kind is Kind.ANY:
        return False
    if entry.network is not None:
        return (
            wider.network is not None
            and wider.reaches_private == entry.reaches_private
            and wider.network.version == entry.network.version
            and entry.network.subnet_of(wider.network)  # type: ignore[arg-type]  # of one version, which is not seen here
        )
    return wider.covers(entry.host, None) and (wider.kind is Kind.SUFFIX or wider.kind is entry.kind)


def _overlap(one: HostPattern, other: HostPattern) -> bool:
    if one.network is not None and other.network is not None:
        return one.network.version == other.network.version and one.network.overlaps(other.network)
    if one.network is not None or other.network is not None:
        return Kind.ANY in (one.kind, other.kind)
    return one.host == other.host or one.covers(other.host, None) or other.covers(one.host, None)


def _is_below(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _written(reach: AgentReach) -> dict[str, Any]:
    return {
        "agent": reach.agent,
        "allowed_domains": _texts(reach.allowed_domains),
        "blocked_domains": _texts(reach.blocked_domains),
        "providers": _texts(reach.providers),
        "allow_private": reach.allow_private,
        "allow_metadata": reach.allow_metadata,
        "allow_udp": reach.allow_udp,
        "unix_sockets": reach.unix_sockets,
        "allowed_at": reach.allowed_at,
        "blocked_at": reach.blocked_at,
    }


def _read(document: dict[str, Any]) -> AgentReach:
    return AgentReach(
        **document
        | {
            "allowed_domains": _patterns(document["allowed_domains"]),
            "blocked_domains": _patterns(document["blocked_domains"]),
            "providers": _patterns(document["providers"]) or (),
            "unix_sockets": tuple(document["unix_sockets"]),
            "allowed_at": Place(*document["allowed_at"]),
            "blocked_at": Place(*document["blocked_at"]),
        }
    )


def _texts(patterns: Iterable[HostPattern] | None) -> list[str] | None:
    return None if patterns is None else list(map(str, patterns))


def _patterns(texts: Iterable[str] | None) -> tuple[HostPattern, ...] | None:
    return None if texts is None else tuple(map(HostPattern.parse, texts))

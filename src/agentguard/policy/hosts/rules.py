"""The lists of an agent, compiled, and their verdict on a host.

The most specific entry wins, and a refusal wins ties: exact name or address, the longer network or suffix, `*`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentguard.policy.hosts.patterns import Kind
from agentguard.policy.hosts.spaces import Space, space_of, space_of_name
from agentguard.policy.hosts.spelling import HostError, address_of, canonical, plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from agentguard.policy.hosts.patterns import HostPattern
    from agentguard.policy.hosts.spelling import IPAddress

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


class HostLists(Protocol):
    """What the verdict on a host rests on: `ExternalCalls`, or the part of it that a kernel boundary holds."""

    @property
    def allowed_domains(self) -> tuple[HostPattern, ...] | None:
        """What may be reached; None: the list was not written."""

    @property
    def blocked_domains(self) -> tuple[HostPattern, ...] | None:
        """What may not be reached; None: the list was not written."""

    @property
    def allow_private(self) -> bool:
        """Whether an exact name may resolve to private address space."""

    @property
    def allow_metadata(self) -> bool:
        """Whether cloud metadata addresses may be reached at all."""

    @property
    def is_unwritten(self) -> bool:
        """Neither list was written."""


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
        return self.pattern.rank, not self.allows

    def covers(self, name: str, address: IPAddress | None, port: int | None) -> bool:
        return self._covers_port(port) and self.pattern.covers(name, address)

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

    def __init__(self, external_calls: HostLists, providers: Iterable[HostPattern] = ()) -> None:
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
                host = plain_text(host)
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
            return self._enter(space_of_name(name), verdict, f"{name!r} is")
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


def _entries(external_calls: HostLists, providers: Iterable[HostPattern]) -> Iterator[_Entry]:
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

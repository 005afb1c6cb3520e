"""What a chain of agents may reach at the level of sockets: names to look up, addresses, datagrams, Unix sockets.

What one of its agents may not reach, the chain may not. An agent whose policy lists no hosts is not held to anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentguard.core.call import DEFAULT_PORTS, Target
from agentguard.core.decision import Reason, deny
from agentguard.core.rights import provider_hosts, what_opens
from agentguard.core.wording import who
from agentguard.egress.unix_sockets import UNIX_SOCKETS, refuses_path
from agentguard.policy.hosts import HostRules, Kind, in_url
from agentguard.policy.hosts.rules import BLOCKED_DOMAINS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.rights import Rights
    from agentguard.policy.hosts import Verdict
    from agentguard.policy.model import AgentPolicy

ALLOW_UDP = "external_calls.allow_udp"
EXTERNAL_CALLS = "external_calls"

_MAX_PASSED = 4096


class Reach:
    """What a chain of agents may reach, compiled."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights
        agents = [agent for agent in rights.agents if not agent.external_calls.is_unwritten]
        self._hosts = [(agent, HostRules(agent.external_calls, provider_hosts(agent))) for agent in agents]
        self._passed: set[tuple[str, int, frozenset[str]]] = set()

    @property
    def is_unwritten(self) -> bool:
        """Whether none of the agents lists hosts: what they connect to is observed, and nothing is refused."""
        return not self._hosts

    def refuses_lookup(self, name: str, caller: Caller) -> Decision | None:
        """Judge a name before it is looked up: may it be reached on any port? A question to a DNS server is a way out."""
        for agent, hosts in self._hosts:
            verdict = hosts.judge(name)
            if not verdict.allowed:
                return _denied(agent, caller, f"look up {name!r}", verdict, name)
        return None

    def refuses_answer(self, name: str, address: str, caller: Caller) -> Decision | None:
        """Judge an address that a name has resolved to, before anybody connects to it."""
        for agent, hosts in self._hosts:
            verdict = hosts.judge_ip(address, None, name)
            if not verdict.allowed:
                return _denied(agent, caller, f"reach {name!r}", verdict, name)
        return None

    def refuses_alias(self, name: str, alias: str, caller: Caller) -> Decision | None:
        """Judge what a name is an alias of. The name must be allowed; an entry that blocks what it stands for outranks it."""
        for agent, hosts in self._hosts:
            verdict = hosts.judge(alias)
            is_blocked = verdict.rule == BLOCKED_DOMAINS and verdict.entry is not None and verdict.entry.kind is not Kind.ANY
            if not verdict.allowed and is_blocked:
                why = f"it is an alias of {alias!r}, and {verdict.why}"
                return _denied(agent, caller, f"reach {name!r}", verdict._replace(why=why), name)
        return None

    def refuses_reverse_lookup(self, address: str, names: Iterable[str], caller: Caller) -> Decision | None:
        """Judge an address before its name is looked up."""
        if any(self.refuses_lookup(name, caller) is None for name in names):
            return None
        for agent, hosts in self._hosts:
            verdict = hosts.judge(address)
            if not verdict.allowed:
                return _denied(agent, caller, f"look up the name of {address}", verdict, address)
        return None

    def refuses_connection(self, address: str, port: int, names: frozenset[str], caller: Caller) -> Decision | None:
        """Judge an address as what one of `names` resolved to, or as itself. One that is allowed suffices.

        The refusal that is told is that of a name, and of an allowed name first: it says more than that of an address.
        """
        # What passes once passes always: nothing else goes into the judgement.
        if (address, port, names) in self._passed:
            return None
        refusal = self._refuses_each(address, port, names, caller)
        if refusal is None:
            if len(self._passed) >= _MAX_PASSED:
                self._passed.clear()
            self._passed.add((address, port, names))
        return refusal

    def _refuses_each(self, address: str, port: int, names: Iterable[str], caller: Caller) -> Decision | None:
        told: Decision | None = None
        for name in sorted(names):
            refusal = self._refuses_name(name, address, port, caller)
            if refusal is None:
                return None
            told = told or refusal
        refusal = self._refuses_address(address, port, caller)
        return None if refusal is None else told or refusal

    def _refuses_name(self, name: str, address: str, port: int, caller: Caller) -> Decision | None:
        for agent, hosts in self._hosts:
            verdict = hosts.judge_ip(address, port, name)
            if not verdict.allowed:
                return _denied(agent, caller, f"reach {f'{name}{_named_port(port)}'!r}", verdict, name, port)
        return self._rights.refuses_target(Target("tcp", name, port, "/"), caller)

    def _refuses_address(self, address: str, port: int, caller: Caller) -> Decision | None:
        for agent, hosts in self._hosts:
            verdict = hosts.judge_ip(address, port)
            if not verdict.allowed:
                why = (
                    f"{verdict.why}, and no allowed name has resolved to it" if verdict.why.startswith("not in ") else verdict.why
                )
                return _denied(agent, caller, f"connect to {in_url(address)}:{port}", verdict._replace(why=why), address, port)
        return self._rights.refuses_target(Target("tcp", address, port, "/"), caller)

    def refuses_datagrams(self, address: str, caller: Caller) -> Decision | None:
        """Judge whether datagrams may be sent at all."""
        agent = next((agent for agent, _ in self._hosts if not agent.external_calls.allow_udp), None)
        if agent is None:
            return None
        sentence = f"{who(caller)} may not send datagrams (to {address})"
        return _needs(agent, sentence, ALLOW_UDP, f"Write allow_udp: true under external_calls of agent {agent.name!r}.")

    def refuses_family(self, family: str, caller: Caller) -> Decision | None:
        """Judge a kind of socket that no list can speak of."""
        for agent, _ in self._hosts:
            sentence = f"{who(caller)} may not use sockets of the family {family}"
            return _needs(agent, sentence, EXTERNAL_CALLS, "No list of hosts can allow such a socket: use TCP, or do without.")
        return None

    def refuses_hidden_lookup(self, name: str, caller: Caller) -> Decision | None:
        """Judge a connection by a name that was looked up where nobody saw the answer."""
        for agent, _ in self._hosts:
            sentence = f"{who(caller)} may not connect to {name!r}, which was looked up out of sight"
            return _needs(agent, sentence, EXTERNAL_CALLS, "Connect to an address that socket.getaddrinfo gave.")
        return None

    def refuses_socket(self, path: str, own: Collection[str], caller: Caller) -> Decision | None:
        """Judge a Unix socket by its real path."""
        for agent, _ in self._hosts:
            why = refuses_path(path, agent.external_calls.unix_sockets, own)
            if why is not None:
                at = agent.external_calls.rule_of(UNIX_SOCKETS)
                sentence = f"{who(caller)} may not connect to the socket {path}: {why}{_at(at.place)}."
                return deny(Reason.EGRESS, at, sentence, f"Add it there, for agent {agent.name!r}: [{path}].")
        return None


def _denied(agent: AgentPolicy, caller: Caller, what: str, verdict: Verdict, host: str, port: int | None = None) -> Decision:
    rule = agent.external_calls.rule_of(verdict.rule)
    whose = "" if agent.name == caller.agent else f" of {agent.name!r}"
    sentence = f"{who(caller)} may not {what}: {verdict.why}{whose}{_at(rule.place)}."
    scheme = "http" if port == DEFAULT_PORTS["http"] else "https"
    explain = f"run `agentguard policy explain {scheme}://{in_url(host)}{_named_port(port)}/ --agent {agent.name}`"
    return deny(Reason.EGRESS, rule, sentence, f"{what_opens(verdict.rule)}, or {explain}.")


def _named_port(port: int | None) -> str:
    """`:8080`; nothing for a port that a URL does not name, and where none was asked for yet."""
    return "" if port in {None, *DEFAULT_PORTS.values()} else f":{port}"


def _needs(agent: AgentPolicy, sentence: str, name: str, remedy: str) -> Decision:
    rule = agent.external_calls.rule_of(name)
    return deny(Reason.EGRESS, rule, f"{sentence}: {rule}.", remedy)


def _at(place: str) -> str:
    return f" ({place})" if place else ""

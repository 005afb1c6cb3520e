"""What a caller may do: the intersection of what its agents may, compiled once for each chain of agents."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from agentguard.core.call import DEFAULT_PORTS, LLMCall, ToolCall
from agentguard.core.decision import Reason, deny
from agentguard.core.isolation import llm_words
from agentguard.core.limits import AMOUNTS, LimitRow
from agentguard.core.wording import amount_text, who
from agentguard.policy.hosts import HostError, HostPattern, HostRules, in_url
from agentguard.policy.model import LLM, Over, Per, Rule, Unit
from agentguard.policy.providers import PROVIDER_HOSTS
from agentguard.policy.shares import parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentguard.core.call import Call, Target
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.policy.model import AgentPolicy, Limit, Policy, Resource

_MAX_CACHED = 4096
_SWITCHES = frozenset({"allow_private", "allow_metadata"})
_PLACES = {Unit.TOKENS: 0, Unit.USD: 1, Unit.CALLS: 2, Unit.CONCURRENT_CALLS: 3}
_UNKNOWN = "-"
"""The subject of callers that name no user: they share one, so that leaving identity out gains nothing."""


class ChargedRows(NamedTuple):
    """What a call is charged to, and what follows from it.

    Attributes:
        rows: Every row of the call.
        places: The key of each, and the place of what it is charged in (tokens, nano-USD, calls, calls at once).
        amounts: Those of them that count tokens or money.
        bounding: The limits, `per: call` included, that need the call's tokens or cost to be bounded beforehand.
        money: One of them that is in money; None when there is none.
    """

    rows: tuple[LimitRow, ...]
    places: tuple[tuple[str, int], ...]
    amounts: tuple[LimitRow, ...]
    bounding: tuple[Limit, ...]
    money: Limit | None


class Rights:
    """The rights of a chain of agents. What one of them may not do, the chain may not.

    `is_listed` False: of a caller that is none of the policy's agents, and may do what all of them may.
    """

    def __init__(self, policy: Policy, agents: Sequence[AgentPolicy], unnamed_session: str, *, is_listed: bool = True) -> None:
        self.agents: tuple[AgentPolicy, ...] = tuple(agents)
        self.policy = policy
        self.llm: LLM = _strictest_llm([agent.llm for agent in agents if agent.llm is not None])
        self._hosts = [(agent, HostRules(agent.external_calls, provider_hosts(agent))) for agent in agents]
        self._unnamed_session = unnamed_session
        self._charged: dict[tuple[object, ...], ChargedRows] = {}
        self._passed: set[tuple[str | None, str, int, str]] = set()
        self.judges_tools: bool = any(agent.tools.allowed is not None for agent in agents) or any(
            resource.tools for resource in policy.resources
        )
        self._parts = parts(policy.agents, {agent.name for agent in agents}) if policy.limits.fair_share and is_listed else {}
        counted = {limit.per for limit in self._limits()}
        self._counted = tuple(per in counted for per in (Per.MODEL, Per.SESSION, Per.INTERACTION, Per.USER))
        self._subjects: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]] | None = None
        self.call_limits: tuple[Limit, ...] = tuple(limit for limit in self._limits() if limit.per is Per.CALL)

    def refuses(self, call: Call, caller: Caller) -> Decision | None:
        """Judge a call against everything but counters: tool, model, scope, host. None when nothing stands against it."""
        if isinstance(call, ToolCall):
            return self._refuses_tool(call, caller)
        target = call.target
        model = call.model if isinstance(call, LLMCall) else None
        # What the rights pass once they pass always: nothing else goes into the judgement.
        asked = (model, target.host, target.port, target.path if self.policy.resources else "")
        if asked in self._passed:
            return None
        refusal = self._refuses_model(model, caller) if model is not None else None
        refusal = refusal or self.refuses_target(target, caller, is_llm=model is not None)
        refusal = refusal or self._refuses_stranger(call, caller)
        if refusal is None:
            if len(self._passed) >= _MAX_CACHED:
                self._passed.clear()
            self._passed.add(asked)
        return refusal

    def refuses_target(self, target: Target, caller: Caller, *, is_llm: bool = False) -> Decision | None:
        """Judge one hop of a call."""
        for agent, hosts in self._hosts:
            verdict = hosts.judge(target.host, target.port)
            if not verdict.allowed:
                rule = agent.external_calls.rule_of(verdict.rule)
                return _deny_host(agent, caller, target, verdict.why, rule, is_llm=is_llm and agent.llm is None)
        for resource in self.policy.resources:
            if opens(resource, target) and (refusal := self._lacks_scope(resource.name, resource.rule, str(target), caller)):
                return refusal
        return None

    def charged_rows(self, call: Call, caller: Caller) -> ChargedRows:
        """What a call is charged to: the limits of each agent of the chain, of the fleet, and of the blocks around it."""
        is_llm = isinstance(call, LLMCall)
        by_model, by_session, by_interaction, by_user = self._counted
        key = (
            is_llm,
            call.model if by_model and isinstance(call, LLMCall) else "",
            caller.session if by_session else None,
            caller.interaction if by_interaction else None,
            caller.user if by_user else None,
            caller.blocks,
        )
        charged = self._charged.get(key)
        if charged is None:
            if len(self._charged) >= _MAX_CACHED:
                self._charged.clear()
            charged = self._charged[key] = self._charged_rows(caller, key[1], is_llm=is_llm)
        return charged

    def _charged_rows(self, caller: Caller, model: str, *, is_llm: bool) -> ChargedRows:
        rows = tuple(self._rows_of(caller, model, is_llm=is_llm))
        amounts = tuple(row for row in rows if row.limit.unit in AMOUNTS)
        bounding = (*(row.limit for row in amounts), *(limit for limit in self.call_limits if limit.unit in AMOUNTS))
        money = next((limit for limit in bounding if limit.unit is Unit.USD), None)
        places = tuple((row.key, _PLACES[row.limit.unit]) for row in rows)
        return ChargedRows(rows, places, amounts, bounding, money)

    def subjects(self, caller: Caller, *, is_llm: bool = False) -> tuple[str, ...]:
        """Everything that an isolation of would stop this caller; with `is_llm`, in an LLM call."""
        subjects = self._subjects
        if subjects is None or subjects[0] != caller.agents:
            names = [f"agent:{name}" for name in (*(agent.name for agent in self.agents), *caller.agents)]
            all_calls = ("fleet", *dict.fromkeys(names))
            subjects = self._subjects = (caller.agents, all_calls, (*all_calls, *llm_words(all_calls)))
        of_agents = subjects[2] if is_llm else subjects[1]
        if caller.session is None and caller.user is None:
            return of_agents
        session = (f"session:{caller.session}",) if caller.session else ()
        return (*of_agents, *session, f"user:{caller.user}") if caller.user else (*of_agents, *session)

    def _limits(self) -> Iterator[Limit]:
        for agent in self.agents:
            yield from agent.budgets
            if agent.api_keys.rate_limit is not None:
                yield agent.api_keys.rate_limit
        yield from self.policy.limits.fleet

    def _rows_of(self, caller: Caller, model: str, *, is_llm: bool) -> Iterator[LimitRow]:
        rows: dict[str, LimitRow] = {}
        owned = [(agent, limit) for agent in self.agents for limit in (*agent.budgets, *_rates(agent))]
        for agent, limit in [*owned, *((None, limit) for limit in self.policy.limits.fleet)]:
            if limit.per is Per.CALL or not _counts(limit, is_llm=is_llm) or (limit.per is Per.MODEL and not is_llm):
                continue
            row = LimitRow.of(self._subject(limit, agent, caller, model), limit)
            known = rows.get(row.key)
            if known is None or limit.amount < known.limit.amount:
                rows[row.key] = row
        yield from rows.values()
        for row in rows.values():
            if row.limit.per is Per.FLEET:
                yield from self._shares_of(row.limit)
        for block in caller.blocks:
            yield from block.rows

    def _shares_of(self, limit: Limit) -> Iterator[LimitRow]:
        """The share of each agent of the chain in a limit of the fleet: rows like all others, hence atomic, leased, explained."""
        for name, part in self._parts.items():
            amount = max(part.of(limit.amount), 1)
            text = f"{amount_text(amount, limit.unit)} of {limit.text}" if limit.text else ""
            yield LimitRow.of(f"share:{name}@fleet", replace(limit, amount=amount, per=Per.AGENT, text=text))

    def _subject(self, limit: Limit, agent: AgentPolicy | None, caller: Caller, model: str) -> str:
        owner = f"agent:{agent.name}" if agent else "fleet"
        match limit.per:
            case Per.AGENT | Per.CALL:
                return owner
            case Per.SESSION:
                return f"session:{caller.session or self._unnamed_session}@{owner}"
            case Per.INTERACTION:
                return f"interaction:{caller.interaction or self._unnamed_session}@{owner}"
            case Per.USER:
                return f"user:{caller.user or _UNKNOWN}@{owner}"
            case Per.MODEL:
                return f"model:{model}@{owner}"
            case Per.KEY:
                return f"key:{_UNKNOWN}@{owner}"
            case Per.TEAM:
                return f"team:{agent.team if agent and agent.team else _UNKNOWN}"
            case Per.FLEET:
                return "fleet"

    def _refuses_stranger(self, call: Call, caller: Caller) -> Decision | None:
        """A caller that is none of the agents has no share: what it took of the fleet's limits would be somebody's."""
        if self._parts or not self.policy.limits.fair_share:
            return None
        is_llm = isinstance(call, LLMCall)
        shared = (limit for limit in self.policy.limits.fleet if limit.per is Per.FLEET and _counts(limit, is_llm=is_llm))
        limit = next(shared, None)
        if limit is None:
            return None
        place = limit.rule.place or limit.rule.name
        sentence = f"{who(caller)} may not make {call.name!r}: it has no share of {limit.text or limit.rule.name} ({place})."
        remedy = "Enter an agent of the policy, carry it into threads with `propagate`, or name one in instrument(agent=...)."
        return deny(Reason.RATE if limit.is_rate else Reason.BUDGET, limit.rule, sentence, remedy)

    def _refuses_tool(self, call: ToolCall, caller: Caller) -> Decision | None:
        for agent in self.agents:
            allowed = agent.tools.allowed
            if allowed is not None and not any(fnmatchcase(call.tool, pattern) for pattern in allowed):
                rule = Rule("tools.allowed", *_place(agent.tools.rule))
                sentence = f"{who(caller)} may not use tool {call.tool!r}: not in {_named(rule, agent, caller)}."
                return deny(Reason.TOOL, rule, sentence, f"Add {call.tool!r} to tools.allowed.")
        for resource in self.policy.resources:
            if call.tool in resource.tools and (
                refusal := self._lacks_scope(resource.name, resource.rule, f"tool {call.tool!r}", caller)
            ):
                return refusal
        if call.scope is None:
            return None
        return self._lacks_scope(call.scope, Rule("security.api_keys.scope"), f"tool {call.tool!r}", caller)

    def _lacks_scope(self, scope: str, rule: Rule, what: str, caller: Caller) -> Decision | None:
        for agent in self.agents:
            if agent.api_keys.scope is None or scope not in agent.api_keys.scope:
                at = Rule(rule.name, *_place(agent.api_keys.rule if not rule.line else rule))
                sentence = (
                    f"{who(caller)} may not use {what}: it asks for scope {scope!r}, which {agent.name!r} does not have: {at}."
                )
                reason = Reason.TOOL if what.startswith("tool ") else Reason.EGRESS
                return deny(reason, at, sentence, f"Add {scope!r} to security.api_keys.scope of agent {agent.name!r}.")
        return None

    def _refuses_model(self, model: str, caller: Caller) -> Decision | None:
        for agent in self.agents:
            if agent.llm is None or agent.llm.models is None:
                continue
            if not any(fnmatchcase(model, pattern) for pattern in agent.llm.models):
                rule = Rule("llm.models", *_place(agent.llm.rule))
                sentence = f"{who(caller)} may not use model {model!r}: not in {_named(rule, agent, caller)}."
                return deny(
                    Reason.MODEL,
                    rule,
                    sentence,
                    f"Add {model!r}, or a pattern such as {_pattern(model)!r}, to llm.models.",
                )
        return None


def _strictest_llm(parts: Sequence[LLM]) -> LLM:
    """How calls are bounded: the first agent's words, with the smallest output bound of all."""
    if not parts:
        return LLM()
    smallest = min(parts, key=lambda part: part.max_output_tokens)
    strict = next((part for part in parts if part.bound == "strict"), parts[0])
    return (
        parts[0]
        if len(parts) == 1
        else LLM(
            max_output_tokens=smallest.max_output_tokens,
            bound=strict.bound,
            unbounded_output=parts[0].unbounded_output,
            include_usage=any(part.include_usage for part in parts),
            ambiguous=parts[0].ambiguous,
            prices={pattern: price for part in reversed(parts) for pattern, price in part.prices.items()},
            unknown_price=parts[0].unknown_price,
        )
    )


def _rates(agent: AgentPolicy) -> tuple[Limit, ...]:
    return (agent.api_keys.rate_limit,) if agent.api_keys.rate_limit is not None else ()


def _counts(limit: Limit, *, is_llm: bool) -> bool:
    return limit.over is Over.ALL or (limit.over is Over.LLM) == is_llm


def opens(resource: Resource, target: Target) -> bool:
    """Whether a target lies within a resource, so that the resource's scope is asked for."""
    try:
        if not any(pattern.matches(target.host, target.port) for pattern in resource.hosts):
            return False
    except HostError:
        return True  # what cannot be read as a host is not taken for a harmless one
    # A server may decode and fold a path before it routes it, so the resource is judged by what the path means.
    path = posixpath.normpath(unquote(target.path.partition("?")[0]))
    return not resource.paths or any(
        fnmatchcase(path, pattern) or fnmatchcase(target.path, pattern) for pattern in resource.paths
    )


def _named(rule: Rule, agent: AgentPolicy, caller: Caller) -> str:
    return f"{rule.name}{_of(agent, caller)} ({rule.place})" if rule.place else f"{rule.name}{_of(agent, caller)}"


def _of(agent: AgentPolicy, caller: Caller) -> str:
    """Whose list it is, when that is not plain from who asks: an agent around the caller's, or one of several."""
    return "" if agent.name == caller.agent else f" of {agent.name!r}"


def _deny_host(agent: AgentPolicy, caller: Caller, target: Target, why: str, rule: Rule, *, is_llm: bool) -> Decision:
    place = f" ({rule.place})" if rule.place else ""
    at = "" if target.port == DEFAULT_PORTS.get(target.scheme) else f":{target.port}"
    host = in_url(target.host)
    reached = f"{host}{at}" if at else target.host
    sentence = f"{who(caller)} may not reach {reached!r}: {why}{_of(agent, caller)}{place}."
    explain = f"run `agentguard policy explain {target.scheme}://{host}{at}{target.path} --agent {agent.name}`"
    if is_llm and rule.name.rpartition(".")[2] not in _SWITCHES:
        return deny(
            Reason.EGRESS,
            Rule("llm.providers", *_place(rule)),
            sentence,
            f"Name its provider under llm.providers of agent {agent.name!r}, or {explain}.",
        )
    return deny(Reason.EGRESS, rule, sentence, f"{what_opens(rule.name)}, or {explain}.")


def what_opens(rule: str) -> str:
    """What to write so that a host goes that a rule refuses, as the beginning of a sentence."""
    key = rule.rpartition(".")[2]
    if key in _SWITCHES:
        return f"Write {key}: true under external_calls"  # the host may well be listed, and is refused all the same
    return "Remove that entry" if key == "blocked_domains" else "Add the host there"


def provider_hosts(agent: AgentPolicy) -> Iterator[HostPattern]:
    """The hosts that become reachable by an agent's `llm.providers`."""
    for provider in agent.llm.providers if agent.llm else ():
        yield from map(HostPattern.parse, PROVIDER_HOSTS[provider])


def _place(rule: Rule) -> tuple[str, int]:
    return rule.path, rule.line


def _pattern(model: str) -> str:
    return f"{model.partition('-')[0]}-*"

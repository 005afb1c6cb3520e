"""Why a call may go or not: every rule that was looked at, in the order of looking. Decides nothing itself."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.decision import Effect
from agentguard.core.rights import opens, provider_hosts
from agentguard.core.wording import amount_text
from agentguard.policy.grammar import write_duration
from agentguard.policy.hosts import HostRules
from agentguard.policy.model import Per, Rule, Window

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from agentguard.core.call import Call, Target
    from agentguard.core.caller import Caller
    from agentguard.core.limits import Counted, LimitRow
    from agentguard.core.rights import Rights
    from agentguard.policy.model import AgentPolicy


UNCOUNTED = "counted when the call is made"
"""What there is to say of a limit without its store."""


class RuleTrace(NamedTuple):
    """One rule that was looked at.

    Attributes:
        agent: Whose rule it is; empty for one of the whole fleet.
        rule: The clause, with the line it stands on.
        entry: What stands there: a host, a pattern, a scope, a limit.
        effect: What it says of the call; None when it does not speak of it.
        decides: Whether it is what its agent's list comes to: the most specific entry that matches, or the list's end.
        why: What there is to say beyond that.
    """

    agent: str
    rule: Rule
    entry: str
    effect: Effect | None
    decides: bool = False
    why: str = ""


def explain(
    call: Call, caller: Caller, rights: Rights, isolated: Collection[str] = (), counted: Mapping[str, Counted] | None = None
) -> list[RuleTrace]:
    """Every rule that is looked at for a call, whether or not an earlier one has refused it.

    Args:
        call: The call.
        caller: Who would make it.
        rights: The caller's rights.
        isolated: The subjects that are isolated.
        counted: What the ledger says, by row; None: limits are listed without it.
    """
    return [
        *_isolations(call, caller, rights, isolated),
        *_tools(call, rights),
        *_models(call, rights),
        *_hosts(call, rights),
        *_scopes(call, rights),
        *_limits(call, caller, rights, counted),
    ]


def _isolations(call: Call, caller: Caller, rights: Rights, isolated: Collection[str]) -> Iterator[RuleTrace]:
    for subject in rights.subjects(caller, is_llm=isinstance(call, LLMCall)):
        if subject in isolated:
            yield RuleTrace("", Rule("isolation"), subject, Effect.DENY, True, "an operator has stopped it")


def _tools(call: Call, rights: Rights) -> Iterator[RuleTrace]:
    if isinstance(call, ToolCall):
        for agent in rights.agents:
            yield from _patterns(agent, _named("tools.allowed", agent.tools.rule), agent.tools.allowed, call.tool)


def _models(call: Call, rights: Rights) -> Iterator[RuleTrace]:
    if isinstance(call, LLMCall):
        for agent in rights.agents:
            if agent.llm is not None:
                yield from _patterns(agent, _named("llm.models", agent.llm.rule), agent.llm.models, call.model)


def _patterns(agent: AgentPolicy, rule: Rule, patterns: tuple[str, ...] | None, name: str) -> Iterator[RuleTrace]:
    """A list that narrows when it is written."""
    if patterns is None:
        yield RuleTrace(agent.name, rule, "", Effect.ALLOW, True, "no list is written")
        return
    matching = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
    for pattern in patterns:
        yield RuleTrace(agent.name, rule, pattern, Effect.ALLOW if pattern in matching else None, pattern in matching[:1])
    if not matching:
        yield RuleTrace(agent.name, rule, "", Effect.DENY, True, f"{name!r} is not listed")


def _hosts(call: Call, rights: Rights) -> Iterator[RuleTrace]:
    if not isinstance(call, ToolCall):
        for agent in rights.agents:
            yield from _hosts_of(agent, call.target)


def _hosts_of(agent: AgentPolicy, target: Target) -> Iterator[RuleTrace]:
    calls = agent.external_calls
    hosts = HostRules(calls, provider_hosts(agent))
    verdict = hosts.judge(target.host, target.port)
    effect = Effect.ALLOW if verdict.allowed else Effect.DENY
    is_decided = False
    for look in hosts.trace(target.host, target.port):
        rule = _named(look.rule, agent.llm.rule) if look.rule == "llm.providers" and agent.llm else calls.rule_of(look.rule)
        decides = look.decides and look.allows == verdict.allowed
        is_decided = is_decided or decides
        says = (Effect.ALLOW if look.allows else Effect.DENY) if look.matches else None
        yield RuleTrace(agent.name, rule, str(look.entry), says, decides)
    if not is_decided:
        yield RuleTrace(agent.name, calls.rule_of(verdict.rule), "", effect, True, verdict.why)


def _scopes(call: Call, rights: Rights) -> Iterator[RuleTrace]:
    for scope, rule in _asked_scopes(call, rights):
        for agent in rights.agents:
            has = scope in (agent.api_keys.scope or ())
            at = rule or _named("security.api_keys.scope", agent.api_keys.rule)
            why = f"the agent {'has' if has else 'lacks'} this scope"
            yield RuleTrace(agent.name, at, scope, Effect.ALLOW if has else Effect.DENY, True, why)


def _asked_scopes(call: Call, rights: Rights) -> Iterator[tuple[str, Rule | None]]:
    for resource in rights.policy.resources:
        if call.tool in resource.tools if isinstance(call, ToolCall) else opens(resource, call.target):
            yield resource.name, resource.rule
    if isinstance(call, ToolCall) and call.scope is not None:
        yield call.scope, None


def _limits(call: Call, caller: Caller, rights: Rights, counted: Mapping[str, Counted] | None) -> Iterator[RuleTrace]:
    for limit in rights.call_limits:
        if isinstance(call, LLMCall):
            yield RuleTrace("", limit.rule, f"{amount_text(limit.amount, limit.unit)} per call", None, why="judged by its size")
    for row in rights.charged_rows(call, caller).rows:
        subject = row.subject.partition("@")[0]
        if (row.limit.per is Per.SESSION and not caller.session) or (row.limit.per is Per.INTERACTION and not caller.interaction):
            subject = f"each {row.limit.per}"
        found = None if counted is None else counted.get(row.key)
        yield _limit(row, subject, found, rights.policy.limits.wait_seconds, is_counted=counted is not None)


def _limit(row: LimitRow, subject: str, found: Counted | None, wait_seconds: float, *, is_counted: bool) -> RuleTrace:
    limit = row.limit
    text = limit.text or amount_text(limit.amount, limit.unit)
    says_window = limit.window == Window.LIFE or "_per_" in text
    entry = f"{text}{'' if says_window else f' every {limit.window}'} for {subject}"
    if not is_counted:
        return RuleTrace("", limit.rule, entry, None, why=UNCOUNTED)
    spent, held = (found.spent, found.held) if found is not None else (0, 0)
    left = max(limit.amount - spent - held, 0)
    why = f"{amount_text(left, limit.unit)} left"
    if not left and wait_seconds and limit.window != Window.LIFE:
        why += f"; a call waits up to {write_duration(wait_seconds)} for the window to be over"
    return RuleTrace("", limit.rule, entry, Effect.ALLOW if left else Effect.DENY, not left, why)


def _named(name: str, stands: Rule) -> Rule:
    return Rule(name, stands.path, stands.line)

"""What a change of the policy grants and what it takes, in plain sentences."""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy import grammar
from agentguard.policy.model import (
    LLM,
    AgentPolicy,
    Ambiguous,
    Bound,
    Limit,
    Mode,
    OnStoreDown,
    Policy,
    Unbounded,
)
from agentguard.policy.shares import parts

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    from agentguard.policy.model import ExternalCalls, KeySource, Price, Resource
    from agentguard.policy.shares import Part


class Direction(StrEnum):
    """Whether more or less may be done than before."""

    GRANTS = "grants"
    TAKES = "takes"


class Change(NamedTuple):
    """One thing that changed: the key it stands under, and a sentence."""

    direction: Direction
    key: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.direction}  {self.key}   {self.sentence}"


def diff(old: Policy, new: Policy) -> tuple[Change, ...]:
    """Every change of what may be done from one policy to another, agent by agent."""
    return tuple(_policies(old, new))


def _grants(key: str, sentence: str) -> Change:
    return Change(Direction.GRANTS, key, sentence)


def _takes(key: str, sentence: str) -> Change:
    return Change(Direction.TAKES, key, sentence)


def _either(is_grant: bool, key: str, sentence: str) -> Change:
    return (_grants if is_grant else _takes)(key, sentence)


def _policies(old: Policy, new: Policy) -> Iterator[Change]:
    if old.mode is not new.mode:
        if new.mode is Mode.REPORT:
            yield _grants("mode", "Nothing is refused any more: refusals are only recorded.")
        else:
            yield _takes("mode", "What was only recorded is refused from now on.")
    if (old.fleet, old.store) != (new.fleet, new.store):
        yield _grants("store", "Counters live elsewhere from now on: what was spent before does not count there.")
    before, after = ({agent.name: agent for agent in policy.agents} for policy in (old, new))
    for name in (*before, *(name for name in after if name not in before)):
        yield from _agents(name, before.get(name), after.get(name))
    yield from _limits("limits.fleet", old.limits.fleet, new.limits.fleet)
    yield from _shares(old, new)
    yield from _resources(old.resources, new.resources)
    yield from _keys(old.keys, new.keys)


def _shares(old: Policy, new: Policy) -> Iterator[Change]:
    """What becomes of each agent's share of the fleet's limits: by its own words, and by those of all others."""
    if old.limits.fair_share != new.limits.fair_share:
        sentence = (
            "Each agent is held to its share of the fleet's limits."
            if new.limits.fair_share
            else "Nobody is held to a share of the fleet's limits: the first to ask is served."
        )
        yield _either(not new.limits.fair_share, "limits.fair_share", sentence)
    elif new.limits.fair_share:
        before, after = (parts(policy.agents, {agent.name for agent in policy.agents}) for policy in (old, new))
        for name, part in after.items():
            if name in before and (change := _ratio(part) - _ratio(before[name])):
                sentence = f"Its share of the fleet's limits is {_percent(part)}; it was {_percent(before[name])}."
                yield _either(change > 0, f"agents[{name}].share", sentence)


def _ratio(part: Part) -> Fraction:
    return Fraction(*part.ratio)


def _percent(part: Part) -> str:
    return f"{float(100 * _ratio(part)):.4g}%"


def _agents(name: str, old: AgentPolicy | None, new: AgentPolicy | None) -> Iterator[Change]:
    key = f"agents[{name}]"
    if new is None:
        yield _takes(key, f"Agent {name!r} is no longer named; nothing speaks for it.")
    elif old is None:
        yield _grants(key, f"Agent {name!r} is new, with the rights written there.")
    else:
        yield from _same_agent(key, old, new)


def _same_agent(key: str, old: AgentPolicy, new: AgentPolicy) -> Iterator[Change]:
    if old.team != new.team:
        sentence = f"Its limits per team count against {new.team or 'no team'} instead of {old.team or 'no team'}."
        yield _grants(f"{key}.team", sentence)
    yield from _hosts(f"{key}.external_calls", old, new)
    yield from _names(f"{key}.tools.allowed", "tool", old.tools.allowed, new.tools.allowed)
    if old.tools.proposed != new.tools.proposed:
        is_grant = new.tools.proposed == "allow"
        sentence = "A forbidden tool that a model proposes is only told." if is_grant else "It is refused when proposed."
        yield _either(is_grant, f"{key}.tools.proposed", sentence)
    yield from _llms(f"{key}.llm", old.llm, new.llm)
    yield from _scopes(f"{key}.security.api_keys.scope", old.api_keys.scope, new.api_keys.scope)
    yield from _limits(f"{key}.budgets", old.budgets, new.budgets)
    rates = [(agent.api_keys.rate_limit,) if agent.api_keys.rate_limit else () for agent in (old, new)]
    yield from _limits(f"{key}.security.api_keys.rate_limit", *rates)


def _hosts(key: str, old: AgentPolicy, new: AgentPolicy) -> Iterator[Change]:
    before, after = old.external_calls, new.external_calls
    allowed, blocked = f"{key}.allowed_domains", f"{key}.blocked_domains"
    if before.allowed_domains is None and after.allowed_domains is not None:
        yield _takes(allowed, "Only the hosts listed here may be reached from now on.")
    if before.allowed_domains is not None and after.allowed_domains is None:
        yield _grants(allowed, "Hosts need not be listed any more.")
    lists = set(after.allowed_domains or ()), set(before.allowed_domains or ())
    for pattern in sorted(map(str, lists[0] - lists[1])):
        yield _grants(allowed, f"{pattern} may be reached.")
    for pattern in sorted(map(str, lists[1] - lists[0])):
        yield _takes(allowed, f"{pattern} is no longer listed.")
    lists = set(after.blocked_domains or ()), set(before.blocked_domains or ())
    for pattern in sorted(map(str, lists[0] - lists[1])):
        yield _takes(blocked, f"{pattern} is blocked.")
    for pattern in sorted(map(str, lists[1] - lists[0])):
        yield _grants(blocked, f"{pattern} is no longer blocked.")
    yield from _openings(key, before, after)


def _openings(key: str, before: ExternalCalls, after: ExternalCalls) -> Iterator[Change]:
    for flag in ("allow_private", "allow_metadata", "allow_udp"):
        if getattr(before, flag) != getattr(after, flag):
            is_grant = getattr(after, flag)
            yield _either(is_grant, f"{key}.{flag}", f"{_OPENS[flag]} {'may' if is_grant else 'may no longer'} be used.")
    lists = set(after.unix_sockets), set(before.unix_sockets)
    for path in sorted(lists[0] - lists[1]):
        yield _grants(f"{key}.unix_sockets", f"Unix sockets below {path} may be connected to.")
    for path in sorted(lists[1] - lists[0]):
        yield _takes(f"{key}.unix_sockets", f"{path} is no longer listed.")
    if before.enforcement != after.enforcement:
        is_grant = after.enforcement == "in_process"
        yield _either(is_grant, f"{key}.enforcement", f"Enforced {after.enforcement} instead of {before.enforcement}.")


_OPENS = {"allow_private": "Private addresses", "allow_metadata": "Cloud metadata services", "allow_udp": "Datagrams"}


def _names(key: str, what: str, old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> Iterator[Change]:
    """A list that narrows when it is written: None allows everything."""
    if old is None and new is None:
        return
    if old is None:
        yield _takes(key, f"Only the {what}s listed here may be used: {_listed(new)}.")
    elif new is None:
        yield _grants(key, f"Any {what} may be used.")
    else:
        yield from (_grants(key, f"{what.capitalize()} {name!r} may be used.") for name in new if name not in old)
        yield from (_takes(key, f"{what.capitalize()} {name!r} may no longer be used.") for name in old if name not in new)


def _scopes(key: str, old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> Iterator[Change]:
    """A list that opens: without it, what asks for a scope is refused."""
    yield from (_grants(key, f"What asks for scope {word!r} is opened.") for word in new or () if word not in (old or ()))
    yield from (_takes(key, f"What asks for scope {word!r} is closed.") for word in old or () if word not in (new or ()))


def _llms(key: str, old: LLM | None, new: LLM | None) -> Iterator[Change]:
    if old is None and new is None:
        return
    before, after = old or LLM(), new or LLM()
    for provider in after.providers:
        if provider not in before.providers:
            yield _grants(f"{key}.providers", f"The hosts of {provider!r} may be reached.")
    for provider in before.providers:
        if provider not in after.providers:
            yield _takes(f"{key}.providers", f"The hosts of {provider!r} are no longer opened.")
    yield from _names(f"{key}.models", "model", before.models, after.models)
    if before.max_output_tokens != after.max_output_tokens:
        is_grant = after.max_output_tokens > before.max_output_tokens
        sentence = f"Calls without a bound get {after.max_output_tokens} output tokens instead of {before.max_output_tokens}."
        yield _either(is_grant, f"{key}.max_output_tokens", sentence)
    for word, is_grant in (
        ("bound", after.bound is Bound.CALIBRATED),
        ("unbounded_output", _LAXITY[after.unbounded_output] > _LAXITY[before.unbounded_output]),
        ("ambiguous", _LENIENCE[after.ambiguous] > _LENIENCE[before.ambiguous]),
    ):
        if getattr(before, word) != getattr(after, word):
            yield _either(is_grant, f"{key}.{word}", f"{getattr(after, word)} instead of {getattr(before, word)}.")
    yield from _prices(key, before, after)


_LAXITY = {Unbounded.DENY: 0, Unbounded.WRITE: 1, Unbounded.ASSUME: 2}
_LENIENCE = {Ambiguous.ESTIMATE: 0, Ambiguous.INPUT: 1, Ambiguous.NOTHING: 2}


def _prices(key: str, old: LLM, new: LLM) -> Iterator[Change]:
    """A price counts against budgets of money: a lower one lets more calls pass."""
    for pattern in dict.fromkeys((*old.prices, *new.prices)):
        yield from _price(f"{key}.prices", f"{pattern!r}", old.prices.get(pattern), new.prices.get(pattern))
    before, after = old.unknown_price, new.unknown_price
    if before is None and after is not None:
        yield _grants(f"{key}.unknown_price", f"Models without a price pass budgets of money, at {_money(after)}.")
    elif after is None and before is not None:
        yield _takes(f"{key}.unknown_price", "Models without a price are refused where money is limited.")
    else:
        yield from _price(f"{key}.unknown_price", "a model without a price", before, after)


def _price(key: str, what: str, old: Price | None, new: Price | None) -> Iterator[Change]:
    if old == new:
        return
    if new is None:
        yield _takes(key, f"The own price of {what} is gone; the price list counts.")
    elif old is None:
        yield _grants(key, f"{what} counts at {_money(new)}, whatever the price list says.")
    else:
        is_grant = any(before > after for before, after in zip(_parts(old), _parts(new), strict=True))
        yield _either(is_grant, key, f"{what} counts at {_money(new)} instead of {_money(old)}.")


def _parts(price: Price) -> tuple[int, int, int, int]:
    read = price.input if price.cache_read is None else price.cache_read
    write = price.input if price.cache_write is None else price.cache_write
    return price.input, price.output, read, write


def _money(price: Price) -> str:
    return f"{grammar.write_money(price.input)} in and {grammar.write_money(price.output)} out per million tokens"


def _limits(key: str, old: Iterable[Limit], new: Iterable[Limit]) -> Iterator[Change]:
    """Limits are the same when they count the same thing against the same subject in the same window."""
    before, after = _tightest(old), _tightest(new)
    for same, limit in after.items():
        known = before.get(same)
        if known is None:
            yield _takes(key, f"New limit: {describe(limit)}.")
        elif limit.amount != known.amount:
            is_grant = limit.amount > known.amount
            verb = "Raised" if is_grant else "Lowered"
            yield _either(is_grant, key, f"{verb}: {describe(limit)} instead of {_amount(known)}.")
        if known is not None and known.on_store_down is not limit.on_store_down:
            is_grant = _OPENNESS[limit.on_store_down] > _OPENNESS[known.on_store_down]
            sentence = f"{describe(limit)} is {limit.on_store_down} instead of {known.on_store_down} while the store is down."
            yield _either(is_grant, key, sentence)
    for same, limit in before.items():
        if same not in after:
            yield _grants(key, f"Removed: {describe(limit)}.")


_OPENNESS = {OnStoreDown.CLOSED: 0, OnStoreDown.LOCAL: 1, OnStoreDown.OPEN: 2}


def _tightest(limits: Iterable[Limit]) -> Mapping[Hashable, Limit]:
    found: dict[Hashable, Limit] = {}
    for limit in limits:
        same = limit.unit, limit.per, limit.window, limit.over
        if same not in found or limit.amount < found[same].amount:
            found[same] = limit
    return found


def describe(limit: Limit) -> str:
    """A limit in words: `$20.00 per agent every day`."""
    over = "" if limit.over == "all" else f" of {limit.over} calls"
    every = grammar.write_window(limit.window)
    is_said = grammar.read_amount(_amount(limit)).rate_seconds is not None
    return f"{_amount(limit)} per {limit.per}{f' every {every}' if every and not is_said else ''}{over}"


def _amount(limit: Limit) -> str:
    return grammar.write_amount(limit)


def _resources(old: Iterable[Resource], new: Iterable[Resource]) -> Iterator[Change]:
    before, after = ({resource.name: resource for resource in part} for part in (old, new))
    for name, resource in after.items():
        known = before.get(name)
        if known is None:
            yield _takes(f"resources.{name}", f"What it binds needs scope {name!r}: {_bound(resource)}.")
        elif known != resource:
            narrower = _bound_set(known) - _bound_set(resource)
            wider = _bound_set(resource) - _bound_set(known)
            yield from (_takes(f"resources.{name}", f"{item} needs scope {name!r}.") for item in sorted(wider))
            yield from (_grants(f"resources.{name}", f"{item} needs no scope {name!r}.") for item in sorted(narrower))
    for name, resource in before.items():
        if name not in after:
            yield _grants(f"resources.{name}", f"No scope is asked for any more: {_bound(resource)}.")


def _bound_set(resource: Resource) -> frozenset[str]:
    paths = resource.paths or ("",)
    return frozenset((*(f"{host}{path}" for host in resource.hosts for path in paths), *map("tool {}".format, resource.tools)))


def _bound(resource: Resource) -> str:
    return _listed(sorted(_bound_set(resource)))


def _keys(old: Iterable[KeySource], new: Iterable[KeySource]) -> Iterator[Change]:
    before, after = ({key.name: key for key in part} for part in (old, new))
    for name, key in after.items():
        known = before.get(name)
        if known is None:
            yield _grants(f"keys[{name}]", f"Key {name!r} is new, from {key.source.partition(':')[0]}.")
            continue
        yield from _opened(f"keys[{name}].hosts", "hosts", known.hosts, key.hosts)
        yield from _opened(f"keys[{name}].agents", "agents", known.agents, key.agents)
        if known.source != key.source:
            yield _grants(f"keys[{name}].from", f"Key {name!r} is read from another place.")
    for name in before:
        if name not in after:
            yield _takes(f"keys[{name}]", f"Key {name!r} is gone.")


def _opened(key: str, what: str, old: tuple[object, ...], new: tuple[object, ...]) -> Iterator[Change]:
    """A key's hosts or agents: an empty list means any."""
    if bool(old) != bool(new):
        sentence = f"The key may be used with these {what} only." if new else f"The key may be used with any {what}."
        yield _either(not new, key, sentence)
        return
    yield from (_grants(key, f"The key may be used with {item}.") for item in new if item not in old)
    yield from (_takes(key, f"The key may no longer be used with {item}.") for item in old if item not in new)


def _listed(items: Iterable[str] | None) -> str:
    return ", ".join(items or ()) or "none"

"""What a shape cannot say: that names are unique, and that whatever names something names what is there.

The checks look at the document as it was written, so they find their faults beside those of the shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentguard.policy import grammar
from agentguard.policy.load.shape import did_you_mean
from agentguard.policy.load.yaml12 import Fault
from agentguard.policy.model import MILLION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agentguard.policy.load.yaml12 import Key, Place


def cross_faults(document: dict[str, Any], places: Mapping[Key, Place]) -> Iterator[Fault]:
    """Every reference that leads nowhere and every name given twice."""
    agents = list(_named(document, "agents"))
    names = [name for _, name in agents]
    single = _mapping(document.get("agent_config")).get("name")
    if isinstance(single, str):
        names.append(single)
    yield from _lacks_agents(document, places)
    yield from _repeated(agents, "agent", places)
    yield from _repeated(_named(document, "keys"), "key", places)
    yield from _shares(document, places)
    for index, key in enumerate(_list(document.get("keys"))):
        yield from _strangers(_mapping(key).get("agents"), ("keys", index, "agents"), "agent", names, places)
    alerts = _mapping(document.get("alerts"))
    channels = _mapping(alerts.get("channels"))
    for index, route in enumerate(_list(alerts.get("routes"))):
        here = ("alerts", "routes", index)
        yield from _strangers(_mapping(route).get("to"), (*here, "to"), "channel", list(channels), places)
        yield from _strangers(_mapping(route).get("agents"), (*here, "agents"), "agent", names, places)
    for name, channel in channels.items():
        if isinstance(channel, dict) and len(channel) != 1:
            yield _fault("a channel has one kind, such as pagerduty or slack", ("alerts", "channels", name), places)


def _lacks_agents(document: dict[str, Any], places: Mapping[Key, Place]) -> Iterator[Fault]:
    if "agents" in document and "agent_config" in document:
        yield _fault("write either 'agents' or 'agent_config'", ("agent_config",), places)
    if "agents" not in document and "agent_config" not in document:
        yield Fault("names no agent: a policy needs 'agents' or 'agent_config'", (1, 1))
    if document.get("agents") == []:
        yield _fault("names no agent: a policy that names none refuses nobody", ("agents",), places)


def _shares(document: dict[str, Any], places: Mapping[Key, Place]) -> Iterator[Fault]:
    """Guarantees that all together cannot be kept, and agents to whom they leave nothing."""
    common = _mapping(document.get("defaults")).get("share")
    guaranteed = 0
    of_the_rest: list[Key] = []
    for index, agent in enumerate(_list(document.get("agents"))):
        own = _mapping(agent).get("share", common)
        share = {**_mapping(common), **own} if isinstance(own, dict) else {}
        here = ("agents", index, "share")
        try:
            guaranteed += grammar.read_part(share["guarantee"]) if "guarantee" in share else 0
        except ValueError:
            return  # the shape tells it
        if guaranteed > MILLION:
            yield _fault(f"the guarantees up to here add up to {grammar.write_part(guaranteed)}", here, places)
            return
        if "guarantee" not in share:
            of_the_rest.append(here)
            if share.get("weight") == 0:
                yield _fault("a share without a guarantee needs a weight above nothing", (*here, "weight"), places)
    if guaranteed == MILLION:
        yield from (_fault("the guarantees of others leave nothing for this share", here, places) for here in of_the_rest)


def _named(document: dict[str, Any], section: str) -> Iterator[tuple[Key, str]]:
    for index, item in enumerate(_list(document.get(section))):
        name = _mapping(item).get("name")
        if isinstance(name, str):
            yield (section, index, "name"), name


def _repeated(named: Iterable[tuple[Key, str]], what: str, places: Mapping[Key, Place]) -> Iterator[Fault]:
    first: dict[str, Key] = {}
    for key, name in named:
        if name in first:
            line = _place(first[name], places)[0]
            where = f"; the first is in line {line}" if places else ""
            yield _fault(f"duplicate {what} name {name!r}{where}", key, places)
        first.setdefault(name, key)


def _strangers(listed: object, key: Key, what: str, known: list[str], places: Mapping[Key, Place]) -> Iterator[Fault]:
    for index, name in enumerate(_list(listed)):
        if isinstance(name, str) and name not in known:
            yield _fault(f"unknown {what} {name!r}{did_you_mean(name, known)}", (*key, index), places)


def _fault(message: str, key: Key, places: Mapping[Key, Place]) -> Fault:
    return Fault(message, _place(key, places), key)


def _place(key: Key, places: Mapping[Key, Place]) -> Place:
    return next((places[key[:length]] for length in range(len(key), 0, -1) if key[:length] in places), (1, 1))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []

"""How the agents of a policy divide a limit of the fleet: each has its own part, and all parts together are the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentguard.policy.model import MILLION

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from agentguard.policy.model import AgentPolicy


class Part(NamedTuple):
    """Where the share of an agent lies when those of all agents lie one after the other.

    Attributes:
        guaranteed: Where its guarantee begins and ends, in millionths of a limit.
        weighed: Where its weight does.
        all_guaranteed: What is guaranteed to all agents together.
        all_weighed: What all of them weigh.
    """

    guaranteed: tuple[int, int]
    weighed: tuple[int, int]
    all_guaranteed: int
    all_weighed: int

    @property
    def ratio(self) -> tuple[int, int]:
        """The share as a fraction of a limit, not reduced: what is above the line, and what is below."""
        guarantee, weight = (end - begin for begin, end in (self.guaranteed, self.weighed))
        weights = self.all_weighed or 1
        return guarantee * weights + (MILLION - self.all_guaranteed) * weight, MILLION * weights

    def of(self, amount: int) -> int:
        """The agent's share of an amount. Each end is rounded once, so the shares of all agents are the amount, to the unit."""
        rest = amount - _cut(amount, (0, self.all_guaranteed), MILLION)
        return _cut(amount, self.guaranteed, MILLION) + _cut(rest, self.weighed, self.all_weighed)


def parts(everybody: Iterable[AgentPolicy], wanted: Collection[str]) -> dict[str, Part]:
    """The parts of the agents that are wanted, by name, among those of everybody."""
    ends: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    guaranteed = weighed = 0
    for agent in everybody:
        share = agent.share
        if agent.name in wanted:
            ends[agent.name] = (guaranteed, guaranteed + share.guarantee), (weighed, weighed + share.weight)
        guaranteed += share.guarantee
        weighed += share.weight
    return {name: Part(*mine, guaranteed, weighed) for name, mine in ends.items()}


def _cut(amount: int, ends: tuple[int, int], whole: int) -> int:
    begin, end = ends
    return amount * end // whole - amount * begin // whole if whole else 0

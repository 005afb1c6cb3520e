"""A policy with everything compiled from it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from agentguard.core.caller import NOBODY, Caller
from agentguard.core.rights import Rights
from agentguard.policy.model import Mode, Per

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.core.limits import LimitRow
    from agentguard.policy.model import AgentPolicy, Policy
    from agentguard.stores.base import Store

logger: logging.Logger = logging.getLogger("agentguard")

_MAX_ROW_SETS = 8192
_MAX_REGISTERED = 65_536
"""Rows that are known to be registered. Every session has some of its own, and to register one again changes nothing."""

_FEW = frozenset({Per.AGENT, Per.MODEL, Per.KEY, Per.TEAM, Per.FLEET})


class InForce:
    """A policy with everything compiled from it. Replaced as a whole, so that no call sees half of two policies.

    Attributes:
        policy: The policy.
        reports: Whether refusals are recorded only.
        home: The agent of callers that have entered none; empty when there is no such.
        nobody: Such a caller.
        lasting: The rows that calls have been charged to, by key; without those of single users, sessions and the like.
    """

    def __init__(self, policy: Policy, agent: str | None, unnamed_session: str) -> None:
        self.policy = policy
        self.reports: bool = policy.mode is Mode.REPORT
        only = policy.agents[0].name if len(policy.agents) == 1 else None
        self.home: tuple[str, ...] = (agent,) if agent else (only,) if only else ()
        self.nobody: Caller = NOBODY._replace(agents=self.home)
        self.lasting: dict[str, LimitRow] = {}
        self._registered: set[str] = set()
        self._row_sets: dict[int, tuple[LimitRow, ...]] = {}
        self._unnamed_session = unnamed_session
        self._rights: dict[tuple[str, ...], Rights] = {}

    def identified(self, caller: Caller) -> Caller:
        """The caller, as the process's own agent when it has entered none."""
        if caller.agents:
            return caller
        return self.nobody if caller is NOBODY else caller._replace(agents=self.home)

    def rights(self, names: tuple[str, ...]) -> Rights:
        """The rights of a chain of agents: of those that the policy names, else of the process's own, else of all together."""
        rights = self._rights.get(names)
        if rights is None:
            listed = self._named(names)
            if names and not listed and self.policy.agents:
                self._warn_of(names[-1])
            listed = listed or self._named(self.home)
            rights = self._rights[names] = Rights(
                self.policy, listed or self.policy.agents, self._unnamed_session, is_listed=bool(listed)
            )
        return rights

    def _warn_of(self, name: str) -> None:
        """Say once that a caller is an agent that the policy does not name: it may have been misspelt."""
        from difflib import get_close_matches  # starting is not rare, and a name that is misspelt is

        near = get_close_matches(name, [agent.name for agent in self.policy.agents], 1)
        logger.warning(
            "agentguard: %s names no agent %r%s; its calls are held to what %s may",
            self.policy.path or "the policy",
            name,
            f" (did you mean {near[0]!r}?)" if near else "",
            repr(self.home[0]) if self.home else "every agent",
        )

    def register(self, rows: Sequence[LimitRow], store: Store) -> None:
        """Make rows known to the store, each once. A budget block registers its own, and none after it has ended."""
        if id(rows) in self._row_sets:
            return
        unknown = [row for row in rows if row.key not in self._registered and not row.subject.startswith("budget:")]
        if unknown:
            store.register(unknown)
            if len(self._registered) >= _MAX_REGISTERED:
                self.forget_registrations()
            self._registered.update(row.key for row in unknown)
            self.lasting.update((row.key, row) for row in unknown if row.limit.per in _FEW)
        if isinstance(rows, tuple):
            if len(self._row_sets) >= _MAX_ROW_SETS:
                self._row_sets.clear()
            self._row_sets[id(rows)] = rows  # held on to, so that the id stays its own

    def forget_registrations(self) -> None:
        """Register everything anew when it is next asked for."""
        self._registered.clear()
        self._row_sets.clear()

    def _named(self, names: tuple[str, ...]) -> list[AgentPolicy]:
        return [agent for name in dict.fromkeys(names) if (agent := self.policy.agent(name))]

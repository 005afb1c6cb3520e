"""The answer to a call: a value, never an exception."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agentguard.policy.model import Rule


class Effect(StrEnum):
    """Whether a call may go."""

    ALLOW = "allow"
    DENY = "deny"


class Reason(StrEnum):
    """Why a call was refused: the closed set that spans, metrics and records carry."""

    EGRESS = "egress"
    TOOL = "tool"
    MODEL = "model"
    KEY = "key"
    BUDGET = "budget"
    RATE = "rate"
    ISOLATED = "isolated"
    STORE = "store"


class Facts(NamedTuple):
    """The numbers behind a refusal by a limit, in the limit's own unit.

    `resets_at` is Unix time; `retry_after`, and `waited` before it was refused, are seconds. `unit` is the limit's, as the policy
    has it: `usd` (counted in nano-USD), `tokens`, `calls` or `concurrent_calls`.
    """

    limit: int = 0
    spent: int = 0
    held: int = 0
    requested: int = 0
    resets_at: float | None = None
    retry_after: float | None = None
    waited: float = 0.0
    unit: str = ""


NO_FACTS = Facts()


class Decision(NamedTuple):
    """What was decided about a call, and why.

    Attributes:
        effect: Allow or deny.
        reason: Why it was refused; None for an allowed call.
        rule: The rule that decided, as the policy file spells it.
        place: Where the rule stands: `agents.yaml:12`; empty when the policy came from no file.
        message: What, why, which rule, what to do: the text of the exception.
        remedy: What to do, alone.
        facts: The numbers of a refusal by a limit.
    """

    effect: Effect
    reason: Reason | None = None
    rule: str = ""
    place: str = ""
    message: str = ""
    remedy: str = ""
    facts: Facts = NO_FACTS

    @property
    def allowed(self) -> bool:
        """Whether the call may go."""
        return self.effect is Effect.ALLOW


ALLOW = Decision(Effect.ALLOW)


def after_waiting(decision: Decision, seconds: float) -> Decision:
    """A refusal of a call that has waited for room."""
    facts = decision.facts._replace(waited=seconds)
    return decision._replace(message=f"{decision.message}\n  It has waited for {seconds:.1f} s.", facts=facts)


def deny(reason: Reason, rule: Rule, sentence: str, remedy: str = "", facts: Facts = NO_FACTS) -> Decision:
    """Refuse. The sentence says what was stopped, why, and by which rule; the remedy follows on a line of its own."""
    message = f"{sentence}\n  {remedy}" if remedy else sentence
    return Decision(Effect.DENY, reason, rule.name, rule.place, message, remedy, facts)

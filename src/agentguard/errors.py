"""Every exception that agentguard raises.

    AgentGuardError
     ├─ PolicyError(ValueError)      a policy does not load; `.problems` names every fault with its place
     ├─ Denied                       a call was refused; `.decision .call .rule .remedy`
     │   ├─ EgressDenied             the host is not allowed
     │   ├─ ToolDenied               the tool is not allowed
     │   ├─ ModelDenied              the model or provider is not allowed
     │   ├─ KeyDenied                the key is revoked, expired, out of scope, or meant for another host
     │   ├─ BudgetExceeded           `.limit .spent .held .requested .resets_at`
     │   ├─ RateLimited              `.retry_after` (seconds)
     │   └─ AgentIsolated            an operator has stopped this agent
     ├─ EnforcementUnavailable       kernel enforcement was asked for and is not to be had
     ├─ StoreUnavailable             the store gave no answer in time
     ├─ SeamError                    a seam could not be installed, or was found removed
     ├─ NotInstrumented(LookupError) no guard is in scope
     └─ AuditError                   the audit log cannot be written or does not verify

Denials are states of affairs, so they carry no "Error" suffix. None derives from `OSError` or an HTTP library's
exception: the SDKs would take it for a network fault and retry it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentguard.core.call import Call
    from agentguard.core.decision import Decision


class AgentGuardError(Exception):
    """The root of everything that agentguard raises."""


class Problem(NamedTuple):
    """One fault of a policy file. `line` and `column` count from 1; both are 0 where the policy did not come from a file."""

    path: str
    line: int
    column: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}:{self.column}" if self.line else self.path
        return f"{place}  {self.key}   {self.message}" if self.key else f"{place}  {self.message}"


class PolicyError(AgentGuardError, ValueError):
    """A policy does not load. All of its faults are in `problems`, in the order of the file."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{source} has {count}", *map(str, problems)]))
        self.source = source
        self.problems: tuple[Problem, ...] = tuple(problems)

    def __reduce__(self) -> tuple[type[PolicyError], tuple[str, tuple[Problem, ...]]]:
        return type(self), (self.source, self.problems)


class Denied(AgentGuardError):
    """A call was refused before it left. The message says what was stopped, why, by which rule, and what to do."""

    def __init__(self, decision: Decision, call: Call | None = None) -> None:
        super().__init__(decision.message)
        self.decision = decision
        self.call = call

    @property
    def rule(self) -> str:
        """The rule that refused, as the policy file spells it: `external_calls.allowed_domains`."""
        return self.decision.rule

    @property
    def remedy(self) -> str:
        """What the reader can do about it."""
        return self.decision.remedy

    def __reduce__(self) -> tuple[Callable[..., Denied], tuple[type[Denied], Decision, Call | None]]:
        return _rebuild_denied, (self.plain_type(), self.decision, self.call)

    @classmethod
    def plain_type(cls) -> type[Denied]:
        """This denial's own class, without the bases of an SDK that `integrations` may have mixed in."""
        plain: type[Denied] = next(base for base in cls.__mro__ if base in _DENIALS)
        return plain


def _rebuild_denied(kind: type[Denied], decision: Decision, call: Call | None) -> Denied:
    return kind(decision, call)


class EgressDenied(Denied):
    """The host may not be reached."""


class ToolDenied(Denied):
    """The tool may not be used."""


class ModelDenied(Denied):
    """The model or its provider may not be used."""


class KeyDenied(Denied):
    """The key is revoked, expired, out of scope, or meant for another host."""


class BudgetExceeded(Denied):
    """A budget has no room for the call. Amounts are in the limit's own unit: tokens, calls, or nano-USD."""

    @property
    def limit(self) -> int:
        """The budget's size."""
        return self.decision.facts.limit

    @property
    def spent(self) -> int:
        """What settled calls have used of it."""
        return self.decision.facts.spent

    @property
    def held(self) -> int:
        """What calls in flight have reserved of it."""
        return self.decision.facts.held

    @property
    def requested(self) -> int:
        """What this call asked for."""
        return self.decision.facts.requested

    @property
    def resets_at(self) -> float | None:
        """Unix time at which the window starts anew; None when it never does."""
        return self.decision.facts.resets_at


class RateLimited(Denied):
    """A rate or a concurrency limit has no room now."""

    @property
    def retry_after(self) -> float:
        """Seconds until the call would fit, as far as this process can know."""
        return self.decision.facts.retry_after or 0.0


class AgentIsolated(Denied):
    """An operator has stopped this agent."""


class EnforcementUnavailable(AgentGuardError):
    """Kernel enforcement was asked for and is not to be had; the message names the cause."""


class StoreUnavailable(AgentGuardError):
    """The store gave no answer in time."""


class SeamError(AgentGuardError):
    """A seam could not be installed, or was found removed."""


class NotInstrumented(AgentGuardError, LookupError):
    """No guard is in scope: call `agentguard.instrument()` or enter `with guard:` first."""


class AuditError(AgentGuardError):
    """The audit log cannot be written or does not verify."""


_DENIALS = frozenset({Denied, *Denied.__subclasses__()})

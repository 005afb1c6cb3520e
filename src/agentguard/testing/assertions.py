"""Assertions about what a guard did, for tests of your own agents."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from agentguard.errors import Denied
from agentguard.events import CallDenied, CallSettled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.events import Event
    from agentguard.guard import Guard

E = TypeVar("E")


class Refusal:
    """What `assert_denied` caught. `error` is set when the block has ended."""

    error: Denied


@contextmanager
def assert_denied(kind: type[Denied] = Denied, *, rule: str | None = None) -> Iterator[Refusal]:
    """Assert that a `with` block is refused.

    Args:
        kind: The denial that is expected.
        rule: The rule that has to be named.

    Raises:
        AssertionError: Nothing was refused, or something else was.
    """
    refusal = Refusal()
    try:
        yield refusal
    except Denied as error:
        if not isinstance(error, kind):
            msg = f"expected {kind.__name__}, but the call was refused otherwise: {type(error).__name__}: {error}"
            raise AssertionError(msg) from error  # noqa: TRY004 - an assertion about a type
        if rule is not None and error.rule != rule:
            msg = f"expected a refusal by {rule!r}, but it was {error.rule!r}: {error}"
            raise AssertionError(msg) from error
        refusal.error = error
        return
    msg = f"expected {kind.__name__}{f' by {rule!r}' if rule else ''}, but nothing was refused"
    raise AssertionError(msg)


class Recording:
    """An observer that keeps what it is told: `instrument(policy, observers=[recording])`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind, oldest first. Flush the guard before you ask: events are told by its worker."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    @property
    def tokens(self) -> int:
        """Tokens of all settled calls."""
        return sum(event.usage.total_tokens for event in self.of(CallSettled))

    @property
    def denials(self) -> list[str]:
        """The rules that refused, oldest first."""
        return [event.decision.rule for event in self.of(CallDenied)]


def assert_spent(guard: Guard, subject: str, amount: int) -> None:
    """Assert what the first limit of a subject has counted, in its unit: `assert_spent(guard, "agent:researcher", 1_000)`.

    Raises:
        AssertionError: It has counted something else, or something is still held, or there is no such limit.
    """
    ledger = guard.usage(subject)
    if not ledger:
        known = ", ".join(sorted({row.subject for row, _ in guard.usage()})) or "nothing"
        msg = f"no limit has counted {subject!r}; counted so far: {known}"
        raise AssertionError(msg)
    row, balance = ledger[0]
    if (balance.spent, balance.held) != (amount, 0):
        msg = f"{row.key}: expected {amount:,} spent and nothing held, found {balance.spent:,} spent and {balance.held:,} held"
        raise AssertionError(msg)

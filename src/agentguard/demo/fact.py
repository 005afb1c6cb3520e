"""What an act has measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A claim and its measurement.

    Attributes:
        claim: What is promised.
        measured: What the servers' own logs say.
        holds: Whether they say that the claim is true.
        is_about_guard: There is nothing to measure without a guard, so the control leaves it out.
    """

    claim: str
    measured: str
    holds: bool
    is_about_guard: bool = False

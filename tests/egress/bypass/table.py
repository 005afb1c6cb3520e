"""Attempts and controls as data: what there is, to which group it belongs, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from world import Aim


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way out.

    Attributes:
        needs: What must be there for it: `module:x`, `program:x`, `root`, `user`, `machine:x86_64`, `feature:x` (see needs.py).
        before: What runs before the guard is put in place, where the guard comes from inside; its result is handed to `run`.
        alone: It spoils the process it runs in, so it gets one of its own.
        quick: Part of the subset that every test run looks at.
        seconds: How long it may take.
    """

    name: str
    group: str
    run: Callable[..., object]
    needs: tuple[str, ...] = ()
    before: Callable[[Aim], object] | None = None
    alone: bool = False
    quick: bool = False
    seconds: float = 6.0


@dataclass(slots=True)
class Table:
    """All attempts of a kind, by name."""

    rows: dict[str, Attempt] = field(default_factory=dict)

    def add(self, group: str, name: str, run: Callable[..., object], **more: Any) -> None:
        full = f"{group}: {name}"
        assert full not in self.rows, full
        self.rows[full] = Attempt(name=full, group=group, run=run, **more)

    def attempt(self, group: str, *needs: str, **more: Any) -> Callable[[Callable[..., object]], Callable[..., object]]:
        """Enter a function; its name is the attempt's."""

        def enter(run: Callable[..., object]) -> Callable[..., object]:
            self.add(group, run.__name__.strip("_").replace("_", " "), run, needs=needs, **more)
            return run

        return enter

    def of(self, groups: Iterable[str]) -> list[Attempt]:
        wanted = set(groups)
        return [row for row in self.rows.values() if row.group in wanted]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row.group for row in self.rows.values()))


ATTEMPTS = Table()
CONTROLS = Table()
attempt = ATTEMPTS.attempt
control = CONTROLS.attempt

"""What the keys and channels of a fleet are called."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentguard.stores._holder import Holder


class Keys:
    """The names of one fleet. All carry one hash tag, so that they are in one slot of a cluster.

    Attributes:
        row, hold: What stands in front of the key of a row, and of the id of a call.
        state: The generation, and until when it learns what was counted before it.
        limits, ids: What is registered, and the number of the last row.
        open: The calls in flight, by their deadline.
        told: Who has told this generation what they had counted.
        control, isolated: The epoch, and who is isolated. Only operators may write them.
        members, heard: The processes, and when they were last heard of.
        settlements, isolations, recalls: Channels.
    """

    def __init__(self, fleet: str) -> None:
        self._prefix = f"ag:{{{quote(fleet, safe='')}}}:"
        self.row: str = self._named("r:")
        self.hold: str = self._named("h:")
        self.state: str = self._named("state")
        self.limits: str = self._named("limits")
        self.ids: str = self._named("ids")
        self.open: str = self._named("open")
        self.told: str = self._named("told")
        self.control: str = self._named("control")
        self.isolated: str = self._named("isolated")
        self.members: str = self._named("members")
        self.heard: str = self._named("heard")
        self.settlements: str = self._named("settlements")
        self.isolations: str = self._named("isolations")
        self.recalls: str = self._named("recalls")

    def holders(self, host: Holder) -> str:
        """The processes of a host that have asked for anything: only there can be seen whether they live."""
        return self._named(f"holders:{host.boot}:{host.namespace}")

    def rows(self, keys: Iterable[str]) -> list[str]:
        """The rows of these keys."""
        return [self.row + key for key in keys]

    def of_rows(self, rows: Iterable[str]) -> list[str]:
        """The keys of rows, each once."""
        return [row[len(self.row) :] for row in dict.fromkeys(rows)]

    def _named(self, name: str) -> str:
        return self._prefix + name

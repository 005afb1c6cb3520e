"""Who is calling."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from agentguard.core.limits import LimitRow


class Block(NamedTuple):
    """A `with agentguard.budget(...)` block as the engine sees it: its subject and the rows that it adds to each call."""

    subject: str
    rows: tuple[LimitRow, ...]


class Caller(NamedTuple):
    """The identity of a call. Frozen: entering an agent or a session makes a new one.

    Attributes:
        agents: The agents entered, outermost first. The rights of a call are what *all* of them may do.
        session: `gen_ai.conversation.id`, when the user gave or opened one.
        user: The end user on whose behalf the agent acts.
        interaction: One turn of the user.
        tool: The tool that is running, if any.
        blocks: The budget blocks entered, outermost first.
    """

    agents: tuple[str, ...] = ()
    session: str | None = None
    user: str | None = None
    interaction: str | None = None
    tool: str | None = None
    blocks: tuple[Block, ...] = ()

    @property
    def agent(self) -> str | None:
        """The innermost agent, to which telemetry attributes the call."""
        return self.agents[-1] if self.agents else None


NOBODY = Caller()

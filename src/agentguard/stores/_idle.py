"""Which rows are dropped when they have not been used for long."""

from __future__ import annotations

from agentguard.policy.model import Per

IDLE_SECONDS = 30 * 86400.0
"""How long the row of a session, an interaction or a call is kept after its last use. Each leaves one, and conversations are
taken up again after days, not after months. The rows of all others are kept for ever: to forget one is to grant a new budget."""

SHORT_LIVED = (Per.SESSION, Per.INTERACTION, Per.CALL)
PRUNE_EVERY_SECONDS = 3600.0

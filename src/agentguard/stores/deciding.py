"""A decision that a task of an event loop awaits, and that a thread makes."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from agentguard.core.limits import Amounts
from agentguard.errors import StoreUnavailable
from agentguard.stores.base import Granted

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.core.limits import Refused
    from agentguard.stores.base import Reserve


class Deciding:
    """One `reserve` in a thread. Whoever comes last, thread or cancelled task, gives back what nobody waits for any more.

    Args:
        reserve: Decides, and may block.
        settle: Gives back what was granted.
        request: What is asked.
    """

    def __init__(
        self, reserve: Callable[[Reserve], Granted | Refused], settle: Callable[[str, Amounts], object], request: Reserve
    ) -> None:
        self._reserve = reserve
        self._settle = settle
        self._request = request
        self._lock = threading.Lock()
        self._is_granted = False
        self._is_abandoned = False

    async def in_thread(self) -> Granted | Refused:
        """The answer. A task that is cancelled before it has one holds nothing."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.shield(loop.run_in_executor(None, self._decide))
        except asyncio.CancelledError:
            with self._lock:
                self._is_abandoned = True
                is_granted = self._is_granted
            if is_granted:
                loop.run_in_executor(None, self._give_back)
            raise

    def _decide(self) -> Granted | Refused:
        answer = self._reserve(self._request)
        if isinstance(answer, Granted):
            with self._lock:
                self._is_granted = True
                is_abandoned = self._is_abandoned
            if is_abandoned:
                self._give_back()
        return answer

    def _give_back(self) -> None:
        with suppress(StoreUnavailable):  # nobody is there to be told; whoever cancelled settles it again
            self._settle(self._request.id, Amounts())

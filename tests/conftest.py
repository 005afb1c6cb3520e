"""What all tests share."""

from __future__ import annotations

import gc
import os
import shutil
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from agentguard import Guard, Policy
from agentguard.testing.plugin import frozen_clock, provider, recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.events import Event

__all__ = ["frozen_clock", "provider", "recorder"]


# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", settings.default, deadline=None)
settings.load_profile("any machine")


def pytest_collection_finish() -> None:
    """Take what is imported out of the collector's sight: one that a test forces looks at what the test has made."""
    gc.collect()
    gc.freeze()


# These stand on the current SDKs: they hand an SDK an httpx2 client (openai before 3 and anthropic before 1 take httpx's), ask
# for its aiohttp extra, await what was no coroutine then, post bytes, or take httpx2 for the library below it.
ON_CURRENT_SDKS = (
    "custom_http_client",
    "custom_transport",
    "subclassed_http_client",
    "module_level_client",
    "over_aiohttp",
    "async_messages_raw_response",
    "test_an_sdk_over_a_guard_transport_is_budgeted",
    "test_a_guard_transport_under_the_same_guard_counts_once",
    "test_a_guard_transport_of_another_guard_counts_for_it_too",
    "test_a_client_is_free_to_go",
    "test_what_the_caller_passed_is_not_changed",
    "test_a_body_that_the_caller_has_serialised",
    "test_seams.py::test_status_lists_every_seam",
    "test_seams.py::test_a_library_that_is_not_imported_waits",
    "test_seams.py::test_only_the_named_libraries_are_hooked",
    "test_seams.py::test_a_seam_below_that_somebody_removes",
    "test_seams.py::test_without_its_own_seam",
    "test_seams.py::test_a_class_that_is_patched_whole",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what stands on the current SDKs where the oldest ones are installed."""
    if int(metadata.version("openai").partition(".")[0]) >= 3:
        return
    for item in items:
        if any(name in item.nodeid for name in ON_CURRENT_SDKS):
            item.add_marker(pytest.mark.skip(reason="stands on the current SDKs"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are not here. In CI that is a failure: a test that nobody runs guards nothing."""
    needed = {program: None for marker in item.iter_markers("needs") for program in marker.args}
    absent = [program for program in needed if shutil.which(program) is None]
    if not absent:
        return
    reason = f"not on PATH: {', '.join(absent)}"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"{reason} (with CI=true this is a failure; .ci/run installs what the tests need)", pytrace=False)
    pytest.skip(reason)


def policy_of(
    *budgets: str | dict[str, Any], llm: dict[str, Any] | None = None, limits: dict[str, Any] | None = None, **agent: Any
) -> Policy:
    """A policy for one agent that may reach 127.0.0.1, with these budgets."""
    worker = {
        "name": "worker",
        "external_calls": {"allowed_domains": ["127.0.0.1"]},
        "llm": llm or {},
        "budgets": [{"limit": budget} if isinstance(budget, str) else budget for budget in budgets],
    }
    document = {"agents": [worker | agent]}
    return Policy.from_mapping(document | ({"limits": limits} if limits else {}))


class Guarded:
    """A guard whose seams stand on every client of this process, and what it was heard to tell."""

    def __init__(self, guard: Guard) -> None:
        from agentguard.integrations._seam import Seams
        from agentguard.integrations.registry import integrations

        self.guard = guard
        self.events: list[Event] = []
        self.changes: list[tuple[str, str, str]] = []
        guard.observe(self.events.append)
        self.seams = Seams(integrations(self.verify), lambda: guard, lambda *change: self.changes.append(change))
        self.seams.install()

    def verify(self, module: str) -> None:
        self.seams.verify(module)

    @property
    def is_settled(self) -> bool:
        return not self.guard.open_calls

    def settle(self, seconds: float = 30.0) -> None:
        """Wait until every call is settled and told."""
        deadline = time.monotonic() + seconds
        while not self.is_settled and time.monotonic() < deadline:
            self.guard.ledger.settle_ended()
            time.sleep(0.001)
        assert self.is_settled, f"not settled: {[(one.call.name, one.is_streaming) for one in self.guard.open_calls]}"
        assert self.guard.flush(seconds)

    def told(self, kind: type[Any]) -> list[Any]:
        """The events of a kind, oldest first."""
        self.guard.flush(30)
        return [event for event in self.events if type(event) is kind]

    def spent(self, unit: str = "tokens", subject: str | None = None) -> int:
        """What the ledger says is spent, once every call is settled, with nothing held."""
        self.settle()
        rows = [balance for row, balance in self.guard.usage(subject) if row.limit.unit == unit]
        assert all(balance.held == 0 for balance in rows), rows
        return sum(balance.spent for balance in rows)

    def close(self) -> None:
        self.seams.remove()
        self.guard.close()


@pytest.fixture(name="policy_of")
def _policy_of() -> Callable[..., Policy]:
    return policy_of


@pytest.fixture
def guarded() -> Iterator[Callable[..., Guarded]]:
    """Guard this process: `guarded("10,000 tokens")`, or with a policy of one's own."""
    opened: list[Guarded] = []

    def guard_this(*budgets: Any, policy: Policy | None = None, agent: str | None = None, store: Any = None, **more: Any) -> Any:
        one = Guarded(Guard(policy or policy_of(*budgets, **more), store=store, agent=agent))
        opened.append(one)
        return one

    yield guard_this
    for one in reversed(opened):
        one.close()

"""Where commands find the policy, the store and the events: as `instrument()` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from agentguard.policy import Policy
    from agentguard.stores.base import Store


def find_policy_file(path: str | None) -> Path | None:
    """The policy file that a program started here would use, as short as it can be named; None when there is none."""
    from pathlib import Path

    from agentguard.policy.reload import find_policy

    found = find_policy(path)
    return found.relative_to(Path.cwd()) if found is not None and found.is_relative_to(Path.cwd()) else found


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """The policy of a file.

    Raises:
        PolicyError: It does not load.
    """
    from agentguard.policy.reload import PolicyFile

    return PolicyFile(path).load()


def required_policy(path: str | None) -> Policy:
    """The policy that a program started here would use; without one, wrong usage."""
    return load_policy(required_file(path))


def required_file(path: str | None) -> Path:
    """The policy file that a program started here would use; without one, wrong usage."""
    found = find_policy_file(path)
    if found is None:
        message = (
            "no policy was named, and no agentguard.yaml is here; name one with --policy, or write one with `agentguard init`"
        )
        raise click.UsageError(message)
    return found


def events_directory() -> Path:
    """Where the processes of this user write their events."""
    from agentguard.audit.record import events_directory as directory

    return directory()


def open_ledger(url: str | None, policy: Policy | None = None) -> Store:
    """The store that a program started here would use: the one named, else the policy's, else that of the state directory.

    Raises:
        PolicyError: The URL names no store.
        StoreUnavailable: It cannot be opened.
    """
    from agentguard.stores import open_store
    from agentguard.stores.state import default_store_url

    if (url or (policy.store if policy is not None else None)) == "memory://":
        message = "the store is memory://, which lives in the guarded process alone; there is nothing to read from outside"
        raise click.UsageError(message)
    if policy is None:
        return open_store(url or default_store_url())
    return open_store(url or policy.store or default_store_url(policy.fleet), fleet=policy.fleet)

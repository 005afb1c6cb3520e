"""Where agentguard keeps what outlives a process."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """The folder of counters, logs and baselines, made when absent, for the owner only.

    AGENTGUARD_STATE_DIR names it; else it is the platform's folder for the state of a user.
    """
    named = os.environ.get("AGENTGUARD_STATE_DIR")
    if named:
        folder = Path(named).expanduser()
    else:
        import platformdirs

        folder = platformdirs.user_state_path("agentguard", appauthor=False)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def default_store_url() -> str:
    """Where counters live when neither the policy nor anybody else says so: one file for all processes of this user."""
    return f"sqlite:///{(state_dir() / 'ledger.sqlite').as_posix()}"

"""Where agentguard keeps what outlives a process."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from agentguard.errors import StoreUnavailable


def state_dir() -> Path:
    """The folder of counters, logs and baselines, made when absent, for the owner only.

    AGENTGUARD_STATE_DIR names it; else it is the platform's folder for the state of a user.

    Raises:
        StoreUnavailable: It cannot be made.
    """
    named = os.environ.get("AGENTGUARD_STATE_DIR")
    if named:
        folder = Path(named).expanduser()
    else:
        import platformdirs

        folder = platformdirs.user_state_path("agentguard", appauthor=False)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        message = f"the state directory {folder} cannot be used: {error.strerror}. Name another by AGENTGUARD_STATE_DIR"
        raise StoreUnavailable(message) from error
    return folder


def ledger_path(fleet: str = "default") -> Path:
    """The file of counters when nobody names another: one for all processes of this user that belong to a fleet."""
    return state_dir() / ("ledger.sqlite" if fleet == "default" else f"ledger-{quote(fleet, safe='')}.sqlite")


def default_store_url(fleet: str = "default") -> str:
    """Where counters live when neither the policy nor anybody else says so."""
    return f"sqlite:///{ledger_path(fleet).as_posix()}"

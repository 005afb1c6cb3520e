"""Where state lives between runs."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """The directory for state: `AGENTGUARD_STATE_DIR`, or the user's own. Made with mode 0700 when it is absent."""
    named = os.environ.get("AGENTGUARD_STATE_DIR")
    if named:
        directory = Path(named)
    else:
        from platformdirs import user_state_path

        directory = user_state_path("agentguard")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory

"""Runs attempts in a process that is guarded the way its mode says: `python worker.py ORDER.json`. Started by battery.py.

Every start and end of an attempt goes to a journal: an attempt may end this process or stop it, and the battery goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))


def guard(mode: str, policy: str) -> None:
    """Put the guard in place, where it comes from inside of the process."""
    if mode in {"in_process", "inside"}:
        import agentguard

        agentguard.instrument(policy, store="memory://", egress="kernel" if mode == "inside" else "in_process")


def prepare(row: Any, aim: Any) -> list[object] | BaseException:
    """What an attempt does before; where the guard stands already, it may be refused."""
    try:
        return [] if row.before is None else [row.before(aim)]
    except OSError as error:
        return error


def main(order: dict[str, Any]) -> None:
    from table import ATTEMPTS, CONTROLS
    from world import Aim

    warnings.simplefilter("ignore")
    for module in order["modules"]:
        importlib.import_module(module)
    table = CONTROLS if order["kind"] == "controls" else ATTEMPTS
    journal = os.open(order["journal"], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def note(**fact: object) -> None:
        os.write(journal, (json.dumps(fact | {"at": time.monotonic()}) + "\n").encode())

    runs = []
    for one in order["aims"]:
        row = table.rows[one["name"]]
        aim = Aim(token=one["token"], scratch=order["scratch"], certificates=order["certificates"])
        runs.append((row, aim, prepare(row, aim)))
    guard(order["mode"], order["policy"])
    here = os.getpid()
    for row, aim, prepared in runs:
        note(start=row.name)
        try:
            if isinstance(prepared, BaseException):
                raise prepared
            said, is_ok = repr(row.run(aim, *prepared)), True
        except BaseException as error:
            said, is_ok = f"{type(error).__name__}: {error}", False
        if os.getpid() != here:  # a fork that lost its way
            os._exit(0)
        note(end=row.name, said=said[:300], ok=is_ok)
        if row.group == "races":
            time.sleep(0.15)  # connections without a token are told apart by their time


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.stdout.flush()
    os._exit(0)

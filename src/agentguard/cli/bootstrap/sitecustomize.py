"""Instruments a Python child of `agentguard run`: its folder stands first on PYTHONPATH, and `site` imports this name.

Standard library only until agentguard is found: this runs in every interpreter that inherits the environment.
"""

# ruff: noqa: INP001, BLE001

import os
import sys


def _chain() -> None:
    """Run the sitecustomize that ours has hidden, if there is one."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would cost every child its import
    rest = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]  # noqa: PTH100
    sys.path[:] = rest
    spec = PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def _instrument() -> None:
    try:
        import agentguard
    except ImportError:
        print(f"agentguard: {sys.executable} has no agentguard; this process is not guarded", file=sys.stderr)
        return
    try:
        agentguard.instrument()
    except Exception as error:
        # `site` would print a hint and go on: the program would run without its guard.
        print(
            f"agentguard: {type(error).__name__}: {error}\nagentguard: not started, since it would not be guarded",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(1)


_chain()
if os.environ.get("AGENTGUARD_RUN") == "1":
    _instrument()

"""The code blocks of README and docs are tests: `pytest README.md docs`.

A page is one program: its python blocks run from top to bottom and share their names, and its yaml blocks are policies
that load. A block that cannot run is skipped where a reader of the source sees why:
`<!-- skip: next "names a policy file of your own" -->`.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

try:
    from sybil import Sybil
    from sybil.parsers.myst import CodeBlockParser, DocTestDirectiveParser, PythonCodeBlockParser, SkipParser
except ImportError:  # whoever tries the examples in a clone has pytest alone
    Sybil = None  # type: ignore[assignment, misc]  # looked at once, below

if TYPE_CHECKING:
    from sybil import Example

_SETTINGS = {"asyncio": ("asyncio_mode", "asyncio_default_fixture_loop_scope"), "timeout": ("timeout",)}
"""What pyproject.toml sets for other plugins of pytest."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Know the settings of plugins that are not installed: `--strict-config` refuses what nobody knows."""
    for plugin, names in _SETTINGS.items():
        if not pluginmanager.hasplugin(plugin):
            for name in names:
                parser.addini(name, f"a setting of pytest-{plugin}")


def load_policy(example: Example) -> None:
    """Load a yaml block as a user's policy file; a fault in it fails the page with the loader's own message."""
    from agentguard import Policy

    file = Path("agentguard.yaml")
    file.write_text(example.parsed, encoding="utf-8")
    Policy.from_yaml(file)


def enter_own_folder(namespace: dict[str, Any]) -> None:
    """Give a page its own folder: nothing that it writes stays, and no state of this machine changes what it prints."""
    undo = namespace["_undo"] = ExitStack()
    folder = undo.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
    patch = undo.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("AGENTGUARD_STATE_DIR", str(Path(folder, "state")))
    patch.chdir(folder)


def leave_own_folder(namespace: dict[str, Any]) -> None:
    """Go back to where the tests were started."""
    namespace["_undo"].close()


if Sybil is not None:
    pytest_collect_file = Sybil(
        parsers=[
            PythonCodeBlockParser(),
            CodeBlockParser(language="yaml", evaluator=load_policy),
            DocTestDirectiveParser(),
            SkipParser(),
        ],
        patterns=["README.md", "docs/*.md", "docs/*/*.md"],
        setup=enter_own_folder,
        teardown=leave_own_folder,
    ).pytest()

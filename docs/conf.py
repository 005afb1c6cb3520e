"""How the documentation is built: `nox -s docs`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "agentguard"
author = "The agentguard authors"
copyright = author  # noqa: A001  Sphinx reads this name
version = release = _project["version"]

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"agentguard {release}"
html_theme_options = {"navigation_with_keys": True}

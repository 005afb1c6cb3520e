"""`agentguard init`: a policy to begin with."""

from __future__ import annotations

import json
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

import click

from agentguard.cli._command import Command, Exit, json_option, print_json

_TEMPLATE = """\
# What this program's agents may do. Check it with `agentguard policy check`, ask it with
# `agentguard policy explain https://example.com`.
version: 1

# report: everything is decided and recorded, and nothing is refused. When `agentguard tail --denied` shows only what
# should be refused, write enforce.
mode: report

agents:
  - name: {agent}

    llm:
      providers: [{providers}]    # their hosts become reachable; no other host does
      # models: ["gpt-5*"]        # without a list, any model

    external_calls:               # every other host that the program needs; its database too
      allowed_domains: []         # such as [api.yourcompany.com, "*.yourcompany.com", "10.0.0.0/8:5432"]
      blocked_domains: ["*"]

    budgets:                      # refused before the call is made, whoever races
      - {{limit: $5.00, every: day, warn_at: [50%, 80%]}}
      - {{limit: 200000 tokens, every: hour}}
      # - {{limit: 5000 tokens, per: session}}

    # tools: {{allowed: [search]}}  # functions with @agentguard.tool
"""

_CODE = ("import agentguard", "agentguard.instrument()")
_SDKS = {"anthropic": "anthropic", "openai": "openai", "groq": "groq", "together": "together"}


@click.command(cls=Command)
@click.option("--agent", metavar="NAME", help="The agent's name. Default: this folder's.")
@click.option("--output", "path", default="agentguard.yaml", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite the file.")
@json_option
def init(agent: str | None, path: Path, force: bool, as_json: bool) -> int:
    """Write a commented policy, in report mode: it records and refuses nothing."""
    agent = agent or _name_of(Path.cwd())
    providers = [provider for dist, provider in _SDKS.items() if _is_installed(dist)] or ["openai", "anthropic"]
    text = _TEMPLATE.format(agent=json.dumps(agent), providers=", ".join(providers))
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return _told_that_it_exists(path, as_json=as_json)
    except OSError as error:
        hint = f"; make the folder {str(path.parent)!r} first" if isinstance(error, FileNotFoundError) else ""
        message = f"{path} cannot be written: {error.strerror or error}{hint}"
        raise click.BadParameter(message, param_hint="--output") from None
    if as_json:
        print_json({"ok": True, "path": str(path), "agent": agent, "providers": providers, "code": list(_CODE)})
        return Exit.OK
    click.echo(f"Wrote {path}: agent {agent!r}, report mode (nothing is refused yet).\n")
    click.echo("Now either add two lines where your program starts:\n")
    for line in _CODE:
        click.echo(f"    {line}")
    click.echo("\nor change nothing and start it with:\n\n    agentguard run app.py\n")
    click.echo("Then look: agentguard tail -f      What is guarded: agentguard doctor")
    return Exit.OK


def _told_that_it_exists(path: Path, *, as_json: bool) -> int:
    message = f"{path} exists; nothing was written. Pass --force to overwrite it, or --output for another file."
    if as_json:
        print_json({"ok": False, "error": {"type": "FileExists", "message": message, "problems": []}})
    else:
        click.echo(message, err=True)
    return Exit.FINDING


def _name_of(folder: Path) -> str:
    return re.sub(r"\W+", "_", folder.name).strip("_").lower() or "agent"


def _is_installed(dist: str) -> bool:
    try:
        version_of(dist)
    except PackageNotFoundError:
        return False
    return True

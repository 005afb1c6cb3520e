"""`agentguard demo`: a guarded agent on bundled fakes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import Command, Exit, console, json_option, print_json

if TYPE_CHECKING:
    from agentguard.demo.program import Report
    from agentguard.demo.screen import Screen

_WIDEST = 120
_ACTS = ("traffic", "exfiltrate", "race", "stream-cut", "ways-out", "fleet")


@click.command(cls=Command)
@click.option("--fast", is_flag=True, help="Leave out the rests that let you follow.")
@click.option("--no-guard", is_flag=True, help="The control: the same acts without the guard. Exit code 0 only if all leaks.")
@click.option("--otlp", metavar="URL", help="Send traces there, such as http://localhost:4318.")
@click.option("--act", type=click.Choice(_ACTS), help="Play one act only.")
@json_option
def demo(fast: bool, no_guard: bool, otlp: str | None, act: str | None, as_json: bool) -> int:
    """Show a guarded agent on bundled fakes: no key, no internet, no Docker.

    The published openai and anthropic clients talk to a provider on loopback, and an attacker's server really listens.
    Exit code 0 only if everything that is claimed is measured, and with --otlp the traces have arrived.
    """
    from agentguard.demo.program import run

    if otlp is not None and no_guard:
        raise click.UsageError("--otlp sends what the guard sees; with --no-guard there is nothing to send")
    report = run(_screen(as_json=as_json), guard=not no_guard, fast=fast, otlp=otlp, only=act)
    if as_json:
        print_json(_as_json(report))
    return Exit.OK if report.ok and not report.unsent else Exit.FINDING


def _screen(*, as_json: bool) -> Screen:
    from agentguard.demo.screen import Silent, Terminal

    if as_json:
        return Silent()
    out = console()
    out.width = min(out.width, _WIDEST)
    return Terminal(out, time.time())


def _as_json(report: Report) -> dict[str, Any]:
    facts = [
        {"act": act, "claim": fact.claim, "measured": fact.measured, "holds": fact.holds}
        for act, measured in report.by_act.items()
        for fact in measured
    ]
    return {
        "ok": report.ok and not report.unsent,
        "mode": "guard" if report.is_guarded else "control",
        "verdict": report.verdict,
        "seconds": round(report.seconds, 2),
        "facts": facts,
        "unsent": report.unsent or None,
    }

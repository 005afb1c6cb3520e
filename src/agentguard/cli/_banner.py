"""What `agentguard run` says at the start: what is guarded, what is not, and by which policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.cli._command import clean, version
from agentguard.cli._libraries import installed, native, short
from agentguard.cli._sources import load_policy
from agentguard.policy.model import Mode, Policy

if TYPE_CHECKING:
    from agentguard._default import Instrumentation

_MAX_LIMITS = 3
_DISABLED = "agentguard is switched off by AGENTGUARD_DISABLED: nothing is guarded"


def banner(installation: Instrumentation) -> list[str]:
    """Lines for a person."""
    if installation.is_disabled:
        return [_DISABLED]
    guard = installation.guard
    hooked = {status.library for status in installation.status() if status.state != "missing"}
    libraries = [library for library in installed() if library.name in hooked]
    seen = ", ".join(f"{library.name} {short(library.version)}" for library in libraries) or "nothing"
    unseen = [library.name for library in installed() if library.name not in hooked] + [name for name, _ in native()]
    return _lines(guard.policy, seen, ", ".join([*unseen, "native code"]))


def banner_of_command(program: str, path: str | None) -> list[str]:
    """Lines for a program that is not Python's: the policy of its Python children.

    Raises:
        PolicyError: The policy does not load.
    """
    policy = load_policy(path) if path else Policy(mode=Mode.REPORT)
    unguarded = "everything else that it starts, but for its egress" if _is_held() else "everything else that it starts"
    return _lines(policy, f"{program} and its children, where they are Python", unguarded)


def _is_held() -> bool:
    """Whether the kernel holds this process: `run` has written down what came of it."""
    return os.environ.get("AGENTGUARD_EGRESS", "in_process") != "in_process"


def _lines(policy: Policy, guarded: str, unguarded: str) -> list[str]:
    agents = os.environ.get("AGENTGUARD_AGENT") or ", ".join(agent.name for agent in policy.agents) or "none"
    mode = os.environ.get("AGENTGUARD_MODE") or policy.mode
    lines = [
        f"agentguard {version()}  agent={agents}  mode={mode}  policy={_shortened(policy.path) or 'none'}",
        f"  guarded      {guarded}",
        f"  not guarded  {unguarded}   (agentguard doctor)",
        f"  egress       {_hosts(policy)}{', held by the kernel for every process' if _is_held() else ''}",
        f"  budget       {_budgets(policy)}",
        f"  telemetry    {collector()}",
    ]
    if mode == "report":
        lines.append("  Nothing is refused: the mode is report.")
    return [clean(line) for line in lines]


def _shortened(path: str) -> str:
    return os.path.relpath(path) if path and Path(path).is_relative_to(Path.cwd()) else path


def _budgets(policy: Policy) -> str:
    from agentguard.policy.diff import describe

    limits = [limit for agent in policy.agents for limit in agent.budgets] + list(policy.limits.fleet)
    said = [describe(limit).replace(" per agent", "") for limit in limits[:_MAX_LIMITS]]
    more = len(limits) - len(said)
    return (", ".join(said) + (f" and {more} more" if more else "")) or "no limits"


def _hosts(policy: Policy) -> str:
    if not policy.agents or all(agent.external_calls.is_unwritten for agent in policy.agents):
        return "any host"
    hosts = {str(host) for agent in policy.agents for host in agent.external_calls.allowed_domains or ()}
    providers = {provider for agent in policy.agents if agent.llm for provider in agent.llm.providers}
    said = [
        *sorted(providers),
        *([f"{len(hosts)} {'entry' if len(hosts) == 1 else 'entries'} of allowed_domains"] if hosts else []),
    ]
    return ", ".join(said) or "no host"


def collector() -> str:
    """Where telemetry goes, without credentials."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return "off (OTEL_SDK_DISABLED)"
    named = collector_endpoint()
    if named is None:
        return "off (no OTEL_EXPORTER_OTLP_ENDPOINT)"
    scheme, separator, rest = named.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def collector_endpoint() -> str | None:
    """The endpoint that OpenTelemetry's variables name for traces; None when they ask for no export."""
    named = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    exporters = os.environ.get("OTEL_TRACES_EXPORTER", "").split(",")
    if "otlp" in exporters:
        return named or "http://localhost:4318"
    return named if exporters == [""] else None

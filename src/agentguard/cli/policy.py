"""`agentguard policy`: check, explain, compare; and the commands that learn, edit and replay, from files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from agentguard.cli._command import Command, Exit, clean, console, json_option, policy_option, print_json, store_option
from agentguard.cli._sources import load_policy, required_policy
from agentguard.cli.policy_edit import allow, changes_as_json, deny, print_changes
from agentguard.cli.policy_learn import learn
from agentguard.cli.policy_replay import replay
from agentguard.core.explain import UNCOUNTED

if TYPE_CHECKING:
    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.explain import RuleTrace
    from agentguard.guard import Guard
    from agentguard.policy import Policy
    from agentguard.policy.model import Rule

_ENTRY_WIDTH = 36


@click.group()
def policy() -> None:
    """Check, explain, compare, learn and edit policies."""


policy.add_command(allow)
policy.add_command(deny)
policy.add_command(learn)
policy.add_command(replay)


# ---------------------------------------------------------------------------------------------------------------- check


@policy.command(cls=Command)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False), envvar="AGENTGUARD_POLICY")
@click.option("--strict", is_flag=True, help="What is written and has no effect yet is a finding too.")
@json_option
def check(file: str | None, strict: bool, as_json: bool) -> int:
    """Say whether a policy loads, what is wrong in it, and what in it has no effect."""
    from agentguard.policy.unenforced import unenforced

    checked = required_policy(file)
    notes = unenforced(checked)
    if as_json:
        print_json({"ok": not (strict and notes), "policy": _summary(checked), "notes": [*_mode_notes(checked), *notes]})
    else:
        _print_check(checked, notes)
    return Exit.FINDING if strict and notes else Exit.OK


def _summary(checked: Policy) -> dict[str, Any]:
    return {
        "path": checked.path,
        "mode": str(checked.mode),
        "fleet": checked.fleet,
        "store": checked.store,
        "agents": [agent.name for agent in checked.agents],
        "limits": sum(len(agent.budgets) + bool(agent.api_keys.rate_limit) for agent in checked.agents)
        + len(checked.limits.fleet),
    }


def _mode_notes(checked: Policy) -> list[str]:
    return ["mode is report: refusals are recorded, and nothing is refused"] if checked.mode == "report" else []


def _print_check(checked: Policy, notes: tuple[str, ...]) -> None:
    summary = _summary(checked)
    agents = ", ".join(summary["agents"]) or "none"
    click.echo(
        f"{click.style('ok', fg='green')}  {checked.path}  mode {checked.mode}, {summary['limits']} limits, agents: {agents}"
    )
    for note in _mode_notes(checked):
        click.echo(f"    {note}")
    for note in notes:
        click.echo(f"{click.style('note', fg='yellow')}  {clean(note)}")


# -------------------------------------------------------------------------------------------------------------- explain


@policy.command(cls=Command)
@click.argument("url", required=False)
@click.option(
    "--agent", "agents", multiple=True, metavar="NAME", help="Who calls. Several: each was entered inside the one before."
)
@click.option("--session", metavar="ID", help="The session of the call.")
@click.option("--user", metavar="ID", help="The user of the call.")
@click.option("--method", default="GET", show_default=True, help="The HTTP method.")
@click.option("--model", metavar="MODEL", help="Explain a call to this model. Without a URL: at its provider.")
@click.option("--provider", default="openai", show_default=True, help="The model's provider.")
@click.option("--tool", metavar="NAME", help="Explain the use of a tool.")
@click.option("--live", is_flag=True, help="Ask the store what is left of each limit.")
@policy_option
@store_option
@json_option
def explain(
    url: str | None,
    agents: tuple[str, ...],
    session: str | None,
    user: str | None,
    method: str,
    model: str | None,
    provider: str,
    tool: str | None,
    live: bool,
    policy_path: str | None,
    store_url: str | None,
    as_json: bool,
) -> int:
    r"""Say whether a call would go, and every rule that was looked at. Makes no call and counts nothing.

    \b
        agentguard policy explain https://pastebin.com/x --agent researcher
        agentguard policy explain --model gpt-5 --agent researcher --live
        agentguard policy explain --tool search_kb
    """
    from agentguard.core.caller import Caller
    from agentguard.core.explain import explain as rules_of
    from agentguard.guard import Guard

    call = _call(url, method, model, provider, tool)
    asked = required_policy(policy_path)
    _refuse_unknown(agents, asked)
    guard = Guard(asked, store=_store(asked, store_url) if live else None)
    try:
        caller = guard.identified(Caller(agents=agents, session=session, user=user))
        rights = guard.rights(caller)
        counted, isolated = _ledger(guard, call, caller) if live else (None, ())
        traces = rules_of(call, caller, rights, isolated, counted)
        decision = guard.check(call, caller)
    finally:
        guard.close()
    if as_json:
        print_json(_as_json(call, caller, asked, decision, traces))
    else:
        _print_explanation(call, caller, asked, decision, traces, is_live=live)
    return Exit.OK if decision.allowed else Exit.FINDING


def _call(url: str | None, method: str, model: str | None, provider: str, tool: str | None) -> Call:
    from agentguard.core.call import HTTPCall, LLMCall, Target, ToolCall
    from agentguard.policy.providers import PROVIDER_HOSTS

    if sum(given is not None for given in (url or model, tool)) != 1:
        message = "name one thing to explain: a URL, --model or --tool"
        raise click.UsageError(message)
    if tool is not None:
        return ToolCall(tool)
    if url is None:
        if provider not in PROVIDER_HOSTS:
            message = f"{provider!r} is not a provider that policies know: {', '.join(sorted(PROVIDER_HOSTS))}"
            raise click.BadParameter(message, param_hint="--provider")
        url = f"https://{PROVIDER_HOSTS[provider][0].removeprefix('*.')}/"
    try:
        target = Target.of(url if "://" in url else f"https://{url}")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    return HTTPCall(method.upper(), target) if model is None else LLMCall("chat", provider, model, target)


def _refuse_unknown(agents: tuple[str, ...], asked: Policy) -> None:
    from difflib import get_close_matches

    named = [agent.name for agent in asked.agents]
    for agent in agents:
        if named and agent not in named:
            near = get_close_matches(agent, named, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the policy names {', '.join(map(repr, named))}"
            message = f"no agent {agent!r} in {asked.path}; {hint}"
            raise click.BadParameter(message, param_hint="--agent")


def _store(asked: Policy, store_url: str | None) -> Any:
    from agentguard.cli._sources import open_ledger

    return open_ledger(store_url, asked)


def _ledger(guard: Guard, call: Call, caller: Caller) -> tuple[dict[str, Any], list[str]]:
    rows = guard.rights(caller).charged_rows(call, caller).rows
    balances = guard.store.read([row.key for row in rows])
    return {balance.row: balance for balance in balances}, [isolation.subject for isolation in guard.store.isolations()]


def _as_json(call: Call, caller: Caller, asked: Policy, decision: Decision, traces: list[RuleTrace]) -> dict[str, Any]:
    return {
        "ok": decision.allowed,
        "call": _said(call),
        "agents": list(caller.agents),
        "mode": str(asked.mode),
        "effect": str(decision.effect),
        "reason": None if decision.reason is None else str(decision.reason),
        "rule": decision.rule or None,
        "place": decision.place or None,
        "message": decision.message or None,
        "remedy": decision.remedy or None,
        "rules": [
            {
                "agent": trace.agent or None,
                "rule": trace.rule.name,
                "place": trace.rule.place or None,
                "entry": trace.entry or None,
                "effect": None if trace.effect is None else str(trace.effect),
                "decides": trace.decides,
                "why": trace.why or None,
            }
            for trace in traces
        ],
    }


def _said(call: Call) -> str:
    from agentguard.core.call import HTTPCall, ToolCall

    if isinstance(call, ToolCall):
        return call.name
    return f"{call.method} {call.target}" if isinstance(call, HTTPCall) else f"{call.name} at {call.target}"


def _print_explanation(
    call: Call, caller: Caller, asked: Policy, decision: Decision, traces: list[RuleTrace], *, is_live: bool
) -> None:
    from itertools import groupby

    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    by = " > ".join(caller.agents) or "a caller without an agent"
    out = console()
    word, colour = ("allowed", "green") if decision.allowed else ("denied", "red")
    out.print(Text.assemble((word, f"bold {colour}"), f"  {clean(_said(call))}  by {clean(by)}"))
    if decision.message:
        first, _, rest = decision.message.partition("\n")
        out.print(Text(clean(first)), Text(clean(rest.strip())), sep="\n")
    if not decision.allowed and asked.mode == "report":
        out.print(Text("mode is report: it would be recorded, and go"))
    out.print()
    for rule, entries in groupby(traces, lambda trace: (trace.agent, trace.rule)):
        out.print(Text(_heading(*rule, several=len(caller.agents) > 1)))
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=1)
        grid.add_column(overflow="fold", min_width=_ENTRY_WIDTH)
        grid.add_column(overflow="fold")
        for trace in entries:
            style = "dim" if not trace.decides else "bold red" if trace.effect == "deny" else "bold green"
            entry = clean(trace.entry) if trace.entry else "(nothing else)"
            grid.add_row("→" if trace.decides else "", entry, clean(_says(trace)), style=style)
        out.print(Padding(grid, (0, 0, 0, 1)))
    if not is_live:
        out.print(Text("\nLimits are counted when the call is made; --live asks the store what is left.", style="dim"))


def _heading(agent: str, rule: Rule, *, several: bool) -> str:
    place = f"  {rule.place}" if rule.line else ""
    return clean(f"{f'{agent}: ' if several and agent else ''}{rule.name}{place}")


def _says(trace: RuleTrace) -> str:
    if trace.effect is None:
        return trace.why if trace.why != UNCOUNTED else ""
    return f"{trace.effect}: {trace.why}" if trace.why else str(trace.effect)


# ----------------------------------------------------------------------------------------------------- diff and schema


@policy.command(cls=Command)
@click.argument("old", type=click.Path(exists=True, dir_okay=False))
@click.argument("new", type=click.Path(exists=True, dir_okay=False))
@json_option
def diff(old: str, new: str, as_json: bool) -> int:
    """Say what a change grants and what it takes. Exit code 1 when it grants anything."""
    from agentguard.policy.diff import Direction
    from agentguard.policy.diff import diff as changes_of

    changes = changes_of(load_policy(old), load_policy(new))
    grants = any(change.direction is Direction.GRANTS for change in changes)
    if as_json:
        print_json({"ok": not grants, "old": old, "new": new, "changes": changes_as_json(changes)})
        return Exit.FINDING if grants else Exit.OK
    if not changes:
        click.echo("No change of what may be done.")
    print_changes(changes)
    return Exit.FINDING if grants else Exit.OK


@policy.command(cls=Command)
@json_option
def schema(as_json: bool) -> int:  # noqa: ARG001 - it is JSON either way
    """Print the JSON schema of a policy file, for editors and CI."""
    from agentguard.policy import Policy

    print_json(Policy.json_schema())
    return Exit.OK

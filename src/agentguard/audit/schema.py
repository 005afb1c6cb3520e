"""An event as a record: a flat mapping of words and integers, without content and without secrets.

Times are integer microseconds since 1970 (`_us`), money is integer nano-USD (`_nanos`). A field without a value is absent.
`docs/reference/events.md` lists every field; a change that breaks a reader raises `SCHEMA_VERSION`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agentguard.core.call import HTTPCall, LLMCall
from agentguard.events import (
    BudgetAdjusted,
    BudgetThresholdCrossed,
    CallAdmitted,
    CallDenied,
    CallSettled,
    ChildStarted,
    EstimateBreached,
    GuardDisabled,
    PolicyLoaded,
    ScopeEnded,
    SeamChanged,
    SubjectIsolated,
    ToolProposed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.core.call import Call, Target, Usage
    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.events import Attempt, Event
    from agentguard.wire.answer import Answer

SCHEMA_VERSION = 1

Record = dict[str, Any]

_MAX_TEXT = 200
"""Names come from outside (a model proposes tools, an app names sessions): a record takes this much of one."""


def record_of(event: Event) -> Record:
    """The record of an event.

    Raises:
        KeyError: The event is of no known kind.
    """
    return _READERS[type(event)](event)


def record(kind: str, at: float) -> Record:
    """The beginning of every record."""
    return {"v": SCHEMA_VERSION, "kind": kind, "at_us": _micros(at)}


# ------------------------------------------------------------------------------------------------------------- the kinds


def _denied(event: CallDenied) -> Record:
    entry = _call(event.call, event.caller, record("call_denied", event.at) | {"id": event.id})
    entry["enforced"] = event.enforced
    _add_decision(entry, event.decision)
    return entry


def _admitted(event: CallAdmitted) -> Record:
    entry = _call(event.call, event.caller, record("call_admitted", event.at) | {"id": event.id})
    if event.tokens:
        entry["reserved_tokens"] = event.tokens
    if event.nanos:
        entry["reserved_nanos"] = event.nanos
    if event.waited:
        entry["waited_us"] = _micros(event.waited)
    return entry


def _settled(event: CallSettled) -> Record:
    entry = _call(event.call, event.caller, record("call_settled", event.at) | {"id": event.id})
    entry["outcome"] = event.outcome
    entry["started_us"] = _micros(event.started)
    if isinstance(event.call, LLMCall):
        _add_usage(entry, event.usage)
        if event.reserved_tokens:
            entry["reserved_tokens"] = event.reserved_tokens
        if event.written_bound is not None:
            entry["written_bound"] = event.written_bound
    if event.nanos is not None:
        entry["cost_nanos"] = event.nanos
    if event.first_chunk_at is not None:
        entry["first_chunk_us"] = _micros(event.first_chunk_at)
    if event.error:
        entry["error"] = _text(event.error)
    if event.answer is not None:
        _add_answer(entry, event.answer)
    if event.attempts:
        entry["attempts"] = [_attempt(attempt) for attempt in event.attempts]
    if event.decision is not None:
        _add_decision(entry, event.decision)
    return entry


def _breached(event: EstimateBreached) -> Record:
    entry = _call(event.call, event.caller, record("estimate_breached", event.at) | {"id": event.id})
    entry["reserved_tokens"] = event.reserved_tokens
    entry["used_tokens"] = event.used_tokens
    return entry


def _proposed(event: ToolProposed) -> Record:
    entry = _call(event.call, event.caller, record("tool_proposed", event.at) | {"id": event.id})
    entry["proposed_tool"] = _text(event.tool)
    _add_decision(entry, event.decision)
    return entry


def _crossed(event: BudgetThresholdCrossed) -> Record:
    row, percent, spent, amount = event.crossed
    return record("budget_threshold_crossed", event.at) | {"row": _text(row), "percent": percent, "spent": spent, "limit": amount}


def _ended(event: ScopeEnded) -> Record:
    entry = _caller(event.caller, record("scope_ended", event.at))
    entry |= {"scope": event.kind, "name": _text(event.name), "started_us": _micros(event.started)}
    if event.error:
        entry["error"] = _text(event.error)
    return entry


def _policy(event: PolicyLoaded) -> Record:
    entry = record("policy_loaded", event.at) | {"mode": str(event.mode), "agents": [_text(agent) for agent in event.agents]}
    return entry | _written(path=event.path, digest=event.digest, problem=event.problem)


def _seam(event: SeamChanged) -> Record:
    return record("seam_changed", event.at) | {"library": event.library, "seam": event.seam, "state": event.state}


def _isolated(event: SubjectIsolated) -> Record:
    entry = record("subject_isolated" if event.on else "subject_restored", event.at)
    entry |= {"subject": _text(event.subject), "epoch": event.epoch} | _written(by=event.by, why=event.why)
    if event.on:
        entry["mode"] = event.mode
    if event.probation_until:
        entry["probation_until_us"] = _micros(event.probation_until)
    return entry


def _adjusted(event: BudgetAdjusted) -> Record:
    entry = record("budget_adjusted", event.at) | {"row": _text(event.row), "amount": event.amount, "spent": event.spent}
    return entry | _written(by=event.by, why=event.why)


def _child(event: ChildStarted) -> Record:
    return _caller(event.caller, record("child_started", event.at)) | {"program": _text(event.program)}


def _disabled(event: GuardDisabled) -> Record:
    return record("guard_disabled", event.at) | _written(why=event.reason)


_READERS: dict[type[Event], Callable[[Any], Record]] = {
    BudgetAdjusted: _adjusted,
    BudgetThresholdCrossed: _crossed,
    CallAdmitted: _admitted,
    CallDenied: _denied,
    CallSettled: _settled,
    ChildStarted: _child,
    EstimateBreached: _breached,
    GuardDisabled: _disabled,
    PolicyLoaded: _policy,
    ScopeEnded: _ended,
    SeamChanged: _seam,
    SubjectIsolated: _isolated,
    ToolProposed: _proposed,
}

# ------------------------------------------------------------------------------------------------------------- the parts


def _call(call: Call, caller: Caller, entry: Record) -> Record:
    _caller(caller, entry)
    if isinstance(call, LLMCall):
        entry["call"] = "llm"
        entry["operation"] = call.operation
        entry["provider"] = call.provider
        entry["model"] = _text(call.model)
        entry["target"] = safe_target(call.target)
        if call.stream:
            entry["stream"] = True
    elif isinstance(call, HTTPCall):
        entry["call"] = "http"
        entry["method"] = call.method
        entry["target"] = safe_target(call.target)
    else:
        entry["call"] = "tool"
        entry["name"] = _text(call.tool)
    return entry


def _caller(caller: Caller, entry: Record) -> Record:
    agents = caller.agents
    if agents:
        entry["agent"] = _text(agents[-1])
        if len(agents) > 1:
            entry["agents"] = [_text(agent) for agent in agents]
    if caller.session:
        entry["session"] = _text(caller.session)
    if caller.user:
        entry["user"] = _text(caller.user)
    if caller.interaction:
        entry["interaction"] = _text(caller.interaction)
    if caller.tool:
        entry["tool"] = _text(caller.tool)
    return entry


def _add_usage(entry: Record, usage: Usage) -> None:
    entry["input_tokens"] = usage.input_tokens
    entry["output_tokens"] = usage.output_tokens
    if usage.cache_read_tokens:
        entry["cache_read_tokens"] = usage.cache_read_tokens
    if usage.cache_write_tokens:
        entry["cache_write_tokens"] = usage.cache_write_tokens
    if usage.reasoning_tokens:
        entry["reasoning_tokens"] = usage.reasoning_tokens
    if usage.estimated:
        entry["estimated"] = True


def _add_answer(entry: Record, answer: Answer) -> None:
    entry |= _written(response_id=answer.response_id or "", response_model=answer.response_model or "")
    if answer.finish_reasons:
        entry["finish_reasons"] = [_text(reason) for reason in answer.finish_reasons]
    if answer.tool_calls:
        entry["proposed_tools"] = [_text(tool) for tool in answer.tool_calls]


def _attempt(attempt: Attempt) -> Record:
    entry: Record = {
        "method": attempt.method,
        "target": safe_target(attempt.target),
        "started_us": _micros(attempt.started),
        "ended_us": _micros(attempt.ended),
    }
    if attempt.status is not None:
        entry["status"] = attempt.status
    if attempt.error:
        entry["error"] = _text(attempt.error)
    if not attempt.was_sent:
        entry["was_sent"] = False
    return entry


def _add_decision(entry: Record, decision: Decision) -> None:
    """The decision without its message, which names the URL as it was called."""
    entry["reason"] = str(decision.reason) if decision.reason is not None else ""
    entry["rule"] = decision.rule
    if decision.place:
        entry["place"] = decision.place
    facts = decision.facts
    if facts.limit:
        entry |= {"limit": facts.limit, "spent": facts.spent, "held": facts.held, "requested": facts.requested}
    if facts.unit:
        entry["unit"] = str(facts.unit)
    if facts.resets_at is not None:
        entry["resets_us"] = _micros(facts.resets_at)
    if facts.waited:
        entry["waited_us"] = _micros(facts.waited)


def _written(**texts: str) -> Record:
    return {key: _text(value) for key, value in texts.items() if value}


def _text(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


# ---------------------------------------------------------------------------------------------------------- URLs, safely

_SECRET = re.compile(
    r"""(?x)
    ^(bot)?\d{6,}:.{20,}                                  # Telegram: /bot123456:AAF.../sendMessage
    | ^(sk|pk|rk|ak|agk|ghp|gho|ghs|glpat|xox[a-z])[-_].{8,}  # OpenAI, Stripe, GitHub, GitLab, Slack, our handles
    | ^(AKIA|ASIA|AIza|eyJ).{12,}                         # AWS, Google, JSON web tokens
    | ^(?=.*\d)(?=.*[a-z])(?=.*[A-Z])[\w.~=-]{20,}$       # long and mixed: a webhook's token; a UUID or a hash is not
    """
)
_HIDDEN = "…"


@lru_cache(maxsize=4096)
def safe_target(target: Target) -> str:
    """Where a call went: no user, no query, no fragment, and no path segment that looks like a secret."""
    host = target.host.rpartition("@")[2]
    return _text(str(target._replace(host=host, path=_safe_path(target.path))))


def _safe_path(path: str) -> str:
    bare = re.split(r"[?#;]", path, maxsplit=1)[0]
    return "/".join(_HIDDEN if _SECRET.search(segment) else segment for segment in bare.split("/"))

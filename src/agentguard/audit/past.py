"""Records of the event log put together again: one entry for each call, whatever was told of it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from agentguard.core.call import NO_USAGE, HTTPCall, LLMCall, Target, ToolCall, Usage
from agentguard.core.caller import Caller

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agentguard.core.call import Call

    Record = dict[str, Any]

_OF_HOSTS = frozenset({"dns", "http", "https", "tcp", "udp", "ws", "wss"})
"""Schemes of what names a host. A refused Unix socket, or a socket of another family, is no call to one."""

_KINDS = frozenset({"call_admitted", "call_denied", "call_settled", "scope_ended"})


class Refusal(NamedTuple):
    """A refusal of a call, or of one hop of it. `enforced`: it was stopped; else it was only recorded (report mode)."""

    reason: str
    rule: str
    place: str
    enforced: bool


class Hop(NamedTuple):
    """Where a call was sent, or (`went` False) was to be sent and was refused."""

    target: Target
    went: bool


class PastCall(NamedTuple):
    """One call as the log tells it.

    Attributes:
        call: What was called: without its request, which is not recorded.
        caller: Who called. A caller without a session has one named by its process, so that each process counts apart.
        started, ended: Unix seconds; the same when the log does not tell its end.
        usage: What it used. When its end is not told: what it had reserved.
        nanos: What it cost then; None when that is not told.
        hops: Where it went, redirects included, each place once; none for a tool.
        refusals: What was said against it.
    """

    call: Call
    caller: Caller
    started: float
    ended: float
    usage: Usage
    nanos: int | None
    hops: tuple[Hop, ...]
    refusals: tuple[Refusal, ...]

    @property
    def went(self) -> bool:
        """Whether it was made, if only up to a redirect."""
        return any(hop.went for hop in self.hops) if self.hops else not any(refusal.enforced for refusal in self.refusals)


class History(NamedTuple):
    """The calls of a log by their beginning, and how many records could not be read."""

    calls: tuple[PastCall, ...]
    unreadable: int


def history(records: Iterable[Record]) -> History:
    """Put records together, as `read_events` gives them. A record that is broken is passed over and counted.

    Of tools, the ones that ran are known by their end, and those that were refused by their refusal. A name whose lookup was
    refused is a call too, to `dns://name`, on a port that nobody knows.
    """
    found: dict[str, _Parts] = {}
    reported: dict[tuple[object, ...], int] = {}
    unreadable = 0
    for number, record in enumerate(records):
        if record.get("kind") not in _KINDS or not _is_of_a_host(record):
            continue
        try:
            if record["kind"] == "scope_ended":
                if record["scope"] != "execute_tool" or _was_reported(record, reported):
                    continue
                found[f"scope {number}"] = _Parts(ToolCall(record["name"]), _caller(record), record["started_us"])
            else:
                _take(record, found, reported)
        except (KeyError, TypeError, ValueError, AttributeError):
            unreadable += 1
    calls = sorted((parts.whole() for parts in found.values()), key=lambda call: call.started)
    return History(tuple(calls), unreadable)


def _is_of_a_host(record: Record) -> bool:
    target = record.get("target")
    return target is None or str(target).partition("://")[0] in _OF_HOSTS


class _Parts:
    """What has been read of one call so far."""

    __slots__ = ("call", "caller", "ended", "hops", "nanos", "refusals", "started", "usage")

    def __init__(self, call: Call, caller: Caller, at: int) -> None:
        self.call = call
        self.caller = caller
        self.started = self.ended = at
        self.usage = NO_USAGE
        self.nanos: int | None = None
        self.hops: dict[Target, bool] = {}
        self.refusals: list[Refusal] = []

    def whole(self) -> PastCall:
        if not self.hops and not isinstance(self.call, ToolCall):
            self.reach(self.call.target, went=True)  # it was admitted, and no more is told
        return PastCall(
            self.call,
            self.caller,
            self.started / 1_000_000,
            self.ended / 1_000_000,
            self.usage,
            self.nanos,
            tuple(Hop(target, went) for target, went in self.hops.items()),
            tuple(self.refusals),
        )

    def reach(self, target: Target, *, went: bool) -> None:
        self.hops[target] = went or self.hops.get(target, False)


def _take(record: Record, found: dict[str, _Parts], reported: dict[tuple[object, ...], int]) -> None:
    call = _call(record)
    kind = record["kind"]
    parts = found.get(record["id"])
    if parts is None:
        at = record["started_us"] if kind == "call_settled" else record["at_us"]
        parts = found[record["id"]] = _Parts(call, _caller(record), int(at))
    if kind == "call_denied":
        _take_refusal(record, call, parts, reported)
    elif kind == "call_admitted":
        parts.usage = Usage(input_tokens=int(record.get("reserved_tokens", 0)))
    else:
        _take_end(record, call, parts)


def _take_refusal(record: Record, call: Call, parts: _Parts, reported: dict[tuple[object, ...], int]) -> None:
    enforced = bool(record["enforced"])
    parts.refusals.append(_refusal(record, enforced=enforced))
    if isinstance(call, ToolCall):
        if not enforced:
            run = _run(record)
            reported[run] = reported.get(run, 0) + 1
    else:
        parts.reach(call.target, went=not enforced)  # a proxy is told of by its refusal alone


def _take_end(record: Record, call: Call, parts: _Parts) -> None:
    parts.call = call
    parts.started, parts.ended = int(record["started_us"]), int(record["at_us"])
    parts.usage = Usage(
        int(record.get("input_tokens", 0)),
        int(record.get("output_tokens", 0)),
        int(record.get("cache_read_tokens", 0)),
        int(record.get("cache_write_tokens", 0)),
    )
    parts.nanos = record.get("cost_nanos")
    for attempt in record.get("attempts", ()):
        parts.reach(_target(attempt["target"]), went=attempt.get("was_sent", True))
    if "rule" in record and not any(refusal.rule == record["rule"] for refusal in parts.refusals):
        parts.refusals.append(_refusal(record, enforced=True))


def _refusal(record: Record, *, enforced: bool) -> Refusal:
    return Refusal(record["reason"], record["rule"], record.get("place", ""), enforced)


def _call(record: Record) -> Call:
    match record["call"]:
        case "llm":
            target = _target(record["target"])
            return LLMCall(record["operation"], record["provider"], record["model"], target, bool(record.get("stream")))
        case "http":
            return HTTPCall(record["method"], _target(record["target"]))
        case "tool":
            return ToolCall(record["name"])
        case other:
            raise ValueError(other)


@lru_cache(maxsize=4096)
def _target(text: str) -> Target:
    return Target.of(text)


def _caller(record: Record) -> Caller:
    agent = record.get("agent")
    agents = tuple(map(str, record.get("agents", () if agent is None else (agent,))))
    process = f"process-{str(record.get('id', '')).partition('-')[0]}"
    return Caller(agents, record.get("session", process), record.get("user"), record.get("interaction", process))


def _run(record: Record) -> tuple[object, ...]:
    return record.get("session"), record["name"]  # a scope's end does not name the process's own agent, a refusal does


def _was_reported(record: Record, reported: dict[tuple[object, ...], int]) -> bool:
    """Whether a tool that ran is one whose refusal was only recorded: that record stands for it."""
    run = _run(record)
    if not reported.get(run):
        return False
    reported[run] -= 1
    return True

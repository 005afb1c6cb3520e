"""The admission of a call, as one generator: it yields what it asks of the store and returns the decision.

The order is fixed: isolation, then the agent's boundary (tool, model, scope), then egress, then one atomic reservation of every
limit of every subject. A call that the boundary refuses never touches a counter; a call that a counter refuses has
taken nothing. Two drivers run it, one for threads and one for event loops (`agentguard.guard`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Union, cast

from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.decision import ALLOW, Decision, Facts, Reason, deny
from agentguard.core.isolation import read_word
from agentguard.core.limits import AMOUNTS, RefusalKind, Refused, charges_of
from agentguard.core.pricing import affordable_output, bound_nanos, price_of
from agentguard.core.wording import amount_text, cut_sentence, refusal_sentence, who
from agentguard.policy.model import Bound, Price, Rule, Unbounded, Unit

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Sequence

    from agentguard.core.call import Call
    from agentguard.core.caller import Caller
    from agentguard.core.estimate import Estimator
    from agentguard.core.limits import Charge, LimitRow
    from agentguard.core.pricing import PriceSource
    from agentguard.core.rights import ChargedRows, Rights
    from agentguard.policy.model import Limit

    Ask = Union["ReadRows", "ReserveRows", "AwaitChange"]  # noqa: UP007 - `|` takes no forward references
    Reply = Union["Sequence[Left]", "Refused", None]  # noqa: UP007 - as above
    Admission = Generator[Ask, Reply, "Outcome"]

# Named once: to name a member through its class costs Python 3.11 as much as three comparisons.
_STRICT = Bound.STRICT
_WRITE = Unbounded.WRITE

LEAST_WRITTEN_BOUND = 256
"""Below this many output tokens an answer is of little use, so a call rather waits for what others hold than takes the crumbs."""


FAR = 16
"""What a row had left a moment ago will do while that is so many times what a call asks for."""


class ReadRows(NamedTuple):
    """A question to the store: what these rows have left. With `may_be_old` what they had left a moment ago will do at first."""

    rows: tuple[LimitRow, ...]
    may_be_old: bool = False


class ReserveRows(NamedTuple):
    """A request to the store: all of these charges, or none. `rows` are the rows of the call, some of which it may not charge."""

    rows: tuple[LimitRow, ...]
    charges: tuple[Charge, ...]
    subjects: tuple[str, ...]


class AwaitChange(NamedTuple):
    """A wish to wait until others have settled, or a window is over, since that is what has refused a request.

    Answered by None to ask again; when waiting is of no use by the refusal that stands: this one, or one that outranks it.
    """

    refused: Refused
    request: ReserveRows


class Left(NamedTuple):
    """What a row has left: when all that is held stays held, and when all of it is given back. In the limit's unit.

    `is_old`: it had that left a moment ago.
    """

    at_least: int
    at_most: int
    is_old: bool = False


class Estimate(NamedTuple):
    """What a call was reserved for.

    Attributes:
        input_tokens: The input, estimated.
        output_tokens: The output bound, for all choices; None where nothing bounds it and no limit needs a bound.
        written_bound: The bound per choice that has to be written into the request; None when it carries its own.
        price: What a token costs; None when nothing is limited in money and the model has no price.
        nanos: The most that the call can cost.
    """

    input_tokens: int = 0
    output_tokens: int | None = 0
    written_bound: int | None = None
    price: Price | None = None
    nanos: int = 0


NO_ESTIMATE = Estimate()


class Outcome(NamedTuple):
    """The end of an admission: the decision, and what was reserved."""

    decision: Decision
    estimate: Estimate = NO_ESTIMATE
    rows: tuple[LimitRow, ...] = ()
    charges: tuple[Charge, ...] = ()


class _Refusal(Exception):
    def __init__(self, decision: Decision) -> None:
        self.decision = decision


def admission(
    call: Call,
    caller: Caller,
    rights: Rights,
    estimator: Estimator,
    prices: PriceSource,
    isolated: Collection[str] = (),
    *,
    reports: bool = False,
) -> Admission:
    """Decide one call.

    Args:
        call: What is asked for.
        caller: Who asks.
        rights: What the caller may do.
        estimator: Says how many tokens the call will use.
        prices: Says what they cost.
        isolated: The subjects that this process knows to be stopped. The store has the last word on them.
        reports: Report mode: a refused call will be made all the same, so what it uses is reserved nevertheless.

    Yields:
        `ReadRows`, answered by what each row has left; `ReserveRows`, answered by None or the refusal; and after a refusal that
        will pass `AwaitChange`. What was learned while waiting makes the next estimate.

    Returns:
        The decision, with what was reserved.
    """
    boundary = refused_by_isolation(call, caller, rights, isolated) if isolated else None
    boundary = boundary or rights.refuses(call, caller)
    if boundary is not None and not reports:
        return Outcome(boundary)
    charged = rights.charged_rows(call, caller)
    rows = charged.rows
    subjects = rights.subjects(caller, is_llm=isinstance(call, LLMCall))
    while True:
        try:
            estimate, request, refusal = yield from _asking(call, caller, rights, charged, subjects, estimator, prices, reports)
        except _Refusal as refused:
            return Outcome(boundary or refused.decision, rows=rows)
        if refusal is None:
            return Outcome(boundary or ALLOW, estimate, rows, request.charges)
        is_held = refusal.kind is RefusalKind.CONTENDED
        if is_held and reports:
            return Outcome(boundary or ALLOW, estimate, rows, request.charges)  # it would have waited
        if is_held or (refusal.retry_at is not None and not reports):
            stands = yield AwaitChange(refusal, request)
            if stands is None:
                continue
            refusal = cast("Refused", stands)
        return Outcome(boundary or refusal_of(refusal, call, caller, rows), estimate, rows, request.charges)


def _asking(
    call: Call,
    caller: Caller,
    rights: Rights,
    charged: ChargedRows,
    subjects: tuple[str, ...],
    estimator: Estimator,
    prices: PriceSource,
    reports: bool,
) -> Generator[Ask, Reply, tuple[Estimate, ReserveRows, Refused | None]]:
    """Estimate a call and ask for its charges; where its output bound is written from what is left, for less if need be.

    What was left a moment ago does, far from every limit. A request that was refused is made again for a smaller bound, if
    others have taken some since what is left was read; in report mode never, since there it was taken all the same.
    """
    lefts: Sequence[Left] = ()
    is_written = (
        isinstance(call, LLMCall)
        and call.max_output_tokens is None
        and bool(charged.amounts)
        and rights.llm.unbounded_output is _WRITE
    )
    may_be_old = not reports
    request, refusal, too_much = None, None, None
    while True:
        if is_written:
            lefts = cast("Sequence[Left]", (yield ReadRows(charged.amounts, may_be_old)))
        estimate = (
            _estimate(call, caller, rights, charged, estimator, prices, lefts) if isinstance(call, LLMCall) else NO_ESTIMATE
        )
        if may_be_old and _is_close(charged.amounts, lefts, estimate):
            may_be_old = False
            continue
        output = estimate.output_tokens or 0
        if request is not None and too_much is not None and output >= too_much:
            return estimate, request, refusal
        request = ReserveRows(charged.rows, _charges(call, charged, estimate), subjects)
        refusal = cast("Refused | None", (yield request))
        if refusal is None or reports or not _may_fit(refusal, lefts):
            return estimate, request, refusal
        may_be_old, too_much = False, output


def refused_by_isolation(
    call: Call, caller: Caller, rights: Rights, isolated: Collection[str], *, is_cut: bool = False
) -> Decision | None:
    """Judge a call, or with `is_cut` the rest of it, against the subjects that are isolated. None when it may go."""
    refused = isolation_of(call, caller, rights, isolated)
    return None if refused is None else refusal_of(refused, call, caller, (), is_cut=is_cut)


def isolation_of(call: Call, caller: Caller, rights: Rights, isolated: Collection[str]) -> Refused | None:
    """The first of a call's subjects that is isolated, as a store would refuse it; None when none is."""
    subjects = rights.subjects(caller, is_llm=isinstance(call, LLMCall))
    subject = next((one for one in subjects if one in isolated), None)
    return None if subject is None else Refused(RefusalKind.ISOLATED, subject)


def _charges(call: Call, charged: ChargedRows, estimate: Estimate) -> tuple[Charge, ...]:
    if isinstance(call, ToolCall):
        asked = (0, call.cost_nanos, 0, 0)
    else:
        asked = (estimate.input_tokens + (estimate.output_tokens or 0), estimate.nanos, 1, 1)
    return charges_of(charged.places, asked)


def _estimate(
    call: LLMCall,
    caller: Caller,
    rights: Rights,
    charged: ChargedRows,
    estimator: Estimator,
    prices: PriceSource,
    lefts: Sequence[Left],
) -> Estimate:
    """What to reserve. `lefts` is what the charged amounts have left, for a bound that has to be written."""
    llm = rights.llm
    bounding, money = charged.bounding, charged.money
    if llm.bound is _STRICT and bounding and not call.input_visible:
        why = f"llm.bound is strict, and part of the input is not in the request ({llm.rule})"
        sentence = f"{who(caller)} may not make {call.name!r}: {why}."
        raise _Refusal(
            deny(
                Reason.BUDGET,
                Rule("llm.bound", llm.rule.path, llm.rule.line),
                sentence,
                "Send the whole input, or set llm.bound to calibrated.",
            )
        )
    input_tokens = estimator.input_tokens(call, llm.bound)
    price = price_of(llm, prices, call.provider, call.model, input_tokens)
    if money is not None and price is None:
        sentence = f"{who(caller)} may not use {call.model!r}: money is limited ({money.rule}) and nobody prices this model."
        raise _Refusal(deny(Reason.BUDGET, money.rule, sentence, "Price it under llm.prices, or set llm.unknown_price."))
    output, written = call.max_output_tokens, None
    if output is None and bounding:
        if llm.unbounded_output is Unbounded.DENY:
            sentence = f"{who(caller)} may not make {call.name!r}: the request carries no bound on its output ({llm.rule})."
            raise _Refusal(
                deny(
                    Reason.BUDGET,
                    Rule("llm.unbounded_output", llm.rule.path, llm.rule.line),
                    sentence,
                    "Pass max_tokens, or set llm.unbounded_output to write.",
                )
            )
        output = llm.max_output_tokens
        if llm.unbounded_output is _WRITE:
            output = written = _fitting_bound(call, charged.amounts, lefts, rights.call_limits, input_tokens, price, output)
    output = None if output is None else output * call.choices
    nanos = bound_nanos(price, input_tokens, output or 0) if price else 0
    estimate = Estimate(input_tokens, output, written, price, nanos)
    for limit in rights.call_limits:
        if decision := over_call_limit(limit, input_tokens + (output or 0), nanos, call, caller):
            raise _Refusal(decision)
    return estimate


def _is_close(amounts: Sequence[LimitRow], lefts: Sequence[Left], estimate: Estimate) -> bool:
    """Whether a row may have less left than the bound was written for, since it had not much more a moment ago."""
    asked = {Unit.TOKENS: estimate.input_tokens + (estimate.output_tokens or 0), Unit.USD: estimate.nanos}
    return any(left.is_old and left.at_least < FAR * asked[row.limit.unit] for row, left in zip(amounts, lefts, strict=False))


def _may_fit(refusal: Refused, lefts: Sequence[Left]) -> bool:
    """Whether a smaller bound may fit where one that was written from `lefts` did not: others took some after it was read."""
    return bool(lefts) and (refusal.kind is RefusalKind.EXHAUSTED or any(left.is_old for left in lefts))


def _fitting_bound(
    call: LLMCall,
    amounts: Sequence[LimitRow],
    lefts: Sequence[Left],
    call_limits: Sequence[Limit],
    input_tokens: int,
    price: Price | None,
    cap: int,
) -> int:
    """The output bound to write: at most the cap, and what every limit has left after the input.

    What others hold counts as gone, unless so little is left that waiting for them is better.
    """
    limits = [(row.limit.unit, left) for row, left in zip(amounts, lefts, strict=True)]
    limits += [(limit.unit, Left(limit.amount, limit.amount)) for limit in call_limits if limit.unit in AMOUNTS]

    def fits(unit: Unit, left: int) -> int:
        if unit is Unit.TOKENS:
            return left - input_tokens
        return affordable_output(price, left, input_tokens) if price else cap

    now = min([cap * call.choices, *(fits(unit, left.at_least) for unit, left in limits)]) // call.choices
    if now >= min(cap, LEAST_WRITTEN_BOUND):
        return now
    later = min([cap * call.choices, *(fits(unit, left.at_most) for unit, left in limits)]) // call.choices
    return max(later, 1)


def over_call_limit(limit: Limit, tokens: int, nanos: int, call: Call, caller: Caller) -> Decision | None:
    """Judge one call against a limit `per: call`, which needs no counter."""
    asked = {Unit.TOKENS: tokens, Unit.USD: nanos}.get(limit.unit, 0)
    if asked <= limit.amount:
        return None
    sentence = (
        f"{who(caller)} asked for {amount_text(asked, limit.unit)} for {call.name!r} "
        f"but a call may use {amount_text(limit.amount, limit.unit)} ({limit.rule.place or limit.rule.name})."
    )
    raised = repr(limit.text) if limit.text else "the limit"
    facts = Facts(limit.amount, 0, 0, asked, unit=limit.unit)
    return deny(Reason.BUDGET, limit.rule, sentence, f"Ask for less, or raise {raised}.", facts)


def refusal_of(refused: Refused, call: Call, caller: Caller, rows: Sequence[LimitRow], *, is_cut: bool = False) -> Decision:
    """Put a store's refusal into words: of a call, or of the rest of a stream."""
    if refused.kind is RefusalKind.ISOLATED:
        return _isolated(refused.row, call, is_cut=is_cut)
    row = next((row for row in rows if row.key == refused.row), None)
    if row is None or refused.kind is RefusalKind.UNREGISTERED:
        sentence = (
            f"the store does not know {refused.row!r}, and a missing counter is not an empty one: {call.name!r} was not sent."
        )
        return deny(Reason.STORE, Rule("store"), sentence, "Try again: the limit has been registered anew.")
    limit = row.limit
    facts = Facts(refused.amount, refused.spent, refused.held, refused.requested, refused.retry_at, unit=limit.unit)
    reason = Reason.RATE if limit.is_rate else Reason.BUDGET
    sentence = (cut_sentence if is_cut else refusal_sentence)(refused, row, call, caller)
    return deny(reason, limit.rule, sentence, _remedy(limit, refused), facts)


def _isolated(word: str, call: Call, *, is_cut: bool) -> Decision:
    subject, mode = read_word(word) or (word, "")
    stopped = f"the answer of {call.name!r} is withheld" if is_cut else f"{call.name!r} was not sent"
    sentence = f"{subject} is isolated{'' if subject == word else f' ({mode})'}: {stopped}."
    return deny(Reason.ISOLATED, Rule("isolation"), sentence, f"An operator restores it with `agentguard restore {subject}`.")


def _remedy(limit: Limit, refused: Refused) -> str:
    """What to do. Waiting helps where a window ends, or others may give back what they hold, and the request will fit then."""
    steps = ["wait"] if refused.retry_at is not None or refused.kind is RefusalKind.CONTENDED else []
    if limit.unit in AMOUNTS and refused.spent < refused.amount:  # a call is one call: there is no less of it
        steps.append("ask for less")
    raised = f"raise {limit.text!r}" if limit.text else "raise the limit"
    said = ", ".join([*steps, f"or {raised}"]) if steps else raised
    return f"{said[0].upper()}{said[1:]}."

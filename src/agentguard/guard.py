"""The guard: a policy, a store, and observers. Core decides, the guard raises."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import os
import queue
import threading
import time
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, Self, cast

from agentguard.admission import Admission, Ending, InProgress, Owner
from agentguard.asking import Asking
from agentguard.changes import Changes
from agentguard.context import CALLER
from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.decision import ALLOW, Decision, Reason, after_waiting
from agentguard.core.engine import (
    AwaitChange,
    ReadRows,
    ReserveRows,
    admission,
    over_call_limit,
    refusal_of,
    refused_by_isolation,
)
from agentguard.core.estimate import Estimator
from agentguard.core.isolation import IsolationMode, agents_on_probation, subject_of
from agentguard.core.limits import Amounts, Charge, RefusalKind, Refused
from agentguard.core.pricing import bound_nanos
from agentguard.errors import (
    AgentIsolated,
    BudgetExceeded,
    Denied,
    EgressDenied,
    KeyDenied,
    ModelDenied,
    PolicyError,
    Problem,
    RateLimited,
    StoreUnavailable,
    ToolDenied,
)
from agentguard.events import (
    BudgetThresholdCrossed,
    CallAdmitted,
    CallDenied,
    CallSettled,
    EstimateBreached,
    PolicyLoaded,
    ToolProposed,
)
from agentguard.in_force import InForce
from agentguard.lefts import OLD_SECONDS, Lefts, left_of
from agentguard.membership import Described, Membership
from agentguard.policy.digest import digest_of
from agentguard.policy.model import Mode, OnStoreDown, Unit
from agentguard.policy.probation import on_probation
from agentguard.stores.base import GRANTED, Granted, Reserve
from agentguard.worker import Worker, after_fork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from agentguard.core.call import Call, Target
    from agentguard.core.caller import Caller
    from agentguard.core.engine import Left, Reply
    from agentguard.core.explain import RuleTrace
    from agentguard.core.limits import LimitRow
    from agentguard.core.pricing import PriceSource
    from agentguard.core.rights import Rights
    from agentguard.events import Event, Observer, SpanObserver
    from agentguard.policy.model import Policy
    from agentguard.stores.base import Balance, Isolation, Store

    AwaitStore = Callable[[Reserve], Awaitable[Granted | Refused]]


class Clock(Protocol):
    """Time, passed in."""

    def time(self) -> float:
        """Unix time in seconds, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


SYSTEM_CLOCK: Clock = time  # the module is a Clock

logger: logging.Logger = logging.getLogger("agentguard")

_SCOPED: contextvars.ContextVar[tuple[Guard, ...]] = contextvars.ContextVar("agentguard_guards", default=())

_DENIALS: dict[Reason, type[Denied]] = {
    Reason.EGRESS: EgressDenied,
    Reason.TOOL: ToolDenied,
    Reason.MODEL: ModelDenied,
    Reason.KEY: KeyDenied,
    Reason.BUDGET: BudgetExceeded,
    Reason.RATE: RateLimited,
    Reason.ISOLATED: AgentIsolated,
    Reason.STORE: BudgetExceeded,
}

_SWEEP_SECONDS = 1.0
_RENEW_SECONDS = 60.0
_COLLECT_SECONDS = 1.0


def scoped_guard() -> Guard | None:
    """The guard of the innermost `with guard:` block of this context."""
    scoped = _SCOPED.get()
    return scoped[-1] if scoped else None


class Guard:
    """Admits calls under a policy.

    Args:
        policy: What may be done.
        store: Where counters live. None: in memory, for this guard alone.
        observers: Who is told of events.
        clock: Time.
        agent: The agent of callers that have entered none. None: the only one of the policy, if it has only one.
        prices: The price list. None: the one that is bundled, loaded when a price is first needed.

    Raises:
        PolicyError: The policy enforces and names no agent, or `agent` is not one of its.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        store: Store | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock = SYSTEM_CLOCK,
        agent: str | None = None,
        prices: PriceSource | None = None,
    ) -> None:
        if store is None:
            from agentguard.stores.memory import MemoryStore

            store = MemoryStore(clock)
        if prices is None:
            from agentguard.prices import BundledPrices

            prices = BundledPrices()
        self.store = store
        self._await_store: AwaitStore | None = getattr(store, "areserve", None)
        self.clock = clock
        self.prices = prices
        self.estimator: Estimator = Estimator()
        self._agent = agent
        self._unnamed_session = f"process-{os.getpid()}-{os.urandom(4).hex()}"
        self.ids: Iterator[str] = _ids()
        self.changes: Changes = Changes(store)
        self._lefts = Lefts(self._read_lefts, clock.monotonic, OLD_SECONDS if store.may_block else 0.0)
        self.orders: Changes = Changes()  # an operator's: isolations, and policies
        self._open: dict[str, Admission] = {}
        self._ended: queue.SimpleQueue[tuple[Admission, Ending]] = queue.SimpleQueue()
        self._roomy: queue.SimpleQueue[tuple[Admission, Ending]] = queue.SimpleQueue()
        self._unsettled: list[tuple[Admission, Ending]] = []
        self._collected = self._swept = self._renewed = -float("inf")
        self._survivors: frozenset[str] = frozenset()
        self._is_closed = self._has_missed = False
        self._chores: list[Callable[[], None]] = []
        self._worker = Worker(self._tick)
        self.spans: SpanObserver | None = None
        self.observe(*observers)
        self.isolated: Mapping[str, Isolation] = {}
        self._probation: frozenset[str] = frozenset()
        self._membership = Membership(store, self._described, self._act_on, clock.time)
        self.adopt(policy)
        self.refresh_isolations()
        after_fork(self, Guard.restart)

    # --- the policy -------------------------------------------------------------------------------------------------

    def adopt(self, policy: Policy, digest: str = "") -> None:
        """Put a policy in force, at once and for every later call. Counters keep what they have counted.

        Raises:
            PolicyError: As for the constructor; the old policy stays.
        """
        if policy.mode is Mode.ENFORCE and not policy.agents:
            raise PolicyError(
                policy.path or "policy",
                [Problem(policy.path or "policy", 0, 0, "agents", "an enforcing policy names at least one agent")],
            )
        if self._agent is not None and policy.agents and policy.agent(self._agent) is None:
            named = ", ".join(repr(agent.name) for agent in policy.agents)
            raise PolicyError(
                policy.path or "policy",
                [Problem(policy.path or "policy", 0, 0, "agents", f"agent {self._agent!r} is not among {named}")],
            )
        self._adopted = policy
        self._digest = ""
        self._put_in_force()
        self.orders.announce()
        agents = tuple(agent.name for agent in policy.agents)
        self.loaded: PolicyLoaded = PolicyLoaded(self.clock.time(), policy.path, digest, policy.mode, agents)
        self.tell(self.loaded)

    def _put_in_force(self) -> None:
        """Compile the policy that was adopted, with the limits of agents on probation halved."""
        self.in_force: InForce = InForce(on_probation(self._adopted, self._probation), self._agent, self._unnamed_session)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.in_force.policy

    @property
    def home_agent(self) -> str | None:
        """The agent of callers that have entered none; None when the policy names several and none was chosen."""
        home = self.in_force.home
        return home[0] if home else None

    def rights(self, caller: Caller) -> Rights:
        """What a caller may do: what all of its agents may. Without an agent that the policy names: what every agent may."""
        return self.in_force.rights(caller.agents)

    def identified(self, caller: Caller) -> Caller:
        """The caller, as the process's own agent when it has entered none."""
        return self.in_force.identified(caller)

    # --- asking -----------------------------------------------------------------------------------------------------

    def check(self, call: Call, caller: Caller | None = None) -> Decision:
        """What would be decided now. Reserves nothing and waits for nothing, so the answer may be stale at once.

        Args:
            call: The call.
            caller: Who would make it; None: whoever asks.
        """
        who = self.identified(CALLER.get() if caller is None else caller)
        flow = admission(call, who, self.rights(who), self.estimator, self.prices, self.isolated)
        reply: Reply = None
        while True:
            try:
                ask = flow.send(reply)
            except StopIteration as end:
                return cast("Decision", end.value.decision)
            match ask:
                case ReadRows():
                    reply = self._read_lefts(ask.rows)
                case ReserveRows():
                    reply = self._would_refuse(ask)
                case AwaitChange():
                    reply = ask.refused

    def _would_refuse(self, ask: ReserveRows) -> Refused | None:
        charged = {charge.row: charge.amount for charge in ask.charges}
        rows = [row for row in ask.rows if row.key in charged]
        for row, left in zip(rows, self._read_lefts(rows), strict=True):
            amount = charged[row.key]
            if amount > left.at_least:
                limit = row.limit.amount
                kind = RefusalKind.EXHAUSTED if amount > left.at_most else RefusalKind.CONTENDED
                return Refused(kind, row.key, limit, limit - left.at_most, left.at_most - left.at_least, amount)
        return None

    def explain(self, call: Call, caller: Caller | None = None) -> Sequence[RuleTrace]:
        """Every rule that was looked at for a call, in order, with what it said."""
        from agentguard.core.explain import explain

        who = self.identified(CALLER.get() if caller is None else caller)
        rights = self.rights(who)
        rows = rights.account(call, who).rows
        counted = {balance.row: balance for balance in self.store.read([row.key for row in rows])}
        return explain(call, who, rights, self.isolated, counted)

    # --- admitting --------------------------------------------------------------------------------------------------

    @contextmanager
    def admit(self, call: Call, *, wait: float | None = None) -> Iterator[Admission]:
        """Admit a call for the duration of a block, and settle it at the end (`Admission.settle` says what it used).

        Args:
            call: The call.
            wait: For how many seconds at most to wait for room, where there will be some by then; 0: not at all. None: as the
                `agentguard.waiting()` around says, else the policy (`limits.wait` and `limits.contention_wait`).

        Raises:
            Denied: The call may not be made; nothing was taken.
            StoreUnavailable: The store gave no answer in time, and a limit of the call is `on_store_down: closed`.
        """
        admitted = self.begin(call, wait=wait)
        if self.spans is not None:
            self.spans.silence(admitted.span, call)
        with admitted, InProgress(admitted):
            yield admitted

    @asynccontextmanager
    async def aadmit(self, call: Call, *, wait: float | None = None) -> AsyncIterator[Admission]:
        """Like `admit`, without blocking the event loop."""
        admitted = await self.abegin(call, wait=wait)
        if self.spans is not None:
            self.spans.silence(admitted.span, call)
        with admitted, InProgress(admitted):
            yield admitted

    def begin(self, call: Call, *, wait: float | None = None) -> Admission:
        """Admit a call whose end the caller will tell: `Admission.settle`. Waits and raises as `admit` does."""
        asking = Asking(self, call, Owner(threading.get_ident(), None), wait)
        try:
            while True:
                ask = asking.next()
                match ask:
                    case ReserveRows():
                        asking.reply = self._reserve(Reserve(asking.id, ask.charges, ask.subjects, asking.reports, ask.rows), ask)
                    case ReadRows():
                        asking.reply = self._lefts.of(ask.rows, may_be_old=ask.may_be_old)
                    case AwaitChange():
                        asking.reply = asking.wait(ask)
                    case None:
                        return self._admitted(asking)
        finally:
            if asking.watch is not None:
                asking.close()

    async def abegin(self, call: Call, *, wait: float | None = None) -> Admission:
        """Like `begin`, without blocking the event loop."""
        task = asyncio.current_task()
        asking = Asking(self, call, Owner(threading.get_ident(), None if task is None else weakref.ref(task)), wait)
        try:
            while True:
                ask = asking.next()
                match ask:
                    case ReserveRows():
                        request = Reserve(asking.id, ask.charges, ask.subjects, asking.reports, ask.rows)
                        asking.reply = await self._areserve(request, ask)
                    case ReadRows():
                        asking.reply = self._lefts.of(ask.rows, may_be_old=ask.may_be_old)
                    case AwaitChange():
                        asking.reply = await asking.await_change(ask)
                    case None:
                        return self._admitted(asking)
        finally:
            if asking.watch is not None:
                asking.close()

    def _admitted(self, asked: Asking) -> Admission:
        call, caller, outcome = asked.call, asked.caller, asked.outcome
        waited = 0.0 if asked.watch is None else asked.waited
        if outcome.decision is not ALLOW:
            self._refuse(asked.id, call, caller, outcome.decision, waited)
        admitted = Admission(self, asked.id, call, caller, asked.rights, outcome, asked.owner)
        self._open[asked.id] = admitted
        if not self._membership.has_joined:
            self.join()
        if self.isolated:  # since it was admitted, perhaps: whoever isolates has not seen it among the open calls
            self._cut_isolated(admitted)
        estimate = outcome.estimate
        if not isinstance(call, ToolCall):
            if self.spans is not None:
                admitted.span = self.spans.begin("call", "", call, caller)
            self._worker.tell(
                CallAdmitted(
                    admitted.started,
                    asked.id,
                    call,
                    caller,
                    estimate.input_tokens + (estimate.output_tokens or 0),
                    estimate.nanos,
                    waited,
                )
            )
        return admitted

    def _refuse(self, id: str, call: Call, caller: Caller, decision: Decision, waited: float) -> None:
        """Raise the denial; in report mode, record it and let the call go."""
        if decision.facts.resets_at is not None:
            left = max(decision.facts.resets_at - self.clock.time(), 0.0)
            decision = decision._replace(facts=decision.facts._replace(retry_after=left))
        if waited:
            decision = after_waiting(decision, waited)
        enforced = self.policy.mode is Mode.ENFORCE
        self.tell(
            CallDenied(
                self.clock.time(), id, call, caller, decision, enforced, None if self.spans is None else self.spans.around()
            )
        )
        if enforced:
            raise denial(decision, call)

    def refuses_hop(self, admitted: Admission, target: Target) -> Decision | None:
        """Judge one hop of an admitted call. A refusal is told; None when it may go, as always in report mode."""
        refusal = admitted.rights.refuses_target(target, admitted.caller, is_llm=isinstance(admitted.call, LLMCall))
        if refusal is None:
            return None
        enforced = self.policy.mode is Mode.ENFORCE
        self.tell_denied(admitted, refusal, target, enforced=enforced)
        return refusal if enforced else None

    # --- the store --------------------------------------------------------------------------------------------------

    def _reserve(self, request: Reserve, ask: ReserveRows) -> Refused | None:
        if self.in_force.reports or not self._ended.empty():
            self._settle_due()
        try:
            self.in_force.register(ask.rows, self.store)
            answer = self.store.reserve(request)
        except StoreUnavailable as error:
            if not self._goes_uncounted(ask, error):
                raise
            return None
        return None if answer is GRANTED else self._granted(answer)

    async def _areserve(self, request: Reserve, ask: ReserveRows) -> Refused | None:
        """Decide inline while the store is free; wait for it as it knows how to, else in a thread."""
        if not self.store.may_block:
            return self._reserve(request, ask)
        self._settle_due()
        if self._await_store is not None:
            try:
                self.in_force.register(ask.rows, self.store)
                return self._granted(await self._await_store(request))
            except StoreUnavailable as error:
                if not self._goes_uncounted(ask, error):
                    raise
                return None
        try:
            self.in_force.register(ask.rows, self.store)
            answer = self.store.try_reserve(request)
        except StoreUnavailable:
            answer = None
        if answer is not None and not (isinstance(answer, Refused) and answer.kind is RefusalKind.UNREGISTERED):
            return self._granted(answer)
        reserving = asyncio.get_running_loop().run_in_executor(None, self._reserve, request, ask)
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # The thread may yet be granted what nobody waits for any more.
            reserving.add_done_callback(
                lambda done: done.cancelled() or done.exception() or done.result() or self.store.settle(request.id, _NOTHING)
            )
            raise

    def withhold(self, admitted: Admission) -> None:
        """Refuse the result of a call that was isolated while it was made. It is charged.

        Raises:
            AgentIsolated: Always.
        """
        decision = admitted.is_cut
        assert decision is not None  # noqa: S101 - asked for by `Admission.finish` only
        self.tell_denied(admitted, decision)
        error = denial(decision, admitted.call)
        admitted.settle_later(outcome="cut", error=type(error).__name__, decision=decision)
        raise error

    def _granted(self, answer: Granted | Refused) -> Refused | None:
        if isinstance(answer, Refused):
            if answer.kind is RefusalKind.UNREGISTERED:
                # The store has lost what it was told. An unknown balance is not an empty one, so this call is refused.
                self.in_force.forget_registrations()
            if answer.kind is RefusalKind.EXHAUSTED and not self._roomy.empty():
                return answer._replace(kind=RefusalKind.CONTENDED)  # calls that have ended are yet to make room, and to teach
            return answer
        for crossed in answer.crossed:
            self.tell(BudgetThresholdCrossed(self.clock.time(), crossed))
        return answer.refused

    def _read_lefts(self, rows: Sequence[LimitRow]) -> Sequence[Left]:
        try:
            self.in_force.register(rows, self.store)
            self.settle_ended()
            balances = {balance.row: balance for balance in self.store.read([row.key for row in rows])}
        except StoreUnavailable:
            if not self.in_force.reports:
                raise
            balances = {}
        return [left_of(row, balances.get(row.key)) for row in rows]

    def _goes_uncounted(self, ask: ReserveRows, error: StoreUnavailable) -> bool:
        """Whether a call is made though the store gives no answer: if each of its limits says `on_store_down: open`.

        A call without limits is not: its agent may be isolated. In report mode every call is, since nothing is refused there.
        """
        if self.in_force.reports:
            if not self._has_missed:
                self._has_missed = True
                logger.warning("agentguard: calls go on uncounted in report mode while the store does not answer: %s", error)
            return True
        charged = {charge.row for charge in ask.charges}
        return bool(charged) and all(row.limit.on_store_down is OnStoreDown.OPEN for row in ask.rows if row.key in charged)

    def held_by(self, owner: Owner, row: str) -> int:
        """What the open calls of one thread or task hold of a row."""
        mine = [admitted for admitted in list(self._open.values()) if admitted.is_open and _is_same(admitted.owner, owner)]
        return sum(
            charge.amount for admitted in mine for charge in (*admitted.outcome.charges, *admitted.extended) if charge.row == row
        )

    def collect_garbage(self, owner: Owner | None = None) -> bool:
        """Free streams that a bare `break` has left: the SDK's stream and its generator are a cycle.

        Once a second at most; for an owner, whenever it has a stream that no collection has seen yet.

        Returns:
            Whether it was done.
        """
        now = self.clock.monotonic()
        streams = [other for other in list(self._open.values()) if other.is_streaming and other.is_open]
        if owner is None:
            is_due = bool(streams) and now - self._collected >= _COLLECT_SECONDS
        else:
            is_due = any(other.id not in self._survivors and _is_same(other.owner, owner) for other in streams)
        if is_due:
            self._collected = now
            gc.collect()
            self._survivors = frozenset(other.id for other in streams if other.is_open)
        return is_due

    # --- the end of a call ------------------------------------------------------------------------------------------

    def settle(self, admitted: Admission, ending: Ending) -> None:
        """Charge a call that has ended, tell observers, and learn from what the provider reported."""
        admitted.read()
        usage = admitted.used(ending)
        nanos = admitted.cost(usage)
        try:
            settled = self.store.settle(admitted.id, Amounts(usage.total_tokens, nanos or 0))
        except StoreUnavailable as error:
            # The call was made, and its answer is the caller's. What it holds stays held until the store is back.
            logger.warning("agentguard: a call could not be settled, its reservation stands until it can: %s", error)
            self._unsettled.append((admitted, ending))
            return
        finally:
            self._open.pop(admitted.id, None)
        now = ending.at
        for crossed in settled.crossed:
            self.tell(BudgetThresholdCrossed(now, crossed))
        call, estimate = admitted.call, admitted.estimate
        if isinstance(call, ToolCall):
            return
        reserved = estimate.input_tokens + admitted.reserved_output
        if isinstance(call, LLMCall) and not usage.estimated:
            self.estimator.learn(call, usage, admitted.output_bytes)
            if usage.total_tokens > reserved and estimate.output_tokens is not None:
                self.tell(EstimateBreached(now, admitted.id, call, admitted.caller, reserved, usage.total_tokens))
        self.tell(
            CallSettled(
                now,
                admitted.id,
                call,
                admitted.caller,
                admitted.started,
                usage,
                nanos,
                ending.outcome,
                ending.error,
                admitted.answer,
                tuple(admitted.attempts),
                admitted.first_chunk_at,
                reserved,
                admitted.written_bound,
                ending.decision,
                admitted.span,
            )
        )

    def settle_later(self, admitted: Admission, ending: Ending) -> None:
        """Queue an ending. Safe in a finalizer: `SimpleQueue.put` is reentrant, and nothing here takes a lock.

        An ending that is known to make room only is not needed before a decision, unless that would be a refusal.
        """
        (self._ended if admitted.unread is None else self._roomy).put((admitted, ending))
        if not self._worker.is_woken:
            self._worker.wake()

    def settle_ended(self) -> None:
        """Charge all calls whose endings are queued."""
        self._settle_due()
        self.settle_roomy()

    def _settle_due(self) -> None:
        """Charge the calls that a decision has to know of. In report mode, all: nothing is asked twice there."""
        self._settle_from(self._ended)
        if self.in_force.reports:
            self._settle_from(self._roomy)

    def settle_roomy(self) -> bool:
        """Charge the calls that have ended and make room. Returns whether there were any."""
        return self._settle_from(self._roomy)

    def _settle_from(self, endings: queue.SimpleQueue[tuple[Admission, Ending]]) -> bool:
        found = False
        while not endings.empty():
            try:
                admitted, ending = endings.get_nowait()
            except queue.Empty:
                break
            found = True
            self.settle(admitted, ending)
        return found

    def extend(self, admitted: Admission, *, input_tokens: int = 0, output_tokens: int = 0) -> Decision | None:
        """Hold more tokens for an open call: of output as many as are left, so that nothing strands; of input all.

        Returns:
            None when at least one token was granted (`Admission.reserved_output` has grown by what was); otherwise the
            refusal, and nothing was taken. In report mode everything is granted.
        """
        estimate = admitted.estimate
        tokens = input_tokens + output_tokens
        nanos = bound_nanos(estimate.price, input_tokens, output_tokens) if estimate.price else 0
        by_unit = {Unit.TOKENS: tokens, Unit.USD: nanos}
        charges = tuple(Charge(row.key, amount) for row in admitted.rows if (amount := by_unit.get(row.limit.unit, 0)))
        granted = output_tokens
        refusal = self._over_call_limits(admitted, 1 if output_tokens else 0)
        if refusal is None and charges:
            answer = self.store.extend(admitted.id, charges)
            if isinstance(answer, Granted) and answer.charges:
                admitted.extended += answer.charges
                granted = max(output_tokens * answer.charges[0].amount // charges[0].amount, 1)
                if input_tokens:  # an attempt is sent whole or not at all; what was taken is given back when the call settles
                    answer = self.store.extend(admitted.id, charges)
            elif isinstance(answer, Granted):
                admitted.extended += charges
            if isinstance(answer, Refused):
                refusal = refusal_of(answer, admitted.call, admitted.caller, admitted.rows, is_cut=True)
        if refusal is not None and self.policy.mode is Mode.ENFORCE:
            return refusal
        admitted.reserved_output += granted if output_tokens else 0
        return None

    def _over_call_limits(self, admitted: Admission, more_output: int) -> Decision | None:
        estimate = admitted.estimate
        output = admitted.reserved_output + more_output
        nanos = bound_nanos(estimate.price, estimate.input_tokens, output) if estimate.price else 0
        for limit in admitted.rights.call_limits:
            if decision := over_call_limit(limit, estimate.input_tokens + output, nanos, admitted.call, admitted.caller):
                return decision
        return None

    def tell_denied(
        self, admitted: Admission, decision: Decision, target: Target | None = None, *, enforced: bool = True
    ) -> None:
        """Tell observers that an admitted call was refused further on: a hop of it to a target, or the rest of its stream."""
        call = admitted.call
        if target is not None and not isinstance(call, ToolCall):
            call = call._replace(target=target)
        self.tell(CallDenied(self.clock.time(), admitted.id, call, admitted.caller, decision, enforced, admitted.span))

    def propose(self, admitted: Admission, tools: Iterable[str]) -> Decision | None:
        """Judge tools that a model proposed. Each forbidden one is told; returns a refusal when the policy refuses proposals."""
        refusal = None
        for tool in tools:
            decision = admitted.rights.refuses(ToolCall(tool), admitted.caller)
            if decision is None:
                continue
            self.tell(ToolProposed(self.clock.time(), admitted.id, admitted.call, admitted.caller, tool, decision))
            if self.policy.mode is Mode.ENFORCE and any(agent.tools.proposed == "deny" for agent in admitted.rights.agents):
                refusal = refusal or decision
        return refusal

    # --- isolation and the ledger -----------------------------------------------------------------------------------

    def isolate(self, subject: str, *, by: str, why: str, mode: str = "block-all") -> None:
        """Stop a subject everywhere: its calls are refused, its streams are closed, what is in flight is withheld.

        Args:
            subject: `agent:NAME`, or NAME alone; `session:ID`, `user:ID`, `key:NAME`, `fleet`.
            by: Who does it.
            why: What for.
            mode: `block-all`, or `llm-only`: of an agent or the fleet only the calls to models are stopped.
        """
        from agentguard.fleet import isolate  # incidents are rare, and starting is not

        self.tell(isolate(self.store, subject_of(subject), IsolationMode(mode), by=by, why=why, now=self.clock.time()))
        self.refresh_isolations()

    def restore(self, subject: str, *, by: str, why: str = "", probation_seconds: float = 0.0) -> None:
        """Let an isolated subject go on; an agent with half of its limits for so long."""
        from agentguard.fleet import restore

        self.tell(restore(self.store, subject_of(subject), by=by, why=why, now=self.clock.time(), probation=probation_seconds))
        self.refresh_isolations()

    def refresh_isolations(self) -> None:
        """Read who is isolated, and stop the open calls of those who are."""
        self._membership.look()

    def join(self) -> None:
        """Be a member of the fleet from now on: hear of isolations as they are made, and be listed."""
        self._membership.join()
        self._worker.start()
        self._worker.wake()  # it says that we are here

    def leave(self) -> None:
        """Be listed no more: this process ends."""
        self._membership.leave()

    def _described(self) -> Described:
        self._digest = self._digest or digest_of(self._adopted)
        return Described(self.home_agent or "", self._digest, self._adopted.mode)

    def _act_on(self, isolations: Mapping[str, Isolation]) -> None:
        is_news = isolations != self.isolated
        self.isolated = isolations
        probation = agents_on_probation(isolations, self.clock.time()) if isolations else frozenset()
        if probation != self._probation:
            self._probation = probation
            self._put_in_force()
            is_news = True
        if is_news:
            self.orders.announce()
        if isolations:
            calls = list(self._open.values())
            for admitted in calls:
                self._cut_isolated(admitted)
            spared = {id(admitted.connection) for admitted in calls if admitted.is_cut is None}
            for admitted in calls:
                if admitted.is_cut is not None and id(admitted.connection) not in spared:
                    admitted.hang_up()
        self.changes.announce()

    def _cut_isolated(self, admitted: Admission) -> None:
        """Have the rest of an open call refused if it is a subject's that is isolated. It stays so when that is restored."""
        if admitted.is_cut is None and admitted.is_open and not self.in_force.reports:
            admitted.is_cut = refused_by_isolation(admitted.call, admitted.caller, admitted.rights, self.isolated, is_cut=True)

    @property
    def ledger(self) -> SettledLedger:
        """The counters, as a budget block reads them."""
        return SettledLedger(self)

    def usage(self, subject: str | None = None) -> Sequence[tuple[LimitRow, Balance]]:
        """The ledger: every limit with its balance, or those of one subject."""
        self.settle_ended()
        return [
            (row, balance)
            for row, balance in self.store.rows()
            if subject is None or row.subject == subject or row.subject.endswith(f"@{subject}")
        ]

    # --- observers and life -----------------------------------------------------------------------------------------

    def observe(self, *observers: Observer) -> None:
        """Add observers. One that has `begin` and `current` is there when calls start; there is one such at most."""
        for observer in observers:
            self._worker.add(observer)
            if hasattr(observer, "begin"):
                self.spans = cast("SpanObserver", observer)

    def chore(self, fn: Callable[[], None]) -> None:
        """Have something done about every second, on the worker."""
        self._chores.append(fn)
        self._worker.start()

    @property
    def dropped_events(self) -> int:
        """Events that no observer was told of, because too many were waiting."""
        return self._worker.dropped

    def tell(self, event: Event) -> None:
        """Tell observers, off the call path."""
        self._worker.tell(event)

    def flush(self, seconds: float = 2.0) -> bool:
        """Settle what has ended and tell what is queued. False when time ran out."""
        self.settle_ended()
        return self._worker.flush(seconds)

    def _tick(self) -> None:
        self.settle_ended()
        now = self.clock.monotonic()
        if now - self._swept >= _SWEEP_SECONDS:
            self._swept = now
            unsettled, self._unsettled = self._unsettled, []
            for one in unsettled:
                self._ended.put(one)
            with suppress(StoreUnavailable):  # a call that needs the store says so
                self.store.sweep()
                self.refresh_isolations()
                self._membership.beat_when_due(now)
            for chore in self._chores:
                chore()
        if now - self._renewed >= _RENEW_SECONDS:
            self._renewed = now
            self.store.renew()

    def restart(self) -> None:
        """Begin anew in a forked child: the calls in flight are the parent's."""
        self._open.clear()
        self._membership.restart()
        self._ended = queue.SimpleQueue()
        self._roomy = queue.SimpleQueue()
        self.changes = Changes(self.store)
        self.orders = Changes()
        self.ids = _ids()

    def close(self) -> None:
        """Settle what has ended, tell what is queued, and free the store."""
        if self._is_closed:
            return
        self._is_closed = True
        self.settle_ended()
        self.leave()
        self._worker.close()
        self.store.close()

    def __enter__(self) -> Self:
        _SCOPED.set((*_SCOPED.get(), self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _SCOPED.set(_SCOPED.get()[:-1])


class SettledLedger:
    """A guard's counters, with every call settled that has ended."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known."""
        self._guard.store.register(rows)

    def read(self, keys: Sequence[str]) -> Sequence[Balance]:
        """Balances of rows; unknown rows are left out."""
        self._guard.settle_ended()
        return self._guard.store.read(keys)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""
        self._guard.store.forget(keys)


def denial(decision: Decision, call: Call | None, bases: tuple[type, ...] = ()) -> Denied:
    """The exception of a decision, with further bases mixed in when it has to pass through an SDK."""
    kind = _DENIALS[decision.reason or Reason.STORE]
    if bases:
        kind = type(
            kind.__name__,
            (kind, *bases),
            {"__module__": kind.__module__, "__init__": kind.__init__, "__reduce__": kind.__reduce__},
        )
    return kind(decision, call)


_NOTHING = Amounts()


def _ids() -> Iterator[str]:
    """Names for calls: unique over the processes of a fleet, and made without a call of Python."""
    return map(f"{os.urandom(6).hex()}-{{}}".format, itertools.count(1))


def _is_same(other: Owner, mine: Owner) -> bool:
    """A task waits for itself in vain; a thread for everything that runs on it, its event loop's tasks included."""
    return other.task is mine.task if mine.task is not None else other.thread == mine.thread

"""The guard: a policy, a store, and observers. Core decides, the guard raises."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
import time
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, Self, cast

from agentguard.admission import Admission, InProgress, Owner
from agentguard.asking import Asking
from agentguard.changes import Changes
from agentguard.context import CALLER
from agentguard.core.call import LLMCall, ToolCall
from agentguard.core.decision import ALLOW, Decision, Reason, after_waiting
from agentguard.core.engine import AwaitChange, ReadRows, ReserveRows, admission, refused_by_isolation
from agentguard.core.estimate import Estimator
from agentguard.core.isolation import IsolationMode, agents_on_probation, subject_of
from agentguard.core.limits import RefusalKind, Refused
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
from agentguard.events import CallAdmitted, CallDenied, PolicyLoaded, ToolProposed
from agentguard.in_force import InForce
from agentguard.ledger import Ledger
from agentguard.membership import Described, Membership
from agentguard.open_calls import OpenCalls
from agentguard.policy.digest import digest_of
from agentguard.policy.model import Mode
from agentguard.policy.probation import on_probation
from agentguard.stores.base import Reserve
from agentguard.worker import Worker, after_fork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from agentguard.core.call import Call, Target
    from agentguard.core.caller import Caller
    from agentguard.core.engine import Reply
    from agentguard.core.explain import RuleTrace
    from agentguard.core.limits import LimitRow
    from agentguard.core.pricing import PriceSource
    from agentguard.core.rights import Rights
    from agentguard.events import Event, Observer, SpanObserver
    from agentguard.policy.model import Policy
    from agentguard.stores.base import Balance, Isolation, Store


class Clock(Protocol):
    """Time, passed in."""

    def time(self) -> float:
        """Unix time in seconds, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


SYSTEM_CLOCK: Clock = time  # the module is a Clock

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
        self.clock = clock
        self.prices = prices
        self.estimator: Estimator = Estimator()
        self._agent = agent
        self._unnamed_session = f"process-{os.getpid()}-{os.urandom(4).hex()}"
        self.ids: Iterator[str] = _ids()
        self.changes: Changes = Changes(store)
        self.orders: Changes = Changes()  # an operator's: isolations, and policies
        self.open_calls: OpenCalls = OpenCalls(clock.monotonic)
        self.ledger: Ledger = Ledger(self)
        self._swept = self._renewed = -float("inf")
        self._is_closed = False
        self._chores: list[Callable[[], None]] = []
        self.worker: Worker = Worker(self._tick)
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
                    reply = self.ledger.lefts(ask.rows)
                case ReserveRows():
                    reply = self._would_refuse(ask)
                case AwaitChange():
                    reply = ask.refused

    def _would_refuse(self, ask: ReserveRows) -> Refused | None:
        charged = {charge.row: charge.amount for charge in ask.charges}
        rows = [row for row in ask.rows if row.key in charged]
        for row, left in zip(rows, self.ledger.lefts(rows), strict=True):
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
        rows = rights.charged_rows(call, who).rows
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
                        request = Reserve(asking.id, ask.charges, ask.subjects, asking.reports, ask.rows)
                        asking.reply = self.ledger.reserve(request, ask)
                    case ReadRows():
                        asking.reply = self.ledger.left(ask.rows, may_be_old=ask.may_be_old)
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
                        asking.reply = await self.ledger.areserve(request, ask)
                    case ReadRows():
                        asking.reply = self.ledger.left(ask.rows, may_be_old=ask.may_be_old)
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
        self.open_calls.add(admitted)
        if not self._membership.has_joined:
            self.join()
        if self.isolated:  # since it was admitted, perhaps: whoever isolates has not seen it among the open calls
            self._cut_isolated(admitted)
        estimate = outcome.estimate
        if not isinstance(call, ToolCall):
            if self.spans is not None:
                admitted.span = self.spans.begin("call", "", call, caller)
            self.worker.tell(
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

    # --- isolation --------------------------------------------------------------------------------------------------

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
        if not self._membership.has_joined:
            self._membership.join()
            self._swept = -float("inf")  # the worker's next tick says that we are here, and does not wait for its second
        self.worker.start()
        self.worker.wake()

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
            calls = list(self.open_calls)
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

    def usage(self, subject: str | None = None) -> Sequence[tuple[LimitRow, Balance]]:
        """The ledger: every limit with its balance, or those of one subject."""
        return [
            (row, balance)
            for row, balance in self.ledger.rows()
            if subject is None or row.subject == subject or row.subject.endswith(f"@{subject}")
        ]

    # --- observers and life -----------------------------------------------------------------------------------------

    def observe(self, *observers: Observer) -> None:
        """Add observers. One that has `begin` and `current` is there when calls start; there is one such at most."""
        for observer in observers:
            self.worker.add(observer)
            if hasattr(observer, "begin"):
                self.spans = cast("SpanObserver", observer)

    def chore(self, fn: Callable[[], None]) -> None:
        """Have something done about every second, on the worker."""
        self._chores.append(fn)
        self.worker.start()

    @property
    def dropped_events(self) -> int:
        """Events that no observer was told of, because too many were waiting."""
        return self.worker.dropped

    def tell(self, event: Event) -> None:
        """Tell observers, off the call path."""
        self.worker.tell(event)

    def flush(self, seconds: float = 2.0) -> bool:
        """Settle what has ended and tell what is queued. False when time ran out."""
        self.ledger.settle_ended()
        return self.worker.flush(seconds)

    def _tick(self) -> None:
        self.ledger.settle_ended()
        now = self.clock.monotonic()
        if now - self._swept >= _SWEEP_SECONDS:
            self._swept = now
            self.ledger.settle_again()
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
        self.open_calls.clear()
        self.ledger.restart()
        self._membership.restart()
        self.changes = Changes(self.store)
        self.orders = Changes()
        self.ids = _ids()

    def close(self) -> None:
        """Settle what has ended, tell what is queued, and free the store."""
        if self._is_closed:
            return
        self._is_closed = True
        self.ledger.settle_ended()
        self.leave()
        self.worker.close()
        self.store.close()

    def __enter__(self) -> Self:
        _SCOPED.set((*_SCOPED.get(), self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _SCOPED.set(_SCOPED.get()[:-1])


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


def _ids() -> Iterator[str]:
    """Names for calls: unique over the processes of a fleet, and made without a call of Python."""
    return map(f"{os.urandom(6).hex()}-{{}}".format, itertools.count(1))

"""The process default: the one guard that `instrument()` puts on the call path of every client.

The only mutable module global of the package lives here.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import threading
from typing import TYPE_CHECKING, Self

from agentguard.context import BudgetBlock, is_switched_off, once
from agentguard.errors import AgentGuardError, EnforcementUnavailable, NotInstrumented, PolicyError, Problem, SeamError
from agentguard.events import GuardDisabled, PolicyLoaded, SeamChanged
from agentguard.guard import SYSTEM_CLOCK, Guard, scoped_guard
from agentguard.policy.model import Mode, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from decimal import Decimal
    from types import TracebackType

    from agentguard.egress.in_process import InProcess
    from agentguard.events import Observer
    from agentguard.integrations._seam import Seams, SeamStatus
    from agentguard.policy.reload import PolicyFile
    from agentguard.stores.base import Store

    StrPath = str | os.PathLike[str]

logger = logging.getLogger("agentguard")

_lock = threading.RLock()
_current: Instrumentation | None = None


class Instrumentation:
    """What `instrument()` has put in place. As a context manager it is taken away at the end of the block.

    Attributes:
        guard: The guard that decides.
        asked: What `instrument()` was asked for.
        is_disabled: Whether AGENTGUARD_DISABLED has switched everything off.
    """

    def __init__(self, guard: Guard, seams: Seams | None, remove: Callable[[], None], close: Callable[[], None]) -> None:
        self.guard = guard
        self.is_disabled: bool = seams is None
        self.asked: Mapping[str, object] = {}
        self._seams = seams
        self._remove = remove
        self._close = close

    def ignores(self, **asked: object) -> list[str]:
        """The names of what another `instrument()` asks for and does not get."""
        guard = self.guard
        has = {**self.asked, "agent": guard.home_agent, "mode": guard.policy.mode}
        return [
            name
            for name, value in asked.items()
            if value is not None and value != has.get(name) and not (name == "policy" and _is_in_force(value, guard))
        ]

    def status(self) -> list[SeamStatus]:
        """How every seam of an installed library stands: hooked, fallback, missing, lost, or waiting for its import."""
        return [] if self._seams is None else self._seams.status()

    def uninstrument(self) -> None:
        """Take our wrappers off every call path, tell what is queued, and close the guard. Twice is once."""
        global _current
        with _lock:
            if _current is self:
                _current = None
            self._seams = None
        self._remove()
        self.guard.close()
        self._close()
        atexit.unregister(self.guard.flush)
        atexit.unregister(self.guard.leave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.uninstrument()


def instrument(
    policy: Policy | Guard | StrPath | None = None,
    *,
    agent: str | None = None,
    mode: str | None = None,
    store: Store | str | None = None,
    egress: str | None = None,
    observers: Iterable[Observer] = (),
    only: Collection[str] | None = None,
) -> Instrumentation:
    """Guard every LLM call and HTTP call of this process. Idempotent: a second call returns what the first has put in place.

    What a second call asks for beyond that is ignored, and a warning says so.

    Args:
        policy: A `Policy`, the path of a policy file, or a `Guard` of your own. None: AGENTGUARD_POLICY, else `agentguard.yaml`
            (or `.toml`, or `[tool.agentguard]` in pyproject.toml) in the working directory; else nothing is refused, and
            one warning says so.
        agent: The agent of callers that have entered none. None: AGENTGUARD_AGENT, else the only one of the policy.
        mode: `enforce` or `report`; outranks AGENTGUARD_MODE, which outranks the policy.
        store: A `Store`, or a URL such as `memory://`. None: AGENTGUARD_STORE, else the policy's, else SQLite
            in the state directory.
        egress: `in_process`, `kernel` or `auto`; outranks the policy's `enforcement`.
        observers: Further observers of events.
        only: Names of libraries; only these are hooked.

    Raises:
        PolicyError: The policy does not load, or the file that was named does not exist.
        SeamError: A library is imported whose calls could not be guarded, and the policy enforces.
        EnforcementUnavailable: Kernel enforcement was asked for, and is not to be had.
        StoreUnavailable: The store cannot be opened.
    """
    global _current
    with _lock:
        if _current is None:
            _current = _build(policy, agent, mode, store, egress, observers, only)
            _current.asked = {"policy": policy, "store": store, "egress": egress, "only": only}
        elif ignored := _current.ignores(policy=policy, agent=agent, mode=mode, store=store, egress=egress, only=only):
            logger.warning(
                "agentguard: instrument() was called again, and what it asks for otherwise is ignored: %s. This process stays "
                "guarded as it is%s; call agentguard.uninstrument() first to begin anew.",
                ", ".join(ignored),
                f", by {_current.guard.policy.path}" if _current.guard.policy.path else "",
            )
        return _current


def uninstrument() -> None:
    """Undo `instrument()`. Without it, nothing happens."""
    if _current is not None:
        _current.uninstrument()


def find_guard() -> Guard | None:
    """The guard in scope: that of the innermost `with guard:` block, else the process default; None without either."""
    scoped = scoped_guard()
    if scoped is not None:
        return scoped
    current = _current
    return None if current is None or current.is_disabled else current.guard


def current_guard() -> Guard:
    """The guard in scope.

    Raises:
        NotInstrumented: There is none.
    """
    guard = find_guard()
    if guard is None:
        msg = "no guard is in scope: call agentguard.instrument() first, or enter `with guard:`"
        raise NotInstrumented(msg)
    return guard


@once
def budget(
    usd: Decimal | str | int | None = None, *, tokens: int | None = None, calls: int | None = None
) -> Iterator[BudgetBlock]:
    """Bound what happens inside of a `with` block, over and above the policy.

    Args:
        usd: Money, as text or Decimal; a float is refused, for money is exact.
        tokens: Tokens, input and output together.
        calls: Logical calls, LLM and others.

    Yields:
        The block: `b.spent.tokens`, `b.remaining.usd`.

    Raises:
        NotInstrumented: No guard is in scope, so that nothing would hold the budget.
    """
    guard = current_guard()
    with BudgetBlock(guard.ledger, usd, tokens, calls).entered() as block:
        yield block


def _build(
    policy: Policy | Guard | StrPath | None,
    agent: str | None,
    mode: str | None,
    store: Store | str | None,
    egress: str | None,
    observers: Iterable[Observer],
    only: Collection[str] | None,
) -> Instrumentation:
    if is_switched_off():
        return _disabled()
    if isinstance(policy, Guard):
        guard, file = policy, None
        guard.observe(*observers)
    else:
        guard, file = _guard_for(policy, agent, mode, store)
        guard.observe(*observers)
    named = store if isinstance(store, str) else None
    is_held = _hold_egress(guard, egress, named)
    close_record = _keep_record(guard)
    close_telemetry = _telemetry(guard)
    guard.tell(guard.loaded)  # when the guard was made, none of these observers was there
    stop_telling = _tell_kernel_refusals(guard) if is_held else None
    net, below = _egress(is_held=is_held)
    seams = _seams(guard, only)
    try:
        seams.install()
    except SeamError:
        seams.remove()
        guard.close()
        raise
    below.install()
    net.install()
    if file is not None:
        guard.chore(lambda: _reload(guard, file, _chosen_mode(mode), named, is_held=is_held))

    def remove() -> None:
        net.remove()
        below.remove()
        seams.remove()

    def close() -> None:
        if stop_telling is not None:
            stop_telling()
        close_record()
        close_telemetry()

    installed = Instrumentation(guard, seams, remove, close)
    guard.join()
    atexit.register(guard.leave)
    atexit.register(guard.flush)  # runs first: what calls have used is told before the rest is given back
    return installed


def _is_in_force(policy: object, guard: Guard) -> bool:
    """Whether a policy, or the file that it names, is the one that a guard has adopted."""
    if isinstance(policy, (str, os.PathLike)):
        return bool(guard.policy.path) and os.path.realpath(policy) == os.path.realpath(guard.policy.path)
    return policy in (guard, guard.policy)


def _disabled() -> Instrumentation:
    """Switched off: nothing is hooked, and the record says so."""
    guard = Guard(Policy(mode=Mode.REPORT))
    close_record = _keep_record(guard)
    guard.tell(GuardDisabled(SYSTEM_CLOCK.time(), "AGENTGUARD_DISABLED"))
    guard.flush()
    logger.warning("agentguard is switched off by AGENTGUARD_DISABLED: nothing is guarded")
    return Instrumentation(guard, None, lambda: None, close_record)


def _guard_for(
    policy: Policy | StrPath | None, agent: str | None, mode: str | None, store: Store | str | None
) -> tuple[Guard, PolicyFile | None]:
    file = None
    if not isinstance(policy, Policy):
        from agentguard.policy.reload import PolicyFile, find_policy

        path = find_policy(policy)
        if path is None:
            logger.warning(
                "agentguard: no policy was named and no agentguard.yaml was found, so calls are recorded and NOTHING IS REFUSED; "
                "write one with `agentguard init`"
            )
            policy = Policy(mode=Mode.REPORT)
        else:
            file = PolicyFile(path)
            policy = file.load()
    chosen = _chosen_mode(mode)
    if chosen is not None:
        policy = dataclasses.replace(policy, mode=chosen)
    opened = _store_for(store or os.environ.get("AGENTGUARD_STORE") or policy.store, policy.fleet)
    return Guard(policy, store=opened, agent=agent or os.environ.get("AGENTGUARD_AGENT") or None), file


def _chosen_mode(mode: str | None) -> Mode | None:
    """The mode that outranks the policy's: the argument's, else AGENTGUARD_MODE's; None when neither says."""
    chosen = mode or os.environ.get("AGENTGUARD_MODE")
    if chosen and chosen not in set(Mode):
        raise PolicyError("mode", [Problem("mode", 0, 0, "mode", f"expected enforce or report, found {chosen!r}")])
    return Mode(chosen) if chosen else None


def _store_for(store: Store | str | None, fleet: str) -> Store:
    if store is not None and not isinstance(store, str):
        return store
    from agentguard.stores import open_store

    if store is None:
        from agentguard.stores.state import default_store_url

        store = default_store_url(fleet)
    return open_store(store, fleet=fleet)


def _hold_egress(guard: Guard, egress: str | None, store: str | None) -> bool:
    """Have the kernel hold the policy's boundary, where that is asked for; whether it does."""
    from agentguard.egress.kernel.hold import chosen, hold

    try:
        return hold(guard.policy, chosen(guard.policy, egress), store=store)
    except (EnforcementUnavailable, ValueError):
        guard.close()
        raise


def _tell_kernel_refusals(guard: Guard) -> Callable[[], None]:
    from agentguard.egress.kernel.telling import tell_refusals

    return tell_refusals(guard)


def _keep_record(guard: Guard) -> Callable[[], None]:
    from agentguard.audit.record import EventLog

    log = EventLog()
    guard.observe(log)
    guard.chore(log.flush)
    return log.close


def _telemetry(guard: Guard) -> Callable[[], None]:
    from agentguard.otel.setup import set_up

    telemetry = set_up(service_name=guard.home_agent)
    guard.observe(telemetry.spans, telemetry.metrics)
    telemetry.metrics.watch_dropped(lambda: guard.dropped_events)
    telemetry.metrics.watch_budgets(guard.ledger.lasting)
    return telemetry.close


def _egress(*, is_held: bool) -> tuple[InProcess, Seams]:
    """The net under all libraries, and its seams in those that look up or start what no audit event tells of."""
    from agentguard.egress.in_process import InProcess
    from agentguard.integrations import event_loops, multiprocessing
    from agentguard.integrations._seam import Seams

    net = InProcess(find_guard, governs_children=is_held)
    below = [*event_loops.integrations(net.loops), multiprocessing.integration(net.children.started)]
    return net, Seams(below, find_guard, lambda *_: None, lambda: True)


def _seams(guard: Guard, only: Collection[str] | None) -> Seams:
    from agentguard.integrations._seam import Seams
    from agentguard.integrations.registry import integrations

    def report(library: str, seam: str, state: str) -> None:
        guard.tell(SeamChanged(SYSTEM_CLOCK.time(), library, seam, state))

    seams: Seams

    def verify(module: str) -> None:
        seams.verify(module)

    wanted = [one for one in integrations(verify) if only is None or one.library in only]
    if only is not None and (unknown := set(only) - {one.library for one in integrations(verify)}):
        msg = f"only= names libraries that agentguard does not know: {', '.join(sorted(unknown))}"
        raise ValueError(msg)
    seams = Seams(wanted, find_guard, report, lambda: guard.policy.mode is Mode.REPORT)
    return seams


def _reload(guard: Guard, file: PolicyFile, mode: Mode | None, store: str | None, *, is_held: bool) -> None:
    """Adopt a policy file that has changed; one that does not load changes nothing, and is told."""
    changed = file.poll()
    if changed is None:
        return
    problem: AgentGuardError | None = changed if isinstance(changed, PolicyError) else None
    if isinstance(changed, Policy):
        try:
            guard.adopt(changed if mode is None else dataclasses.replace(changed, mode=mode))
        except PolicyError as error:
            problem = error
    if is_held and problem is None:
        from agentguard.egress.kernel.hold import follow

        follow(guard.policy, store=store)
    if problem is not None:
        logger.error("agentguard: the changed policy is not in force, the old one stays: %s", problem)
        policy = guard.policy
        guard.tell(
            PolicyLoaded(
                SYSTEM_CLOCK.time(), policy.path, "", policy.mode, tuple(one.name for one in policy.agents), str(problem)
            )
        )

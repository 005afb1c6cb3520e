"""Who is calling: one frozen `Caller` in one ContextVar, and the blocks that change it.

Identity in a ContextVar is attribution, not authentication: code in this process can enter any agent. Losing it can
only narrow rights, since a caller without identity may do only what every agent of the policy may.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import math
import os
from contextlib import AbstractContextManager, contextmanager, suppress
from decimal import Decimal, InvalidOperation, Overflow
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

from agentguard.core.caller import NOBODY, Block, Caller
from agentguard.core.limits import LimitRow
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import NANOS_PER_USD, Limit, Rule, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextvars import Token
    from types import TracebackType

    from agentguard.core.limits import Counted

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

CALLER: contextvars.ContextVar[Caller] = contextvars.ContextVar("agentguard_caller", default=NOBODY)


OWN_TRAFFIC: contextvars.ContextVar[bool] = contextvars.ContextVar("agentguard_own_traffic", default=False)
"""True in agentguard's own code path while it talks to a configured endpoint (a collector, a store): such traffic is no call."""


WAIT: contextvars.ContextVar[float | None] = contextvars.ContextVar("agentguard_wait", default=None)
"""How many seconds a call waits for room; None: as long as the policy says."""


def reset(token: Token[Any]) -> None:
    """Make current again what was before `token` was given.

    A generator that is left open, or a coroutine that is dropped, is closed in another context, where nothing was changed.
    """
    try:  # noqa: SIM105 - on each call's path: `suppress` takes five times as long
        token.var.reset(token)
    except ValueError:
        pass


class Once(AbstractContextManager[T]):
    """A `with` block that is entered once. As a decorator it stands around each run of a function or a coroutine function."""

    def __init__(self, name: str, begin: Callable[[], AbstractContextManager[T]]) -> None:
        self._name = name
        self._begin = begin
        self._begun: AbstractContextManager[T] | None = None

    def __enter__(self) -> T:
        if self._begun is not None:
            msg = f"this {self._name}() block has been entered before: write `with {self._name}(...)` anew for each block"
            raise RuntimeError(msg)
        self._begun = self._begin()
        return self._begun.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return None if self._begun is None else self._begun.__exit__(kind, error, traceback)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Begin such a block with every run of a function.

        Raises:
            TypeError: The function is a generator, which runs in its reader's blocks.
        """
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            instead = f"write `with {self._name}(...)` inside of it, or around its reader"
            msg = f"{self._name}() cannot stand around a generator: {instead}"
            raise TypeError(msg)

        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._begin():
                return fn(*args, **kwargs)

        @functools.wraps(fn)
        async def acall(*args: P.args, **kwargs: P.kwargs) -> Any:
            with self._begin():
                return await cast("Any", fn)(*args, **kwargs)

        return cast("Callable[P, R]", acall if inspect.iscoroutinefunction(fn) else call)


def once(fn: Callable[P, Iterator[T]]) -> Callable[P, Once[T]]:
    """Make of a generator that yields once a block, as `contextlib.contextmanager` does."""
    begin = contextmanager(fn)

    @functools.wraps(fn)
    def make(*args: P.args, **kwargs: P.kwargs) -> Once[T]:
        return Once(fn.__name__, lambda: begin(*args, **kwargs))

    return make


def is_switched_off() -> bool:
    """Whether whoever started this process has switched the guard off in it."""
    return os.environ.get("AGENTGUARD_DISABLED", "") not in {"", "0"}


@contextmanager
def own_traffic() -> Iterator[None]:
    """Mark what happens inside as agentguard's own traffic. Only around the sending itself, only to a configured endpoint."""
    token = OWN_TRAFFIC.set(True)
    try:
        yield
    finally:
        reset(token)


@once
def waiting(seconds: float) -> Iterator[None]:
    """Have each call inside of the block wait for room, for so long at most: for others to settle, and for windows to be over.

    A call that will not fit by then is refused at once.

    Args:
        seconds: For each call; 0: none waits. It stands in place of `limits.wait` and `limits.contention_wait`.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        msg = f"a wait is a number of seconds, such as 5 or 0.5: found {seconds!r}"
        raise TypeError(msg)
    if not 0 <= seconds < math.inf:
        msg = f"a wait is a number of seconds, and bounded: found {seconds!r}"
        raise ValueError(msg)
    token = WAIT.set(seconds)
    try:
        yield
    finally:
        reset(token)


def current_caller() -> Caller:
    """Who is calling, as far as this context knows."""
    return CALLER.get()


@contextmanager
def acting_as(caller: Caller) -> Iterator[Caller]:
    """Be another caller for the duration of a block."""
    token = CALLER.set(caller)
    try:
        yield caller
    finally:
        reset(token)


def entered_agent(caller: Caller, name: str) -> Caller:
    """The caller after entering an agent. Inside another one, the rights are what both may do."""
    agents = caller.agents if name in caller.agents[-1:] else (*caller.agents, name)
    return caller._replace(agents=agents, interaction=caller.interaction or _new_id())


class Session:
    """A conversation. Its id is `gen_ai.conversation.id`, and what `per: session` counts against."""

    __slots__ = ("id", "user")

    def __init__(self, id: str, user: str | None) -> None:
        self.id: str = id
        self.user: str | None = user

    @once
    def interaction(self, id: str | None = None) -> Iterator[str]:
        """One turn of the user: what `per: interaction` counts against."""
        with acting_as(CALLER.get()._replace(interaction=id or _new_id())) as caller:
            yield caller.interaction or ""


@once
def session(id: str | None = None, *, user: str | None = None) -> Iterator[Session]:
    """Open a session, or continue one by its id.

    Args:
        id: The conversation's id, if the application has one; otherwise one is made.
        user: The end user, on whose behalf the agent acts.
    """
    around = CALLER.get()
    opened = Session(id or _new_id(), user if user is not None else around.user)
    with acting_as(around._replace(session=opened.id, user=opened.user, interaction=None)):
        yield opened


class BlockStore(Protocol):
    """Where the rows of a budget block live: a guard's store."""

    def register(self, rows: Iterable[LimitRow]) -> None:
        """Make rows known."""

    def read(self, keys: Sequence[str]) -> Sequence[Counted]:
        """Balances of rows; unknown rows are left out."""

    def forget(self, keys: Iterable[str]) -> None:
        """Drop rows."""


class Amount(NamedTuple):
    """Amounts of a budget block. `usd` is exact; a unit that the block does not limit is None."""

    usd: Decimal | None = None
    tokens: int | None = None
    calls: int | None = None


class BudgetBlock:
    """A `with budget(...)` block: limits for what happens inside it, over and above those of the policy.

    After the block its amounts stay readable, and a call that still carries its identity is refused.
    """

    def __init__(self, store: BlockStore, usd: Decimal | str | int | None, tokens: int | None, calls: int | None) -> None:
        self.id: str = f"budget:{_new_id()}"
        wanted = (
            (Unit.USD, None if usd is None else nanos_of(usd, "usd")),
            (Unit.TOKENS, _whole(tokens, "tokens")),
            (Unit.CALLS, _whole(calls, "calls")),
        )
        rule = Rule("agentguard.budget")
        limits = [Limit(amount=amount, unit=unit, rule=rule) for unit, amount in wanted if amount is not None]
        if not limits:
            msg = "a budget block needs at least one of usd, tokens and calls"
            raise ValueError(msg)
        self._rows = tuple(LimitRow.of(self.id, limit) for limit in limits)
        self._store = store
        self._final: tuple[Amount, Amount] | None = None

    @contextmanager
    def entered(self) -> Iterator[BudgetBlock]:
        """Count calls against this block for the duration."""
        around = CALLER.get()
        self._store.register(self._rows)
        try:
            with acting_as(around._replace(blocks=(*around.blocks, Block(self.id, self._rows)))):
                yield self
        finally:
            with suppress(StoreUnavailable):  # what the block has raised says more; its rows stay, and can be read later
                self._final = self._read()
                self._store.forget([row.key for row in self._rows])

    @property
    def spent(self) -> Amount:
        """What settled calls of the block have used."""
        return (self._final or self._read())[0]

    @property
    def remaining(self) -> Amount:
        """What is left, with the amounts that calls in flight hold taken off."""
        return (self._final or self._read())[1]

    def _read(self) -> tuple[Amount, Amount]:
        known = {counted.row: counted for counted in self._store.read([row.key for row in self._rows])}
        spent: dict[str, int] = {}
        left: dict[str, int] = {}
        for key, _, limit in self._rows:
            counted = known.get(key)
            spent[limit.unit] = counted.spent if counted else 0
            left[limit.unit] = limit.amount - spent[limit.unit] - (counted.held if counted else 0)
        return _amount(spent), _amount(left)


def _amount(by_unit: dict[str, int]) -> Amount:
    nanos = by_unit.get(Unit.USD)
    return Amount(None if nanos is None else Decimal(nanos) / NANOS_PER_USD, by_unit.get(Unit.TOKENS), by_unit.get(Unit.CALLS))


def _whole(amount: object, name: str) -> int | None:
    """An amount that is counted, as its parameter `name` was given.

    Raises:
        TypeError: It is no int.
        ValueError: It is less than 1.
    """
    if amount is not None and (isinstance(amount, bool) or not isinstance(amount, int)):
        msg = f"{name} is an int, such as {name}=5000: found {amount!r}"
        raise TypeError(msg)
    if amount is not None and amount < 1:
        msg = f"{name} is at least 1: found {amount!r}"
        raise ValueError(msg)
    return amount


def nanos_of(usd: object, name: str) -> int:
    """An amount of money as its parameter `name` was given: text such as `"0.50"`, a Decimal or an int, in nano-USD.

    Raises:
        TypeError: It is a float, which is not exact, or something else.
        ValueError: It is not an amount.
    """
    if not isinstance(usd, str | int | Decimal) or isinstance(usd, bool):
        msg = f"money is exact: write {name}={str(usd)!r} or a Decimal, not {usd!r}"
        raise TypeError(msg)
    try:
        return int(Decimal(str(usd).removeprefix("$")) * NANOS_PER_USD)
    except (InvalidOperation, ValueError, OverflowError, Overflow):  # the latter: NaN, Infinity, and what is almost that
        msg = f"{name}={usd!r} is not an amount such as '0.50'"
        raise ValueError(msg) from None


def propagate(fn: Callable[P, R]) -> Callable[P, R]:
    """Carry agent, session, budget blocks and trace into another thread: `pool.submit(propagate(work), job)`.

    What is carried is the context at the time of `propagate`, not of the call.
    """
    around = contextvars.copy_context()

    @functools.wraps(fn)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        return around.copy().run(fn, *args, **kwargs)  # a copy for each call: a context can be entered once at a time

    return carried


def _new_id() -> str:
    return os.urandom(16).hex()

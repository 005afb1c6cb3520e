"""`@tool` and `agent()`: functions, coroutines, generators and async generators, each guarded for as long as it runs.

A generator sets and resets identity around each of its steps, never across a `yield`: what it set would otherwise
leak to whoever reads from it.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, cast, overload

from agentguard._default import find_guard
from agentguard.context import CALLER, entered_agent, nanos_of, reset
from agentguard.core.call import ToolCall
from agentguard.errors import AgentIsolated
from agentguard.events import ScopeEnded

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator
    from contextvars import Token
    from decimal import Decimal
    from types import TracebackType

    from agentguard.admission import Admission
    from agentguard.core.caller import Caller

P = ParamSpec("P")
R = TypeVar("R")

_REDACTED = "[redacted]"


class _Run:
    """One run of an agent or a tool. As a context manager it makes its identity and its span current, for one step."""

    def __init__(
        self, kind: str, name: str, caller: Caller, call: ToolCall | None = None, admitted: Admission | None = None
    ) -> None:
        self._kind = kind
        self._name = name
        self.caller = caller
        self._admitted = admitted
        self._guard = guard = find_guard()
        self._told_as = guard.identified(caller) if guard else caller
        self._started = guard.clock.time() if guard else 0.0
        self._spans = guard.spans if guard else None
        self._span = self._spans.begin(kind, name, call, self._told_as) if self._spans else None

    def __enter__(self) -> None:
        self._token: Token[Caller] = CALLER.set(self.caller)
        self._entered = self._spans.enter(self._span) if self._spans and self._span is not None else None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._spans and self._entered is not None:
            self._spans.leave(self._entered)
        reset(self._token)

    def finish(self) -> None:
        """The run is over, and has a result. Raises `AgentIsolated` when that is withheld."""
        admitted = self._admitted
        if admitted is not None and admitted.is_cut is not None:
            try:
                admitted.finish()
            except AgentIsolated as error:  # noted, and raised on
                self.end(error)
                raise
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """The run is over. A generator may be ended by the garbage collector, so no lock is taken here."""
        if self._admitted is not None:
            self._admitted.settle_later(outcome="complete" if error is None else "error")
        if self._guard is not None:
            name = "" if error is None else type(error).__name__
            self._guard.tell(
                ScopeEnded(self._guard.clock.time(), self._kind, self._name, self._told_as, self._started, name, self._span)
            )


def _inside(fn: Callable[P, R], start: Callable[..., _Run], astart: Callable[..., Any]) -> Callable[P, R]:
    """Wrap a function of any kind so that it runs inside of what `start`, or awaited `astart`, begins with its arguments."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        run = start(args, kwargs)
        try:
            with run:
                result = fn(*args, **kwargs)
        except BaseException as error:  # noted, and raised on
            run.end(error)
            raise
        if inspect.iscoroutine(result):  # of a function that only makes one: it has not run yet
            return _awaited(run, result)
        run.finish()
        return result

    @functools.wraps(fn)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        run = await astart(args, kwargs)
        try:
            with run:
                result = await cast("Any", fn)(*args, **kwargs)
        except BaseException as error:  # noted, and raised on
            run.end(error)
            raise
        run.finish()
        return result

    @functools.wraps(fn)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from _stepped(start(args, kwargs), cast("Any", fn)(*args, **kwargs)))

    if inspect.isasyncgenfunction(fn):
        return cast("Callable[P, R]", _agenerating(fn, astart))
    if inspect.isgeneratorfunction(fn):
        return cast("Callable[P, R]", generate)
    return cast("Callable[P, R]", acall if inspect.iscoroutinefunction(fn) else call)


async def _awaited(run: _Run, coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        with run:
            result = await coroutine
    except BaseException as error:  # noted, and raised on
        run.end(error)
        raise
    run.finish()
    return result


def _stepped(run: _Run, inner: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    sent, thrown = None, None
    try:
        while True:
            try:
                with run:
                    item = inner.send(sent) if thrown is None else inner.throw(thrown)
            except StopIteration as stop:
                run.end()
                return stop.value
            try:
                sent, thrown = (yield item), None
            except GeneratorExit:
                with run:
                    inner.close()
                run.end()
                raise
            except BaseException as error:  # noqa: BLE001 - handed on to the generator inside
                sent, thrown = None, error
    except GeneratorExit:
        raise
    except BaseException as error:  # noted, and raised on
        run.end(error)
        raise


def _agenerating(fn: Callable[..., Any], astart: Callable[..., Any]) -> Callable[..., AsyncGenerator[Any, Any]]:
    @functools.wraps(fn)
    async def agenerate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        run = await astart(args, kwargs)
        inner = fn(*args, **kwargs)
        sent, thrown = None, None
        try:
            while True:
                try:
                    with run:
                        item = await (inner.asend(sent) if thrown is None else inner.athrow(thrown))
                except StopAsyncIteration:
                    run.end()
                    return
                try:
                    sent, thrown = (yield item), None
                except GeneratorExit:
                    with run:
                        await inner.aclose()
                    run.end()
                    raise
                except BaseException as error:  # noqa: BLE001 - handed on to the generator inside
                    sent, thrown = None, error
        except GeneratorExit:
            raise
        except BaseException as error:  # noted, and raised on
            run.end(error)
            raise

    return agenerate


class agent:  # noqa: N801 - used as a word: `with agent("researcher"):` and `@agent("researcher")`
    """Be an agent, for the duration of a block or of a function's runs.

    Inside another agent, the rights are what both may do. The outermost agent opens an interaction: one turn of the user.

    Args:
        name: The agent, as the policy names it: `gen_ai.agent.name`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._runs: list[_Run] = []

    def __enter__(self) -> Self:
        run = self._start()
        run.__enter__()
        self._runs.append(run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        here = CALLER.get()  # several tasks may be inside of one `agent`: each leaves what it has entered
        run = next((one for one in reversed(self._runs) if one.caller is here), self._runs[-1])
        self._runs.remove(run)
        run.__exit__(kind, error, traceback)
        run.end(error)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Have every run of a function (coroutine, generator) be this agent's."""
        if isinstance(fn, classmethod | staticmethod):
            return cast("Callable[P, R]", type(fn)(self(fn.__func__)))

        async def astart(*_: object) -> _Run:
            return self._start()

        return _inside(fn, lambda *_: self._start(), astart)

    def _start(self) -> _Run:
        return _Run("invoke_agent", self._name, entered_agent(CALLER.get(), self._name))


@overload
def tool(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def tool(
    *, name: str | None = None, scope: str | None = None, cost_usd: Decimal | str = "0", redact: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    scope: str | None = None,
    cost_usd: Decimal | str = "0",
    redact: Collection[str] = (),
) -> Any:
    """Make a function (coroutine, generator) a tool: judged before each run, with a span of its own.

    Args:
        fn: The function, when used without arguments: `@tool`.
        name: What the policy and the trace call it; its own name by default.
        scope: The permission word that an agent needs for it.
        cost_usd: What one run costs: charged to budgets in money.
        redact: Parameters that are never recorded, even where content is.

    Raises:
        ToolDenied: At the run: the agent may not use the tool, or lacks its scope.
        BudgetExceeded: At the run: its cost does not fit.
    """
    nanos = nanos_of(cost_usd, "cost_usd")

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(fn, classmethod | staticmethod):
            return cast("Callable[..., Any]", type(fn)(decorate(fn.__func__)))
        called = str(name or getattr(fn, "__name__", type(fn).__name__))

        def asked(args: Any, kwargs: Any) -> ToolCall:
            guard = find_guard()
            captures = guard is not None and getattr(guard.spans, "captures_content", False)
            return ToolCall(called, scope, nanos, _arguments(fn, args, kwargs, redact) if captures else None)

        def start(args: Any, kwargs: Any) -> _Run:
            guard, call = find_guard(), asked(args, kwargs)
            admitted = guard.begin(call) if guard else None
            return _Run("execute_tool", called, CALLER.get()._replace(tool=called), call, admitted)

        async def astart(args: Any, kwargs: Any) -> _Run:
            guard, call = find_guard(), asked(args, kwargs)
            admitted = await guard.abegin(call) if guard else None
            return _Run("execute_tool", called, CALLER.get()._replace(tool=called), call, admitted)

        return _inside(fn, start, astart)

    return decorate if fn is None else decorate(fn)


def _arguments(fn: Callable[..., Any], args: Any, kwargs: Any, redact: Collection[str]) -> dict[str, Any]:
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = dict(kwargs)  # the call itself will say what is wrong with them
    return {name: _REDACTED if name in redact else value for name, value in bound.items()}

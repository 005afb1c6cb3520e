"""Tools and agents: functions of every kind, judged before they run, and as themselves for as long as they run."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
from decimal import Decimal

import pytest

from agentguard import BudgetExceeded, Guard, Policy, ToolDenied, agent, tool
from agentguard.context import current_caller
from agentguard.events import CallDenied, ScopeEnded

WORKER = {"name": "worker", "tools": {"allowed": ["search", "fetch_*"]}, "security": {"api_keys": {"scope": ["reading"]}}}


@pytest.fixture
def guard():
    """Make a guard that is in scope; what it tells is in `.events`."""
    made = []

    def make(*documents):
        one = Guard(Policy.from_mapping({"agents": list(documents or [WORKER])}))
        one.events = []
        one.observe(one.events.append)
        made.append(one.__enter__())
        return one

    yield make
    for one in reversed(made):
        one.__exit__(None, None, None)
        one.close()


def told(guard, kind):
    guard.flush()
    return [event for event in guard.events if type(event) is kind]


@tool
def search(query: str, limit: int = 3) -> list[str]:
    """Find pages."""
    return [f"{current_caller().tool}: {query}"] * limit


@tool
async def fetch_page(url: str) -> str:
    await asyncio.sleep(0)
    return f"{current_caller().tool} {url}"


@tool
def fetch_pages(count):
    """Pages, one after the other."""
    try:
        for number in range(count):
            got = yield f"{current_caller().tool} {number}"
            assert got is None or got == f"for {number}"
        return "done"
    finally:
        ended.append(current_caller().tool)


@tool
async def fetch_stream(count):
    try:
        for number in range(count):
            await asyncio.sleep(0)
            yield f"{current_caller().tool} {number}"
    finally:
        ended.append(current_caller().tool)


@tool
def delete_all():
    ran.append("delete_all")


@tool
async def adelete_all():
    ran.append("adelete_all")


@tool
def delete_each():
    ran.append("delete_each")
    yield


@tool
async def adelete_each():
    ran.append("adelete_each")
    yield


ended: list[str | None] = []
ran: list[str] = []


@pytest.fixture(autouse=True)
def _fresh():
    ended.clear()
    ran.clear()


async def collect(stream):
    return [item async for item in stream]


# --- tools -------------------------------------------------------------------------------------------------------------


def test_a_tool_runs_as_itself(guard):
    one = guard()

    assert search("ants", limit=2) == ["search: ants"] * 2
    assert current_caller().tool is None
    [ended] = told(one, ScopeEnded)
    assert (ended.kind, ended.name, ended.error, ended.caller.tool) == ("execute_tool", "search", "", "search")
    assert ended.caller.agent == one.home_agent


def test_a_coroutine_runs_as_itself(guard):
    one = guard()

    assert asyncio.run(fetch_page("x")) == "fetch_page x"
    assert [event.name for event in told(one, ScopeEnded)] == ["fetch_page"]


def test_a_generator_is_itself_in_each_step_and_leaks_nothing_between(guard):
    one = guard()
    pages = fetch_pages(2)

    assert next(pages) == "fetch_pages 0"
    assert current_caller().tool is None
    assert pages.send("for 0") == "fetch_pages 1"
    with pytest.raises(StopIteration) as stopped:
        next(pages)

    assert stopped.value.value == "done"
    assert ended == ["fetch_pages"]
    assert len(told(one, ScopeEnded)) == 1


def test_an_exception_thrown_into_a_generator_arrives_inside(guard):
    one = guard()
    pages = fetch_pages(5)
    next(pages)

    with pytest.raises(ZeroDivisionError):
        pages.throw(ZeroDivisionError())

    assert ended == ["fetch_pages"]
    assert [event.error for event in told(one, ScopeEnded)] == ["ZeroDivisionError"]


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_generator_that_is_left_ends_inside_of_itself(guard, way):
    one = guard()
    pages = fetch_pages(5)
    next(pages)

    if way == "close":
        pages.close()
    else:
        del pages
        gc.collect()

    assert ended == ["fetch_pages"]
    assert [event.error for event in told(one, ScopeEnded)] == [""]
    assert current_caller().tool is None


def test_a_generator_may_be_closed_from_another_context(guard):
    guard()
    pages = fetch_pages(5)
    next(pages)

    contextvars.copy_context().run(pages.close)

    assert ended == ["fetch_pages"]


def test_an_async_generator_is_itself_in_each_step(guard):
    one = guard()

    assert asyncio.run(collect(fetch_stream(2))) == ["fetch_stream 0", "fetch_stream 1"]
    assert ended == ["fetch_stream"]
    assert len(told(one, ScopeEnded)) == 1


def test_an_async_generator_that_is_left_ends_once(guard):
    one = guard()

    async def main():
        stream = fetch_stream(5)
        async for _ in stream:
            assert current_caller().tool is None
            break
        await stream.aclose()

    asyncio.run(main())

    assert ended == ["fetch_stream"]
    assert len(told(one, ScopeEnded)) == 1


def test_a_tool_that_fails_says_so(guard):
    one = guard()

    @tool(name="search")
    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()

    assert [event.error for event in told(one, ScopeEnded)] == ["ZeroDivisionError"]
    assert current_caller().tool is None


def test_methods_are_tools_too(guard):
    guard()

    class Desk:
        @tool(name="search")
        def find(self, what):
            return (self.__class__.__name__, what, current_caller().tool)

        @tool(name="search")
        async def afind(self, what):
            return what

        @classmethod
        @tool(name="search")
        def of_class(cls):
            return cls.__name__

        @staticmethod
        @tool(name="search")
        def of_nobody():
            return current_caller().tool

    assert Desk().find("x") == ("Desk", "x", "search")
    assert asyncio.run(Desk().afind("x")) == "x"
    assert (Desk.of_class(), Desk.of_nobody()) == ("Desk", "search")


@pytest.mark.parametrize(
    "call",
    [
        delete_all,
        lambda: asyncio.run(adelete_all()),
        lambda: next(delete_each()),
        lambda: asyncio.run(collect(adelete_each())),
    ],
)
def test_a_tool_that_is_not_listed_does_not_run(guard, call):
    one = guard()

    with pytest.raises(ToolDenied, match=r"agent 'worker' may not use tool '\w*delete_\w+'"):
        call()

    assert ran == []
    [denied] = told(one, CallDenied)
    assert denied.decision.rule == "tools.allowed"
    assert "tools.allowed" in denied.decision.remedy


def test_a_tool_asks_for_its_scope(guard):
    guard()

    @tool(name="search", scope="reading")
    def reads():
        return "read"

    @tool(name="search", scope="writing")
    def writes():
        ran.append("wrote")

    assert reads() == "read"
    with pytest.raises(ToolDenied, match=r"scope 'writing', which 'worker' does not have") as denied:
        writes()
    assert ran == []
    assert denied.value.rule == "security.api_keys.scope"


def test_a_tool_in_an_agent_of_another_is_judged_by_both(guard):
    guard({"name": "outer", "tools": {"allowed": ["search"]}}, {"name": "inner"})

    with agent("outer"), agent("inner"):
        search("ants")
        with pytest.raises(ToolDenied, match=r"agent 'inner' may not .* not in tools\.allowed of 'outer'"):
            delete_all()


def test_a_tool_that_costs_money_is_charged(guard):
    one = guard({"name": "worker", "budgets": [{"limit": "$1.00"}]})

    @tool(cost_usd="0.40")
    def buys():
        ran.append("bought")

    @tool(cost_usd=Decimal("0.40"))
    async def abuys():
        ran.append("bought")

    buys()
    asyncio.run(abuys())
    with pytest.raises(BudgetExceeded, match=r"\$"):
        buys()

    one.flush()
    [(_, balance)] = one.usage()
    assert (balance.spent, balance.held, len(ran)) == (800_000_000, 0, 2)


def test_a_costly_generator_is_charged_even_when_it_is_left(guard):
    one = guard({"name": "worker", "budgets": [{"limit": "$1.00"}]})

    @tool(cost_usd="0.40")
    def buys():
        yield 1
        yield 2

    next(buys())
    gc.collect()

    [(_, balance)] = one.usage()
    assert (balance.spent, balance.held) == (400_000_000, 0)


def test_a_tool_costs_no_money_where_it_is_refused(guard):
    one = guard({"name": "worker", "tools": {"allowed": []}, "budgets": [{"limit": "$1.00"}]})

    @tool(cost_usd="0.40")
    def buys():
        pass

    with pytest.raises(ToolDenied):
        buys()

    assert sum(balance.spent for _, balance in one.usage()) == 0


@pytest.mark.parametrize("cost", [0.4, 1.0])
def test_float_money_is_refused(cost):
    with pytest.raises(TypeError, match=f"money is exact: write cost_usd='{cost}'"):
        tool(cost_usd=cost)


def test_without_a_guard_a_tool_is_a_function():
    assert search("ants", limit=1) == ["search: ants"]
    assert asyncio.run(fetch_page("x")) == "fetch_page x"
    assert list(fetch_pages(1)) == ["fetch_pages 0"]


@pytest.mark.parametrize(
    ("decorated", "kind"),
    [
        (search, inspect.isfunction),
        (fetch_page, inspect.iscoroutinefunction),
        (fetch_stream, inspect.isasyncgenfunction),
        (fetch_pages, inspect.isgeneratorfunction),
    ],
)
def test_a_decorated_function_is_of_the_same_kind(decorated, kind):
    assert kind(decorated)


def test_a_decorated_function_keeps_name_signature_and_docstring():
    assert (search.__name__, search.__doc__) == ("search", "Find pages.")
    assert str(inspect.signature(search)) == "(query: 'str', limit: 'int' = 3) -> 'list[str]'"


def test_wrong_arguments_are_the_functions_own_error(guard):
    one = guard()

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'query'"):
        search()

    assert [event.error for event in told(one, ScopeEnded)] == ["TypeError"]


# --- agents ------------------------------------------------------------------------------------------------------------


@agent("worker")
def work():
    return current_caller().agent


@agent("worker")
async def awork():
    await asyncio.sleep(0)
    return current_caller().agent


@agent("worker")
def work_through():
    yield current_caller().agent
    yield current_caller().agent


@agent("worker")
async def awork_through():
    yield current_caller().agent
    await asyncio.sleep(0)
    yield current_caller().agent


def test_every_kind_of_function_can_be_an_agent(guard):
    one = guard()

    assert work() == "worker"
    assert asyncio.run(awork()) == "worker"
    assert list(work_through()) == ["worker"] * 2
    assert asyncio.run(collect(awork_through())) == ["worker"] * 2
    assert current_caller().agent is None
    assert [(event.kind, event.name) for event in told(one, ScopeEnded)] == [("invoke_agent", "worker")] * 4


def test_a_generator_agent_leaks_nothing_into_its_reader(guard):
    guard()

    for inside in work_through():
        assert (inside, current_caller().agent) == ("worker", None)


def test_an_agent_that_recurses_is_itself(guard):
    guard()

    @agent("worker")
    def count(down):
        return count(down - 1) if down else current_caller().agents

    assert count(5) == ("worker",)


def test_one_block_may_be_entered_again_inside_of_itself(guard):
    guard({"name": "a"}, {"name": "b"})
    block = agent("a")

    with block, agent("b"), block:
        assert current_caller().agents == ("a", "b", "a")
    assert current_caller().agents == ()


def test_tasks_that_share_one_block_do_not_mix(guard):
    one = guard()
    block = agent("worker")

    async def enter(number):
        with block:
            await asyncio.sleep(0.001 * (3 - number))
            return current_caller().agents

    async def main():
        return await asyncio.gather(*(enter(number) for number in range(3)))

    assert asyncio.run(main()) == [("worker",)] * 3
    assert len(told(one, ScopeEnded)) == 3


def test_an_agent_that_fails_says_so(guard):
    one = guard()

    with pytest.raises(ZeroDivisionError), agent("worker"):
        raise ZeroDivisionError

    assert [event.error for event in told(one, ScopeEnded)] == ["ZeroDivisionError"]


def test_tasks_that_share_one_agent_block_each_leave_what_they_entered(guard):
    guard()
    worker = agent("worker")

    async def enter_first(has_entered, may_leave):
        with worker:
            has_entered.set()
            await may_leave.wait()
        return current_caller().agents

    async def leave_last(first, has_entered, may_leave):
        await has_entered.wait()
        with worker:
            may_leave.set()
            left = await first
        return [left, current_caller().agents]

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await leave_last(asyncio.create_task(enter_first(*events)), *events)

    assert asyncio.run(both()) == [(), ()]


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_a_tool_may_be_a_class_or_static_method(guard, kind):
    one = guard()

    class Tools:
        @tool(name="search")
        @kind
        def search(*args):
            return current_caller().tool

        @tool(name="fetch_it")
        @kind
        async def fetch(*args):
            return current_caller().tool

        @agent("worker")
        @kind
        def who(*args):
            return current_caller().agents

    assert (Tools.search(), Tools().search(), asyncio.run(Tools.fetch()), Tools.who()) == (
        "search",
        "search",
        "fetch_it",
        ("worker",),
    )
    assert len(told(one, ScopeEnded)) == 4


def test_a_coroutine_that_a_plain_function_makes_is_still_the_tools(guard):
    one = guard()

    @tool(name="fetch_it")
    def fetch():
        return later()

    async def later():
        await asyncio.sleep(0)
        ended = told(one, ScopeEnded)
        return current_caller().tool, ended

    assert asyncio.run(fetch()) == ("fetch_it", [])
    assert len(told(one, ScopeEnded)) == 1

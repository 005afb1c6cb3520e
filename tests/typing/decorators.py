"""Read by type checkers, never run: decorators keep the signature that they wrap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from decimal import Decimal
from typing import assert_type

import agentguard
from agentguard import agent, budget, propagate, session, tool


@tool
def search(query: str, *, limit: int = 3) -> list[str]:
    return [query] * limit


@tool(name="fetch_page", scope="reading", cost_usd="0.01", redact=["key"])
async def fetch(url: str, key: str) -> bytes:
    return f"{url}{key}".encode()


@tool
def pages(count: int) -> Iterator[str]:
    yield from map(str, range(count))


@tool
def dialogue(start: str) -> Generator[str, int, bool]:
    answer = yield start
    return answer > 0


@tool
async def stream(count: int) -> AsyncIterator[str]:
    for number in range(count):
        yield str(number)


@agent("worker")
def work(job: str) -> int:
    return len(job)


@agent("worker")
async def awork(job: str) -> int:
    return len(job)


class Desk:
    @tool
    def find(self, what: str) -> str | None:
        return what or None

    @tool(name="afind")
    async def afind(self, what: str) -> str:
        return what


assert_type(search("x", limit=2), list[str])
assert_type(pages(3), Iterator[str])
assert_type(dialogue("x"), Generator[str, int, bool])
assert_type(stream(3), AsyncIterator[str])
assert_type(work("x"), int)
assert_type(Desk().find("x"), str | None)
assert_type(propagate(work)("x"), int)

search(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
search("x", 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
work()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Desk().find(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
propagate(work)(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
tool(cost_usd=0.5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def awaits() -> None:
    """What coroutines give."""
    assert_type(await fetch("x", key="y"), bytes)
    assert_type(await awork("x"), int)
    assert_type(await Desk().afind("x"), str)
    async for piece in stream(3):
        assert_type(piece, str)


def blocks() -> None:
    """What the blocks give."""
    with agent("worker"), session("s1", user="u1") as opened, opened.interaction() as turn:
        assert_type(opened.id, str)
        assert_type(opened.user, str | None)
        assert_type(turn, str)
    with budget(usd="0.50", tokens=1000) as block:
        assert_type(block.spent.usd, Decimal | None)
        assert_type(block.remaining.tokens, int | None)
    with budget(usd=0.5):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        pass


def guards(policy: agentguard.Policy, calling: Callable[[], None]) -> None:
    """What the guard and `instrument` give."""
    with agentguard.instrument(policy, store="memory://") as instrumentation:
        assert_type(instrumentation.guard, agentguard.Guard)
        assert_type([status.state for status in instrumentation.status()], list[str])
    guard = agentguard.Guard(policy)
    assert_type(guard.check(agentguard.HTTPCall.to("GET", "https://example.org")).allowed, bool)
    with guard:
        calling()
    try:
        calling()
    except agentguard.BudgetExceeded as refused:
        assert_type((refused.limit, refused.spent, refused.resets_at), tuple[int, int, float | None])
    except agentguard.RateLimited as limited:
        assert_type(limited.retry_after, float)
    except agentguard.Denied as denied:
        assert_type((denied.rule, denied.remedy), tuple[str, str])
    except agentguard.PolicyError as error:
        assert_type([problem.line for problem in error.problems], list[int])

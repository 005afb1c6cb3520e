"""Scripts asked by the tasks of an event loop: those that ask in the same moment travel together."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from agentguard.context import own_traffic
from agentguard.errors import StoreUnavailable
from agentguard.stores.redis._ended import cut
from agentguard.stores.redis._link import SILENCE
from agentguard.stores.redis._packing import encoded
from agentguard.stores.redis._urls import open_async_client

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentguard.stores.redis._link import Link

MOST_TOGETHER = 64


class Question(NamedTuple):
    """A script to run, and who waits for its answer."""

    name: str
    keys: Sequence[str | bytes | int]
    arguments: Sequence[str | bytes | int]
    answer: asyncio.Future[Any]


class Batches:
    """The event loops of this process, each with a client of its own."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._loops: dict[asyncio.AbstractEventLoop, Batch] = {}

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[str | bytes | int] = ()) -> Any:
        """Run a script. Raises as `Link.run` does."""
        self._link.breaker.check()
        loop = asyncio.get_running_loop()
        batch = self._loops.get(loop)
        if batch is None:
            self.cut_ended()
            batch = self._loops[loop] = Batch(self._link)
        question = Question(name, keys, self._link.scripts.arguments(arguments), loop.create_future())
        batch.ask(question)
        return await question.answer

    async def close(self) -> None:
        """Free the connections of the running loop."""
        batch = self._loops.pop(asyncio.get_running_loop(), None)
        if batch is not None:
            await batch.close()

    def cut_ended(self) -> None:
        """Free the connections of loops that have ended. Nothing tells of their end, so it is looked for when another begins."""
        for loop in list(self._loops):
            ended = self._loops.pop(loop, None) if loop.is_closed() else None
            if ended is not None:
                ended.cut()

    def drop(self) -> None:
        """Forget the connections: in a forked child they are the parent's."""
        self._loops = {}


class Batch:
    """One loop's questions. While one batch is under way the next one gathers, so that load makes batches larger."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._client: Any = open_async_client(link.address)
        self._waiting: list[Question] = []
        self._sending: asyncio.Task[None] | None = None

    def ask(self, question: Question) -> None:
        """Have a question sent with those that wait; at the end of this round of the loop when none is under way."""
        self._waiting.append(question)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send())

    async def close(self) -> None:
        """Free the connections."""
        if self._sending is not None:
            await self._sending
        await self._client.aclose()

    def cut(self) -> None:
        """Free the connections, when the loop has ended."""
        with suppress(AttributeError):  # a redis-py that is made differently: the collector frees them, and warns
            cut(self._client)

    async def _send(self) -> None:
        together: list[Question] = []
        try:
            while self._waiting:
                together, self._waiting = self._waiting[:MOST_TOGETHER], self._waiting[MOST_TOGETHER:]
                with own_traffic():
                    await self._answer_all(together)
        except asyncio.CancelledError:  # somebody cancels every task that he does not know; those who asked may be others
            together, self._waiting = together + self._waiting, []
            message = f"the store {self._link.address.shown} was not heard: its task was cancelled.\n  Cancel none but your own."
            _refuse(together, StoreUnavailable(message))
            raise
        finally:
            self._sending = None

    async def _answer_all(self, questions: list[Question]) -> None:
        try:
            await self._answer(questions)
        except Exception as error:  # noqa: BLE001 - those who asked get it, so that nobody waits for ever; the next go on
            _refuse(questions, error)

    async def _answer(self, questions: list[Question]) -> None:
        answers: list[Any]
        try:
            async with asyncio.timeout(self._link.address.timeout_seconds):
                answers = await self._ask_all(questions)
        except redis.DataError as error:
            if len(questions) > 1:  # some have words that cannot be sent, and none was sent: each is asked alone
                for question in questions:
                    await self._answer([question])
                return
            answers = [error]
        except (*SILENCE, redis.RedisError) as error:
            answers = [error] * len(questions)
        silence = next((answer for answer in answers if isinstance(answer, SILENCE)), None)
        if silence is not None:
            unanswered = self._link.no_answer(silence)
            answers = [unanswered if isinstance(answer, SILENCE) else answer for answer in answers]
            await self._begin_anew()
        for question, answer in zip(questions, answers, strict=True):
            if question.answer.done():
                continue
            if isinstance(answer, redis.RedisError):
                question.answer.set_exception(self._link.refusal(answer))
            elif isinstance(answer, BaseException):
                question.answer.set_exception(answer)
            else:
                question.answer.set_result(answer)

    async def _begin_anew(self) -> None:
        """Replace the client: that of a cluster whose node has died does not look for who has followed it."""
        silent, self._client = self._client, open_async_client(self._link.address)
        with suppress(redis.RedisError, *SILENCE):
            await silent.aclose()

    async def _ask_all(self, questions: list[Question]) -> list[Any]:
        try:
            answers = await self._pipeline(questions)
        except UnicodeEncodeError:
            questions = [one._replace(keys=encoded(one.keys), arguments=encoded(one.arguments)) for one in questions]
            answers = await self._pipeline(questions)
        except (redis.ConnectionError, OSError):
            answers = await self._pipeline(questions)  # a restarted server leaves broken connections
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            for name in {question.name for question in questions}:
                await self._client.script_load(self._link.scripts.named(name).text)
            unknown = [place for place, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
            again = await self._pipeline([questions[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
        return answers

    async def _pipeline(self, questions: list[Question]) -> list[Any]:
        named = self._link.scripts.named
        pipeline = self._client.pipeline(transaction=False)
        for name, keys, arguments, _ in questions:
            pipeline.execute_command("EVALSHA", named(name).sha, len(keys), *keys, *arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def _refuse(questions: list[Question], error: Exception) -> None:
    for question in questions:
        if not question.answer.done():
            question.answer.set_exception(error)

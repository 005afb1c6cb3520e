"""The program of act 6: it forks the processes of a fleet, as a server forks its workers. Each does what the stage asks of it.

    python member.py LLM_URL LLM_ADDRESS POLICY CHANNEL...

A channel is the number of an open socket, one for each process. A line that arrives on it is the name of something to do; a
line that leaves on it is a JSON object: a number that came of it, or a line of the guard's. Without a policy there is no guard.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import agentguard
from agentguard import Denied, agent
from agentguard.demo.names import resolving
from agentguard.demo.stage import KEY
from agentguard.demo.tape import Tape
from agentguard.prices import BundledPrices
from agentguard.testing import text_of

if TYPE_CHECKING:
    import openai

    from agentguard.demo.tape import Line

RACER = "crawler"
READER = "narrator"
CALLS = 13
"""How many calls a process makes at once."""

_MODEL = "gpt-5-mini"
_PROMPT = text_of(500)


class Member:
    """One process of the fleet.

    Args:
        number: Which of them; the odd ones race in threads, the even ones in asyncio.
        channel: Where the stage asks and is told.
        url: The provider's.
        policy: The policy's name in the working directory; empty for none.
    """

    def __init__(self, number: int, channel: socket.socket, url: str, policy: str) -> None:
        import openai

        self._number = number
        self._channel = channel
        self._lock = threading.Lock()
        self._url = url
        self._client = openai.OpenAI(base_url=url, api_key=KEY)
        self._installed = agentguard.instrument(policy, observers=[Tape(self._show)]) if policy else None

    def serve(self) -> None:
        """Do what is asked, until the stage hangs up."""
        deeds = {"race": self.race, "read": self.read, "call": self.call, "count": self.count}
        self._say(number=self._number)
        for line in self._channel.makefile():
            number = deeds[line.strip()]()
            if self._installed is not None:
                self._installed.guard.flush()  # what it tells comes before what is told of it
            self._say(number=number)
        if self._installed is not None:
            self._installed.uninstrument()

    def race(self) -> int:
        """All calls at once. How many were refused."""
        return self._race_in_threads() if self._number % 2 else asyncio.run(self._race_in_asyncio())

    @agent(READER)
    def call(self) -> int:
        """One call. How many were refused."""
        try:
            self._client.chat.completions.create(model=_MODEL, messages=[{"role": "user", "content": "Go on."}])
        except Denied:
            return 1
        return 0

    def read(self) -> int:
        """Begin to read a stream, and go on in a thread. None was refused."""
        has_begun = threading.Event()
        threading.Thread(target=self._read_on, args=[has_begun], daemon=True).start()
        has_begun.wait()
        return 0

    def count(self) -> int:
        """The tokens that the fleet has spent, as this process finds them in the store."""
        return sum(balance.spent for _, balance in agentguard.current_guard().usage("fleet"))

    @agent(READER)
    def _read_on(self, has_begun: threading.Event) -> None:
        try:
            for _ in self._client.chat.completions.create(
                model=_MODEL, stream=True, messages=[{"role": "user", "content": "A novel, please."}]
            ):
                has_begun.set()
        except Denied:
            pass  # raised out of a read that had stalled; the provider's log says that the stream has ended
        finally:
            has_begun.set()

    def _race_in_threads(self) -> int:
        refused: list[Denied] = []

        @agent(RACER)
        def call() -> None:
            try:
                self._client.chat.completions.create(
                    model=_MODEL, max_completion_tokens=500, messages=[{"role": "user", "content": _PROMPT}]
                )
            except Denied as denied:
                refused.append(denied)

        threads = [threading.Thread(target=call) for _ in range(CALLS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(refused)

    @agent(RACER)
    async def _race_in_asyncio(self) -> int:
        import openai

        async with openai.AsyncOpenAI(base_url=self._url, api_key=KEY) as client:
            return sum(await asyncio.gather(*(_is_refused(client) for _ in range(CALLS))))

    def _show(self, line: Line) -> None:
        self._say(line=line._replace(agent=f"{line.agent} {self._number}"))

    def _say(self, **said: object) -> None:
        with self._lock:
            self._channel.sendall(f"{json.dumps(said)}\n".encode())


async def _is_refused(client: openai.AsyncOpenAI) -> bool:
    try:
        await client.chat.completions.create(
            model=_MODEL, max_completion_tokens=500, messages=[{"role": "user", "content": _PROMPT}]
        )
    except Denied:
        return True
    return False


def load() -> None:
    """Import what every process needs, before the forks: it takes seconds, and they have it then."""
    import openai  # noqa: F401

    import agentguard.stores.redis  # noqa: F401

    BundledPrices().price("openai", _MODEL, 1)


def main(url: str, address: str, policy: str, *channels: str) -> None:
    """Fork the processes, and end when they have ended."""
    load()
    if policy:
        os.chdir(Path(policy).parent)  # beside its policy, as a program is: so it is named shortly where a rule of it is told
    with resolving({"llm.demo.test": address}):
        sockets = [socket.socket(fileno=int(channel)) for channel in channels]
        for number, channel in enumerate(sockets, 1):
            if os.fork() == 0:
                try:
                    Member(number, channel, url, Path(policy).name).serve()
                finally:
                    channel.shutdown(socket.SHUT_RDWR)  # closing would not do: others have inherited it
                return
        for _ in channels:
            os.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # to take five interpreters down takes as long as the act

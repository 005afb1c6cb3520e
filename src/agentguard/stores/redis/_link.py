"""The way to the server: runs scripts, in time or not at all."""

from __future__ import annotations

import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis

from agentguard.context import own_traffic
from agentguard.errors import StoreUnavailable
from agentguard.stores._breaker import Breaker
from agentguard.stores.redis._packing import encoded
from agentguard.stores.redis._urls import open_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agentguard.stores.redis._scripts import Scripts
    from agentguard.stores.redis._urls import Address

SILENCE = (redis.ConnectionError, redis.TimeoutError, redis.exceptions.RedisClusterException, OSError)
"""No answer. Everything else is one: the server refuses, and says why."""

_DENIALS = (redis.AuthenticationError, redis.exceptions.NoPermissionError)

MOST_AT_ONCE = 8
"""Connections of a process, and threads that ask at once. More would wait for each other, and connect while under load."""


class Link:
    """Connections to one server, for all threads of this process."""

    def __init__(self, address: Address, scripts: Scripts) -> None:
        self.address = address
        self.scripts = scripts
        self.breaker: Breaker = Breaker(self._probe)
        self._client: Any = None
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._asked: Sequence[str] = ()

    def run(self, name: str, keys: Sequence[str], arguments: Sequence[str | bytes | int] = ()) -> Any:
        """Run a script.

        Raises:
            StoreUnavailable: No answer in time, or the server refuses.
        """
        self._asked = keys
        return self.ask(lambda client: self._evaluate(client, name, keys, arguments))

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Ask the server through a client. A connection found broken is replaced once; a late answer is not waited for."""
        self.breaker.check()
        with self._places:
            self.breaker.check()  # it may have opened while this thread waited for its turn
            with own_traffic():
                return self._ask(question)

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self.client)
        except redis.TimeoutError as error:
            raise self.no_answer(error) from error
        except SILENCE:
            pass  # a restarted server leaves broken connections; every script may be asked twice
        except redis.RedisError as error:
            raise self.refusal(error) from error
        try:
            return question(self.client)
        except SILENCE as error:
            raise self.no_answer(error) from error
        except redis.RedisError as error:
            raise self.refusal(error) from error

    @property
    def client(self) -> Any:
        """The client; connecting is its own affair. That of a cluster looks for its nodes at once."""
        if self._client is None:
            self._client = open_client(self.address)
        return self._client

    def no_answer(self, error: BaseException) -> StoreUnavailable:
        """What is raised when nothing came back; counts for the breaker."""
        for cause in _causes(error):
            if isinstance(cause, _DENIALS):  # to redis-py a broken connection, or no cluster, and yet an answer
                return self.refusal(cause)
        message = f"the store {self.address.shown} gave no answer: {_cause(error)}.\n  {_remedy(error)}"
        self.breaker.failed(message)
        return StoreUnavailable(message)

    def refusal(self, error: BaseException) -> StoreUnavailable:
        """What is raised when the server refuses."""
        if isinstance(error, _DENIALS):
            remedy = "Grant what docs/how-to/redis.md lists, or correct the credentials of the URL."
        else:
            remedy = "Look at the server's log."
        return StoreUnavailable(f"the store {self.address.shown} refuses: {error}.\n  {remedy}")

    def _evaluate(self, client: Any, name: str, keys: Sequence[str | bytes | int], arguments: Sequence[str | bytes | int]) -> Any:
        script = self.scripts.named(name)
        words = (len(keys), *keys, *self.scripts.arguments(arguments))
        try:
            return client.execute_command("EVALSHA", script.sha, *words)
        except redis.exceptions.NoScriptError:
            return client.execute_command("EVAL", script.text, *words)
        except UnicodeEncodeError:
            return self._evaluate(client, name, encoded(keys), encoded(arguments))

    def _probe(self) -> None:
        with own_traffic():
            self._evaluate(self.client, "read", self._asked[:1], ())  # not PING: of a cluster only the fleet's own node counts

    def drop(self) -> None:
        """Forget the connections: in a forked child they are the parent's."""
        self._client = None
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.breaker.reset()

    def close(self) -> None:
        """Free the connections. A later verb opens them anew."""
        self.breaker.close()
        seconds = self.address.timeout_seconds
        places = sum(self._places.acquire(timeout=seconds) for _ in range(MOST_AT_ONCE))  # let those finish who are asking
        client, self._client = self._client, None
        if client is not None:
            with suppress(redis.RedisError, OSError):
                client.close()
        for _ in range(places):
            self._places.release()


def _cause(error: BaseException) -> str:
    text = str(error).strip().rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """What was raised, and what led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _remedy(error: BaseException) -> str:
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return "Name the authority that has signed its certificate by `?ssl_ca_certs=FILE`, and the host as it is certified."
    return "Limits that say `on_store_down: local` or `open` go on without it."

"""The supervisor's threads: they take turns at receiving, and answer every call that the filter asks about."""

from __future__ import annotations

import errno
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agentguard.egress.kernel import tasks
from agentguard.egress.kernel.notices import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from agentguard.egress.kernel.notices import Later, Listener, Notice, Outcome
    from agentguard.egress.kernel.record import Record

_MOST_THREADS = 1024
_SPARE_THREADS = 4
_STACK_BYTES = 256 * 1024
_ATTENDED_EVERY_SECONDS = 0.05


class Supervisor:
    """Answers the notices of one listener.

    Whoever receives answers at once what can be answered at once. Before a connect that may block it hands the listener
    to the next thread, so that the answer is given by the thread that has the call in hand, without another switch.

    Args:
        listener: Where calls wait.
        calls: What is done for each, by its number.
        record: Told of faults.
        keep_undelivered: Told of answers that nobody waited for any more.
    """

    def __init__(
        self,
        listener: Listener,
        calls: Mapping[int, Callable[[Notice], Outcome]],
        record: Record,
        keep_undelivered: Callable[[Notice, Answer], None],
    ) -> None:
        self._listener = listener
        self._calls = dict(calls)
        self._record = record
        self._keep_undelivered = keep_undelivered
        self._turn = threading.Lock()
        self._count = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._slow: dict[int, Notice] = {}
        self._has_slow = threading.Event()

    def start(self) -> None:
        """Begin to answer."""
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._attend, daemon=True).start()
        with self._count:
            self._add_thread()

    def _add_thread(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()
        self._threads += 1
        self._idle += 1

    def _serve(self) -> None:
        while True:
            with self._turn:
                notice, later = self._answer_until_one_takes_long()
            with self._attended(notice):
                self._send(notice, self._finish(notice, later))
            with self._count:
                if self._idle >= _SPARE_THREADS:
                    self._threads -= 1
                    return
                self._idle += 1

    @contextmanager
    def _attended(self, notice: Notice) -> Iterator[None]:
        self._slow[notice.id] = notice
        self._has_slow.set()
        try:
            yield
        finally:
            self._slow.pop(notice.id, None)

    def _attend(self) -> None:
        """Let who waits for a slow connect hear its signals: the connect goes on meanwhile, as it would without us."""
        while True:
            self._has_slow.wait()
            self._has_slow.clear()
            while self._slow:
                time.sleep(_ATTENDED_EVERY_SECONDS)
                for notice in list(self._slow.values()):
                    if tasks.has_signal(notice.tid):
                        self._listener.answer(notice, Answer(errno.EINTR))

    def _answer_until_one_takes_long(self) -> tuple[Notice, Later]:
        while True:
            notice = self._listener.receive()
            if notice is None:
                continue
            outcome = self._decide(notice)
            if isinstance(outcome, Answer):
                self._send(notice, outcome)
            elif self._leaves_a_thread():
                return notice, outcome
            else:
                outcome.drop()
                self._send(notice, Answer(errno.EAGAIN))

    def _leaves_a_thread(self) -> bool:
        """Make sure that somebody receives while this thread is busy; False when that is not possible."""
        with self._count:
            if self._idle <= 1:
                if self._threads >= _MOST_THREADS:
                    return False
                try:
                    self._add_thread()
                except RuntimeError:  # the tree has taken all the processes that its user or its container may have
                    return False
            self._idle -= 1
            return True

    def _decide(self, notice: Notice) -> Outcome:
        call = self._calls.get(notice.number)
        if call is None:
            return Answer(errno.ENOSYS)
        try:
            return call(notice)
        except Exception as error:  # noqa: BLE001 - a fault of ours must not let the call pass, nor end the supervisor
            return self._refuse(notice, error)

    def _finish(self, notice: Notice, later: Later) -> Answer:
        try:
            return later.finish()
        except Exception as error:  # noqa: BLE001 - as above
            return self._refuse(notice, error)

    def _refuse(self, notice: Notice, error: Exception) -> Answer:
        """The answer to a call that could not be judged, or not be made: its own error, or that of a fault of ours."""
        if isinstance(error, OSError):
            return Answer(error.errno or errno.EACCES)
        said = f"{type(error).__name__}: {error}"
        return Answer(errno.EACCES, then=lambda: self._record.note("fault", call=notice.number, error=said))

    def _send(self, notice: Notice, answer: Answer) -> None:
        if not answer.was_sent and not self._listener.answer(notice, answer):
            self._keep_undelivered(notice, answer)
        if answer.then is not None:
            answer.then()

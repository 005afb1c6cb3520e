"""The life of a supervisor, once it has the listener: it serves until nobody is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel import abi, tasks
from agentguard.egress.kernel.broker import Broker, read_hosts, read_nameservers, read_search
from agentguard.egress.kernel.connecting import Connecting
from agentguard.egress.kernel.control import Control
from agentguard.egress.kernel.gate import Detour, Gate
from agentguard.egress.kernel.judge import Judge
from agentguard.egress.kernel.notices import Listener
from agentguard.egress.kernel.record import NOBODY_KNOWN, Record
from agentguard.egress.kernel.sending import Sending
from agentguard.egress.kernel.sockets import DuplicatedSockets, MadeSockets
from agentguard.egress.kernel.supervisor import Supervisor
from agentguard.egress.pins import Pins

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.egress.kernel.notices import Notice, Outcome
    from agentguard.policy.hosts import Verdict

_SWITCH_SECONDS = 0.001  # a thread that answers does not wait long for one that records


def main(order: dict[str, Any], listener: int | None) -> None:
    """Serve one tree until none of it is left; as the parent of the program, end as it ends."""
    if listener is not None:
        _Stand(Boundary.from_json(order["boundary"]), order).serve(Listener(listener), injects=order["injects"])
    child = order.get("child")
    if child:
        _attend(child)
    if listener is not None:
        users = select.poll()
        users.register(listener, 0)  # only the end of the last task under the filter is waited for
        users.poll()
    os._exit(0)


class _Stand:
    """Everything that a supervisor consists of."""

    def __init__(self, boundary: Boundary, order: dict[str, Any]) -> None:
        self._judge = Judge(boundary, Pins(time.monotonic), read_hosts(), order["folders"])
        self._reloads: str = order.get("reload", "")
        facts = {
            "supervisor": os.getpid(),
            "log": order["log"],
            "full": order["full"],
            "path": boundary.path,  # that of a boundary within is whatever the process that asked for it says
            "reloads": bool(self._reloads),
        }
        self._control = Control(self._judge, facts)
        self._record = Record(order["log"], order["terminal"], self._control.tell)
        self._nameservers = read_nameservers()
        self._broker = Broker(self._judge, self._nameservers, self._refuse_name, read_search())

    def serve(self, listener: Listener, *, injects: bool) -> None:
        """Begin to answer, on threads."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._broker.start()
        self._control.start()
        detour = Detour(self._broker.stream_address, self._broker.datagram_address)
        gate = Gate(self._judge, self._record, dict.fromkeys(self._nameservers, detour))
        duplicates = tasks.Duplicates()
        sockets = MadeSockets(listener, gate.refuse_socket) if injects else DuplicatedSockets(duplicates, gate.refuse_socket)
        connecting = Connecting(listener, gate, sockets, self._control.invite)
        calls: dict[str, Callable[[Notice], Outcome]] = {
            "connect": connecting,
            **Sending(listener, gate, sockets, duplicates).calls(),
            **sockets.calls(),
        }
        by_number = {abi.NUMBERS[name]: call for name, call in calls.items()}
        if self._reloads:
            from agentguard.egress.kernel.reloading import Reloading  # and subprocess: only for who asks for it

            Reloading(self._reloads, "enforce" if self._judge.is_enforced else "report", self._judge, self._record).start()
        Supervisor(listener, by_number, self._record, connecting.keep_undelivered).start()

    def _refuse_name(self, name: str, verdict: Verdict) -> None:
        self._record.refuse("resolve", NOBODY_KNOWN, name, verdict, enforced=self._judge.is_enforced)


_PASSED_ON = {signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


def _attend(child: int) -> None:
    """Pass signals on to the program, and end as it ends."""
    _bury(child)
    while True:
        info = signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            _bury(child)
        elif info.si_code <= 0:  # sent by somebody; what the terminal sends reaches the program by itself
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)


def _bury(child: int) -> None:
    """Take note of every process that has ended: orphans of the program are ours."""
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            os._exit(1)
        if not ended:
            return
        if ended == child:
            _end_like(status)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
        os._exit(128 + number)
    os._exit(os.WEXITSTATUS(status))

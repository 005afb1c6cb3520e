"""The net below the seams: what this process's own sockets and look-ups reach, judged for whoever calls.

The resolver asks it before a name is looked up and shows it the answers; the audit hook shows it every connection. A
refusal is told like one of a call, and raised; in report mode it is only told.
"""

from __future__ import annotations

import logging
import socket
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agentguard.admission import CURRENT
from agentguard.context import CALLER, OWN_TRAFFIC
from agentguard.core.call import HTTPCall, Target, ToolCall
from agentguard.core.engine import refusal_of
from agentguard.core.limits import RefusalKind, Refused
from agentguard.egress.judging import Reach
from agentguard.egress.resolver import is_dotted_quad
from agentguard.egress.unix_sockets import own_folders, path_of
from agentguard.events import CallDenied
from agentguard.policy.hosts import HostError, Space, address_of, canonical, space_of
from agentguard.policy.model import Mode
from agentguard.refusing import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agentguard.core.caller import Caller
    from agentguard.core.decision import Decision
    from agentguard.core.rights import Rights
    from agentguard.egress.pins import Pins
    from agentguard.guard import Guard

PIN_SECONDS = 300.0
"""How long an answer holds, the pins' grace aside. `getaddrinfo` tells no TTL; most public records live for 30 s to 5 min, and
a pin that outlives its record opens nothing but an address that the name had, while one that ends early breaks a client that
kept it (aiohttp keeps an answer for 10 s, connection pools keep it for as long as they connect anew)."""

logger: logging.Logger = logging.getLogger("agentguard")


class Take(Protocol):
    """Takes the answers of a look-up."""

    def __call__(self, addresses: Iterable[str], aliases: Iterable[str] = (), /) -> frozenset[str] | None:
        """Pin what may be reached, and return it; None when all may be handed on."""


class Asker(NamedTuple):
    """Who asks: the guard in scope, the caller, and what it may reach."""

    guard: Guard
    caller: Caller
    reach: Reach


class Net:
    """What this process reaches below the HTTP seams.

    Args:
        resolve: The guard in scope.
        pins: What names have resolved to.
    """

    def __init__(self, resolve: Callable[[], Guard | None], pins: Pins) -> None:
        self.pins: Pins = pins
        self._resolve = resolve
        self._reaches: weakref.WeakKeyDictionary[Rights, Reach] = weakref.WeakKeyDictionary()
        self._own_names = _own_names()
        self._thread = threading.local()

    # --- names ------------------------------------------------------------------------------------------------------

    @property
    def is_looking_up(self) -> bool:
        """Whether this thread is in a look-up that has been judged."""
        return getattr(self._thread, "is_looking_up", False)

    @contextmanager
    def looking_up(self, name: str) -> Iterator[Take]:
        """Judge a name before it is looked up; inside, look-ups are not judged again.

        Yields:
            What takes the addresses that came back, and what the name is an alias of: `take_answers`.

        Raises:
            EgressDenied: The caller may not look the name up, or (from what is yielded) may reach none of its addresses.
        """
        asker = self.judge_lookup(name)
        self._thread.is_looking_up = True
        try:
            yield lambda addresses, aliases=(): self.take_answers(asker, name, addresses, aliases)
        finally:
            self._thread.is_looking_up = False

    def judge_lookup(self, name: str) -> Asker | None:
        """Judge a name before it is looked up. Returns what `take_answers` needs; None when nobody judges.

        Raises:
            EgressDenied: The caller may not look it up.
        """
        asker = self._asker()
        if asker is not None and not self._is_own(name):
            refusal = asker.reach.refuses_lookup(name, asker.caller)
            if refusal is not None:
                _refuse(asker, _lookup(name), refusal, is_known=True)
        return asker

    def take_answers(
        self, asker: Asker | None, name: str, addresses: Iterable[str], aliases: Iterable[str] = ()
    ) -> frozenset[str] | None:
        """Pin those addresses of a name that may be reached, and return them; None when all may be handed on.

        Private answers of a name that may not lead there are left out: whoever connects to the first answer gets a good one.

        Raises:
            EgressDenied: None of them may be reached, or the name is an alias of one that is blocked.
        """
        found = list(addresses)
        if asker is None:
            self.pins.pin(name, found, PIN_SECONDS)
            return None
        if self._is_own(name):
            if asker.reach.refuses_lookup(name, asker.caller) is None:
                self.pins.pin(name, found, PIN_SECONDS)
            return None
        for alias in aliases:
            if alias and (refusal := asker.reach.refuses_alias(name, alias, asker.caller)):
                _refuse(asker, _lookup(name), refusal)
        refusals = {address: asker.reach.refuses_answer(name, address, asker.caller) for address in found}
        good = frozenset(address for address, refusal in refusals.items() if refusal is None)
        first = next((refusal for refusal in refusals.values() if refusal is not None), None)
        if first is not None and not good:
            _refuse(asker, _lookup(name), first, is_known=asker.reach.refuses_lookup(name, asker.caller) is not None)
        is_reported = asker.guard.policy.mode is Mode.REPORT
        self.pins.pin(name, found if is_reported else good, PIN_SECONDS)
        return None if is_reported else good

    def judge_reverse_lookup(self, address: str) -> None:
        """Judge an address before its name is looked up: the question goes to a DNS server of whoever owns the address.

        Private space has no such servers outside, and the program's own servers ask for their names there.

        Raises:
            EgressDenied: It may not be reached. It is an `OSError` too, which all who ask for a name expect: `http.server`
                asks for that of its own address.
        """
        asker = self._asker()
        if asker is None or _is_private(address):
            return
        refusal = asker.reach.refuses_reverse_lookup(address, self.pins.names_of(address), asker.caller)
        if refusal is not None:
            _refuse(asker, _lookup(address), refusal, socket.herror)

    # --- connections ------------------------------------------------------------------------------------------------

    def judge_connection(self, address: str, port: int, *, is_stream: bool) -> None:
        """Judge an address that is about to be connected to, or sent a datagram.

        Raises:
            EgressDenied: The caller may not reach it.
        """
        asker = self._asker()
        if asker is None:
            return
        if not is_dotted_quad(address):
            with suppress(HostError):
                address = canonical(address)
        names = self.pins.names_of(address)
        call = HTTPCall("CONNECT", Target("tcp" if is_stream else "udp", min(names, default=address), port, "/"))
        refusal = self._isolation(asker, call)
        if refusal is None and not is_stream:
            refusal = asker.reach.refuses_datagrams(address, asker.caller)
        if refusal is None:
            refusal = asker.reach.refuses_connection(address, port, names, asker.caller)
            if refusal is not None:
                allowed = any(asker.reach.refuses_lookup(name, asker.caller) is None for name in names)
                _refuse(asker, call, refusal, is_known=not allowed)
                return
        if refusal is not None:
            _refuse(asker, call, refusal)

    def judge_datagrams(self) -> None:
        """Judge an endpoint that may send datagrams to anywhere.

        Raises:
            EgressDenied: The caller may send none.
        """
        asker = self._asker()
        if asker is not None and (refusal := asker.reach.refuses_datagrams("anywhere", asker.caller)):
            _refuse(asker, HTTPCall("CONNECT", Target("udp", "*", 0, "")), refusal)

    def judge_hidden_lookup(self, name: str, port: int) -> None:
        """Judge a connection by a name, whose look-up nobody saw.

        Raises:
            EgressDenied: The caller's hosts are listed.
        """
        asker = self._asker()
        if asker is not None and (refusal := asker.reach.refuses_hidden_lookup(name, asker.caller)):
            _refuse(asker, HTTPCall("CONNECT", Target("tcp", name, port, "/")), refusal)

    def judge_socket(self, address: str | bytes) -> None:
        """Judge a Unix socket.

        Raises:
            EgressDenied: It is neither the program's own nor listed.
        """
        asker = self._asker()
        if asker is None:
            return
        path = path_of(address)
        if refusal := asker.reach.refuses_socket(path, own_folders(), asker.caller):
            _refuse(asker, HTTPCall("CONNECT", Target("unix", path, 0, "")), refusal)

    def judge_family(self, family: str) -> None:
        """Judge a socket of a kind that no list can speak of.

        Raises:
            EgressDenied: The caller's hosts are listed.
        """
        asker = self._asker()
        if asker is not None and (refusal := asker.reach.refuses_family(family, asker.caller)):
            _refuse(asker, HTTPCall("CONNECT", Target(family.lower(), family, 0, "")), refusal)

    # --- who asks ---------------------------------------------------------------------------------------------------

    @property
    def is_judging(self) -> bool:
        """Whether there is anything to judge for the caller: a list of hosts, or an isolation."""
        asker = self._asker()
        return asker is not None and (not asker.reach.is_unwritten or bool(asker.guard.isolated))

    @property
    def is_enforcing(self) -> bool:
        """Whether what is refused is stopped, or only told."""
        guard = self._resolve()
        return guard is not None and guard.policy.mode is Mode.ENFORCE

    def _asker(self) -> Asker | None:
        guard = self._resolve()
        if guard is None or OWN_TRAFFIC.get():
            return None
        caller = guard.identified(CALLER.get())
        rights = guard.rights(caller)
        reach = self._reaches.get(rights)
        if reach is None:
            reach = self._reaches[rights] = Reach(rights)
        return Asker(guard, caller, reach)

    def _isolation(self, asker: Asker, call: HTTPCall) -> Decision | None:
        isolated = asker.guard.isolated
        if not isolated:
            return None
        for subject in asker.guard.rights(asker.caller).subjects(asker.caller):
            if subject in isolated:
                return refusal_of(Refused(RefusalKind.ISOLATED, subject), call, asker.caller, ())
        return None

    def _is_own(self, name: str) -> bool:
        """Whether a name is this host's own, which programs look up to serve, not to reach anybody."""
        try:
            return canonical(name) in self._own_names
        except HostError:
            return False


def _own_names() -> frozenset[str]:
    names = {"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"}
    with suppress(HostError):
        names.add(canonical(socket.gethostname()))
    return frozenset(names)


def _is_private(address: str) -> bool:
    try:
        found = address_of(canonical(address))
    except HostError:
        return False
    return found is not None and space_of(found) is Space.PRIVATE


def _lookup(name: str) -> HTTPCall:
    return HTTPCall("RESOLVE", Target("dns", name, 0, ""))


def _refuse(asker: Asker, call: HTTPCall, decision: Decision, *bases: type, is_known: bool = False) -> None:
    """Tell a refusal, and raise it unless the policy only reports.

    Args:
        asker: Who asked.
        call: What for.
        decision: The refusal.
        bases: Further bases of the exception.
        is_known: Whether a seam above refuses the same host by its name. In report mode it has told of it, and let it go on.
    """
    guard = asker.guard
    is_enforced = guard.policy.mode is Mode.ENFORCE
    current = CURRENT.get()
    if not is_enforced and is_known and current is not None and not isinstance(current.call, ToolCall):
        return
    span = None if guard.spans is None else guard.spans.around()
    guard.tell(CallDenied(guard.clock.time(), next(guard.ids), call, asker.caller, decision, is_enforced, span))
    if is_enforced:
        raise refuse(decision, call, *bases)

"""What `doctor` says of the connections that guarded programs hold now."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agentguard.cli._sources import events_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from agentguard.egress.held import Held
    from agentguard.policy import Policy

_RESOLVE_SECONDS = 2.0
_RESOLVERS = 8
_RECENT_SECONDS = 86_400.0
_MOST_NAMES = 200


def guarded_processes() -> list[int]:
    """The processes that have the event log or the ledger of this user open now, this one aside."""
    from agentguard.stores.state import state_dir

    state = Path(state_dir()).resolve()
    kept = (f"{state}/events/", f"{state}/ledger.")
    running = (int(entry.name) for entry in _listed(Path("/proc")) if entry.name.isdigit())
    return sorted(pid for pid in running if pid != os.getpid() and _has_open(pid, kept))


def _has_open(pid: int, kept: tuple[str, ...]) -> bool:
    for entry in _listed(Path(f"/proc/{pid}/fd")):
        with contextlib.suppress(OSError):  # closed since
            if str(entry.readlink()).startswith(kept):
                return True
    return False


def _listed(folder: Path) -> list[Path]:
    """What is in a folder; nothing when it is gone, or somebody else's."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def held_by(pid: int, policy: Policy, store_url: str | None) -> tuple[Held, ...]:
    """The connections of a process tree under a policy, with the names that can be found for their addresses.

    Raises:
        OSError, NotImplementedError: They cannot be read.
    """
    from agentguard.egress.boundary import Boundary
    from agentguard.egress.connections import connections
    from agentguard.egress.held import held
    from agentguard.egress.own import own_endpoints

    found = connections(pid)
    own = own_endpoints(store_url or policy.store)
    boundary = Boundary.of(policy, own)
    judged = held(found, boundary)
    if all(one.verdict.allowed or one.connection.kind == "unix" for one in judged):
        return judged
    names = addresses_of([*(endpoint.host for endpoint in own), *_names(policy)])
    return held(found, boundary, lambda address: names.get(address, ()))


def _names(policy: Policy) -> Iterator[str]:
    """The names that a connection may have been made by: those of the policy, and those that were called of late."""
    from agentguard.core.rights import provider_hosts
    from agentguard.policy.hosts import Kind

    for agent in policy.agents:
        for entry in (*(agent.external_calls.allowed_domains or ()), *provider_hosts(agent)):
            if entry.kind is Kind.NAME:
                yield entry.host
    yield from _recent()


def _recent() -> list[str]:
    from agentguard.audit import read_events
    from agentguard.audit.past import history
    from agentguard.policy.hosts import address_of

    calls = history(read_events(events_directory(), time.time() - _RECENT_SECONDS)).calls
    return [hop.target.host for call in reversed(calls) for hop in call.hops if address_of(hop.target.host) is None]


def addresses_of(names: Iterable[str]) -> dict[str, set[str]]:
    """The names by the address that they resolve to now. What does not resolve within two seconds is left out."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in list(dict.fromkeys(names))[:_MOST_NAMES]:
        waiting.put(name)
    found: dict[str, set[str]] = {}

    def resolve() -> None:
        while True:
            try:
                name = waiting.get_nowait()
                answers: Sequence[tuple[object, ...]] = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except queue.Empty:
                return
            except (OSError, UnicodeError):
                continue
            for *_, address in answers:
                found.setdefault(str(address[0]), set()).add(name)  # type: ignore[index]  # a socket address

    # Daemons: a resolver that hangs must not hold up the end of the command.
    threads = [threading.Thread(target=resolve, daemon=True) for _ in range(_RESOLVERS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return {address: set(known) for address, known in list(found.items())}

"""Which names an address stands for: what a resolver answered, for as long as the answer holds."""

from __future__ import annotations

import threading
from ipaddress import ip_address
from typing import TYPE_CHECKING

from agentguard.policy.hosts import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SHORTEST_SECONDS = 30.0
"""An answer holds at least so long: clients keep an address longer than a TTL of zero allows."""

GRACE_SECONDS = 300.0
"""Connection pools connect anew to an address that they resolved a while ago."""

MOST_ADDRESSES = 65_536
_NAMES_OF_AN_ADDRESS = 256


class Pins:
    """Addresses and the names that resolved to them. Bounded: the pin that ends first makes room. Thread-safe.

    Args:
        clock: Monotonic seconds.
        most: How many addresses are remembered.
    """

    def __init__(self, clock: Callable[[], float], most: int = MOST_ADDRESSES) -> None:
        self._clock = clock
        self._most = most
        self._ends: dict[str, dict[str, float]] = {}
        self._lock = threading.RLock()  # a finalizer that runs within may connect, and ask

    def pin(self, name: str, addresses: Iterable[str], ttl: float) -> None:
        """Remember what a name resolved to, for its TTL (30 s at least) and five minutes of grace. What is no host is ignored."""
        end = self._clock() + max(ttl, SHORTEST_SECONDS) + GRACE_SECONDS
        try:
            host = canonical(name)
            found = [_spelled(address) for address in addresses]
        except ValueError:
            return
        with self._lock:
            for address in found:
                self._remember(address, host, end)

    def names_of(self, ip: str) -> frozenset[str]:
        """The names that an address stands for now."""
        address = ip
        if ip not in self._ends:
            if ":" not in ip:
                return frozenset()  # an IPv4 address has one spelling
            try:
                address = _spelled(ip)
            except ValueError:
                return frozenset()
        with self._lock:
            ends = self._ends.get(address)
            if ends is None:
                return frozenset()
            now = self._clock()
            if any(end <= now for end in ends.values()):
                ends = self._ends[address] = {name: end for name, end in ends.items() if end > now}
            if not ends:
                del self._ends[address]
            return frozenset(ends)

    def __len__(self) -> int:
        return len(self._ends)

    def _remember(self, address: str, name: str, end: float) -> None:
        ends = self._ends.get(address)
        if ends is None:
            if len(self._ends) >= self._most:
                self._make_room()
            ends = self._ends[address] = {}
        if name not in ends and len(ends) >= _NAMES_OF_AN_ADDRESS:
            del ends[min(ends, key=ends.__getitem__)]
        ends[name] = max(end, ends.get(name, end))

    def _make_room(self) -> None:
        """Forget what has ended, and the sixteenth that would end first: making room is rare, and never one at a time."""
        now = self._clock()
        by_end = sorted(self._ends, key=lambda address: max(self._ends[address].values()))
        for place, address in enumerate(by_end):
            if place > self._most // 16 and max(self._ends[address].values()) > now:
                break
            del self._ends[address]


def _spelled(ip: str) -> str:
    """One spelling for each address. A mapped IPv4 address is connected to as itself; NAT64 and its like are other ways there."""
    address = ip_address(ip)
    return str(getattr(address, "ipv4_mapped", None) or address)

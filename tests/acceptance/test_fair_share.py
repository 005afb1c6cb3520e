"""A rogue agent at a hundred times its share, in a process beside those of four others: each of them gets its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..stores.redis_server import Server  # noqa: TID252 - a server that two folders of tests start
from .sharer import AGENTS, Round

SHARER = Path(__file__).with_name("sharer.py")
OTHERS = AGENTS[1:]
SHARE = 20
"""How many calls each agent may make."""

TOKENS = 100
"""Of one of them. A call of the rogue is ten times as large, where that counts."""

STORES = ["sqlite", "leased-sqlite", "redis", "leased-redis"]


class Sharer:
    """An agent in a process."""

    def __init__(self, agent: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, SHARER, agent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, line: str) -> None:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def said(self) -> str:
        line = self._process.stdout.readline().strip()
        assert line, "the process has ended"
        return line

    def given(self) -> int:
        said = self.said()
        return int(self.said() if said == "refused" else said)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def fleet():
    sharers = {agent: Sharer(agent) for agent in AGENTS}
    yield sharers
    for sharer in sharers.values():
        sharer.close()


@pytest.fixture(scope="module")
def redis_url():
    server = Server()
    yield f"{server.url}?timeout=5"
    server.close()


@pytest.fixture(params=STORES)
def counted_in(request, tmp_path):
    """A URL, and whether slices are to be taken of the store that it opens."""
    is_leased, backend = request.param.startswith("leased-"), request.param.rpartition("-")[2]
    if backend == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite", is_leased
    if not shutil.which("redis-server"):
        pytest.skip("needs redis-server")
    fleet = "".join(filter(str.isalnum, request.node.name))
    return f"{request.getfixturevalue('redis_url')}&fleet={fleet}{'' if is_leased else '&leases=off'}", False


def raced(fleet: dict[str, Sharer], counted_in: tuple[str, bool], unit: str, share: int, *, fair: bool) -> dict[str, int]:
    """What each is given: the rogue asks first, until it is refused, and goes on while the others ask for their own."""
    if unit == "tokens":
        limit = {"limit": f"{share * TOKENS * len(AGENTS)} tokens", "every": "day"}
        tokens, rogue = TOKENS, (100 * share // 10, 10 * TOKENS)
    else:
        limit = {"limit": f"{share * len(AGENTS)}_requests_per_hour"}
        tokens, rogue = 0, (100 * share, 0)
    for agent, sharer in fleet.items():
        size = rogue if agent == "rogue" else (2 * share, tokens)
        sharer.tell(json.dumps(Round(*counted_in, limit, fair, *size)))
    for sharer in fleet.values():
        assert sharer.said() == "ready"
    fleet["rogue"].tell("go")
    assert fleet["rogue"].said() == "refused"
    for agent in OTHERS:
        fleet[agent].tell("go")
    return {agent: sharer.given() // (tokens or 1) for agent, sharer in fleet.items()}


def check(given: dict[str, int], share: int) -> None:
    assert given["rogue"] <= share
    assert all(given[agent] >= 0.95 * share for agent in OTHERS), given
    assert sum(given.values()) <= share * len(AGENTS)


@pytest.mark.parametrize("unit", ["tokens", "requests"])
def test_a_rogue_process_takes_its_share_and_leaves_the_others_theirs(fleet, counted_in, unit):
    given = raced(fleet, counted_in, unit, SHARE, fair=True)

    check(given, SHARE)


@pytest.mark.parametrize("unit", ["tokens", "requests"])
@pytest.mark.parametrize("counted_in", ["sqlite", "leased-redis"], indirect=True)
def test_without_shares_the_others_starve(fleet, counted_in, unit):
    given = raced(fleet, counted_in, unit, SHARE, fair=False)

    assert given["rogue"] >= 0.9 * SHARE * len(AGENTS)
    assert all(given[agent] < 0.95 * SHARE for agent in OTHERS), given


@pytest.mark.storm
@pytest.mark.parametrize("unit", ["tokens", "requests"])
def test_of_larger_shares_too_a_rogue_process_takes_its_own(fleet, counted_in, unit):
    given = raced(fleet, counted_in, unit, 10 * SHARE, fair=True)

    check(given, 10 * SHARE)

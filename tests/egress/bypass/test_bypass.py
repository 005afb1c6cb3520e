"""Hundreds of ways out, played under every mode of the guard; what the denied servers received is the judge.

A run of its own: `python tests/egress/bypass --mode kernel --group sockets`. What may remain, and why: remaining.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
GUARDED = ("in_process", "kernel", "layers", "inside", "docker")
KERNEL = ("kernel", "layers", "inside", "docker")


def _known_reason(mode: str, name: str) -> str | None:
    spec = importlib.util.spec_from_file_location("bypass_remaining", HERE / "remaining.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    why: str | None = module.reason(mode, name)
    return why


@cache
def battery(mode: str, *options: str) -> dict[str, Any]:
    """What came of a run. Its namespaces end with it."""
    asked = [sys.executable, str(HERE), "--mode", mode, "--json", "/dev/stdout", *options]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=1000, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index('{"mode"') :])
    assert not found["complaints"], found["complaints"]
    return found


def groups(*names: str) -> list[str]:
    return [option for name in names for option in ("--group", name)]


@cache
def whole_battery() -> dict[str, Future[dict[str, Any]]]:
    """Every mode, two at a time. Docker's and root's differ from the kernel's in what concerns sockets and descriptors only."""
    pool = ThreadPoolExecutor(2)
    runs = {mode: pool.submit(battery, mode) for mode in ("none", *GUARDED) if mode != "docker"}
    runs["docker"] = pool.submit(battery, "docker", *groups("sockets", "calls", "dns", "unix", "udp", "children", "controls"))
    runs["root"] = pool.submit(battery, "kernel", "--as-self", *groups("sockets", "calls", "families", "unix", "udp", "controls"))
    pool.shutdown(wait=False)
    return runs


def names(found: dict[str, Any], outcome: str, kind: str = "attempts") -> set[str]:
    return {result["name"] for result in found[kind] if result["outcome"] == outcome}


def unexplained(mode: str, found: dict[str, Any]) -> dict[str, Any]:
    """What got out and should not have."""
    return {
        result["name"]: result["seen"]
        for result in found["attempts"]
        if result["outcome"] == "leaked" and _known_reason(mode, result["name"]) is None
    }


def broken(found: dict[str, Any]) -> dict[str, str]:
    return {result["name"]: result["said"] for result in found["controls"] if result["outcome"] not in {"works", "n.a."}}


pytestmark = [
    pytest.mark.needs("unshare", "ip", "mount"),
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's"),
    pytest.mark.xdist_group("bypass"),
]


def test_without_a_guard_every_attempt_of_the_subset_arrives() -> None:
    found = battery("none", "--quick")

    assert len(names(found, "leaked")) >= 50
    assert not names(found, "blocked")
    assert not names(found, "not run")
    assert not broken(found)


@pytest.mark.parametrize("mode", ["in_process", "kernel"])
def test_nothing_of_the_subset_gets_out_that_is_not_known_to(mode: str) -> None:
    found = battery(mode, "--quick")

    assert not unexplained(mode, found)
    assert not names(found, "not run")


@pytest.mark.parametrize("mode", ["in_process", "kernel"])
def test_what_an_agent_needs_still_works(mode: str) -> None:
    assert not broken(battery(mode, "--quick"))


@pytest.mark.storm
@pytest.mark.timeout(2000)
def test_without_a_guard_every_attempt_arrives() -> None:
    """An attempt that arrives nowhere proves nothing when it is blocked."""
    found = whole_battery()["none"].result()

    assert len(names(found, "leaked")) >= 1000
    assert not names(found, "blocked")
    assert not names(found, "not run")
    assert not broken(found)


@pytest.mark.storm
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("mode", GUARDED)
def test_nothing_gets_out_that_is_not_known_to(mode: str) -> None:
    found = whole_battery()[mode].result()

    assert not unexplained(mode, found)
    assert not names(found, "not run")


@pytest.mark.storm
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("mode", GUARDED)
def test_everything_that_an_agent_needs_still_works(mode: str) -> None:
    found = whole_battery()[mode].result()

    assert not broken(found)


@pytest.mark.storm
@pytest.mark.timeout(2000)
@pytest.mark.parametrize("mode", KERNEL)
def test_no_connection_reaches_a_denied_address_under_the_kernel(mode: str) -> None:
    """What is known to remain goes to an allowed host, and only says another name."""
    found = whole_battery()[mode].result()

    reached = [seen for result in found["attempts"] for seen in result["seen"] if not seen.startswith("front: ")]
    assert not reached


@pytest.mark.storm
@pytest.mark.timeout(2000)
def test_the_kernels_boundary_holds_for_root_too() -> None:
    found = whole_battery()["root"].result()

    assert not unexplained("kernel", found)
    assert not broken(found)

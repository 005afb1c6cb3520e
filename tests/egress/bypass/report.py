"""The page of results: `python tests/egress/bypass --table docs/reference/bypass.md`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from battery import MODES, load
from remaining import reason
from table import ATTEMPTS, CONTROLS

HERE = Path(__file__).resolve().parent

GROUPS = {
    "clients": "HTTP clients and other protocols, in Python",
    "native": "libraries with sockets of their own: curl, gRPC, libpq",
    "streams": "asyncio and uvloop",
    "sockets": "sockets, and odd places to open them from",
    "names": "spellings of names and addresses, private space, metadata, rebinding",
    "calls": "libc, system calls by number, machine code, `int 0x80`, io_uring",
    "fast open": "TCP Fast Open",
    "families": "MPTCP, ping, UDP-Lite, raw sockets, other families",
    "children": "other programs, fork, exec, spawn",
    "interpreters": "sub-interpreters, and code from elsewhere",
    "udp": "UDP",
    "udp allowed": "UDP under a policy that opens it for allowed names",
    "dns": "data that leaves as a question",
    "proxies": "proxies of the attacker",
    "redirects": "redirects by allowed hosts",
    "fronting": "Host headers, TLS names and tunnels to allowed hosts",
    "unix": "Unix sockets of daemons",
    "races": "time between check and use",
    "tampering": "taking the guard apart from inside",
    "supervisor": "attacks on the supervisor",
    "bystander": "processes of the same user outside of the tree",
}
HEAD = """\
# Ways out: the bypass battery

What an agent that wants out can try, and what comes of it. {total} attempts play in a network namespace of their own, with
allowed and denied servers on public, private and metadata addresses, an authoritative nameserver that logs every question, TLS,
UDP, proxies and Unix sockets. **The denied servers' own log is the judge**: every attempt carries a token, and it has leaked
when its token, or a mere connection, arrives where the policy does not allow it. A question for a name that is not allowed
counts as a leak too. The attempts run as nobody (uid 65534, no capabilities).

Without a guard every one of them leaks, or it would prove nothing. {controls} controls, from httpx to a multiprocessing
Manager, must work under every mode.

```text
python tests/egress/bypass --mode kernel --group sockets     # what a mode does to a group
python tests/egress/bypass --list                            # every attempt by name
python tests/egress/bypass --table docs/reference/bypass.md  # writes this page
```

Measured on Linux {kernel} ({machine}), Python {python}. The modes:

| mode | what it is |
|---|---|
"""


def measure(mode: str, folder: Path) -> dict[str, Any]:
    """One run of one mode, in namespaces of its own. A result that is in the folder already is taken from there."""
    kept = folder / f"{mode}.json"
    if not kept.exists():
        subprocess.run([sys.executable, str(HERE), "--mode", mode, "--json", str(kept)], check=True, env={**os.environ})
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def write_table(page: Path, folder: Path) -> None:
    """Run every mode, and write the page."""
    load()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda mode: measure(mode, folder), MODES))
    page.write_text(render(found), encoding="utf-8")


def render(found: list[dict[str, Any]]) -> str:
    """The page."""
    head = HEAD.format(
        total=f"{len(ATTEMPTS.rows):,}", controls=len(CONTROLS.rows), kernel=".".join(found[0]["kernel"].split(".")[:2]),
        machine=found[0]["machine"],
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
    )  # fmt: skip
    modes = "".join(f"| `{mode}` | {what} |\n" for mode, what in MODES.items())
    parts = [head + modes, _sums(found), _groups(found)]
    parts += [_leaks(one) for one in found if one["mode"] not in {"none", "docker"}]
    parts += [_absent(found)]
    return "\n".join(parts)


def _count(one: dict[str, Any], group: str | None = None) -> Counter[str]:
    return Counter(row["outcome"] for row in one["attempts"] if group in {None, row["group"]})


def _sums(found: list[dict[str, Any]]) -> str:
    lines = [
        "## Sums",
        "",
        "| mode | blocked | leaked | of them to a denied address | n.a. | controls that work |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        sums = _count(one)
        direct = sum(
            any(not seen.startswith("front") for seen in row["seen"]) for row in one["attempts"] if row["outcome"] == "leaked"
        )
        works = Counter(row["outcome"] for row in one["controls"])
        tried = works.total() - works["n.a."]
        lines.append(
            f"| `{one['mode']}` | {sums['blocked']:,} | {sums['leaked']:,} | {direct:,} | {sums['n.a.']} | "
            f"{works['works']} of {tried} |"
        )
    text = (
        "\nn.a.: the kernel, a program or a library that the attempt needs is not here, or the mode refuses to start at all"
        "\n(see below); never counted as blocked. What remains under the kernel goes to an allowed address"
        "\nand merely says another name."
    )
    return "\n".join([*lines, text, ""])


def _groups(found: list[dict[str, Any]]) -> str:
    lines = ["## Blocked, by group", "", _head(found)]
    lines.append(f"|---|{'---:|' * len(found)}")
    for group, what in GROUPS.items():
        cells = []
        for one in found:
            sums = _count(one, group)
            tried = sums["blocked"] + sums["leaked"]
            cells.append(f"{sums['blocked']}/{tried}" if tried else "n.a.")
        lines.append(f"| **{group}**: {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _head(found: list[dict[str, Any]]) -> str:
    names = " | ".join(f"`{one['mode']}`" for one in found)
    return f"| group | {names} |"


def _leaks(one: dict[str, Any]) -> str:
    """Every leak by name, under its explanation."""
    by_reason: dict[str, list[str]] = {}
    for row in one["attempts"]:
        if row["outcome"] == "leaked":
            why = reason(one["mode"], row["name"]) or "Not explained: a defect."
            by_reason.setdefault(why, []).append(row["name"])
    lines = [f"## What gets out: `{one['mode']}`", ""]
    for why, names in by_reason.items():
        lines += [f"{why} ({len(names)})", "", "```text", *_columns(names), "```", ""]
    return "\n".join(lines) if by_reason else "\n".join([*lines, "Nothing.", ""])


def _columns(names: list[str]) -> list[str]:
    """One line a group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group, _, rest = name.partition(": ")
        groups.setdefault(group, []).append(rest)
    lines = []
    for group, rests in groups.items():
        line = f"{group}:"
        for rest in rests:
            if len(line) + len(rest) > 120:
                lines.append(line)
                line = " " * 4
            line += f" {rest};"
        lines.append(line.rstrip(";"))
    return lines


def _absent(found: list[dict[str, Any]]) -> str:
    lines = ["## Not applicable", "", "| attempt | mode | why |", "|---|---|---|"]
    seen: dict[tuple[str, str], list[str]] = {}
    for one in found:
        for row in one["attempts"]:
            if row["outcome"] == "n.a.":
                why = row["said"].rpartition("EnforcementUnavailable: ")[2].replace("|", "/")
                seen.setdefault((row["name"], why), []).append(one["mode"])
    everywhere = len(found)
    for (name, why), modes in seen.items():
        lines.append(f"| {name} | {'all' if len(modes) == everywhere else ', '.join(modes)} | {why} |")
    return "\n".join([*lines, ""])

"""The firewall rules of the how-to page, loaded into a namespace, and tried from inside of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "network-policy.md"
ALLOWED, DENIED, METADATA, NAMESERVER = "93.184.215.14", "93.184.215.17", "169.254.169.254", "10.0.0.53"

PROGRAM = """\
import encodings.idna, os, socket, sys
servers = [socket.create_server(("0.0.0.0", port)) for port in (53, 80, 443, 8080)]
if sys.argv[1] == "nobody":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for name in sys.argv[2:]:
    address, port = name.split(":")
    try:
        socket.create_connection((address, int(port)), 1).close()
        print(name, "open")
    except OSError:
        print(name, "closed")
"""
TRIED = (
    f"{ALLOWED}:443",
    f"{ALLOWED}:8080",
    f"{DENIED}:443",
    f"{METADATA}:80",
    f"{NAMESERVER}:53",
    f"{NAMESERVER}:80",
    "127.0.0.1:80",
)


def try_from_inside(user: str, *, with_rules: bool) -> dict[str, str]:
    """What can be reached in a network namespace with the page's rules, or without."""
    rules = "table inet agents" + PAGE.read_text(encoding="utf-8").partition("table inet agents")[2].partition("```")[0]
    assert "reject" in rules
    addresses = "".join(f"ip addr add {address}/32 dev lo\n" for address in (ALLOWED, DENIED, METADATA, NAMESERVER))
    script = f"set -e\nip link set lo up\n{addresses}"
    script += f"nft -f - <<'RULES'\n{rules}\nRULES\n" if with_rules else ""
    script += f'exec "{sys.executable}" -c "$PROGRAM" {user} {" ".join(TRIED)}'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PROGRAM": PROGRAM},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ") for line in done.stdout.splitlines())


pytestmark = [
    pytest.mark.needs("unshare", "ip", "nft"),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="another user's sockets are made by root"),
]


def test_the_agents_user_reaches_what_is_listed_and_nothing_else() -> None:
    found = try_from_inside("nobody", with_rules=True)

    assert found == {
        f"{ALLOWED}:443": "open", f"{ALLOWED}:8080": "closed", f"{DENIED}:443": "closed", f"{METADATA}:80": "closed",
        f"{NAMESERVER}:53": "open", f"{NAMESERVER}:80": "closed", "127.0.0.1:80": "closed",
    }  # fmt: skip


def test_other_users_are_left_alone() -> None:
    found = try_from_inside("root", with_rules=True)

    assert set(found.values()) == {"open"}


def test_without_the_rules_everything_is_open() -> None:
    found = try_from_inside("nobody", with_rules=False)

    assert set(found.values()) == {"open"}

"""Which Unix sockets may be connected to: the program's own in the temporary folder, and those that the policy lists.

A Unix socket is a way out: whoever may speak to Docker's socket, to D-Bus or to an SSH agent can have others connect.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

UNIX_SOCKETS = "external_calls.unix_sockets"

SERVICES = (
    ".", "dbus-", "emacs", "gpg-", "keyring-", "kitty", "mysql", "nvim.", "podman-run-", "snap.", "ssh-", "supervisor",
    "systemd-", "tmux-", "vscode-",
)  # fmt: skip
"""How the names begin of what listens in a temporary folder on behalf of the user, not of the program (X11's with a dot)."""

LOOKUPS = (
    "/run/avahi-daemon/socket", "/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve", "/run/systemd/userdb",
    "/var/run/nscd/socket",
)  # fmt: skip
"""What the C library asks for names before it asks the nameserver. Where nobody listens it does without."""


@cache
def own_folders() -> tuple[str, ...]:
    """Where programs keep sockets of their own: multiprocessing's managers and forkservers need them."""
    import tempfile  # and what it imports: only where there are Unix sockets

    named = (tempfile.gettempdir(), os.environ.get("TMPDIR", ""))
    return tuple(dict.fromkeys(os.path.realpath(folder) for folder in named if folder))


def path_of(address: str | bytes) -> str:
    """A Unix socket's address as it is judged: its real path; `@name` for an abstract one."""
    text = os.fsdecode(address)
    return "@" + text[1:] if text.startswith("\0") else os.path.realpath(text)


def refuses_path(path: str, listed: Collection[str], own: Collection[str]) -> str | None:
    """Why a Unix socket may not be connected to; None when it may.

    Args:
        path: What `path_of` gave.
        listed: The policy's `unix_sockets`.
        own: What `own_folders` gave.
    """
    if any(is_below(path, top) for top in _real(listed)):
        return None
    if path.startswith("@"):
        return f"abstract sockets need an entry in {UNIX_SOCKETS}"
    for folder in own:
        if is_below(path, folder) and path != folder:
            name = os.path.relpath(path, folder)
            return f"it is a service's, which needs an entry in {UNIX_SOCKETS}" if name.startswith(SERVICES) else None
    return f"not in {UNIX_SOCKETS}"


def _real(listed: Collection[str]) -> Iterator[str]:
    for top in listed:
        yield top if top.startswith("@") else os.path.realpath(top)


def is_below(path: str, top: str) -> bool:
    """Whether a path is what is listed, or lies below it."""
    if top.startswith("@"):
        return path == top
    return path == top or path.startswith(top.rstrip("/") + "/")

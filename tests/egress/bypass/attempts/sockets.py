"""Sockets as Python gives them: objects, unbound methods, foreign descriptors, odd addresses, odd places to stand."""

from __future__ import annotations

import socket
import threading

import world
from table import ATTEMPTS, attempt

TO = (world.DENIED4, 80)


def talk(opened, data):
    opened.settimeout(2)
    opened.sendall(data)
    opened.recv(1000)
    opened.close()


def connected(aim, address=TO, family=socket.AF_INET):
    opened = socket.socket(family)
    opened.settimeout(2)
    opened.connect(address)
    talk(opened, aim.request())


@attempt("sockets", quick=True)
def connect(aim):
    connected(aim)


@attempt("sockets")
def connect_v6(aim):
    connected(aim, (world.DENIED6, 80), socket.AF_INET6)


@attempt("sockets")
def connect_v6_with_flow_and_scope(aim):
    connected(aim, (world.DENIED6, 80, 7, 0), socket.AF_INET6)


@attempt("sockets")
def connect_mapped(aim):
    connected(aim, (world.MAPPED, 80), socket.AF_INET6)


@attempt("sockets")
def connect_by_name_inside_of_connect(aim):
    connected(aim, ("denied.test", 80))


@attempt("sockets")
def connect_by_bytes(aim):
    connected(aim, (b"93.184.215.17", 80))


@attempt("sockets")
def connect_by_bytearray(aim):
    connected(aim, (bytearray(b"denied.test"), 80))


@attempt("sockets")
def connect_ex(aim):
    opened = socket.socket()
    opened.connect_ex(TO)
    talk(opened, aim.request())


@attempt("sockets")
def connect_not_blocking(aim):
    import select

    opened = socket.socket()
    opened.setblocking(False)
    opened.connect_ex(TO)
    select.select([], [opened], [], 1)
    talk(opened, aim.request())


@attempt("sockets", quick=True)
def create_connection(aim):
    talk(socket.create_connection(("denied.test", 80), 2), aim.request())


@attempt("sockets", quick=True)
def c_socket(aim):
    import _socket

    opened = _socket.socket()
    opened.connect(TO)
    talk(opened, aim.request())


@attempt("sockets")
def unbound_connect(aim):
    import _socket

    opened = socket.socket()
    _socket.socket.connect(opened, TO)
    talk(opened, aim.request())


@attempt("sockets")
def unbound_connect_ex(aim):
    opened = socket.socket()
    socket.socket.connect_ex(opened, TO)
    talk(opened, aim.request())


@attempt("sockets", before=lambda aim: (socket.socket, socket.socket.connect))
def saved_connect(aim, saved):
    kind, connect = saved
    opened = kind()
    connect(opened, TO)
    talk(opened, aim.request())


@attempt("sockets", before=lambda aim: socket.socket())
def socket_made_before(aim, opened):
    opened.connect(TO)
    talk(opened, aim.request())


def _start_waiting(aim):
    go = threading.Event()
    done = threading.Event()

    def wait():
        go.wait(30)
        try:
            connected(aim)
        finally:
            done.set()

    threading.Thread(target=wait, daemon=True).start()
    return go, done


@attempt("sockets", before=_start_waiting, quick=True)
def thread_started_before(aim, pair):
    go, done = pair
    go.set()
    done.wait(3)


def _pool_before(aim):
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(1)
    pool.submit(int).result()
    return pool


@attempt("sockets", before=_pool_before)
def pool_started_before(aim, pool):
    pool.submit(connected, aim).result(3)


@attempt("sockets")
def subclass(aim):
    class Own(socket.socket):
        def connect(self, address):
            return super().connect(TO)

    opened = Own()
    opened.connect(("127.0.0.1", 1))
    talk(opened, aim.request())


@attempt("sockets")
def fromfd(aim):
    first = socket.socket()
    opened = socket.fromfd(first.fileno(), socket.AF_INET, socket.SOCK_STREAM)
    opened.connect(TO)
    talk(opened, aim.request())


@attempt("sockets")
def by_descriptor(aim):
    opened = socket.socket(fileno=socket.socket().detach())
    opened.connect(TO)
    talk(opened, aim.request())


@attempt("sockets")
def dup2_over_another(aim):
    import os

    opened, other = socket.socket(), socket.socket(socket.AF_UNIX)
    os.dup2(opened.fileno(), other.fileno())
    opened.connect(TO)
    os.write(other.fileno(), aim.request())
    talk(opened, b"")


@attempt("sockets")
def written_with_os_write(aim):
    import os

    opened = socket.socket()
    opened.connect(TO)
    os.write(opened.fileno(), aim.request())
    opened.recv(10)


@attempt("sockets")
def spliced(aim):
    import os

    opened = socket.socket()
    opened.connect(TO)
    out, into = os.pipe()
    os.write(into, aim.request())
    os.splice(out, opened.fileno(), 1000)
    opened.recv(10)


@attempt("sockets")
def reloaded(aim):
    import importlib
    import sys

    saved = dict(vars(socket))
    try:
        module = importlib.reload(sys.modules["socket"])
        opened = module.socket()
        opened.connect(TO)
        talk(opened, aim.request())
    finally:
        vars(socket).update(saved)


@attempt("sockets")
def module_loaded_twice(aim):
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("socket_again", socket.__file__)
    module = sys.modules["socket_again"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    talk(module.create_connection(TO), aim.request())


@attempt("sockets")
def c_module_loaded_twice(aim):
    import _socket
    import importlib.machinery
    import importlib.util

    spec = _socket.__spec__
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    opened = module.socket()
    opened.connect(TO)
    opened.sendall(aim.request())
    opened.recv(10)


@attempt("sockets")
def bound_first(aim):
    opened = socket.socket()
    opened.bind((world.ALLOWED4, 0))
    opened.connect(TO)
    talk(opened, aim.request())


@attempt("sockets")
def dissolved_and_connected_again(aim):
    import ctypes

    opened = socket.socket()
    socket.getaddrinfo("allowed.test", 80)
    opened.connect((world.ALLOWED4, 80))
    ctypes.CDLL(None).connect(opened.fileno(), b"\0" * 16, 16)
    opened.connect(TO)
    talk(opened, aim.request())


@attempt("sockets")
def lying_text(aim):
    class Lie(str):
        __slots__ = ()

        def __str__(self):
            return "allowed.test"

        def __eq__(self, other):
            return other == "allowed.test"

        def __hash__(self):
            return hash("allowed.test")

        def lower(self):
            return "allowed.test"

        def rstrip(self, *arguments):
            return "allowed.test"

    connected(aim, (Lie(world.DENIED4), 80))


@attempt("sockets")
def lying_tuple(aim):
    class Lie(tuple):
        __slots__ = ()

        def __getitem__(self, at):
            return (world.ALLOWED4, 80)[at]

        def __iter__(self):
            return iter((world.ALLOWED4, 80))

    connected(aim, Lie(TO))


@attempt("sockets")
def lying_port(aim):
    class Lie(int):
        def __eq__(self, other):
            return other == 443

        def __hash__(self):
            return hash(443)

    connected(aim, (world.DENIED4, Lie(80)))


@attempt("sockets")
def port_by_index(aim):
    class Port:
        asked = 0

        def __index__(self):
            self.asked += 1
            return 80

    connected(aim, (world.DENIED4, Port()))


@attempt("sockets")
def passed_by_another_process(aim):
    import array
    import os

    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            opened = socket.socket()
            opened.connect(TO)
            socket.send_fds(theirs, [b"x"], [opened.fileno()])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 10, 1)
    os.write(array.array("i", fds)[0], aim.request())
    socket.socket(fileno=fds[0]).recv(10)


def _in_a_thread(run):
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(3)


def _in_a_low_thread(run):
    import _thread

    done = threading.Event()

    def first():
        try:
            run()
        finally:
            done.set()

    _thread.start_new_thread(first, ())
    done.wait(3)


def _in_an_empty_context(run):
    import contextvars

    contextvars.Context().run(run)


def _in_a_signal(run):
    import signal

    signal.signal(signal.SIGUSR1, lambda *_: run())
    signal.raise_signal(signal.SIGUSR1)


def _in_a_finalizer(run):
    class Last:
        def __del__(self):
            run()

    Last()


def _in_a_weakref(run):
    import weakref

    class Gone:
        pass

    gone = Gone()
    watch = weakref.ref(gone, lambda _: run())
    del gone
    return watch


def _in_the_collector(run):
    import gc

    done = []

    def once(phase, info):
        if not done:
            done.append(1)
            run()

    gc.callbacks.append(once)
    gc.collect()
    gc.callbacks.remove(once)


def _in_a_trace(run):
    import sys

    def trace(*_):
        sys.settrace(None)
        run()

    sys.settrace(trace)
    (lambda: None)()
    sys.settrace(None)


def _in_a_c_callback(run):
    import ctypes

    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    done = []

    def once(left, right):
        if not done:
            done.append(1)
            run()
        return 0

    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(1, 2), 2, 4, compare(once))


def _in_a_generator(run):
    for _ in (run() for _ in range(1)):
        pass


def _in_exec(run):
    exec(compile("run()", "<allowed.test>", "exec"), {"run": run})


def _in_a_codec(run):
    import codecs

    codecs.register_error("bypass", lambda error: (run(), ("", error.end))[1])
    "é".encode("ascii", "bypass")


def _in_a_pickle(run):
    import pickle

    global _PICKLED
    _PICKLED = run

    class Payload:
        def __reduce__(self):
            return _run_pickled, ()

    pickle.loads(pickle.dumps(Payload()))


def _run_pickled():
    _PICKLED()


def _in_a_timer(run):
    timer = threading.Timer(0.01, run)
    timer.start()
    timer.join(3)


def _in_an_atfork_hook(run):
    import os

    done = []
    os.register_at_fork(before=lambda: None if done else (done.append(1), run()))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


PLACES = (
    _in_a_thread, _in_a_low_thread, _in_an_empty_context, _in_a_signal, _in_a_finalizer, _in_a_weakref, _in_the_collector,
    _in_a_trace, _in_a_c_callback, _in_a_generator, _in_exec, _in_a_codec, _in_a_pickle, _in_a_timer, _in_an_atfork_hook,
)  # fmt: skip

for _place in PLACES:
    ATTEMPTS.add("sockets", _place.__name__.strip("_"), lambda aim, place=_place: place(lambda: connected(aim)))

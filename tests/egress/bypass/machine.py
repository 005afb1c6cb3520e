"""System calls without libc: machine code in a page of our own, by the 64-bit way, the 32-bit way and io_uring."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
MAP_32BIT = 0x40

# push rbx; mov eax, edi; mov ebx, esi; mov ecx, ecx's third argument (edx); mov edx, ecx; int 0x80; pop rbx; ret
_COMPAT = bytes.fromhex("53 89f8 89f3 4189c8 89d1 4489c2 cd80 5b c3".replace(" ", ""))
# mov rax, rdi; mov rdi, rsi; mov rsi, rdx; mov rdx, rcx; mov r10, r8; mov r8, r9; xor r9, r9; syscall; ret
_DIRECT = bytes.fromhex("4889f8 4889f7 4889d6 4889ca 4d89c2 4d89c8 4d31c9 0f05 c3".replace(" ", ""))

_LIBC_MMAP = LIBC.mmap
_LIBC_MMAP.restype = ctypes.c_void_p
_LIBC_MMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)


def page(content: bytes = b"", *, protection: int = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, low: bool = True) -> int:
    """A page of memory, below 4 GiB where 32-bit calls can name it."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (MAP_32BIT if low else 0)
    address = int(_LIBC_MMAP(None, 4096, protection, flags, -1, 0))
    if content:
        ctypes.memmove(address, content, len(content))
    return address


def compat_call(number: int, *arguments: int) -> int:
    """`int 0x80`."""
    call = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint32] * 4)(page(_COMPAT))
    return int(call(number, *(*arguments, 0, 0, 0)[:3]))


def direct_call(number: int, *arguments: int) -> int:
    """The `syscall` instruction."""
    call = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_ulong] * 6)(page(_DIRECT))
    return int(call(number, *(*arguments, 0, 0, 0, 0, 0)[:5]))


def sockaddr(address: str, port: int) -> bytes:
    """A sockaddr_in or sockaddr_in6."""
    if ":" in address:
        return (
            struct.pack("=H", socket.AF_INET6)
            + struct.pack(">HI", port, 0)
            + socket.inet_pton(socket.AF_INET6, address)
            + b"\0" * 4
        )
    return struct.pack("=H", socket.AF_INET) + struct.pack(">H", port) + socket.inet_aton(address) + b"\0" * 8


class Ring:
    """An io_uring of a few entries."""

    def __init__(self, flags: int = 0) -> None:
        parameters = (ctypes.c_uint32 * 30)()
        parameters[2] = flags
        self.fd = LIBC.syscall(425, 8, parameters)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        p = parameters
        self.sq_off, self.cq_off = p[10:20], p[20:30]
        self.flags = flags
        self.sq = mmap.mmap(self.fd, self.sq_off[6] + p[0] * 4, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self.cq = mmap.mmap(self.fd, self.cq_off[5] + p[1] * 16, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0x8000000)
        self.entries = mmap.mmap(self.fd, p[0] * 64, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0x10000000)

    def submit(
        self, operation: int, fd: int, address: int, length: int, offset: int = 0, more: int = 0, address2: int = 0
    ) -> int:
        """One operation, and its result."""
        tail = struct.unpack_from("=I", self.sq, self.sq_off[1])[0]
        mask = struct.unpack_from("=I", self.sq, self.sq_off[2])[0]
        struct.pack_into("=BBHiQQII", self.entries, (tail & mask) * 64, operation, 0, 0, fd, offset, address, length, more)
        struct.pack_into("=QQQQ", self.entries, (tail & mask) * 64 + 32, 0, address2, 0, 0)
        struct.pack_into("=I", self.sq, self.sq_off[6] + (tail & mask) * 4, tail & mask)
        head = struct.unpack_from("=I", self.cq, self.cq_off[0])[0]
        struct.pack_into("=I", self.sq, self.sq_off[1], tail + 1)
        LIBC.syscall(426, self.fd, 1, 1, 1 | (2 if self.flags & 2 else 0), 0, 0)
        at = self.cq_off[5] + (head & struct.unpack_from("=I", self.cq, self.cq_off[2])[0]) * 16
        result = int(struct.unpack_from("=i", self.cq, at + 8)[0])
        struct.pack_into("=I", self.cq, self.cq_off[0], head + 1)
        return result


def tiny_elf32(address: str, port: int, payload: bytes) -> bytes:
    """A 32-bit program of one page that connects with `int 0x80` and writes its payload."""
    base, start = 0x08048000, 0x54
    name = sockaddr(address, port)[:16]
    code_length = 80
    data = base + start + code_length
    arguments_socket, arguments_connect = data, data + 12
    name_at = data + 24
    payload_at = name_at + 16
    code = b"".join((
        b"\xb8\x66\0\0\0", b"\xbb\x01\0\0\0", b"\xb9" + struct.pack("<I", arguments_socket), b"\xcd\x80",  # socketcall(SOCKET)
        b"\x89\xc6",  # mov esi, eax
        b"\xa3" + struct.pack("<I", arguments_connect),  # its descriptor
        b"\xb8\x66\0\0\0", b"\xbb\x03\0\0\0", b"\xb9" + struct.pack("<I", arguments_connect), b"\xcd\x80",  # CONNECT
        b"\xb8\x04\0\0\0", b"\x89\xf3", b"\xb9" + struct.pack("<I",
        payload_at), b"\xba" + struct.pack("<I", len(payload)), b"\xcd\x80",
        b"\xb8\x01\0\0\0", b"\x31\xdb", b"\xcd\x80",  # exit(0)
    ))  # fmt: skip
    assert len(code) <= code_length
    tables = struct.pack("<III", 2, 1, 0) + struct.pack("<III", 0, name_at, 16)
    image = code.ljust(code_length, b"\x90") + tables + name + payload
    size = start + len(image)
    header = b"\x7fELF\1\1\1" + b"\0" * 9 + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    return header + struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 7, 4096) + image


def tiny_elf64(address: str, port: int, payload: bytes) -> bytes:
    """The same for x86-64."""
    base, start, code_length = 0x400000, 120, 96
    name_at = base + start + code_length
    payload_at = name_at + 16
    code = b"".join((
        b"\xb8\x29\0\0\0", b"\xbf\2\0\0\0", b"\xbe\1\0\0\0", b"\x31\xd2", b"\x0f\x05",  # socket
        b"\x89\xc3", b"\x89\xc7", b"\xbe" + struct.pack("<I",
        name_at), b"\xba\x10\0\0\0", b"\xb8\x2a\0\0\0", b"\x0f\x05",  # connect
        b"\x89\xdf", b"\xbe" + struct.pack("<I",
        payload_at), b"\xba" + struct.pack("<I", len(payload)), b"\xb8\1\0\0\0", b"\x0f\x05",
        b"\xb8\x3c\0\0\0", b"\x31\xff", b"\x0f\x05",
    ))  # fmt: skip
    assert len(code) <= code_length
    image = code.ljust(code_length, b"\x90") + sockaddr(address, port)[:16] + payload
    size = start + len(image)
    header = b"\x7fELF\2\1\1" + b"\0" * 9 + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size, 4096) + image


def run_program(image: bytes, name: str) -> None:
    """Run a program out of memory."""
    fd = os.memfd_create(name)
    os.write(fd, image)
    child = os.fork()
    if child == 0:
        try:
            os.execve(fd, [name], {})
        finally:
            os._exit(1)
    os.waitpid(child, 0)

"""The filter on the process tree: which system calls the supervisor is asked about, and which are refused outright.

Connect-only is the usual one: no datagram socket can come into being, so `sendmsg` needs no watching, and nothing that
sends or receives is slowed. The full one watches whatever can carry an address, for policies that allow datagrams.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from agentguard.egress.kernel import abi
from agentguard.egress.kernel.bpf import ARCH, NUMBER, Program

if TYPE_CHECKING:
    from agentguard.egress.kernel.abi import Machine

TYPE_MASK = 0xF  # the rest of a socket's type are flags
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT = 30
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: a line is typed for whoever reads the terminal next, the user's shell
_IP_OPTIONS = 4  # loose source routing: the first router is where the packets really go
_IPV6_ROUTES = (5, 6, 57)  # IPV6_2292RTHDR, IPV6_2292PKTOPTIONS, IPV6_RTHDR: the same for IPv6


def refuse(number: int) -> int:
    """The action that lets a system call fail."""
    return abi.SECCOMP_RET_ERRNO | number


REFUSED_OUTRIGHT = {
    # The application falls back to ordinary system calls, as on a kernel that has none of it.
    "io_uring_setup": errno.ENOSYS,
    "io_uring_enter": errno.ENOSYS,
    "io_uring_register": errno.ENOSYS,
    # Into other processes, which may stand outside of the boundary.
    "ptrace": errno.EPERM,
    "process_vm_writev": errno.EPERM,
    "pidfd_getfd": errno.EPERM,
    "bpf": errno.EPERM,
    # The kernel starts a program to find the key, outside of the tree; for `dns_resolver` that one looks names up.
    "request_key": errno.ENOSYS,
    # Memory whose reading stalls the reader: the supervisor reads addresses from the tree's memory.
    "userfaultfd": errno.EPERM,
}


def build(machine: Machine, *, is_full: bool, makes_datagrams: bool, injects: bool) -> bytes:
    """The filter.

    Args:
        machine: Where it runs.
        is_full: Whether datagram sockets exist, or may: everything that carries an address is watched then.
        makes_datagrams: Whether datagram sockets of the internet may be made.
        injects: Whether the supervisor makes the sockets, for want of `pidfd_getfd` (Docker's default profile).
    """
    program = Program()
    program.load(ARCH)
    program.if_equal(machine.audit_arch, otherwise="kill")
    program.load(NUMBER)
    if machine.second_table_bit:
        program.if_at_least(machine.second_table_bit, then="no such call")
    number = machine.numbers
    for name in ("connect", *(("listen", "bind") if injects else ()), *(("sendmsg", "sendmmsg") if is_full else ())):
        program.if_equal(number[name], then="ask")
    for name in ("socket", "socketpair", "sendto", "setsockopt", "ioctl", *(() if is_full else ("sendmsg", "sendmmsg"))):
        program.if_equal(number[name], then=name)
    for name, fault in REFUSED_OUTRIGHT.items():
        program.if_equal(number[name], then=errno.errorcode[fault])
    program.end(abi.SECCOMP_RET_ALLOW)

    _judge_socket(program, is_full=is_full, makes_datagrams=makes_datagrams, made="ask" if injects else "allow")
    _judge_socketpair(program, is_full=is_full)
    _judge_sending(program, is_full=is_full)
    _judge_options(program)
    _judge_terminal(program)

    program.label("ask")
    program.end(abi.SECCOMP_RET_USER_NOTIF)
    program.label("allow")
    program.end(abi.SECCOMP_RET_ALLOW)
    program.label("no such call")
    program.label("ENOSYS")
    program.end(refuse(errno.ENOSYS))
    for name in ("EPERM", "EACCES", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EOPNOTSUPP", "ENOPROTOOPT"):
        program.label(name)
        program.end(refuse(getattr(errno, name)))
    program.label("kill")
    program.end(abi.SECCOMP_RET_KILL_PROCESS)
    return program.assemble()


def allow_everything() -> bytes:
    """A filter that does nothing: installed over all threads, it brings along what the calling thread has."""
    program = Program()
    program.end(abi.SECCOMP_RET_ALLOW)
    return program.assemble()


def _judge_socket(program: Program, *, is_full: bool, makes_datagrams: bool, made: str) -> None:
    """TCP, and what never leaves the host. Everything else has ways of its own to name a destination.

    A datagram socket that is not allowed is asked about all the same, so that its refusal is recorded.
    """
    program.label("socket")
    program.load_argument(0)
    program.if_equal(socket.AF_INET, then="inet")
    program.if_equal(socket.AF_INET6, then="inet")
    program.if_equal(socket.AF_UNIX, then="unix")
    program.if_equal(socket.AF_NETLINK, otherwise="EAFNOSUPPORT")
    program.load_argument(2)
    program.if_equal(0, then=made, otherwise="EPROTONOSUPPORT")  # NETLINK_ROUTE: what getaddrinfo and getifaddrs ask

    program.label("inet")
    program.load_argument(1)
    program.mask(TYPE_MASK)
    program.if_equal(socket.SOCK_STREAM, then="stream")
    program.if_equal(socket.SOCK_DGRAM, then="datagram" if makes_datagrams else "ask", otherwise="EPERM")
    program.label("stream")
    program.load_argument(2)
    program.if_equal(0, then=made)
    program.if_equal(socket.IPPROTO_TCP, then=made, otherwise="EPROTONOSUPPORT")  # not SCTP, not MPTCP
    if makes_datagrams:
        program.label("datagram")
        program.load_argument(2)
        program.if_equal(0, then=made)
        program.if_equal(socket.IPPROTO_UDP, then=made, otherwise="EPROTONOSUPPORT")  # not ping

    program.label("unix")
    program.load_argument(1)
    program.mask(TYPE_MASK)
    program.if_equal(socket.SOCK_STREAM, then=made)
    program.if_equal(socket.SOCK_SEQPACKET, then=made, otherwise=made if is_full else "ask")


def _judge_socketpair(program: Program, *, is_full: bool) -> None:
    """A pair is connected, but a datagram names its receiver anew, and `sendmsg` is not watched."""
    program.label("socketpair")
    if not is_full:
        program.load_argument(1)
        program.mask(TYPE_MASK)
        program.if_equal(socket.SOCK_STREAM, then="allow")
        program.if_equal(socket.SOCK_SEQPACKET, then="allow", otherwise="EACCES")
    program.end(abi.SECCOMP_RET_ALLOW)


def _judge_sending(program: Program, *, is_full: bool) -> None:
    """`sendto` with an address is asked about; Fast Open, a connect in disguise, is refused as on a kernel without it."""
    program.label("sendto")
    program.load_argument(3)
    program.if_any_bit(MSG_FASTOPEN, then="EOPNOTSUPP")
    program.load_argument(4)
    program.if_equal(0, otherwise="ask")
    program.load_argument(4, upper=True)
    program.if_equal(0, then="allow", otherwise="ask")
    if is_full:
        return
    program.label("sendmsg")
    program.load_argument(2)
    program.if_any_bit(MSG_FASTOPEN, then="EOPNOTSUPP", otherwise="allow")
    program.label("sendmmsg")
    program.load_argument(3)
    program.if_any_bit(MSG_FASTOPEN, then="EOPNOTSUPP", otherwise="allow")


def _judge_options(program: Program) -> None:
    """Options by which packets go elsewhere than where the socket is connected to."""
    program.label("setsockopt")
    program.load_argument(1)
    program.if_equal(socket.IPPROTO_TCP, then="tcp option")
    program.if_equal(socket.IPPROTO_IP, then="ip option")
    program.if_equal(socket.IPPROTO_IPV6, then="ipv6 option", otherwise="allow")
    program.label("tcp option")
    program.load_argument(2)
    program.if_equal(TCP_FASTOPEN_CONNECT, then="ENOPROTOOPT", otherwise="allow")
    program.label("ip option")
    program.load_argument(2)
    program.if_equal(_IP_OPTIONS, then="EPERM", otherwise="allow")
    program.label("ipv6 option")
    program.load_argument(2)
    for option in _IPV6_ROUTES[:-1]:
        program.if_equal(option, then="EPERM")
    program.if_equal(_IPV6_ROUTES[-1], then="EPERM", otherwise="allow")


def _judge_terminal(program: Program) -> None:
    """Everything but typing into the terminal: what reads it next may stand outside of the tree."""
    program.label("ioctl")
    program.load_argument(1)
    program.if_equal(_TERMINAL_INPUT[0], then="EPERM")
    program.if_equal(_TERMINAL_INPUT[1], then="EPERM", otherwise="allow")

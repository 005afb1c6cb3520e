"""The filter as the kernel reads it, interpreted here: what each system call comes to, on every machine and in every shape."""

from __future__ import annotations

import errno
import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.egress.kernel import abi
from agentguard.egress.kernel.bpf import Program
from agentguard.egress.kernel.filter import MSG_FASTOPEN, REFUSED_OUTRIGHT, allow_everything, build

ASK, ALLOW, KILL = abi.SECCOMP_RET_USER_NOTIF, abi.SECCOMP_RET_ALLOW, abi.SECCOMP_RET_KILL_PROCESS
X86, ARM = abi.MACHINES["x86_64"], abi.MACHINES["aarch64"]
IPPROTO_MPTCP, IPPROTO_SCTP = 262, 132
SHAPES = list(itertools.product([X86, ARM], [False, True], [False, True]))


def run(program, number, *args, arch):
    """What a program answers to a system call."""
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *[argument & 2**64 - 1 for argument in (*args, *[0] * 6)][:6])
    place, taken = 0, 0
    while True:
        code, then, otherwise, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        match code:
            case 0x20:
                taken = struct.unpack_from("=I", data, value)[0]
            case 0x54:
                taken &= value
            case 0x15:
                place += then if taken == value else otherwise
            case 0x35:
                place += then if taken >= value else otherwise
            case 0x45:
                place += then if taken & value else otherwise
            case 0x06:
                return value


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{'x86' if shape[0] is X86 else 'arm'}-full={shape[1]}-injects={shape[2]}")
def call(request):
    machine, is_full, injects = request.param

    def answer(name, *args):
        program = build(machine, is_full=is_full, makes_datagrams=is_full, injects=injects)
        return run(program, machine.numbers[name], *args, arch=machine.audit_arch)

    answer.machine, answer.is_full, answer.injects = machine, is_full, injects
    answer.made = ASK if injects else ALLOW
    answer.program = build(machine, is_full=is_full, makes_datagrams=is_full, injects=injects)
    return answer


def refused(number):
    return abi.SECCOMP_RET_ERRNO | number


def test_every_connect_is_asked_about(call):
    assert call("connect", 3, 0x7FFF0000, 16) == ASK


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("flags", [0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC])
@pytest.mark.parametrize("protocol", [0, socket.IPPROTO_TCP])
def test_tcp_sockets_are_made(call, family, flags, protocol):
    assert call("socket", family, socket.SOCK_STREAM | flags, protocol) == call.made


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_datagrams_are_made_only_where_messages_are_watched(call, family):
    expected = call.made if call.is_full else ASK

    assert call("socket", family, socket.SOCK_DGRAM, 0) == expected
    assert call("sendmsg", 3, 0x1000, 0) == (ASK if call.is_full else ALLOW)
    assert call("sendmmsg", 3, 0x1000, 1, 0) == (ASK if call.is_full else ALLOW)


def test_unix_datagrams_are_made_only_where_messages_are_watched(call):
    assert call("socket", socket.AF_UNIX, socket.SOCK_STREAM, 0) == call.made
    assert call("socket", socket.AF_UNIX, socket.SOCK_DGRAM, 0) == (call.made if call.is_full else ASK)
    assert call("socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0) == ALLOW
    assert call("socketpair", socket.AF_UNIX, socket.SOCK_DGRAM, 0) == (ALLOW if call.is_full else refused(errno.EACCES))


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP),
        (socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP),
        (socket.AF_INET, socket.SOCK_SEQPACKET, IPPROTO_SCTP),
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (socket.AF_INET, socket.SOCK_RAW, 255),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
        (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
        (socket.AF_INET, 10, 0x0300),  # SOCK_PACKET
        (socket.AF_INET, socket.SOCK_DCCP if hasattr(socket, "SOCK_DCCP") else 6, 33),
    ],
)
def test_other_transports_are_refused(call, family, kind, protocol):
    answer = call("socket", family, kind, protocol)

    if answer == ASK and kind == socket.SOCK_DGRAM and not call.is_full:
        return  # the supervisor refuses every datagram socket, and records it
    assert answer & 0xFFFF0000 == abi.SECCOMP_RET_ERRNO
    assert answer & 0xFFFF


@given(family=st.integers(0, 2**32 - 1), kind=st.integers(0, 2**32 - 1), protocol=st.integers(0, 2**32 - 1))
def test_no_family_but_the_known_ones_gets_a_socket(family, kind, protocol):
    for machine, is_full, injects in SHAPES:
        program = build(machine, is_full=is_full, makes_datagrams=is_full, injects=injects)
        answer = run(program, machine.numbers["socket"], family, kind, protocol, arch=machine.audit_arch)
        if family not in {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}:
            assert answer == refused(errno.EAFNOSUPPORT)
        if answer in {ALLOW, ASK} and family in {socket.AF_INET, socket.AF_INET6}:
            assert (kind & 0xF, protocol) in {(1, 0), (1, 6), (2, 0), (2, 17)} or (answer == ASK and kind & 0xF == 2)
            assert is_full or answer == ASK or kind & 0xF == socket.SOCK_STREAM


@given(upper=st.integers(0, 2**32 - 1), lower=st.integers(0, 2**32 - 1), flags=st.integers(0, 2**32 - 1))
def test_sendto_is_free_only_without_an_address_and_without_fast_open(upper, lower, flags):
    program = build(X86, is_full=False, makes_datagrams=False, injects=False)

    answer = run(program, X86.numbers["sendto"], 3, 0, 10, flags, upper << 32 | lower, 16, arch=X86.audit_arch)

    if flags & MSG_FASTOPEN:
        assert answer == refused(errno.EOPNOTSUPP)
    else:
        assert answer == (ASK if upper or lower else ALLOW)


def test_fast_open_is_refused_on_every_way(call):
    if not call.is_full:  # else the message is asked about, and the supervisor refuses it
        assert call("sendmsg", 3, 0x1000, MSG_FASTOPEN) == refused(errno.EOPNOTSUPP)
        assert call("sendmmsg", 3, 0x1000, 1, MSG_FASTOPEN) == refused(errno.EOPNOTSUPP)
    assert call("setsockopt", 3, socket.IPPROTO_TCP, 30, 0, 4) == refused(errno.ENOPROTOOPT)


@pytest.mark.parametrize(("level", "option"), [(0, 4), (41, 5), (41, 6), (41, 57)])
def test_packets_cannot_be_routed_over_another_host(call, level, option):
    assert call("setsockopt", 3, level, option, 0, 4) == refused(errno.EPERM)


@pytest.mark.parametrize(("level", "option"), [(6, 1), (1, 9), (0, 1), (41, 26), (17, 103)])
def test_ordinary_options_are_free(call, level, option):
    assert call("setsockopt", 3, level, option, 0, 4) == ALLOW


@pytest.mark.parametrize("asked", [0x5412, 0x541C, 1 << 32 | 0x5412])
def test_nothing_is_typed_into_the_terminal_of_others(call, asked):
    assert call("ioctl", 0, asked, 0x1000) == refused(errno.EPERM)


@pytest.mark.parametrize("asked", [0x5401, 0x5413, 0x541B, 0x5421, 0x541200005413])
def test_ordinary_control_of_devices_is_free(call, asked):
    assert call("ioctl", 0, asked, 0x1000) == ALLOW


def test_the_kernel_starts_no_program_to_look_for_a_key(call):
    assert call("request_key") == refused(errno.ENOSYS)


@pytest.mark.parametrize("name", REFUSED_OUTRIGHT)
def test_ways_around_are_refused(call, name):
    assert call(name) == refused(REFUSED_OUTRIGHT[name])


def test_calls_of_another_table_are_not_made(call):
    number = call.machine.numbers["connect"]

    assert run(call.program, number, arch=0x40000003) == KILL  # int 0x80, a 32-bit program
    if call.machine is X86:
        assert run(call.program, number | 0x40000000, arch=X86.audit_arch) == refused(errno.ENOSYS)  # x32
        assert run(call.program, 0xFFFFFFFF, arch=X86.audit_arch) == refused(errno.ENOSYS)


@given(number=st.integers(0, 600))
def test_what_is_not_named_is_free(number):
    for machine, is_full, injects in SHAPES:
        named = set(machine.numbers.values())
        program = build(machine, is_full=is_full, makes_datagrams=is_full, injects=injects)
        if number not in named:
            assert run(program, number, arch=machine.audit_arch) == ALLOW


def test_the_filter_that_does_nothing_does_nothing():
    assert run(allow_everything(), 42, arch=X86.audit_arch) == ALLOW


def test_a_jump_back_or_nowhere_is_no_program():
    program = Program()
    program.label("start")
    program.if_equal(1, then="start")

    with pytest.raises(ValueError, match="start"):
        program.assemble()

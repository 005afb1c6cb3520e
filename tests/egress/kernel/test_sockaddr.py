"""Addresses of sockets are read as the kernel reads them, or not at all."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from hypothesis import example, given
from hypothesis import strategies as st

from agentguard.egress.kernel import sockaddr
from agentguard.egress.kernel.sockaddr import Inet, Netlink, UnixAbstract, UnixPath, Unknown, Unspecified, parse

MAPPED = bytes(10) + b"\xff\xff"
ports = st.integers(0, 65535)


def ipv4(packed, port, rest=b"\0" * 8):
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + packed + rest


def ipv6(packed, port, flow=0, scope=0):
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, flow) + packed + struct.pack("=I", scope)


@given(packed=st.binary(min_size=4, max_size=4), port=ports, rest=st.binary(min_size=8, max_size=100))
@example(packed=b"\0\0\0\0", port=80, rest=b"\0" * 8)
def test_what_is_judged_of_ipv4_is_what_is_connected_to(packed, port, rest):
    address = parse(ipv4(packed, port, rest))

    assert isinstance(address, Inet)
    assert address.raw == ipv4(socket.inet_aton(address.ip), address.port)
    assert address.port == port
    assert address.ip == ("127.0.0.1" if packed == bytes(4) else str(ip_address(packed)))


@given(packed=st.binary(min_size=16, max_size=16), port=ports, flow=st.integers(0, 2**32 - 1), scope=st.integers(0, 2**32 - 1))
@example(packed=bytes(16), port=80, flow=0, scope=0)
@example(packed=MAPPED + bytes(4), port=80, flow=0, scope=0)
def test_what_is_judged_of_ipv6_is_what_is_connected_to(packed, port, flow, scope):
    address = parse(ipv6(packed, port, flow, scope))

    assert isinstance(address, Inet)
    judged = ip_address(address.ip)
    assert address.raw == ipv6(judged.packed if judged.version == 6 else MAPPED + judged.packed, port, flow, scope)
    assert not judged.is_unspecified


@given(raw=st.binary(max_size=140))
def test_nothing_that_a_program_writes_is_a_fault(raw):
    address = parse(raw)

    assert isinstance(address, Inet | UnixPath | UnixAbstract | Unspecified | Netlink | Unknown)
    if isinstance(address, Inet):
        assert len(address.raw) in {16, 28}
        assert parse(address.raw) == address


@given(family=st.integers(0, 65535), rest=st.binary(max_size=60))
def test_other_families_are_no_addresses(family, rest):
    known = {socket.AF_UNSPEC, socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}

    if family not in known:
        assert isinstance(parse(struct.pack("=H", family) + rest), Unknown)


@given(length=st.integers(0, 15))
def test_an_ipv4_address_that_is_cut_is_none(length):
    assert not isinstance(parse(ipv4(b"\1\2\3\4", 80)[:length]), Inet)


@given(path=st.binary(min_size=1, max_size=108).filter(lambda path: path[0] != 0))
def test_a_path_ends_at_its_first_zero(path):
    assert parse(struct.pack("=H", socket.AF_UNIX) + path) == UnixPath(path.split(b"\0")[0])


def test_an_abstract_name_is_no_path():
    assert parse(struct.pack("=H", socket.AF_UNIX) + b"\0name") == UnixAbstract(b"\0name")


@given(ip=st.ip_addresses(), port=ports)
def test_an_address_of_our_own_is_read_back(ip, port):
    address = parse(sockaddr.inet(str(ip), port))

    assert isinstance(address, Inet)
    assert address.port == port
    assert ip_address(address.ip) in {ip, getattr(ip, "ipv4_mapped", None)} or int(ip) & 0xFFFFFFFF == 0

"""Hosts have one spelling, and patterns mean no more than they say."""

import pickle
import string
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from agentguard.policy.hosts import HostError, HostPattern, Space, address_of, canonical, fold, space_of

LAW = settings(max_examples=60, deadline=None)
LABELS = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
UNICODE_LABELS = st.text(alphabet="abcxyzäöüéèñçøåжяλ中文", min_size=1, max_size=10)
V4 = st.integers(0, 2**32 - 1).map(IPv4Address)
V6 = st.integers(0, 2**128 - 1).map(IPv6Address)
ANYTHING = st.one_of(
    st.text(max_size=30),
    st.text(alphabet=string.ascii_letters + string.digits + ".-_:*/[]%@", max_size=30),
    NAMES,
    V4.map(str),
    V6.map(str),
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("API.OurService.COM", "api.ourservice.com"),
        ("api.ourservice.com.", "api.ourservice.com"),
        (b"api.ourservice.com", "api.ourservice.com"),
        ("my_db", "my_db"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("api。ourservice．com", "api.ourservice.com"),
        ("127.1", "127.0.0.1"),
        ("0x7f.0.0.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7F000001", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("１２７.0.0.1", "127.0.0.1"),
        ("0", "0.0.0.0"),
        ("192.168.257", "192.168.1.1"),
        ("[::1]", "::1"),
        ("::", "::"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::ffff:7f00:1]", "127.0.0.1"),
        ("::127.0.0.1", "127.0.0.1"),
        ("::ffff:0:127.0.0.1", "127.0.0.1"),
        ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
        ("2002:7f00:1::1", "127.0.0.1"),
        ("2001:0:4136:e378:8000:63bf:80ff:fffe", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("FE80:0:0:0:0:0:0:1", "fe80::1"),
    ],
)
def test_every_spelling_of_a_host_has_one_form(written, meant):
    assert canonical(written) == meant


@pytest.mark.parametrize(
    "written",
    [
        "",
        ".",
        "a..b",
        "a.b..",
        ".a",
        "a b",
        " a",
        "a\n",
        "a\x00.com",
        "a%2ecom",
        "user@a.com",
        "a\\b.com",
        "a/b",
        "a#b",
        "a:80",
        "[a.com]",
        "[::1",
        "::1%",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.256",
        "08.1.1.1",
        "a.1",
        "a.0x1",
        "4294967296",
        "1" * 400,
        "-a.com",
        "a-.com",
        "x" * 64 + ".com",
        ".".join(["abcdefgh"] * 30),
        b"b\xc3\xbccher.example",
        "a\u202eb.com",
        "::ffff:01.2.3.4",
        "\ud800.com",
    ],
)
def test_what_is_no_host_is_refused(written):
    with pytest.raises(HostError):
        canonical(written)


def test_a_name_that_clients_read_differently_is_refused_with_both_readings():
    with pytest.raises(HostError, match=r"'xn--strae-oqa\.de' to some clients and 'strasse\.de' to others"):
        canonical("straße.de")


def test_a_subclass_of_str_cannot_say_one_thing_and_be_another():
    class Liar(str):
        __slots__ = ()

        def __str__(self):
            return "api.ourservice.com"

        def lower(self):
            return "api.ourservice.com"

    assert canonical(Liar("Pastebin.com")) == "pastebin.com"


@LAW
@given(ANYTHING)
@example("ⅷ.com")
def test_canonical_is_idempotent_and_refuses_with_one_error(written):
    try:
        name = canonical(written)
    except HostError:
        return

    assert canonical(name) == name
    assert name.isascii()
    assert name == name.lower()


@LAW
@given(NAMES)
def test_case_and_the_trailing_dot_do_not_matter(name):
    assert canonical(name.upper()) == canonical(name + ".") == canonical(name) == name


@LAW
@given(st.lists(UNICODE_LABELS, min_size=1, max_size=3))
def test_both_forms_of_an_international_name_agree(labels):
    name = ".".join([*labels, "example"])

    try:
        encoded = canonical(name)
    except HostError:
        assume(False)

    assert canonical(encoded.upper()) == canonical(name.upper()) == encoded


@LAW
@given(V4)
def test_every_spelling_of_an_ipv4_address_agrees(address):
    a, b, c, d = address.packed
    number = int(address)

    spellings = [
        f"{number}",
        f"0x{number:x}",
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"0x{a:X}.{b}.{(c << 8) + d}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"::ffff:{address}",
        f"[::ffff:{a << 8 | b:x}:{c << 8 | d:x}]",
        f"64:ff9b::{address}",
        f"2002:{a << 8 | b:x}:{c << 8 | d:x}::5",
        str(IPv6Address(0x20010000 << 96 | 7 << 64 | ~number & 0xFFFFFFFF)),
    ]

    assert {canonical(spelling) for spelling in spellings} == {str(address)}


@LAW
@given(st.one_of(V4, V6))
def test_folding_twice_is_folding_once_and_keeps_the_space(address):
    assert fold(fold(address)) == fold(address)
    assert space_of(address) is space_of(fold(address))


@pytest.mark.parametrize(
    ("address", "space"),
    [
        ("93.184.216.34", Space.PUBLIC),
        ("2606:4700::1111", Space.PUBLIC),
        ("0.0.0.0", Space.PRIVATE),
        ("10.0.0.1", Space.PRIVATE),
        ("100.64.0.1", Space.PRIVATE),
        ("127.0.0.1", Space.PRIVATE),
        ("169.254.1.1", Space.PRIVATE),
        ("172.31.255.255", Space.PRIVATE),
        ("172.32.0.0", Space.PUBLIC),
        ("192.168.0.1", Space.PRIVATE),
        ("224.0.0.1", Space.PRIVATE),
        ("255.255.255.255", Space.PRIVATE),
        ("::", Space.PRIVATE),
        ("::1", Space.PRIVATE),
        ("fc00::1", Space.PRIVATE),
        ("fe80::1%lo", Space.PRIVATE),
        ("ff02::1", Space.PRIVATE),
        ("2001:db8::1", Space.PRIVATE),
        ("64:ff9b:1::1", Space.PRIVATE),
        ("::ffff:10.0.0.1", Space.PRIVATE),
        ("169.254.169.254", Space.METADATA),
        ("::ffff:169.254.169.254", Space.METADATA),
        ("fd00:ec2::254", Space.METADATA),
        ("fd00:ec2::254%eth0", Space.METADATA),
        ("168.63.129.16", Space.METADATA),
        ("100.100.100.200", Space.METADATA),
    ],
)
def test_an_address_leads_into_public_private_or_metadata_space(address, space):
    assert space_of(ip_address(address)) is space


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("API.ourservice.com.", "api.ourservice.com"),
        ("*.OurService.com", "*.ourservice.com"),
        ("api.ourservice.com:8443", "api.ourservice.com:8443"),
        ("*.ourservice.com:443", "*.ourservice.com:443"),
        ("*.internal", "*.internal"),
        ("*", "*"),
        ("127.1", "127.0.0.1"),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("10.1.0.0/16:8443", "10.1.0.0/16:8443"),
        ("10.1.2.3/32", "10.1.2.3"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[::1]:8080", "[::1]:8080"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("2001:db8::/32:443", "[2001:db8::/32]:443"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_pattern_is_read_into_its_one_form(text, form):
    pattern = HostPattern.parse(text)

    assert str(pattern) == form
    assert HostPattern.parse(form) == pattern
    assert hash(HostPattern.parse(form)) == hash(pattern)
    assert pickle.loads(pickle.dumps(pattern)) == pattern


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("https://api.ourservice.com/v1", r"a scheme is no part of a host; write 'api\.ourservice\.com'"),
        ("http://me@api.ourservice.com:80/", r"write 'api\.ourservice\.com'"),
        ("api.ourservice.com/v1", r"a path is no part of a host; write 'api\.ourservice\.com'"),
        ("me@api.ourservice.com", r"a user is no part of a host; write 'api\.ourservice\.com'"),
        ("api*.ourservice.com", r"'\*' stands alone or as the first label; write '\*\.ourservice\.com'"),
        ("api.*.ourservice.com", r"write '\*\.ourservice\.com'"),
        ("*.*.ourservice.com", r"write '\*\.ourservice\.com'"),
        ("**", r"stands alone or as the first label"),
        ("*:443", r"write the hosts that may be reached on that port"),
        ("*.com", r"open to anyone who registers a name; write '\*\.yourcompany\.com'"),
        ("*.co.uk", r"write '\*\.yourcompany\.co\.uk'"),
        ("*.", r"empty label"),
        ("*.10.0.0.1", r"write a network such as"),
        ("10.1.2.3/16", r"write '10\.1\.0\.0/16', or '10\.1\.2\.3' alone"),
        ("10.0.0.0/33", r"is no network"),
        ("::ffff:10.0.0.0/104", r"write its IPv4 network"),
        ("api.ourservice.com:0", r"a port is a number from 1 to 65535"),
        ("api.ourservice.com:https", r"a port is a number from 1 to 65535"),
        ("api.ourservice.com:", r"a port is a number from 1 to 65535"),
        ("[::1]8080", r"write an IPv6 address with a port as"),
        ("", r"write a name such as"),
        (" api.ourservice.com", r"write a name such as"),
    ],
)
def test_a_pattern_that_cannot_be_meant_says_what_to_write(text, fix):
    with pytest.raises(ValueError, match=fix):
        HostPattern.parse(text)


@LAW
@given(ANYTHING)
def test_a_pattern_is_read_or_refused_with_a_value_error(text):
    try:
        pattern = HostPattern.parse(text)
    except ValueError:
        return

    assert HostPattern.parse(str(pattern)) == pattern


@LAW
@given(NAMES, st.none() | st.integers(1, 65535))
def test_a_wildcard_is_below_its_name_and_never_the_name(name, port):
    assume("." in name)
    try:
        pattern = HostPattern.parse(f"*.{name}")
    except ValueError:
        assume(False)

    assert not pattern.matches(name, port)
    assert pattern.matches(f"a.{name}", port)
    assert pattern.matches(f"a.b.{name}", port)
    assert not pattern.matches(f"a{name}", port)
    assert not pattern.matches(f"{name}.longer-than-drawn", port)


@LAW
@given(ANYTHING, ANYTHING, st.integers(1, 65535))
@example("*.ourservice.com", "API.OURSERVICE.COM.", 443)
@example("10.0.0.0/8", "::ffff:10.1.1.1", 443)
@example("10.0.0.0/8", "0x0a010101", 443)
def test_a_normalised_host_never_matches_more_than_its_pattern(text, host, port):
    try:
        pattern, name = HostPattern.parse(text), canonical(host)
    except ValueError:
        return

    matches = pattern.matches(host, port)

    assert matches == pattern.matches(name, port)
    assert matches == (pattern.port in (None, port) and _means(str(pattern), name))


def _means(pattern, name):
    """The sentence of the reference, read as slowly as it is written."""
    host = pattern.rpartition(":")[0].strip("[]") if pattern.count(":") == 1 or "]:" in pattern else pattern
    if host == "*":
        return True
    if host.startswith("*."):
        labels, below = host[2:].split("."), name.split(".")
        return address_of(name) is None and len(below) > len(labels) and below[-len(labels) :] == labels
    network = HostPattern.parse(host).network
    if network is None:
        return name == host
    return address_of(name) is not None and address_of(name) in network

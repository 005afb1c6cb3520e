"""The broker asks about allowed names alone, and tells of refusals that somebody has caused."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from agentguard import Policy
from agentguard.egress.boundary import Boundary
from agentguard.egress.kernel import dns
from agentguard.egress.kernel.broker import Broker, read_search
from agentguard.egress.kernel.judge import Judge
from agentguard.egress.pins import Pins

TXT = 16
SEARCH = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local"]


@pytest.fixture
def judge():
    external_calls = {"allowed_domains": ["api.test", "*.below.test"]}
    policy = Policy.from_mapping({"agents": [{"name": "a", "external_calls": external_calls}]})
    return Judge(Boundary.of(policy), Pins(lambda: 0.0), {}, [])


@pytest.fixture
def broker(judge):
    """A broker without a nameserver that keeps whom it was told of."""
    refused = []
    broker = Broker(judge, [], lambda name, _: refused.append(name), SEARCH)
    broker.refused = refused
    yield broker
    _close(broker)


def _close(broker):
    """It serves as long as its process, so it has no end of its own."""
    broker._stream.close()
    broker._datagrams.close()


def code_of(reply):
    return reply[3] & 0xF


@pytest.mark.parametrize("domain", SEARCH)
@pytest.mark.parametrize("name", ["api.test", "one.below.test", "API.test"])
def test_what_the_c_library_makes_of_an_allowed_name_is_not_there_and_not_told(broker, name, domain):
    reply = broker.answer(dns.ask(1, f"{name}.{domain}", dns.A))

    assert code_of(reply) == dns.NAME_ERROR
    assert broker.refused == []


@pytest.mark.parametrize("name", ["evil.test", "evil.test.svc.cluster.local", "api.test.elsewhere.local", "svc.cluster.local"])
def test_a_name_that_is_not_allowed_is_told(broker, name):
    reply = broker.answer(dns.ask(1, name, dns.A))

    assert code_of(reply) == dns.NAME_ERROR
    assert broker.refused == [name]


def test_a_text_too_long_for_a_datagram_says_that_it_is_cut(judge):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nameserver:
        nameserver.bind(("127.0.0.1", 0))
        threading.Thread(target=_answer_with_a_long_text, args=(nameserver,), daemon=True).start()
        broker = Broker(judge, [nameserver.getsockname()], lambda *_: None)

        short, long = (broker.answer(dns.ask(1, "api.test", TXT), most) for most in (512, 65_535))

    _close(broker)
    assert code_of(short) == code_of(long) == dns.NO_ERROR
    assert short[2] & 0x02
    assert not long[2] & 0x02
    assert b"x" * 200 in long


def _answer_with_a_long_text(nameserver):
    record = b"\xc0\x0c" + struct.pack("!HHIH", TXT, dns.IN, 60, 603) + (b"\xc8" + b"x" * 200) * 3
    for _ in range(2):
        query, client = nameserver.recvfrom(4096)
        question = dns.read_question(query)
        nameserver.sendto(query[:2] + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + question.raw + record, client)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("search a.test B.test.\nnameserver 10.0.0.1\n", ["a.test", "b.test"]),
        ("search a.test\ndomain c.test\n", ["c.test"]),
        ("# search a.test\nsearch .\n", []),
    ],
)
def test_the_search_list_is_read_as_the_c_library_reads_it(tmp_path, text, found):
    file = tmp_path / "resolv.conf"
    file.write_text(text)

    assert read_search(str(file)) == found

"""DNS messages are read strictly, and what is answered is what was asked."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.egress.kernel import dns

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)
addresses = st.lists(st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 2**31 - 1)), max_size=60).map(tuple)


def record(owner, kind, ttl, content):
    return owner + struct.pack("!HHIH", kind, dns.IN, ttl, len(content)) + content


def spelled(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def response(number, name, kind, *records, flags=0x8180, questions=1):
    question = spelled(name) + struct.pack("!HH", kind, dns.IN)
    return struct.pack("!6H", number, flags, questions, len(records), 0, 0) + question + b"".join(records)


@given(number=st.integers(0, 65535), name=names, kind=st.integers(0, 65535))
def test_a_question_is_read_back(number, name, kind):
    question = dns.read_question(dns.ask(number, name, kind))

    assert (question.id, question.name, question.kind) == (number, name, kind)


@given(number=st.integers(0, 65535), name=names, found=addresses, most=st.sampled_from([512, 65535]))
def test_an_answer_of_ours_is_read_back_or_says_that_it_is_cut(number, name, found, most):
    question = dns.read_question(dns.ask(number, name, dns.A))

    message = dns.answer(question, dns.NO_ERROR, found, most)
    read = dns.read_answer(message, number, name, dns.A)

    assert len(message) <= most
    assert read.addresses == found[: len(read.addresses)]
    assert read.is_truncated == (len(read.addresses) < len(found))


@given(message=st.binary(max_size=300))
def test_no_message_is_a_fault(message):
    for read in (dns.read_question, lambda raw: dns.read_answer(raw, 1, "a.test", dns.A)):
        try:
            read(message)
        except ValueError:
            continue


@given(head=st.binary(min_size=2, max_size=2), rest=st.binary(max_size=100))
def test_pointers_never_lead_a_reader_in_circles(head, rest):
    message = head + struct.pack("!5H", 0x8180, 1, 1, 0, 0) + b"\xc0\x0c" + rest

    with pytest.raises(ValueError, match="no DNS message"):
        dns.read_answer(message, int.from_bytes(head), "a.test", dns.A)


def test_only_the_chain_that_begins_at_the_name_answers():
    message = response(
        7,
        "a.test",
        dns.A,
        record(spelled("a.test"), dns.CNAME, 60, spelled("b.test")),
        record(spelled("b.test"), dns.A, 300, b"\1\2\3\4"),
        record(spelled("stray.test"), dns.A, 300, b"\x08\x08\x08\x08"),
    )

    found = dns.read_answer(message, 7, "a.test", dns.A)

    assert found.aliases == ("b.test",)
    assert found.addresses == (("1.2.3.4", 60),)  # no longer than the alias holds


@pytest.mark.parametrize(
    "message",
    [
        response(8, "a.test", dns.A),  # of another query
        response(7, "b.test", dns.A),  # about another name
        response(7, "a.test", dns.AAAA),  # about something else
        response(7, "a.test", dns.A, flags=0x0100),  # a question
        response(7, "a.test", dns.A, questions=2),
        response(7, "a.test", dns.A, record(spelled("a.test"), dns.A, 1, b"\1\2\3\4"))[:-1],
        response(7, "a.test", dns.A)[:-4],  # cut in its question
        response(7, "a.test", dns.A)[:-3],
    ],
)
def test_what_does_not_answer_the_query_is_refused(message):
    with pytest.raises(ValueError, match="no DNS message"):
        dns.read_answer(message, 7, "a.test", dns.A)


@pytest.mark.parametrize("label", [b"a.b", b"a b", b"\xff", b"a\0", b"a\n"])
def test_a_label_that_would_be_read_as_another_name_is_no_name(label):
    message = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + bytes([len(label)]) + label + b"\4test\0" + struct.pack("!HH", 1, 1)

    with pytest.raises(ValueError, match="no DNS message"):
        dns.read_question(message)


def test_what_a_program_writes_into_its_query_does_not_go_on():
    told = struct.pack("!6H", 1, 0x0100, 1, 0, 0, 1) + spelled("api.test") + struct.pack("!HH", dns.A, dns.IN) + b"\0secret"

    question = dns.read_question(told)

    assert b"secret" not in dns.ask(2, question.name, question.kind)

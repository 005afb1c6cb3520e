"""DNS messages, as far as a broker needs them: one question, the addresses that answer it, and nothing taken on trust."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

A = 1
CNAME = 5
AAAA = 28
SVCB = 64
HTTPS = 65
IN = 1

NO_ERROR = 0
FORMAT_ERROR = 1
SERVER_FAILURE = 2
NAME_ERROR = 3
NOT_IMPLEMENTED = 4

_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_IS_ANSWER = 0x8000
_OPCODE = 0x7800
IS_TRUNCATED = 0x0200
_RECURSION_DESIRED = 0x0100
_RECURSION_AVAILABLE = 0x0080
_LONGEST_NAME = 253
_MOST_LINKS = 64
_NO_MESSAGE = "no DNS message"
_LARGEST_DATAGRAM = 1232


class Question(NamedTuple):
    """What a resolver asks. `raw` is the question as it was spelled, which the answer has to repeat."""

    id: int
    name: str
    kind: int
    raw: bytes


class Found(NamedTuple):
    """What an answer says: its code, every name that the chain of aliases leads over, and the addresses with their TTLs."""

    code: int
    aliases: tuple[str, ...]
    addresses: tuple[tuple[str, int], ...]
    is_truncated: bool


def read_question(message: bytes) -> Question:
    """Read a query.

    Raises:
        ValueError: It is none, or not a plain one: one question, class IN, a name of printable ASCII.
    """
    if len(message) < _HEADER.size:
        raise ValueError(_NO_MESSAGE)
    number, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if flags & (_IS_ANSWER | _OPCODE) or questions != 1:
        raise ValueError(_NO_MESSAGE)
    name, end = _read_name(message, _HEADER.size)
    if end + 4 > len(message):
        raise ValueError(_NO_MESSAGE)
    kind, kind_of_network = struct.unpack_from("!HH", message, end)
    if kind_of_network != IN:
        raise ValueError(_NO_MESSAGE)
    return Question(number, name, kind, message[_HEADER.size : end + 4])


def ask(number: int, name: str, kind: int) -> bytes:
    """A query of our own: what a program writes into its queries beyond the name does not go on."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split(".")) if name else b""
    option = b"\0" + struct.pack("!HHIH", 41, _LARGEST_DATAGRAM, 0, 0)
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 1) + labels + b"\0" + struct.pack("!HH", kind, IN) + option


def read_answer(message: bytes, number: int, name: str, kind: int) -> Found:
    """Read the answer to a query: the records of its chain of aliases, and no others.

    Raises:
        ValueError: It does not answer this query.
    """
    if len(message) < _HEADER.size:
        raise ValueError(_NO_MESSAGE)
    found, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if found != number or not flags & _IS_ANSWER or questions != 1:
        raise ValueError(_NO_MESSAGE)
    asked, place = _read_name(message, _HEADER.size)
    if asked != name or message[place : place + 2] != kind.to_bytes(2):
        raise ValueError(_NO_MESSAGE)
    aliases: dict[str, tuple[str, int]] = {}
    addresses: dict[str, list[tuple[str, int]]] = {}
    place += 4
    for _ in range(answers):
        owner, place = _read_name(message, place)
        sort, network, ttl, length = _unpack_record(message, place)
        place += _RECORD.size
        data, place = message[place : place + length], place + length
        if len(data) != length:
            raise ValueError(_NO_MESSAGE)
        if network != IN:
            continue
        if sort == CNAME:
            aliases[owner] = _read_name(message, place - length)[0], ttl
        elif sort == kind == A and length == 4:
            addresses.setdefault(owner, []).append((str(IPv4Address(data)), ttl))
        elif sort == kind == AAAA and length == 16:
            addresses.setdefault(owner, []).append((str(IPv6Address(data)), ttl))
    chain, shortest = _follow(name, aliases)
    pairs = tuple((ip, min(ttl, shortest)) for ip, ttl in addresses.get(chain[-1], ()))
    return Found(flags & 0xF, tuple(chain[1:]), pairs, bool(flags & IS_TRUNCATED))


def answer(
    question: Question, code: int, addresses: tuple[tuple[str, int], ...] = (), most: int = 65_535, *, is_cut: bool = False
) -> bytes:
    """An answer of our own making, no longer than `most`; `is_cut` says that there would be more."""
    records = b"".join(_record(question.kind, ip, ttl) for ip, ttl in addresses)
    size = len(_record(question.kind, *addresses[0])) if addresses else 1
    fitting = max(0, (most - _HEADER.size - len(question.raw)) // size)
    flags = _IS_ANSWER | _RECURSION_DESIRED | _RECURSION_AVAILABLE | code
    if is_cut or fitting < len(addresses):
        flags |= IS_TRUNCATED
    count = min(fitting, len(addresses))
    return _HEADER.pack(question.id, flags, 1, count, 0, 0) + question.raw + records[: count * size]


def _record(kind: int, ip: str, ttl: int) -> bytes:
    packed = (IPv4Address(ip) if kind == A else IPv6Address(ip)).packed
    return b"\xc0\x0c" + _RECORD.pack(kind, IN, ttl, len(packed)) + packed


def _follow(name: str, aliases: dict[str, tuple[str, int]]) -> tuple[list[str], int]:
    chain, shortest = [name], 2**31 - 1
    while chain[-1] in aliases and len(chain) < _MOST_LINKS:
        target, ttl = aliases[chain[-1]]
        chain.append(target)
        shortest = min(shortest, ttl)
    return chain, shortest


def _unpack_record(message: bytes, place: int) -> tuple[int, int, int, int]:
    if place + _RECORD.size > len(message):
        raise ValueError(_NO_MESSAGE)
    sort, network, ttl, length = _RECORD.unpack_from(message, place)
    return sort, network, 0 if ttl > 2**31 - 1 else ttl, length


def _read_name(message: bytes, place: int) -> tuple[str, int]:
    """A name and where it ends. Pointers only lead back, so that no message is read for ever."""
    labels: list[str] = []
    end = 0
    while True:
        if place >= len(message):
            raise ValueError(_NO_MESSAGE)
        length = message[place]
        if length & 0xC0 == 0xC0:
            if place + 1 >= len(message):
                raise ValueError(_NO_MESSAGE)
            target = (length & 0x3F) << 8 | message[place + 1]
            end = end or place + 2
            if target >= place:
                raise ValueError(_NO_MESSAGE)
            place = target
            continue
        if length > 63:
            raise ValueError(_NO_MESSAGE)
        if not length:
            break
        label = message[place + 1 : place + 1 + length]
        if len(label) != length or any(not 0x20 < byte < 0x7F or byte == 0x2E for byte in label):
            raise ValueError(_NO_MESSAGE)
        labels.append(label.decode("ascii").lower())
        if sum(map(len, labels)) + len(labels) - 1 > _LONGEST_NAME:
            raise ValueError(_NO_MESSAGE)
        place += 1 + length
    return ".".join(labels), end or place + 1

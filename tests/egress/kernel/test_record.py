"""What was refused is written down, told to who listens, and said once per host to who looks."""

from __future__ import annotations

import json
import os

import pytest

from agentguard.egress.kernel.record import Record, Who
from agentguard.policy.hosts import Verdict

DENIED = Verdict(False, "not in external_calls.allowed_domains (agentguard.yaml:4)", "external_calls.allowed_domains")


@pytest.fixture
def terminal():
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_refusal_is_a_line_with_rule_and_remedy(tmp_path):
    heard = []
    record = Record(str(tmp_path / "log"), None, heard.append)

    record.refuse("connect", Who(7, "curl"), "evil.test", DENIED, ip="1.2.3.4", port=443)

    line = json.loads((tmp_path / "log").read_text())
    assert (line["event"], line["program"], line["host"], line["ip"], line["port"]) == (
        "refused",
        "curl",
        "evil.test",
        "1.2.3.4",
        443,
    )
    assert line["rule"] == "external_calls.allowed_domains"
    assert "`agentguard policy explain evil.test`" in line["remedy"]
    assert heard[0].host == "evil.test"


def test_a_terminal_is_told_once_a_host(tmp_path, terminal):
    reading, writing = terminal
    record = Record(str(tmp_path / "log"), writing, lambda _: None)

    for _ in range(3):
        record.refuse("connect", Who(7, "curl"), "evil.test", DENIED, port=443)
    record.refuse("connect", Who(7, "curl"), "other.test", DENIED, port=443)

    told = os.read(reading, 4096).decode()
    assert told.count("evil.test':443") == told.count("other.test':443") == 1
    assert "agentguard: curl (7) may not reach 'evil.test':443: not in external_calls.allowed_domains (agentguard.yaml:4)" in told


def test_a_program_cannot_steer_the_terminal_by_its_names(tmp_path, terminal):
    reading, writing = terminal
    record = Record(str(tmp_path / "log"), writing, lambda _: None)

    record.refuse("unix", Who(7, "\x1b[2Jx"), "/tmp/\x1b]0;owned\x07", DENIED)

    assert b"\x1b" not in os.read(reading, 4096)


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("evil.test", 8443, "evil.test:8443"),
        ("evil.test", 80, "http://evil.test/"),
        ("evil.test", 0, "evil.test"),
        ("2001:db8::1", 443, "[2001:db8::1]"),
    ],
)
def test_the_remedy_asks_about_the_port_that_was_refused(tmp_path, host, port, url):
    heard = []
    record = Record(str(tmp_path / "log"), None, heard.append)

    record.refuse("connect", Who(7, "curl"), host, DENIED, port=port)

    assert f"`agentguard policy explain {url}`" in heard[0].remedy


@pytest.mark.parametrize(
    ("what", "rule", "remedy"),
    [
        ("connect", "external_calls.allow_private", "Write external_calls.allow_private: true"),
        ("connect", "external_calls.blocked_domains", "Remove it from external_calls.blocked_domains"),
        ("unix", "external_calls.unix_sockets", "to external_calls.unix_sockets"),
        ("socket", "external_calls.allow_udp", "Write external_calls.allow_udp: true"),
    ],
)
def test_the_remedy_fits_the_rule(tmp_path, what, rule, remedy):
    heard = []
    record = Record(str(tmp_path / "log"), None, heard.append)

    record.refuse(what, Who(), "something", Verdict(False, "why", rule))

    assert remedy in heard[0].remedy


def test_a_log_that_cannot_start_anew_is_never_taken_for_another_file(tmp_path, monkeypatch):
    monkeypatch.setattr("agentguard.egress.kernel.record._MOST_BYTES", 10)
    folder = tmp_path / "egress"
    folder.mkdir()
    record = Record(str(folder / "log"), None, lambda _: None)
    record.note("something")
    (folder / "log").unlink()
    folder.rmdir()  # a program of the tree may do that

    record.note("lost")
    others = [os.open(tmp_path / str(number), os.O_CREAT | os.O_RDWR) for number in range(8)]  # as sockets of the tree would be
    record.note("lost")

    try:
        assert [os.fstat(one).st_size for one in others] == [0] * 8
    finally:
        for one in others:
            os.close(one)


def test_a_log_starts_anew_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("agentguard.egress.kernel.record._MOST_BYTES", 1000)
    record = Record(str(tmp_path / "log"), None, lambda _: None)

    for number in range(50):
        record.note("something", number=number)

    assert (tmp_path / "log").stat().st_size < 1200
    assert (tmp_path / "log.1").stat().st_size < 1200
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["number"] == 49

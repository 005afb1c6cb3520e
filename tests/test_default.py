"""The process default: what `instrument()` takes, refuses and ignores, and where its counters lie."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest

import agentguard
from agentguard import PolicyError, StoreUnavailable
from agentguard.stores import open_store
from agentguard.stores.state import default_store_url

POLICY = """
version: 1
fleet: {fleet}
agents:
  - {{name: bot, budgets: [{{limit: 3 calls}}], external_calls: {{allowed_domains: [127.0.0.1]}}}}
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AGENTGUARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def written(tmp_path):
    def write(fleet="default"):
        path = tmp_path / f"{fleet}.yaml"
        path.write_text(POLICY.format(fleet=fleet))
        return path

    return write


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_second_call_that_asks_for_the_same_or_for_nothing_is_silent(written, caplog, monkeypatch, tmp_path):
    path = written()
    monkeypatch.chdir(tmp_path)
    with agentguard.instrument(str(path), mode="enforce") as first:
        caplog.clear()

        assert agentguard.instrument() is first
        assert agentguard.instrument(str(path)) is first
        assert agentguard.instrument(Path("default.yaml"), agent="bot") is first

        assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("asked", "ignored"),
    [
        ({"policy": "not-there.yaml"}, "policy"),
        ({"mode": "report"}, "mode"),
        ({"store": "mysql://x"}, "store"),
        ({"agent": "another", "egress": "kernel"}, "agent, egress"),
    ],
)
def test_what_a_second_call_asks_for_and_does_not_get_is_named(written, caplog, asked, ignored):
    path = written()
    with agentguard.instrument(str(path)) as first:
        caplog.clear()

        assert agentguard.instrument(**asked) is first

        (warning,) = warnings_in(caplog)
        assert f"is ignored: {ignored}." in warning
        assert str(path) in warning


def test_a_mode_that_there_is_not_is_an_error_of_the_policy(written, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_MODE", "repot")

    with pytest.raises(PolicyError, match="expected enforce or report, found 'repot'"):
        agentguard.instrument(str(written()))


@pytest.mark.parametrize("url", ["redis://127.0.0.1:abc", "redis://:pa/ss@127.0.0.1:6379/0", "redis://[::1"])
def test_a_store_that_cannot_be_read_is_an_error_of_the_policy_without_its_password(written, url):
    with pytest.raises(PolicyError, match="the URL cannot be read") as raised:
        agentguard.instrument(str(written()), store=url)

    assert "pa" not in str(raised.value).replace("password", "")


def test_fleets_of_one_user_have_counters_of_their_own(written):
    for fleet in ("default", "a", "b/../c"):
        url = default_store_url(fleet)
        with contextlib.closing(open_store(url, fleet=fleet)) as store:
            assert store.epoch() == 0
            store.isolate("agent:bot", on=True, by="ada", why="drill")

    names = {path.name for path in Path(os.environ["AGENTGUARD_STATE_DIR"]).glob("*.sqlite")}
    assert names == {"ledger.sqlite", "ledger-a.sqlite", "ledger-b%2F..%2Fc.sqlite"}


def test_the_fleet_of_the_policy_names_the_counters(tmp_path):
    paths = []
    for fleet in ("blue", "green"):
        path = tmp_path / f"{fleet}.yaml"
        path.write_text(POLICY.format(fleet=fleet))
        paths.append(path)
    with agentguard.instrument(paths[0]) as blue:
        blue.guard.isolate("bot", by="ada", why="drill")
    with agentguard.instrument(paths[1]) as green:
        assert not green.guard.isolated
    with agentguard.instrument(paths[0]) as blue:
        assert list(blue.guard.isolated) == ["agent:bot"]


def test_sqlite_without_a_path_is_the_same_file(tmp_path):
    with contextlib.closing(open_store(default_store_url())) as one, contextlib.closing(open_store("sqlite://")) as other:
        one.isolate("agent:bot", on=True, by="ada", why="drill")

        assert [isolation.subject for isolation in other.isolations()] == ["agent:bot"]


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path / "file" / "state"))

    with pytest.raises(StoreUnavailable, match=r"file/state cannot be used: Not a directory\."):
        default_store_url()

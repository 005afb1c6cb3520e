from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agentguard.errors import PolicyError
from agentguard.stores import open_store
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore
from agentguard.stores.redis import RedisStore
from agentguard.stores.redis._urls import Address
from agentguard.stores.sqlite import SqliteStore
from agentguard.stores.standby import Standby
from agentguard.stores.state import state_dir


def test_memory_is_for_this_process():
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize("written", ["sqlite://{path}", "sqlite:///{path}", "{path}"])
def test_a_path_is_a_file(written, path):
    store = open_store(written.format(path=path))
    store.close()

    assert isinstance(store, SqliteStore)
    assert path.exists()


def test_no_path_is_the_state_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path / "state"))

    open_store("sqlite://").close()

    assert (tmp_path / "state" / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://", "expected redis://HOST:6379/0"),
        ("redis+sentinel://redis:26379", "expected redis://HOST:6379/0"),
        ("redis://redis?timeout=soon", "expected redis://HOST:6379/0"),
        ("redis://redis?leases=maybe", "leases is on or off"),
        ("sqlite://counters.sqlite", "three slashes"),
        ("memory://x", "nothing behind it"),
        ("postgres://x", "expected `memory://`"),
    ],
)
def test_a_url_that_names_no_store_says_what_to_write(url, sentence):
    with pytest.raises(PolicyError, match=sentence):
        open_store(url)


def test_a_redis_is_for_a_fleet_and_is_not_connected_to_before_it_is_asked():
    store = open_store("rediss://ada:secret@redis.example:6380/2?ssl_cert_reqs=none", fleet="support")
    behind = store.store.store
    address = behind._link.address
    store.close()

    assert isinstance(store, Standby)
    assert isinstance(store.store, LeasedStore)
    assert (address.kind, address.shown) == ("single", "rediss://redis.example:6380/2")
    assert behind._keys.row.startswith("ag:{support}:")


def test_a_redis_is_asked_for_every_call_where_leases_are_off():
    store = open_store("redis://redis.example/0?leases=off")
    store.close()

    assert isinstance(store.store, RedisStore)


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "inner"),
    [
        ("redis+sentinel://:pw@a,b:7/main/3", "sentinel", (("a", 26379), ("b", 7)), "main", "redis://:pw@a:26379/3"),
        ("rediss+cluster://a:7000,b?fleet=x&timeout=0.2", "cluster", (("a", 7000), ("b", 6379)), "", "rediss://a:7000"),
    ],
)
def test_a_url_of_many_servers_names_each(url, kind, hosts, service, inner):
    address = Address.parse(url)

    assert (address.kind, address.hosts, address.service, address.url) == (kind, hosts, service, inner)
    assert "pw" not in address.shown


def test_the_state_directory_is_the_owners(tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path / "a" / "b"))

    folder = state_dir()

    assert folder == tmp_path / "a" / "b"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_the_variable_it_is_the_platforms(tmp_path, monkeypatch):
    monkeypatch.delenv("AGENTGUARD_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)

    assert tmp_path in state_dir().parents

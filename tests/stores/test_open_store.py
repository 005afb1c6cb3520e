from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agentguard.errors import PolicyError
from agentguard.stores import open_store
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
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

    assert (tmp_path / "state" / "counters.sqlite").exists()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://redis:6379/0", "this version has no Redis store"),
        ("sqlite://counters.sqlite", "three slashes"),
        ("memory://x", "nothing behind it"),
        ("postgres://x", "expected `memory://`"),
    ],
)
def test_a_url_that_names_no_store_says_what_to_write(url, sentence):
    with pytest.raises(PolicyError, match=sentence):
        open_store(url)


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

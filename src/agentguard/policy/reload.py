"""Finding the policy file, and noticing that it changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agentguard.errors import PolicyError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agentguard.policy.model import Policy

VARIABLE = "AGENTGUARD_POLICY"
NAMES = ("agentguard.yaml", "agentguard.yml", "agentguard.toml")
_PYPROJECT = "pyproject.toml"


def find_policy(
    argument: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    cwd: str | os.PathLike[str] | None = None,
) -> Path | None:
    """The policy file: the argument, AGENTGUARD_POLICY, a file of the usual name, or pyproject.toml if it has one.

    Raises:
        PolicyError: A file was named and is absent. It does not run without the policy that was asked for.
    """
    folder = Path(cwd) if cwd is not None else Path.cwd()
    if argument is not None:
        return _named(folder, os.fspath(argument), "the argument")
    if VARIABLE in environ:
        return _named(folder, environ[VARIABLE], VARIABLE)
    usual = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    return usual or _pyproject(folder / _PYPROJECT)


def _named(folder: Path, name: str, by: str) -> Path:
    path = folder / name  # an absolute name stays as it is
    if name and path.is_file():
        return path
    raise PolicyError(name or by, [Problem(name or by, 0, 0, "", f"no such file; it is named by {by}")])


def _pyproject(path: Path) -> Path | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    if "agentguard" not in text:  # a look before the parser: most projects have a pyproject.toml and no policy in it
        return None
    from agentguard.policy.load.toml import has_policy

    return path if has_policy(text) else None


class _Stamp(NamedTuple):
    """What tells cheaply that a file was touched."""

    modified_ns: int
    size: int
    inode: int


class PolicyFile:
    """A policy file that is read again when it changes. Not thread-safe: one worker polls it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._read_at: _Stamp | None = None
        self._seen_at: _Stamp | None = None
        self._digest: bytes | None = None
        self._is_lost = False

    def load(self) -> Policy:
        """Read the file now.

        Raises:
            PolicyError: It cannot be read or does not load.
        """
        content = self._read()
        self._digest, self._is_lost = _digest(content), False
        return self._parse(content)

    def poll(self) -> Policy | PolicyError | None:
        """What the file says now, if it changed: the new policy, or why it does not load; None while it says the same.

        A change is read when two polls in a row find the same state: half a file can be valid YAML with half the rules.
        A fault is told once for each state; what is told after it is the next change, or that the file is back.
        """
        stamp = self._look()
        if stamp is None:
            return self._lose("no such file any more")
        if stamp == self._read_at:
            return None
        if stamp != self._seen_at:
            self._seen_at = stamp
            return None
        try:
            content = self._read()
        except PolicyError as error:
            return self._lose(error.problems[0].message)
        if self._look() != stamp:
            return None  # it changed while it was read
        self._read_at = stamp
        return self._changed(content)

    def _changed(self, content: bytes) -> Policy | PolicyError | None:
        digest = _digest(content)
        if digest == self._digest and not self._is_lost:
            return None
        self._digest, self._is_lost = digest, False
        try:
            return self._parse(content)
        except PolicyError as error:
            return error

    def _lose(self, why: str) -> PolicyError | None:
        self._read_at = self._seen_at = None
        if self._is_lost:
            return None
        self._is_lost = True
        return PolicyError(str(self.path), [Problem(str(self.path), 0, 0, "", why)])

    def _look(self) -> _Stamp | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            problem = Problem(str(self.path), 0, 0, "", f"cannot be read: {error.strerror or error}")
            raise PolicyError(str(self.path), [problem]) from error

    def _parse(self, content: bytes) -> Policy:
        from agentguard.policy.load import from_file

        return from_file(shown(self.path), content)


def shown(path: Path) -> str:
    """The path as messages name it: from the working directory on, when it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()

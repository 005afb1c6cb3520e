"""Reading the event log: the files of all processes, merged by time."""

from __future__ import annotations

import heapq
import json
import time
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

from agentguard.audit.lines import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

_POLL_SECONDS = 0.2


_LATEST_MICROS = 60_000_000
"""A file may hold events from before it was created: the worker writes them after they happen. A minute is ample."""


def read_events(directory: Path, since: float | None = None) -> Iterator[dict[str, Any]]:
    """The records of a directory, oldest first. Torn lines are passed over.

    Args:
        directory: As `EventLog.directory`.
        since: Unix time; None: everything.
    """
    since_micros = 0 if since is None else round(since * 1_000_000)
    waiting = [(_created_micros(path), path) for path in files(directory) if since is None or _may_hold(path, since)]
    waiting.reverse()
    # A file is opened when the others have come to its time, so that thousands of short-lived processes do not need
    # thousands of open files. Within a file the order of writing stands, should the clock have gone back.
    heads: list[tuple[int, str, dict[str, Any], Iterator[dict[str, Any]]]] = []
    while waiting or heads:
        while waiting and (not heads or waiting[-1][0] - _LATEST_MICROS <= heads[0][0]):
            path = waiting.pop()[1]
            _push(heads, 0, path.name, _records(path))
        if not heads:
            continue
        at, name, found, rest = heapq.heappop(heads)
        if found["at_us"] >= since_micros:
            yield found
        _push(heads, at, name, rest)


def follow(directory: Path, since: float | None = None, wait: Callable[[float], None] = time.sleep) -> Iterator[dict[str, Any]]:
    """The records as they are written, without end. Those of one look are in the order of time.

    Args:
        directory: As `EventLog.directory`; it may not be there yet.
        since: Unix time; None: from now on.
        wait: Sleeps between two looks.
    """
    start = time.time() if since is None else since
    start_micros = round(start * 1_000_000)
    tails = {path: _Tail(path, skip=since is None or not _may_hold(path, start)) for path in files(directory)}
    while True:
        present = files(directory)
        for path in present:
            if path not in tails:
                tails[path] = _Tail(path)
        new = [found for path in present for found in tails[path].read() if found["at_us"] >= start_micros]
        yield from sorted(new, key=lambda found: found["at_us"])
        for path in set(tails) - set(present):
            del tails[path]
        wait(_POLL_SECONDS)


class _Tail:
    """One file that grows. `skip`: what it holds already is not wanted."""

    def __init__(self, path: Path, *, skip: bool = False) -> None:
        self._path = path
        self._offset = max(path.stat().st_size - 1, 0) if skip and path.exists() else 0
        self._is_within_line = self._offset > 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The records of the lines that were completed since the last look."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return iter(())
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines()
        if self._is_within_line and lines:
            self._is_within_line = False
            del lines[0]
        return _parsed(lines)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as lines:
            yield from _parsed(lines)
    except FileNotFoundError:  # removed as the oldest since
        return


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            found = json.loads(line)
        except ValueError:  # torn by a crash or a full disk
            continue
        if isinstance(found, dict) and isinstance(found.get("at_us"), int):
            yield found


def _push(
    heads: list[tuple[int, str, dict[str, Any], Iterator[dict[str, Any]]]], least: int, name: str, rest: Iterator[dict[str, Any]]
) -> None:
    found = next(rest, None)
    if found is None:
        return
    at = found["at_us"]
    if found["kind"] == "log_opened" and (first := next(rest, None)) is not None:
        at = min(at, first["at_us"])  # a file is opened for an event that has happened
        rest = chain([first], rest)
    heapq.heappush(heads, (max(least, at), name, found, rest))


def _created_micros(path: Path) -> int:
    try:
        moment = datetime.strptime(path.name.partition("Z-")[0], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
    except ValueError:  # not named by us
        return 0
    return round(moment.timestamp() * 1_000_000)


def _may_hold(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime >= since
    except FileNotFoundError:
        return False

"""Lines on disk: files of one process, bounded in size, in a directory that several processes share."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUFFIX = ".jsonl"

_MAX_FILES = 1000
"""Processes that live for a second leave a small file each: their number is bounded too."""


class LineFiles:
    """Appends lines to a file of this process's own, and starts the next one when it is full.

    Names begin with the time of creation, so they sort by it. The oldest files of the directory, whoever wrote them,
    are removed when all of them together pass the bound.

    Args:
        directory: Made with mode 0700 when it is absent. Files have mode 0600.
        header: Makes the first line of a file.
        max_file_bytes: Size at which the next file is started.
        max_total_bytes: Size of all files together.
    """

    def __init__(self, directory: Path, header: Callable[[], bytes], max_file_bytes: int, max_total_bytes: int) -> None:
        self.directory = directory
        self._header = header
        self._max_file_bytes = max_file_bytes
        self._max_total_bytes = max_total_bytes
        self._fd = -1
        self._size = 0
        self._is_torn = False

    def append(self, lines: bytes) -> None:
        """Write whole lines.

        Raises:
            OSError: They could not be written, or only in part. The next call ends the torn line.
        """
        if self._fd < 0 or self._size + len(lines) > self._max_file_bytes or self._is_gone():
            self.close()
            self._open()
            lines = self._header() + lines
        if self._is_torn:
            lines = b"\n" + lines
        self._write(lines)

    def close(self) -> None:
        """Close the file; the next append starts another."""
        fd, self._fd = self._fd, -1
        self._is_torn = False
        if fd >= 0:
            os.close(fd)

    def _open(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_oldest()
        micros = time.time_ns() // 1000
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(micros // 1_000_000))
        path = self.directory / f"{stamp}.{micros % 1_000_000:06d}Z-{os.getpid()}-{os.urandom(3).hex()}{SUFFIX}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, 0o600)
        self._size = 0

    def _write(self, lines: bytes) -> None:
        self._is_torn = True
        left = memoryview(lines)
        while left:
            written = os.write(self._fd, left)
            self._size += written
            left = left[written:]
        self._is_torn = False

    def _is_gone(self) -> bool:
        """Whether another process has removed the file as the oldest."""
        return os.fstat(self._fd).st_nlink == 0

    def _remove_oldest(self) -> None:
        """Make room for one more full file."""
        sizes = sorted(_sizes(self.directory))
        surplus = sum(size for _, size, _ in sizes) + self._max_file_bytes - self._max_total_bytes
        for older, (_, size, path) in enumerate(sizes):
            if surplus <= 0 and len(sizes) - older < _MAX_FILES:
                return
            with contextlib.suppress(OSError):  # another process was faster, or (on Windows) has it open
                Path(path).unlink()
                surplus -= size


def files(directory: Path) -> list[Path]:
    """The files of a directory, oldest first; none when there is no such directory."""
    try:
        return sorted((Path(entry.path) for entry in _entries(directory)), key=lambda path: path.name)
    except FileNotFoundError:
        return []


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        yield from (entry for entry in entries if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False))


def _sizes(directory: Path) -> Iterator[tuple[int, int, str]]:
    for entry in _entries(directory):
        with contextlib.suppress(FileNotFoundError):  # removed by another process since
            stat = entry.stat()
            yield stat.st_mtime_ns, stat.st_size, entry.path

"""A metered body as a file: what libraries that read from files are given instead of their own."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.metering import Meter

_BLOCK = 65536


class MeteredBody(io.RawIOBase):
    """Reads a body, meters it, and hands it on: plain, or framed in HTTP chunks again for a reader that undoes them.

    Args:
        read: Reads what has arrived, at most so many bytes; empty at the end.
        close: Closes what is read from.
        meter: The meter.
        is_chunked: Whether the reader expects HTTP's chunks.
        is_over: Whether all of the body has been read, asked after each piece; the reader may not ask for more.
        hang_up: Breaks the connection, after a piece that could not be paid for.
        broken: Exceptions that mean the body ends too early. The reader finds that out by itself, and says it in its own words.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        close: Callable[[], object],
        meter: Meter,
        *,
        is_chunked: bool = False,
        is_over: Callable[[], bool] = lambda: False,
        hang_up: Callable[[], None] = lambda: None,
        broken: tuple[type[Exception], ...] = (),
        fileno: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        self._read = read
        self._close = close
        self._meter = meter
        self._is_chunked = is_chunked
        self._is_over = is_over
        self._hang_up = hang_up
        self._broken = broken
        self._fileno = fileno
        self._ready = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """What to wait for with `select`: the socket."""
        if self._fileno is None:
            raise io.UnsupportedOperation("fileno")
        return self._fileno()

    def readinto(self, buffer: Any) -> int:
        """Read what has arrived. Raises `Denied` when it cannot be paid for."""
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next())
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _next(self) -> bytes:
        try:
            piece = self._read(_BLOCK)
        except self._broken as error:
            self._ended = True
            self._meter.fail(error)
            return b""
        except Exception as error:  # noted, and raised on
            self._meter.fail(error)
            raise
        try:
            self._ended = not piece or self._is_over()
            handed_on = self._meter.feed(piece) if piece else b""
            if self._ended:
                handed_on += self._meter.end()
        except BaseException:  # noted, and raised on
            self._ended = True
            self._hang_up()
            self._close()
            raise
        return self._framed(handed_on)

    def _framed(self, piece: bytes) -> bytes:
        if not self._is_chunked:
            return piece
        framed = b"%x\r\n%b\r\n" % (len(piece), piece) if piece else b""
        return framed + b"0\r\n\r\n" if self._ended else framed

    def close(self) -> None:
        """Close what is read from. Before the end of the body that abandons it."""
        if not self.closed:
            try:
                self._close()
            finally:
                self._meter.abandon()
                super().close()


def metered_file(source: Any, meter: Meter) -> io.BufferedReader:
    """A file whose reading is metered, in place of another."""
    return io.BufferedReader(MeteredBody(source.read, getattr(source, "close", lambda: None), meter))

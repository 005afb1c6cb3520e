"""Undoing content encodings, a chunk at a time: a meter has to read what the caller will read."""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def decoder(encoding: str) -> Callable[[bytes], bytes] | None:
    """What undoes a `content-encoding`; None for plain data.

    An encoding that this process cannot undo (its library is not loaded) is passed on as it is: what was
    delivered cannot be counted then, and the reservation is charged.
    """
    undo: list[Callable[[bytes], bytes]] = []
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        match name:
            case "gzip" | "x-gzip":
                undo.append(_gunzip())
            case "deflate":
                undo.append(_inflate())
            case "br" if brotli := sys.modules.get("brotli") or sys.modules.get("brotlicffi"):
                one = brotli.Decompressor()
                undo.append(getattr(one, "decompress", None) or one.process)
            case "zstd" if zstandard := sys.modules.get("zstandard"):
                undo.append(zstandard.ZstdDecompressor().decompressobj().decompress)
            case _:
                pass
    if not undo:
        return None
    if len(undo) == 1:
        return undo[0]

    def undo_all(chunk: bytes) -> bytes:
        for one in undo:
            chunk = one(chunk)
        return chunk

    return undo_all


def can_undo(encoding: str) -> bool:
    """Whether every part of a `content-encoding` can be undone here."""
    names = {name.strip().lower() for name in encoding.split(",")} - {"", "identity"}
    return all(decoder(name) is not None for name in names)


def _gunzip() -> Callable[[bytes], bytes]:
    """Gzip comes in members, one after the other: some servers end one with each flush. What follows and is none is ignored."""
    member: zlib._Decompress | None = zlib.decompressobj(16 + zlib.MAX_WBITS)
    is_first = True

    def gunzip(chunk: bytes) -> bytes:
        nonlocal member, is_first
        plain = b""
        while chunk and member is not None:
            try:
                plain += member.decompress(chunk)
            except zlib.error:
                if is_first:
                    raise
                member = None
                break
            chunk = member.unused_data
            if member.eof:
                member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                is_first = False
        return plain

    return gunzip


def _inflate() -> Callable[[bytes], bytes]:
    """Deflate comes with and without its zlib header; the first chunk tells."""
    plain: zlib._Decompress | None = None

    def inflate(chunk: bytes) -> bytes:
        nonlocal plain
        if plain is None:
            try:
                plain = zlib.decompressobj()
                return plain.decompress(chunk)
            except zlib.error:
                plain = zlib.decompressobj(-zlib.MAX_WBITS)
        return plain.decompress(chunk)

    return inflate

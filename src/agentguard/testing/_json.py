"""JSON and server-sent events as providers write them."""

from __future__ import annotations

import json

to_text = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def to_bytes(value: object) -> bytes:
    """Compact JSON."""
    return to_text(value).encode()


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    prefix = f"event: {name}\n" if name else ""
    return f"{prefix}data: {to_text(value)}\n\n".encode()

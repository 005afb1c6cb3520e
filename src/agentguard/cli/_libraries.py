"""The libraries that make calls: which versions were tested, and which calls no seam sees."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import NamedTuple

TESTED: dict[str, tuple[str, str]] = {
    "aiohttp": ("3.14.5", "3.14.5"),
    "anthropic": ("0.125.0", "2.12.0"),
    "boto3": ("1.44.5", "1.44.5"),
    "groq": ("1.7.0", "1.7.0"),
    "httpx": ("0.25.1", "0.28.1"),
    "httpx2": ("2.7", "2.16.2"),
    "mcp": ("2.3.0", "2.3.0"),
    "openai": ("1.109.1", "3.54.0"),
    "requests": ("2.31.0", "2.34.2"),
    "together": ("3.1.1", "3.1.1"),
    "urllib3": ("2.0.7", "2.8.0"),
    "websockets": ("17.4", "17.4"),
}
"""The oldest and the newest version that the tests run with."""

NATIVE = {
    "curl-cffi": "its own TLS stack, in C",
    "grpcio": "its own network stack, in C",
    "pycurl": "libcurl, in C",
    "playwright": "a browser, which is another process",
    "selenium": "a browser, which is another process",
    "claude-agent-sdk": "its LLM calls are made by a child process",
}
"""Installed packages whose calls no seam in this process can see, and why."""


class Library(NamedTuple):
    """An installed library. `support`: `tested`, `newer` or `older` than what was tested."""

    name: str
    version: str
    support: str


def installed() -> list[Library]:
    """The libraries that are installed here, and whether their versions were tested."""
    found = [(name, installed_version(name)) for name in TESTED]
    return [Library(name, version, _support(name, version)) for name, version in found if version]


def native() -> list[tuple[str, str]]:
    """The installed packages whose calls are not seen, and why."""
    return [(name, why) for name, why in NATIVE.items() if installed_version(name)]


def installed_version(name: str) -> str:
    """The version of a distribution; empty when it is not installed."""
    if name == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return version_of(name)
    except PackageNotFoundError:
        return ""


def short(version: str) -> str:
    """`3.54.0` as `3.54`."""
    return ".".join(version.split(".")[:2])


def _support(name: str, version: str) -> str:
    oldest, newest = map(_order, TESTED[name])
    found = _order(version)
    return "older" if found < oldest else "newer" if found > newest else "tested"


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])

"""The scripts that run inside the server: one for each verb, so that each is atomic."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Script(NamedTuple):
    """A script, and the digest by which the server knows it."""

    text: str
    sha: str


class Scripts:
    """The scripts by name, with what they share in front.

    The clock is the server's. No argument can change it: whoever may run the scripts cannot end a window with them.
    """

    def __init__(self) -> None:
        self.named: Callable[[str], Script] = functools.cache(self._read)

    def arguments(self, arguments: Sequence[str | bytes | int]) -> Sequence[str | bytes | int]:
        """The arguments of a script, with whatever its clock needs."""
        return arguments

    def _read(self, name: str) -> Script:
        text = "\n".join((self.read_clock(), _text("rows"), _text(name)))
        return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def read_clock(self) -> str:
        """The source of `micros()`."""
        return _text("time")


def _text(name: str) -> str:
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")

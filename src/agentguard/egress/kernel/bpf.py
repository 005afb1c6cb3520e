"""Classic BPF, as far as a seccomp filter needs it: instructions with labels, assembled into bytes."""

from __future__ import annotations

import struct
from typing import NamedTuple

LOAD = 0x20  # ld [k]
AND = 0x54
JUMP = 0x05
IF_EQUAL = 0x15
IF_GREATER_OR_EQUAL = 0x35
IF_ANY_BIT = 0x45
RETURN = 0x06

NUMBER = 0  # where seccomp_data holds what a filter may look at
ARCH = 4
_ARGUMENTS = 16
_LONGEST_JUMP = 255


class Instruction(NamedTuple):
    """One instruction. Targets are labels; an empty one goes on to the next instruction."""

    code: int
    value: int
    then: str = ""
    otherwise: str = ""


class Program:
    """A filter on its way: instructions are appended, labels mark places that lie ahead."""

    def __init__(self) -> None:
        self._instructions: list[Instruction] = []
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        """Take up a 32-bit word of what is judged."""
        self._append(LOAD, offset)

    def load_argument(self, index: int, *, upper: bool = False) -> None:
        """Take up the lower half of an argument (all that the kernel reads of an int), or the upper one."""
        self.load(_ARGUMENTS + 8 * index + (4 if upper else 0))

    def mask(self, bits: int) -> None:
        """Keep some bits of what was taken up."""
        self._append(AND, bits)

    def if_equal(self, value: int, then: str = "", otherwise: str = "") -> None:
        """Go on elsewhere, by what was taken up."""
        self._append(IF_EQUAL, value, then, otherwise)

    def if_any_bit(self, bits: int, then: str = "", otherwise: str = "") -> None:
        """Go on elsewhere when one of some bits is set."""
        self._append(IF_ANY_BIT, bits, then, otherwise)

    def if_at_least(self, value: int, then: str = "", otherwise: str = "") -> None:
        """Go on elsewhere when what was taken up is no smaller."""
        self._append(IF_GREATER_OR_EQUAL, value, then, otherwise)

    def label(self, name: str) -> None:
        """Mark the next instruction."""
        self._labels[name] = len(self._instructions)

    def end(self, action: int) -> None:
        """Answer."""
        self._append(RETURN, action)

    def assemble(self) -> bytes:
        """The program as the kernel takes it.

        Raises:
            ValueError: A label is missing, lies behind, or too far ahead.
        """
        return b"".join(self._encode(place, one) for place, one in enumerate(self._instructions))

    def _append(self, code: int, value: int, then: str = "", otherwise: str = "") -> None:
        self._instructions.append(Instruction(code, value, then, otherwise))

    def _encode(self, place: int, one: Instruction) -> bytes:
        return struct.pack("=HBBI", one.code, self._jump(place, one.then), self._jump(place, one.otherwise), one.value)

    def _jump(self, place: int, label: str) -> int:
        if not label:
            return 0
        distance = self._labels.get(label, -1) - place - 1
        if not 0 <= distance <= _LONGEST_JUMP:
            msg = f"label {label!r} cannot be jumped to from instruction {place}"
            raise ValueError(msg)
        return distance

"""A short name for what a policy says, by which hosts are compared. Where and how it was written does not count."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentguard.policy.model import Policy

_DIGEST_BYTES = 6


def digest_of(policy: Policy) -> str:
    """The digest: 12 hex digits, the same for two policies that are equal."""
    return hashlib.blake2b(_plain(policy).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _plain(value: object) -> str:
    """A value as text, without what does not count in comparisons: where a rule stands."""
    if is_dataclass(value):
        said = (f"{one.name}={_plain(getattr(value, one.name))}" for one in fields(value) if one.compare)
        return f"{type(value).__name__}({','.join(said)})"
    if isinstance(value, Mapping):
        return f"{{{','.join(sorted(f'{key}:{_plain(entry)}' for key, entry in value.items()))}}}"
    if isinstance(value, AbstractSet):
        return f"{{{','.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_plain, value))}]"
    return repr(value)

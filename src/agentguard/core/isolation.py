"""The words by which subjects are stopped. A store refuses every request that names a word it was told; here is what they mean.

`agent:a`, `session:s`, `user:u`, `fleet`: every call of the subject. `llm@agent:a`: its LLM calls. `key:k`: the uses of a key.
`probation:1700000000@agent:a`: nothing is stopped, but until then the agent has half of its limits.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LLM = "llm@"
_PROBATION = "probation:"
_KINDS = frozenset({"agent", "session", "user", "key"})


class IsolationMode(StrEnum):
    """What an isolation stops: every call of the subject, or only those to models."""

    BLOCK_ALL = "block-all"
    LLM_ONLY = "llm-only"


def subject_of(name: str) -> str:
    """A subject as an operator names it: `agent:a`, or `a` alone. An agent's name may hold a colon."""
    return name if name == "fleet" or name.partition(":")[0] in _KINDS else f"agent:{name}"


def word_for(subject: str, mode: IsolationMode) -> str:
    """The word that stops a subject."""
    return f"{_LLM}{subject}" if mode is IsolationMode.LLM_ONLY else subject


def llm_words(subjects: Iterable[str]) -> tuple[str, ...]:
    """The words that stop the LLM calls of subjects, and nothing else of them."""
    return tuple(f"{_LLM}{subject}" for subject in subjects)


def read_word(word: str) -> tuple[str, IsolationMode] | None:
    """The subject that a word stops, and how; None for a word that stops nothing: a probation."""
    if word.startswith(_PROBATION):
        return None
    return (word.removeprefix(_LLM), IsolationMode.LLM_ONLY) if word.startswith(_LLM) else (word, IsolationMode.BLOCK_ALL)


def probation_word(subject: str, until: float) -> str:
    """The word that puts a subject on probation until then (Unix time, whole seconds)."""
    return f"{_PROBATION}{int(until)}@{subject}"


def probations(words: Iterable[str]) -> Iterator[tuple[str, str, float]]:
    """The probations among words: the word, its subject, and until when."""
    for word in words:
        if word.startswith(_PROBATION):
            until, _, subject = word.removeprefix(_PROBATION).partition("@")
            yield word, subject, float(until)


def agents_on_probation(words: Iterable[str], now: float) -> frozenset[str]:
    """The names of the agents that are on probation now."""
    return frozenset(
        subject.removeprefix("agent:") for _, subject, until in probations(words) if until > now and subject.startswith("agent:")
    )

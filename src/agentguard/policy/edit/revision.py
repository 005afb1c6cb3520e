"""A policy file as an edit leaves it: the edit is made in the text, and believed only when the text loads as what was meant."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from agentguard.errors import PolicyError, Problem
from agentguard.policy.diff import Change, Direction, diff
from agentguard.policy.edit import yaml_text
from agentguard.policy.edit.yaml_text import NotEditable
from agentguard.policy.hosts import UNKNOWN_PORT, HostPattern, HostRules, Kind
from agentguard.policy.model import LLM, AgentPolicy, Policy, Rule
from agentguard.policy.providers import patterns_of
from agentguard.policy.reload import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agentguard.policy.load.yaml12 import Key

_ALLOWED = ("external_calls", "allowed_domains")
_BLOCKED = ("external_calls", "blocked_domains")
_PROVIDERS = ("llm", "providers")
_SINGLE = "agent_config"
_BOM = "\ufeff"


class Revision(NamedTuple):
    """What an edit makes of a policy file. Nothing is written before `write`.

    Attributes:
        path: The file.
        old, new: The policy before and after.
        before, content: The file's bytes before and after; the same when there was nothing to do.
        note: What else a reader should know; empty mostly.
    """

    path: Path
    old: Policy
    new: Policy
    before: bytes
    content: bytes
    note: str = ""

    @property
    def is_change(self) -> bool:
        """Whether there is anything to write."""
        return self.content != self.before

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the edit grants and what it takes."""
        return diff(self.old, self.new)

    def write(self) -> None:
        """Put the new file in the place of the old one, at once.

        Raises:
            PolicyError: The file has changed since it was read, or cannot be written; it stays as it is.
        """
        if not self.is_change:
            return
        target = self.path.resolve()  # behind a symbolic link
        try:
            if target.read_bytes() != self.before:
                raise _refused(shown(self.path), Rule(""), "the file was changed meanwhile; try again")
            _replace(target, self.content)
        except OSError as error:
            raise _refused(shown(self.path), Rule(""), f"cannot be written: {error.strerror or error}") from error


def _replace(target: Path, content: bytes) -> None:
    """Give a file new content in one step, with the mode and the owner that it has."""
    now = target.stat()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if hasattr(os, "chown") and (now.st_uid, now.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(name, now.st_uid, now.st_gid)
        Path(name).chmod(stat.S_IMODE(now.st_mode))
        os.replace(name, target)  # noqa: PTH105 - a name
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


class Learned(NamedTuple):
    """What one agent was seen to need: providers by the policy's word, and entries of `allowed_domains`."""

    agent: str
    providers: tuple[str, ...] = ()
    hosts: tuple[HostPattern, ...] = ()


def allow(path: str | os.PathLike[str], entry: str, agent: str | None = None) -> Revision:
    """Let an agent reach a host, an address or a network: listed under `allowed_domains`, no longer under `blocked_domains`.

    Args:
        path: The policy file.
        entry: As `allowed_domains` takes it.
        agent: Whose list; None: that of the policy's only agent.

    Raises:
        ValueError: The entry is none; the message says what to write.
        PolicyError: The file does not load, the agent is not named there, or the entry would not open what it names.
    """
    pattern = HostPattern.parse(entry)
    draft = _Draft.read(path)
    name = draft.named(agent)
    if pattern in draft.list_of(name, _BLOCKED):
        draft.remove(name, _BLOCKED, pattern)
    if not _is_open(draft.agent(name), pattern):
        draft.add(name, _ALLOWED, pattern)
    revision = draft.revision()
    if not _is_closed(revision.old.agent(name)):
        _refuse_any(revision, Direction.TAKES, f"allowing {pattern} alone would close what is open now")
    _refuse_unless_reached(draft.agent(name), pattern)
    return revision


def deny(path: str | os.PathLike[str], entry: str, agent: str | None = None) -> Revision:
    """Keep an agent from a host, an address or a network: no longer under `allowed_domains`, and blocked if that is not enough.

    Raises:
        ValueError, PolicyError: As `allow`.
    """
    pattern = HostPattern.parse(entry)
    draft = _Draft.read(path)
    name = draft.named(agent)
    was_unwritten = draft.agent(name).external_calls.is_unwritten
    if pattern in draft.list_of(name, _ALLOWED):
        draft.remove(name, _ALLOWED, pattern)
    if pattern not in draft.list_of(name, _BLOCKED) and not _is_shut(draft.agent(name), pattern):
        draft.add(name, _BLOCKED, pattern)
    revision = draft.revision()
    _refuse_any(revision, Direction.GRANTS, f"denying {pattern} would open something")
    if was_unwritten:
        return revision._replace(note="With a list written, private space is closed too: allow the addresses that are needed.")
    return revision


def adopt(path: str | os.PathLike[str], learned: Iterable[Learned]) -> Revision:
    """Write down what agents were seen to need. An agent that the policy does not name is added, closed to all else.

    Raises:
        PolicyError: The file does not load, or cannot be edited by a program.
    """
    draft = _Draft.read(path)
    for agent, providers, hosts in learned:
        if draft.policy.agent(agent) is None:
            draft.enter(agent, providers, hosts)
            continue
        for provider in providers:
            if provider not in draft.list_of(agent, _PROVIDERS):
                draft.add(agent, _PROVIDERS, provider)
        for host in hosts:
            if host not in draft.list_of(agent, _ALLOWED):
                draft.add(agent, _ALLOWED, host)
    return draft.revision()


class _Draft:
    """A policy file in the making: text and policy, which say the same after every step."""

    def __init__(self, path: Path, before: bytes) -> None:
        self._path = path
        self._before = before
        self._bom = _BOM if before.startswith(_BOM.encode()) else ""
        self._old = self.policy = self._load(before)
        self._text = before.decode("utf-8-sig")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        file = Path(path)
        try:
            return cls(file, file.read_bytes())
        except OSError as error:
            raise _refused(shown(file), Rule(""), f"cannot be read: {error.strerror or error}") from error

    def named(self, agent: str | None) -> str:
        names = [one.name for one in self.policy.agents]
        if agent in names:
            return str(agent)
        listed = ", ".join(map(repr, names))
        if agent is not None:
            raise _refused(self.policy.path, Rule("agents"), f"no agent {agent!r}; the policy names {listed}")
        if len(names) > 1:
            raise _refused(self.policy.path, Rule("agents"), f"several agents are named; say which of {listed}")
        return names[0]

    def agent(self, name: str) -> AgentPolicy:
        return self.policy.agents[self._index(name)]

    def list_of(self, name: str, part: tuple[str, str]) -> tuple[Any, ...]:
        if part is _PROVIDERS:
            llm = self.agent(name).llm
            return () if llm is None else llm.providers
        return getattr(self.agent(name).external_calls, part[1]) or ()

    def add(self, name: str, part: tuple[str, str], item: HostPattern | str) -> None:
        items = (*self.list_of(name, part), item)
        self._edit(name, part, items, lambda text, key: self._syntax.add(text, key, list(map(str, items)), str(item)))

    def remove(self, name: str, part: tuple[str, str], item: HostPattern) -> None:
        while item in (listed := self.list_of(name, part)):
            index = listed.index(item)
            rest = listed[:index] + listed[index + 1 :]
            self._edit(name, part, rest, lambda text, key: self._syntax.remove(text, key, list(map(str, rest)), index))  # noqa: B023 - called at once

    def enter(self, name: str, providers: Sequence[str], hosts: Sequence[HostPattern]) -> None:
        entry: dict[str, Any] = {"name": name}
        if providers:
            entry["llm"] = {"providers": list(providers)}
        entry["external_calls"] = {"allowed_domains": list(map(str, hosts)), "blocked_domains": ["*"]}
        if self.policy.agents[0].rule.name == _SINGLE:
            why = f"agent {name!r} cannot be added to a policy of one agent; write `agents:` with a list instead of `{_SINGLE}:`"
            raise _refused(self.policy.path, self.policy.agents[0].rule, why)
        at = Rule("agents", self.policy.path)
        policy = self._tried(at, lambda text: self._syntax.append_mapping(text, ("agents",), entry))
        if replace(policy, agents=policy.agents[:-1]) != self.policy or policy.agents[-1].name != name:
            raise _by_hand(at, "the text would not say what is meant")
        self.policy = policy

    def revision(self) -> Revision:
        return Revision(self._path, self._old, self.policy, self._before, self._bytes(self._text))

    @property
    def _syntax(self) -> Any:
        if self._path.suffix == ".toml":
            from agentguard.policy.edit import toml_text

            return toml_text
        return yaml_text

    def _edit(self, name: str, part: tuple[str, str], items: tuple[Any, ...], edit: Callable[[str, Key], str]) -> None:
        index = self._index(name)
        agent = self.policy.agents[index]
        meant = _with(agent, part, items)
        top: Key = (_SINGLE,) if agent.rule.name == _SINGLE else ("agents", index)
        rule = agent.external_calls.rule if part is not _PROVIDERS or agent.llm is None else agent.llm.rule
        at = Rule(f"{agent.rule.name}.{'.'.join(part)}", rule.path, rule.line)
        policy = self._tried(at, lambda text: edit(text, (*top, *part)))
        if policy != replace(self.policy, agents=(*self.policy.agents[:index], meant, *self.policy.agents[index + 1 :])):
            raise _by_hand(at, "an alias, or a spelling that was not foreseen, stands in the way")
        self.policy = policy

    def _tried(self, at: Rule, edit: Callable[[str], str]) -> Policy:
        try:
            text = edit(self._text)
            policy = self._load(self._bytes(text))
        except (NotEditable, PolicyError) as error:
            raise _by_hand(at, str(error)) from error
        self._text = text
        return policy

    def _index(self, name: str) -> int:
        return next(index for index, agent in enumerate(self.policy.agents) if agent.name == name)

    def _bytes(self, text: str) -> bytes:
        return f"{self._bom}{text}".encode()

    def _load(self, content: bytes) -> Policy:
        from agentguard.policy.load import from_file

        return from_file(shown(self._path), content)


def _with(agent: AgentPolicy, part: tuple[str, str], items: tuple[Any, ...]) -> AgentPolicy:
    if part is _PROVIDERS:
        return replace(agent, llm=replace(agent.llm or LLM(), providers=items))
    calls = agent.external_calls
    is_allowed = part is _ALLOWED
    return replace(
        agent, external_calls=replace(calls, allowed_domains=items) if is_allowed else replace(calls, blocked_domains=items)
    )


def _rules(agent: AgentPolicy) -> HostRules:
    return HostRules(agent.external_calls, patterns_of(agent.llm.providers if agent.llm else ()))


def _is_open(agent: AgentPolicy, pattern: HostPattern) -> bool:
    """Whether all that a pattern means may be reached already."""
    calls = agent.external_calls
    if calls.is_unwritten or pattern in (calls.allowed_domains or ()):
        return True
    is_one = pattern.kind in (Kind.NAME, Kind.ADDRESS)
    return is_one and _rules(agent).judge(pattern.host, pattern.port or UNKNOWN_PORT).allowed


def _is_shut(agent: AgentPolicy, pattern: HostPattern) -> bool:
    """Whether what a pattern means is refused without an entry of its own."""
    is_one = pattern.kind in (Kind.NAME, Kind.ADDRESS)
    return is_one and not _rules(agent).judge(pattern.host, pattern.port).allowed


def _is_closed(agent: AgentPolicy | None) -> bool:
    """Whether `*` is blocked, so that a list of what is allowed closes nothing more."""
    blocked = agent.external_calls.blocked_domains if agent else None
    return any(pattern.kind is Kind.ANY for pattern in blocked or ())


def _refuse_unless_reached(agent: AgentPolicy, pattern: HostPattern) -> None:
    if pattern.kind not in (Kind.NAME, Kind.ADDRESS):
        return
    verdict = _rules(agent).judge(pattern.host, pattern.port)
    if not verdict.allowed:
        rule = agent.external_calls.rule_of(verdict.rule)
        remedy = "name the address instead" if pattern.kind is Kind.NAME else "remove that"
        also = f"write `{verdict.rule.rpartition('.')[2]}: true` too, or {remedy}" if ".allow_" in verdict.rule else remedy
        raise _refused(rule.path, rule, f"{pattern} would still be refused: {verdict.why}; {also}")


def _refuse_any(revision: Revision, direction: Direction, what: str) -> None:
    if change := next((change for change in revision.changes if change.direction is direction), None):
        raise _refused(shown(revision.path), Rule(change.key), f"{what}: {change.sentence} Edit the file by hand, or not at all.")


def _by_hand(at: Rule, why: str) -> PolicyError:
    return _refused(at.path, at, f"cannot be edited by a program here: {why}. Change it by hand; nothing was written.")


def _refused(path: str, rule: Rule, message: str) -> PolicyError:
    return PolicyError(path or "policy", [Problem(path or "policy", rule.line, 1 if rule.line else 0, rule.name, message)])

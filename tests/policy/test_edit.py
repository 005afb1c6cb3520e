"""Edits of a policy file: one entry changes, every other byte stays."""

from __future__ import annotations

import difflib
import os
import stat
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentguard.errors import PolicyError
from agentguard.policy.edit import Learned, adopt, allow, deny
from agentguard.policy.hosts import HostPattern
from agentguard.policy.load import from_file

ENTRY = "db.example:5432"

LAYOUTS = {
    "braces": """\
# Who may do what.
agents:
  - name: bot        # the first
    external_calls: {allowed_domains: [a.example, "*.b.example"],  blocked_domains: ["*"]}   # all else is closed
    budgets: [{limit: $5.00,   every: day}]
""",
    "a list at the margin": """\
agents:
- name: bot
  external_calls:
    allowed_domains:
    - a.example   # first

    # the database
    - b.example
    # the end of the list
    blocked_domains: ["*"]
  # about budgets
  budgets: [{limit: $5.00,  every: day}]
""",
    "an item a line": """\
agent_config:
  name: bot
  external_calls:
    allowed_domains: [
      a.example,   # one
      b.example    # two
    ]
    blocked_domains: ["*"]
""",
    "a comma at the end": "agent_config:\n  name: bot\n  external_calls:\n    allowed_domains: [\n      a.example,\n    ]\n",
    "nothing allowed, no newline": 'agent_config: {name: bot, external_calls: {allowed_domains: [], blocked_domains: ["*"]}}',
    "all blocked, nothing else": """\
agents:
  - name: bot
    external_calls:
      blocked_domains: ["*"]   # all
  - name: other
""",
    "from the defaults": """\
defaults:
  external_calls: {allowed_domains: [a.example], blocked_domains: ["*"]}
agents:
  - name: bot
    budgets:
      - {limit: 5 calls}   # few
  # another one
  - name: other
""",
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="agentguard.yaml"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write


def changed_lines(before, after):
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [line for line in lines if line[:1] in "+-"]


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_an_allowed_host_is_added_and_every_other_line_stays(written, text):
    path = written(text)

    allow(path, ENTRY, "bot").write()

    after = path.read_text()
    taken = [line[2:] for line in changed_lines(text, after) if line[0] == "-"]
    assert HostPattern.parse(ENTRY) in from_file(path).agent("bot").external_calls.allowed_domains
    assert len(taken) <= 1
    assert all(comment in after for comment in ("#" + rest.partition("\n")[0] for rest in text.split("#")[1:]))


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_what_was_allowed_and_then_denied_is_refused_again(written, text):
    path = written(text)
    before = from_file(path)
    allow(path, ENTRY, "bot").write()

    deny(path, ENTRY, "bot").write()

    after = from_file(path).agent("bot").external_calls
    assert HostPattern.parse(ENTRY) not in (after.allowed_domains or ())
    assert (after.allowed_domains or ()) == (before.agent("bot").external_calls.allowed_domains or ())


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_allowing_twice_is_allowing_once(written, text):
    path = written(text)
    allow(path, ENTRY, "bot").write()

    again = allow(path, ENTRY, "bot")

    assert not again.is_change


def test_line_ends_and_the_byte_order_mark_stay(written):
    path = written("\ufeff" + LAYOUTS["a list at the margin"].replace("\n", "\r\n"))

    allow(path, ENTRY).write()

    after = path.read_bytes()
    assert after.startswith("\ufeff".encode())
    assert after.count(b"\n") == after.count(b"\r\n") == LAYOUTS["a list at the margin"].count("\n") + 1


def test_an_entry_that_another_covers_is_not_written(written):
    path = written(LAYOUTS["braces"])

    assert not allow(path, "x.b.example:443").is_change
    assert allow(path, "b.example").is_change


def test_an_entry_for_one_port_does_not_stand_for_all(written):
    path = written(LAYOUTS["braces"])
    allow(path, "c.example:443").write()

    assert allow(path, "c.example").is_change


def test_an_entry_that_was_blocked_is_blocked_no_longer(written):
    path = written(
        'agent_config: {name: bot, external_calls: {allowed_domains: ["*.x.example"], blocked_domains: [a.x.example]}}'
    )

    revision = allow(path, "a.x.example")

    assert [change.sentence for change in revision.changes] == ["a.x.example is no longer blocked."]


def test_a_host_below_an_allowed_wildcard_is_denied_by_an_entry_of_its_own(written):
    path = written(LAYOUTS["braces"])

    revision = deny(path, "x.b.example")

    assert [change.sentence for change in revision.changes] == ["x.b.example is blocked."]


def test_the_last_item_of_a_block_leaves_an_empty_list(written):
    path = written(
        "agents:\n- name: bot\n  external_calls:\n    allowed_domains:   # none: yet\n    - a.example\n  tools: {allowed: []}\n"
    )

    deny(path, "a.example").write()

    assert from_file(path).agents[0].external_calls.allowed_domains == ()


def test_an_entry_that_would_close_what_is_open_is_not_written(written):
    text = "agent_config: {name: bot, external_calls: {blocked_domains: [a.example]}}"
    path = written(text)

    with pytest.raises(PolicyError, match="would close what is open now"):
        allow(path, "*.a.example")

    assert path.read_text() == text


def test_without_any_list_every_host_is_allowed_already(written):
    assert not allow(written("agent_config: {name: bot}"), "a.example").is_change


def test_a_first_list_says_that_private_space_is_closed_with_it(written):
    assert "private space" in deny(written("agent_config: {name: bot}"), "a.example").note


def test_a_name_in_private_space_says_which_key_opens_it(written):
    with pytest.raises(PolicyError, match="allow_private: true"):
        allow(written(LAYOUTS["braces"]), "localhost:5432")


def test_a_list_that_two_agents_share_by_an_alias_is_left_to_a_person(written):
    text = """\
agents:
  - {name: bot, external_calls: {allowed_domains: &h [a.example]}}
  - {name: other, external_calls: {allowed_domains: *h}}
"""
    path = written(text)

    with pytest.raises(PolicyError, match="by hand"):
        allow(path, "b.example", "bot")

    assert path.read_text() == text


def test_which_agent_has_to_be_said_when_there_are_several(written):
    path = written(LAYOUTS["from the defaults"])

    with pytest.raises(PolicyError, match="'bot', 'other'"):
        allow(path, "b.example")
    with pytest.raises(PolicyError, match="no agent 'nobody'"):
        allow(path, "b.example", "nobody")


@pytest.mark.parametrize("entry", ["https://a.example/x", "*.com", "a.*.example", "10.0.0.1/8", "a b"])
def test_what_is_no_entry_is_refused_with_what_to_write(written, entry):
    with pytest.raises(ValueError, match=r"write|no host"):
        allow(written(LAYOUTS["braces"]), entry)


def test_a_file_that_changed_meanwhile_is_not_overwritten(written):
    path = written(LAYOUTS["braces"])
    revision = allow(path, ENTRY)
    path.write_text("agent_config: {name: somebody}")

    with pytest.raises(PolicyError, match="changed meanwhile"):
        revision.write()

    assert path.read_text() == "agent_config: {name: somebody}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="gives a file to somebody else")
def test_a_file_of_somebody_else_stays_theirs(written):
    path = written(LAYOUTS["braces"])
    os.chown(path, 65534, 65534)

    allow(path, ENTRY).write()

    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_a_folder_that_is_gone_is_said_and_not_raised_as_an_os_error(written, tmp_path):
    path = written(LAYOUTS["braces"])
    revision = allow(path, ENTRY)
    path.unlink()

    with pytest.raises(PolicyError, match="cannot be written: No such file"):
        revision.write()

    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_mode_and_symbolic_link_stay(written, tmp_path):
    path = written(LAYOUTS["braces"], "real.yaml")
    path.chmod(0o640)
    link = tmp_path / "agentguard.yaml"
    link.symlink_to(path)

    allow(link, ENTRY).write()

    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "db.example" in path.read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["agentguard.yaml", "real.yaml"]


TOML = """\
[tool.agentguard]
version = 1   # the language

[[tool.agentguard.agents]]
name = "bot"
external_calls = {allowed_domains = ["a.example"], blocked_domains = ["*"]}

[[tool.agentguard.agents]]
name = "other"   # the second
[tool.agentguard.agents.external_calls]
blocked_domains = ["*"]   # all
"""


@pytest.mark.parametrize("agent", ["bot", "other"])
def test_toml_is_edited_in_place_too(written, agent):
    path = written(TOML, "pyproject.toml")

    allow(path, ENTRY, agent).write()

    after = path.read_text()
    assert HostPattern.parse(ENTRY) in from_file(path).agent(agent).external_calls.allowed_domains
    assert [line for line in TOML.splitlines() if line not in after.splitlines()] == [
        line for line in TOML.splitlines() if agent == "bot" and line.startswith("external_calls")
    ]
    deny(path, ENTRY, agent).write()
    assert HostPattern.parse(ENTRY) not in from_file(path).agent(agent).external_calls.allowed_domains


def test_what_was_learned_is_entered_and_a_new_agent_closed_to_all_else(written):
    path = written(LAYOUTS["braces"])
    hosts = (HostPattern.parse("c.example"), HostPattern.parse("10.1.2.3:5432"))

    adopt(path, [Learned("bot", ("openai",), hosts), Learned("new one", ("anthropic",), hosts)]).write()

    policy = from_file(path)
    assert policy.agent("bot").llm.providers == ("openai",)
    assert set(hosts) < set(policy.agent("bot").external_calls.allowed_domains)
    assert policy.agent("new one").external_calls.allowed_domains == hosts
    assert policy.agent("new one").external_calls.blocked_domains == (HostPattern.parse("*"),)
    assert LAYOUTS["braces"].splitlines()[0] in path.read_text()


def test_an_agent_is_not_added_to_a_policy_of_one(written):
    with pytest.raises(PolicyError, match="agents:"):
        adopt(written(LAYOUTS["an item a line"]), [Learned("second")])


def test_what_was_learned_in_toml_is_entered_too(written):
    path = written(TOML, "agentguard.toml")

    adopt(path, [Learned("third", ("openai",), (HostPattern.parse("c.example"),))]).write()

    assert [agent.name for agent in from_file(path).agents] == ["bot", "other", "third"]


def test_without_its_library_toml_says_what_to_install(written, monkeypatch):
    monkeypatch.setitem(sys.modules, "tomlkit", None)

    with pytest.raises(PolicyError, match=r"agentguard\[learn\]"):
        allow(written(TOML, "pyproject.toml"), ENTRY, "bot")


HOSTS = st.sampled_from(
    ["a.example", "*.b.example", "c.example:8443", "10.1.0.0/16", "10.2.3.4:5432", '"[fd00::1]:443"', "é.example"]
)


@st.composite
def policies(draw):
    """A policy of two agents in a layout of its own, with comments at every place that takes one."""
    dash = draw(st.integers(0, 3))
    comment = draw(st.sampled_from(["", "   # why", " # a: [b, c]"]))
    hosts = [f'"{host.strip(chr(34))}"' for host in draw(st.lists(HOSTS, unique=True, max_size=4))]
    lines = ["# top", f"agents:{comment}"]
    for name in ("bot", "other"):
        pad = " " * (dash + 2)
        lines += [f"{' ' * dash}- name: {name}{comment}", f"{pad}external_calls:"]
        inner = pad + " " * draw(st.integers(1, 4))
        shape = draw(st.sampled_from(["flow", "lines", "block", "absent"]))
        if shape == "flow" or (shape == "block" and not hosts):
            lines.append(f"{inner}allowed_domains: [{draw(st.sampled_from(['', ' ']))}{', '.join(hosts)}]{comment}")
        elif shape == "lines":
            end = draw(st.sampled_from(["", ","])) if hosts else ""
            items = [f"{inner}  {host}{',' if number < len(hosts) - 1 else end}{comment}" for number, host in enumerate(hosts)]
            lines += [f"{inner}allowed_domains: [", *items, f"{inner}]"]
        elif shape == "block":
            lines += [f"{inner}allowed_domains:{comment}", *(f"{inner}- {host}{comment}" for host in hosts), f"{inner}# end"]
        lines.append(f'{inner}blocked_domains: ["*"]{comment}')
        if draw(st.booleans()):
            lines += ["", f"{pad}# about budgets", f"{pad}budgets: [{{limit: 5 calls}}]"]
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n"]))


@settings(max_examples=120, deadline=None)
@given(text=policies(), agent=st.sampled_from(["bot", "other"]))
def test_whatever_the_layout_an_entry_is_added_and_taken_away(tmp_path_factory, text, agent):
    path = tmp_path_factory.mktemp("policy") / "agentguard.yaml"
    path.write_bytes(text.encode())

    allow(path, ENTRY, agent).write()
    added = path.read_bytes().decode()
    deny(path, ENTRY, agent).write()

    taken = [line for line in changed_lines(text, added) if line[0] == "-"]
    assert len(taken) <= 1
    assert text.count("#") == added.count("#") == path.read_bytes().decode().count("#")
    before, after = (from_file("agentguard.yaml", content.encode()) for content in (text, path.read_bytes().decode()))
    assert [one.external_calls.allowed_domains or () for one in before.agents] == [
        one.external_calls.allowed_domains or () for one in after.agents
    ]


@settings(max_examples=80, deadline=None)
@given(text=policies(), agent=st.sampled_from(["bot", "other"]))
def test_whatever_the_layout_every_entry_can_be_taken_away(tmp_path_factory, text, agent):
    path = tmp_path_factory.mktemp("policy") / "agentguard.yaml"
    path.write_bytes(text.encode())
    listed = from_file(path).agent(agent).external_calls.allowed_domains or ()

    for number, host in enumerate(listed, 1):
        deny(path, str(host), agent).write()

        assert (from_file(path).agent(agent).external_calls.allowed_domains or ()) == listed[number:]

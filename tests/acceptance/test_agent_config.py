"""The single-agent document, word for word, in a network of its own where its two domains and an attacker really exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCUMENT = """\
agent_config:
  name: "customer_support_bot"
  security:
    api_keys: {rotation_days: 30, scope: ["customer_data", "knowledge_base"], rate_limit: "1000_requests_per_hour"}
  external_calls: {allowed_domains: ["api.ourservice.com", "knowledge.ourservice.com"], blocked_domains: ["*"]}
  monitoring: {alert_on_anomaly: true, track_token_usage: true}
"""


def run(tmp_path: Path, mode: str) -> dict[str, Any]:
    policy = tmp_path / "agentguard.yaml"
    policy.write_text(DOCUMENT, encoding="utf-8")
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n", encoding="ascii")
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    script = str(Path(__file__).with_name("namespace.py"))
    done = subprocess.run(
        ["unshare", "--net", "--mount", *as_root, sys.executable, script, str(policy), str(resolv_conf), mode],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "AGENTGUARD_STATE_DIR": str(tmp_path / "state")},
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("guarded"), "guarded")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("bare"), "bare")


pytestmark = [pytest.mark.needs("unshare", "ip")]


@pytest.mark.parametrize("name", ["api", "knowledge", "trailing dot"])
def test_its_two_domains_are_reachable(guarded: dict[str, Any], name: str) -> None:
    assert guarded[name] == {"status": 200}


@pytest.mark.parametrize("name", ["below", "evil", "address", "own address", "userinfo", "llm"])
def test_everything_else_is_refused_with_a_rule_a_line_and_a_remedy(guarded: dict[str, Any], name: str) -> None:
    assert guarded[name]["denied"] == "EgressDenied"
    assert guarded[name]["rule"] == "external_calls.allowed_domains"
    assert guarded[name]["place"].endswith("agentguard.yaml:5")
    assert "agentguard policy explain" in guarded[name]["remedy"]


def test_nothing_reaches_a_server_that_is_not_listed(guarded: dict[str, Any]) -> None:
    received = guarded["received"]

    assert received["evil.example.com"] == 0
    assert received["sub.api.ourservice.com"] == 0


def test_without_the_guard_everything_arrives(bare: dict[str, Any]) -> None:
    received = bare["received"]

    assert received["evil.example.com"] == 4
    assert received["sub.api.ourservice.com"] == 1
    assert "retry_after" not in bare["rate"]


def test_a_thousand_requests_an_hour_are_admitted_and_the_next_is_refused(guarded: dict[str, Any]) -> None:
    rate = guarded["rate"]

    assert guarded["before"] + rate["admitted"] == 1000
    assert guarded["received"]["api.ourservice.com"] + guarded["received"]["knowledge.ourservice.com"] == 1000
    assert rate["rule"] == "security.api_keys.rate_limit"
    assert 0 < rate["retry_after"] <= 3660

"""Where agentguard itself connects to is part of every boundary."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agentguard.egress.boundary import Endpoint
from agentguard.egress.kernel.activate import availability
from agentguard.egress.own import own_endpoints

from ..stores.redis_server import PROGRAM, Server, free_port  # noqa: TID252 - servers that two folders of tests start
from ..stores.redis_topologies import Cluster, Replicated, wait_until  # noqa: TID252


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, (Endpoint("collector", 4318),)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@collector/v1"}, (Endpoint("collector", 4318),)),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            (Endpoint("collector", 4317),),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            (Endpoint("collector", 4317),),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:9/v1/traces"}, (Endpoint("traces", 9),)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, (Endpoint("localhost", 4318),)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, ()),
    ],
)
def test_the_collector_is_where_the_variables_say(variables, expected):
    assert own_endpoints(None, variables) == expected


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("memory://", ()),
        ("sqlite:////var/lib/counters.sqlite", ()),
        ("redis://:secret@redis:7000/0", (Endpoint("redis", 7000),)),
        ("rediss://redis", (Endpoint("redis", 6379),)),
        (
            "redis://redis?hosts=10.0.0.5,10.0.0.6:7000",
            (Endpoint("redis", 6379), Endpoint("10.0.0.5", 6379), Endpoint("10.0.0.6", 7000)),
        ),
    ],
)
def test_a_store_is_reached_where_its_url_says(store, expected):
    assert own_endpoints(store, {}) == expected


@pytest.mark.parametrize("place", ["http://[::1", "http://collector:99999999", "http://two words/", "http://collector:x"])
def test_a_place_that_cannot_be_read_is_told_and_none(place, caplog):
    reached = own_endpoints("redis://redis:7000", {"OTEL_EXPORTER_OTLP_ENDPOINT": place})

    assert reached == (Endpoint("redis", 7000),)
    assert "names no place" in caplog.text


@pytest.mark.parametrize("store", ["redis://[::1", "redis://x:y:z", "redis://redis:99999999"])
def test_a_store_that_cannot_be_read_is_told_and_none(store, caplog):
    assert own_endpoints(store, {}) == ()
    assert "names no place" in caplog.text


@pytest.mark.parametrize("kind", ["sentinel", "cluster"])
def test_servers_that_nobody_tells_of_are_those_of_the_url_and_a_warning_says_how_to_name_more(kind, caplog):
    nobody = free_port()
    url = f"redis+{kind}://user:secret@127.0.0.1:{nobody}/main?hosts=127.0.0.1:7001"

    assert own_endpoints(url, {}) == (Endpoint("127.0.0.1", nobody), Endpoint("127.0.0.1", 7001))
    assert "?hosts=" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.needs(PROGRAM)
def test_a_sentinel_is_asked_for_the_server_and_for_the_replica_that_may_follow_it():
    replicated = Replicated()
    reached = own_endpoints(replicated.url, {})
    replicated.master.kill()
    wait_until(lambda: replicated.master_port() == replicated.replica.port, "a replica that is promoted")

    assert reached == tuple(
        Endpoint("127.0.0.1", server.port) for server in (replicated.sentinel, replicated.master, replicated.replica)
    )
    assert own_endpoints(replicated.url, {}) == reached  # the kernel holds what was known first
    replicated.close()


@pytest.mark.needs(PROGRAM)
def test_a_cluster_is_asked_for_all_of_its_nodes():
    cluster = Cluster(replicated=True)
    reached = own_endpoints(f"redis+cluster://127.0.0.1:{cluster.masters[0].port}", {})
    cluster.close()

    assert set(reached) == {Endpoint("127.0.0.1", node.port) for node in cluster.servers}


UNDER_THE_FILTER = """
import sys, agentguard
from agentguard.core.limits import LimitRow
from agentguard.errors import AgentGuardError
from agentguard.policy.model import Limit, Unit

with agentguard.instrument(sys.argv[1], egress="kernel"):
    guard = agentguard.current_guard()
    guard.store.register([LimitRow.of("agent:bot", Limit(amount=5000, unit=Unit.TOKENS))])
    for line in sys.stdin:
        try:
            said = [balance.amount for _, balance in guard.store.rows()]
        except (AgentGuardError, OSError) as error:
            said = f"{type(error).__name__}: {error}"
        print(str(said).replace(chr(10), " "), flush=True)
"""


@pytest.mark.storm
@pytest.mark.needs(PROGRAM)
@pytest.mark.skipif(bool(availability()), reason=f"no kernel enforcement: {availability()}")
def test_a_program_under_the_filter_goes_on_with_the_replica_that_is_promoted(tmp_path):
    replicated = Replicated()
    policy = tmp_path / "agentguard.yaml"
    policy.write_text(
        f"version: 1\nstore: {replicated.url}?timeout=1\nagents:\n  - name: bot\n"
        "    external_calls: {allowed_domains: [api.example.com]}\n"
    )
    environ = os.environ | {"AGENTGUARD_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen(
        [sys.executable, "-c", UNDER_THE_FILTER, str(policy)], stdin=-1, stdout=-1, stderr=-1, text=True, env=environ
    )

    def says() -> str:
        program.stdin.write("\n")
        program.stdin.flush()
        return program.stdout.readline()

    before = says()
    replicated.master.kill()
    without = says()
    wait_until(lambda: "5000" in says(), "an answer of the replica")
    program.communicate(timeout=20)
    replicated.close()

    assert "5000" in before
    assert without.startswith("StoreUnavailable")


NAMED_IN_THE_PROGRAM = """
import subprocess, sys, agentguard
agentguard.instrument(sys.argv[1], egress="kernel", store=sys.argv[2])
def is_reached(port):
    return subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"]).returncode == 0
for line in sys.stdin:
    print(*filter(is_reached, sys.argv[3:]), flush=True)
"""


@pytest.mark.needs(PROGRAM, "bash")
@pytest.mark.skipif(bool(availability()), reason=f"no kernel enforcement: {availability()}")
def test_the_store_that_the_program_names_is_reached_before_and_after_its_policy_changes(tmp_path):
    store, listed = Server(), Server()
    policy = tmp_path / "agentguard.yaml"
    text = "version: 1\nagents:\n  - name: bot\n    external_calls: {allowed_domains: [%s]}\n"
    policy.write_text(text % f"'127.0.0.1:{listed.port}'")
    environ = os.environ | {"AGENTGUARD_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = subprocess.Popen(
        [sys.executable, "-c", NAMED_IN_THE_PROGRAM, str(policy), store.url, str(store.port), str(listed.port)],
        stdin=-1, stdout=-1, stderr=-1, text=True, env=environ,
    )  # fmt: skip

    def reached() -> list[str]:
        program.stdin.write("\n")
        program.stdin.flush()
        return program.stdout.readline().split()

    before = reached()
    policy.write_text(text % "a.test")
    wait_until(lambda: str(listed.port) not in reached(), "the changed policy in the kernel")
    after = reached()
    _, said = program.communicate(timeout=20)
    for server in (store, listed):
        server.close()

    assert before == [str(store.port), str(listed.port)], said
    assert after == [str(store.port)]

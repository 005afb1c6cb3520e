"""Over the wire, through a real collector (rotel): what arrives, and what must never leave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from .conftest import attributes

PROGRAM = """
    import time
    from agentguard.context import CALLER
    from agentguard.core.call import HTTPCall, LLMCall, Target, ToolCall, Usage
    from agentguard.core.caller import Caller
    from agentguard.errors import Denied
    from agentguard.events import Attempt, ScopeEnded
    from agentguard.guard import Guard
    from agentguard.otel.setup import set_up
    from agentguard.policy import Policy
    from agentguard.wire.answer import Answer

    CANARY = "sk-canary-7f3a"
    policy = Policy.from_mapping({"version": 1, "mode": "enforce", "agents": [
        {"name": "bot", "llm": {"providers": ["openai"]}, "budgets": [{"limit": "500 tokens"}], "tools": {"allowed": ["search"]},
         "external_calls": {"allowed_domains": ["docs.example.com"]}},
    ]})
    telemetry = set_up(service_name="bot")
    guard = Guard(policy, observers=[telemetry.spans, telemetry.metrics])
    telemetry.metrics.watch_budgets(guard.ledger.lasting)
    CALLER.set(Caller(("bot",)))
    target = Target("https", "api.openai.com", 443, f"/v1/chat/completions?api_key={CANARY}")
    body = {"messages": [{"role": "user", "content": CANARY}], "system": CANARY, "instructions": CANARY, "prompt": CANARY,
            "input": CANARY, "tools": [{"name": CANARY}], "metadata": {"note": CANARY}, "temperature": 0.5}
    call = LLMCall("chat", "openai", "gpt-4o-mini", target, input_bytes=40, max_output_tokens=64, request=body)

    scope = telemetry.spans.begin("invoke_agent", "bot", None, CALLER.get())
    entered = telemetry.spans.enter(scope)
    with guard.admit(call) as admitted:
        now = time.time()
        away = Target("https", f"user:{CANARY}@api.openai.com", 443, f"/v1?{CANARY}#{CANARY}")
        admitted.attempts.append(Attempt("POST", target, now, now + 0.01, 500))
        admitted.attempts.append(Attempt("POST", away, now + 0.02, now + 0.03, 200))
        admitted.answer = Answer(Usage(12, 6), None, "resp-1", "gpt-4o-mini", ("stop",), tool_calls=("search",))
    evil = target._replace(host="evil.example")
    for refused in (call._replace(max_output_tokens=9000), ToolCall("shell"), HTTPCall("GET", evil)):
        try:
            guard.begin(refused)
        except Denied as denied:
            print(type(denied).__name__)
    telemetry.spans.leave(entered)
    telemetry.spans(ScopeEnded(time.time(), "invoke_agent", "bot", CALLER.get(), time.time(), "", scope))
    guard.close()
    telemetry.close()
"""
CANARY = b"sk-canary-7f3a"


def run(program=PROGRAM, **variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_trace_arrives_whole_and_without_a_secret(collector, protocol):
    endpoint = collector.grpc if protocol == "grpc" else collector.http

    done = run(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    collector.wait_for(lambda: len(collector.spans()) >= 7 and collector.metrics())

    assert done.stdout.split() == ["BudgetExceeded", "ToolDenied", "EgressDenied"]
    assert done.stderr == ""
    found = [(resource["service.name"], span.name, attributes(span)) for resource, span in collector.spans()]
    assert {service for service, _, _ in found} == {"bot"}
    assert sorted(name for _, name, _ in found) == sorted(
        ["invoke_agent bot", "chat gpt-4o-mini", "POST", "POST", "chat gpt-4o-mini", "execute_tool shell", "GET"]
    )
    assert all(known["gen_ai.agent.name"] == "bot" for _, _, known in found)
    refused = [known for _, _, known in found if known.get("agentguard.decision") == "deny"]
    assert {known["error.type"] for known in refused} == {f"agentguard.{name}" for name in done.stdout.split()}
    assert all(known["agentguard.rule"] for known in refused)
    (used,) = [known for _, _, known in found if "gen_ai.usage.input_tokens" in known]
    assert (used["gen_ai.usage.input_tokens"], used["gen_ai.usage.output_tokens"]) == (12, 6)
    assert {
        "gen_ai.client.operation.duration",
        "gen_ai.client.token.usage",
        "agentguard.policy.decisions",
        "agentguard.budget.remaining",
    } <= collector.metrics()
    assert len({span.trace_id for _, span in collector.spans()}) == 1
    assert not [body for body in collector.bodies if CANARY in body]


def test_prompts_leave_when_the_user_asks_for_them(collector):
    run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.http, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only")
    collector.wait_for(lambda: len(collector.spans()) >= 7)

    (captured,) = [known for _, span in collector.spans() if "gen_ai.input.messages" in (known := attributes(span))]
    assert captured["gen_ai.input.messages"] == '[{"role": "user", "parts": [{"type": "text", "content": "sk-canary-7f3a"}]}]'
    assert captured["gen_ai.system_instructions"] == '[{"type": "text", "content": "sk-canary-7f3a"}]'
    assert "sk-canary" not in captured.get("url.full", "")


def test_a_guarded_program_reaches_its_collector_though_the_policy_does_not_name_it(collector, provider):
    program = f"""
        import agentguard, openai
        from agentguard.policy import Policy

        here = "{provider.host}:{provider.port}"
        egress = {{"allowed_domains": [here], "allow_private": True}}
        agent = {{"name": "bot", "llm": {{"providers": ["openai"]}}, "external_calls": egress}}
        policy = Policy.from_mapping({{"version": 1, "mode": "enforce", "agents": [agent]}})
        with agentguard.instrument(policy, store="memory://"):
            client = openai.OpenAI(base_url="{provider.url("/v1")}", api_key="sk-test")
            client.chat.completions.create(model="gpt-4o-mini", messages=[{{"role": "user", "content": "hello"}}])
    """

    done = run(program, OTEL_EXPORTER_OTLP_ENDPOINT=collector.http)
    collector.wait_for(lambda: len(collector.spans()) >= 2)

    assert done.stderr == ""
    assert {span.name for _, span in collector.spans()} == {"chat gpt-4o-mini", "POST"}
    assert {resource["service.name"] for resource, _ in collector.spans()} == {"bot"}
    assert provider.calls == 1

"""One trace per run of an agent: its LLM calls with their usage, its tools, its HTTP requests, and what was refused."""

import contextlib

import httpx2
import openai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import agentguard
from agentguard.testing import Provider

POLICY = """
version: 1
agents:
  - name: researcher
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
"""


@agentguard.tool
def fetch(url: str) -> int:
    return httpx2.get(url).status_code


@agentguard.agent("researcher")
def research(provider: Provider) -> None:
    client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-none")
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "What is new?"}])
    fetch("http://127.0.0.2/")


def show(spans: list, parent: int | None = None, depth: int = 0) -> None:
    for span in sorted(spans, key=lambda span: span.start_time):
        if (span.parent.span_id if span.parent else None) == parent:
            facts = [f"{name}={span.attributes[name]}" for name in WORTH_SEEING if name in span.attributes]
            print("  " * depth + "   ".join([span.name, *facts]))
            show(spans, span.context.span_id, depth + 1)


WORTH_SEEING = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "agentguard.decision", "agentguard.rule")


def main() -> None:
    exporter = InMemorySpanExporter()  # in production: an OTLP exporter, or just OTEL_EXPORTER_OTLP_ENDPOINT
    provider_of_traces = TracerProvider()
    provider_of_traces.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider_of_traces)
    with Provider() as provider, agentguard.instrument(agentguard.Policy.from_yaml(POLICY), store="memory://") as installed:
        with contextlib.suppress(agentguard.EgressDenied):
            research(provider)
        installed.guard.flush()
    spans = exporter.get_finished_spans()
    show(list(spans))
    assert len({span.context.trace_id for span in spans}) == 1
    assert any(span.attributes.get("agentguard.decision") == "deny" for span in spans)


if __name__ == "__main__":
    main()

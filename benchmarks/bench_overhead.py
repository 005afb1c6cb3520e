"""What a guarded LLM call costs, beside the official GenAI instrumentation, in one run.

Arms are interleaved, and a bare call stands between any two instrumented ones, so that none runs warm. Every arm has the
same tracer and meter provider (batch export into nothing), and a mock transport, so that only the client side is timed.
anthropic's own tracing is off in every arm.

    python benchmarks/bench_overhead.py [rounds]

Prints medians: CPU of the calling thread for each call, the difference to the bare call before it, and its ratio; then
the CPU of the whole process, worker threads and export included; then a chunk of a stream.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ["ANTHROPIC_OPEN_TELEMETRY"] = "false"
os.environ.setdefault("AGENTGUARD_STATE_DIR", tempfile.mkdtemp(prefix="agentguard-bench-"))

import anthropic
import httpx2
import openai
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import agentguard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

POLICY = {
    "agents": [
        {
            "name": "bench",
            "team": "bench",
            "external_calls": {"allowed_domains": ["llm.test"], "blocked_domains": ["*"]},
            "llm": {
                "providers": ["openai", "anthropic"],
                "models": ["gpt-*", "claude-*"],
                "prices": {"claude-test": {"input": "$3.00", "output": "$15.00"}},
            },
            "budgets": [
                {"limit": "1000000000 tokens"},
                {"limit": "$100000.00", "every": "day"},
                {"limit": "100000000 tokens", "per": "session"},
            ],
            "security": {"api_keys": {"rate_limit": "100000000_requests_per_hour"}},
        }
    ]
}

CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello! How can I help you today?"}}
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30},
    }
).encode()
MESSAGE = json.dumps(
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [{"type": "text", "text": "Hello! How can I help you today?"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": 10},
    }
).encode()
CHUNKS = 200
STREAM = [
    b"data: "
    + json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "gpt-5",
            "choices": [{"index": 0, "delta": {"content": f"word{n} "}}],
        }
    ).encode()
    + b"\n\n"
    for n in range(CHUNKS)
] + [b"data: [DONE]\n\n"]


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class _Pieces(httpx2.SyncByteStream):
    def __iter__(self) -> Any:
        yield from STREAM


def _answer(request: httpx2.Request) -> httpx2.Response:
    if b'"stream":true' in request.content:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Pieces())
    body = CHAT if "chat" in request.url.path else MESSAGE
    return httpx2.Response(200, content=body, headers={"content-type": "application/json"})


class Arm(NamedTuple):
    """One way of being instrumented: what stands at each patched place."""

    name: str
    places: dict[tuple[type, str], Any]

    def enter(self) -> None:
        """Put this arm's functions in place."""
        for (owner, name), value in self.places.items():
            setattr(owner, name, value)


def _patched(places: Sequence[tuple[type, str]]) -> dict[tuple[type, str], Any]:
    return {(owner, name): vars(owner)[name] for owner, name in places}


def build_arms() -> tuple[Arm, Arm, Arm, agentguard.Instrumentation]:
    """The three arms: bare, agentguard, and the official instrumentation."""
    from anthropic import _base_client as anthropic_base
    from anthropic.resources.messages import AsyncMessages, Messages
    from openai import _base_client as openai_base
    from openai.resources.chat.completions import AsyncCompletions, Completions

    places: list[tuple[type, str]] = [
        (owner, name)
        for owner in (openai_base.SyncAPIClient, openai_base.AsyncAPIClient, anthropic_base.SyncAPIClient)
        for name in ("request",)
    ]
    places += [(owner, name) for owner in (httpx2.Client, httpx2.AsyncClient) for name in ("send", "_send_single_request")]
    places += [(owner, "create") for owner in (Completions, AsyncCompletions, Messages, AsyncMessages)]
    bare = Arm("bare", _patched(places))
    installed = agentguard.instrument(agentguard.Policy.from_mapping(POLICY), store="memory://")
    ours = Arm("agentguard", _patched(places))
    bare.enter()
    OpenAIInstrumentor().instrument()
    AnthropicInstrumentor().instrument()
    official = Arm("official genai", _patched(places))
    bare.enter()
    return bare, ours, official, installed


def compare(call: Callable[[], None], arms: Sequence[Arm], bare: Arm, rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of thread CPU in microseconds: of an arm's call, and of the bare call before it."""
    samples: dict[str, list[tuple[int, int]]] = {arm.name: [] for arm in arms}
    for arm in arms:
        arm.enter()
        for _ in range(20):
            call()
    for turn in range(rounds):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            bare.enter()
            call()
            before = time.thread_time_ns()
            call()
            between = time.thread_time_ns()
            arm.enter()
            start = time.thread_time_ns()
            call()
            samples[arm.name].append((time.thread_time_ns() - start, between - before))
    bare.enter()
    return {
        name: (statistics.median(a for a, _ in pairs) / 1e3, statistics.median(b for _, b in pairs) / 1e3)
        for name, pairs in samples.items()
    }


def compare_process(
    call: Callable[[], None], arms: Sequence[Arm], bare: Arm, blocks: int, settle: Callable[[], None]
) -> dict[str, tuple[float, float]]:
    """Medians of process CPU in microseconds a call, over blocks of 50 calls, with everything that they leave to workers."""
    samples: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}

    def block(arm: Arm) -> float:
        arm.enter()
        settle()
        start = time.process_time_ns()
        for _ in range(50):
            call()
        settle()
        return (time.process_time_ns() - start) / 50e3

    for turn in range(blocks):
        for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
            base = block(bare)
            samples[arm.name].append((block(arm), base))
    bare.enter()
    return {
        name: (statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)) for name, pairs in samples.items()
    }


def show(title: str, measured: dict[str, tuple[float, float]], per: int = 1) -> None:
    """Print one comparison."""
    extra = {name: (with_it - without) / per for name, (with_it, without) in measured.items()}
    print(f"\n{title}")
    for name, (with_it, without) in measured.items():
        against = f"{extra[name] / extra['official genai']:.2f} x official" if extra.get("official genai") else ""
        print(
            f"  {name:16} bare {without:8.1f} us  +{extra[name]:8.1f} us  ratio {(with_it - without) / without:5.2f}  {against}"
        )


def main(rounds: int) -> None:
    """Run all comparisons."""
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    bare, ours, official, installed = build_arms()
    arms = [ours, official]

    chat = openai.OpenAI(
        base_url="http://llm.test/v1", api_key="x", http_client=httpx2.Client(transport=httpx2.MockTransport(_answer))
    )
    claude = anthropic.Anthropic(
        base_url="http://llm.test", api_key="x", http_client=httpx2.Client(transport=httpx2.MockTransport(_answer))
    )
    achat = openai.AsyncOpenAI(
        base_url="http://llm.test/v1", api_key="x", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(_answer))
    )
    messages: Any = [{"role": "user", "content": "Hello there, what can you do for me today?"}]
    loop = asyncio.new_event_loop()

    def openai_call() -> None:
        chat.chat.completions.create(model="gpt-5", messages=messages, max_tokens=50)

    def anthropic_call() -> None:
        claude.messages.create(model="claude-test", messages=messages, max_tokens=50)

    def async_call() -> None:
        loop.run_until_complete(achat.chat.completions.create(model="gpt-5", messages=messages, max_tokens=50))

    def stream_call() -> None:
        for _ in chat.chat.completions.create(model="gpt-5", messages=messages, max_tokens=5000, stream=True):
            pass

    def settle() -> None:
        installed.guard.flush(10)
        tracer_provider.force_flush()

    show("openai chat, calling thread", compare(openai_call, arms, bare, rounds))
    show("anthropic messages, calling thread", compare(anthropic_call, arms, bare, rounds))
    show("openai chat, asyncio, calling thread", compare(async_call, arms, bare, rounds))
    show("openai chat, whole process", compare_process(openai_call, arms, bare, max(rounds // 20, 5), settle))
    show(f"openai stream, a chunk of {CHUNKS}", compare(stream_call, arms, bare, max(rounds // 10, 10)), per=CHUNKS)
    installed.uninstrument()
    loop.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)

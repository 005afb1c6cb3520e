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
    """One way of making a call: with our guard on or off, through a method that may be instrumented."""

    name: str
    is_guarded: bool
    call: Callable[[], None]


class Switch:
    """Turns the guard on and off between calls without touching a class, which would cool the interpreter's caches.

    In the bare and the official arm our wrappers stand and pass through (about 3 us a call, in both).
    """

    def __init__(self, installed: agentguard.Instrumentation) -> None:
        self._installed = installed

    def set_to(self, arm: Arm) -> None:
        """Be what an arm needs."""
        self._installed.is_disabled = not arm.is_guarded


def official_methods() -> dict[str, Any]:
    """The methods as the official instrumentation wraps them, taken off their classes again (it stays switched on)."""
    from anthropic.resources.messages import Messages
    from openai.resources.chat.completions import AsyncCompletions, Completions

    OpenAIInstrumentor().instrument()
    AnthropicInstrumentor().instrument()
    owners: dict[str, Any] = {"chat": Completions, "achat": AsyncCompletions, "messages": Messages}
    wrapped = {name: vars(owner)["create"] for name, owner in owners.items()}
    for name, owner in owners.items():
        owner.create = wrapped[name].__wrapped__
    return wrapped


def compare(arms: Sequence[Arm], switch: Switch, rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of thread CPU in microseconds: of an arm's call, and of the bare call before it. The first arm is the bare one."""
    bare, *others = arms
    samples: dict[str, list[tuple[int, int]]] = {arm.name: [] for arm in others}
    for arm in arms:
        switch.set_to(arm)
        for _ in range(20):
            arm.call()
    for turn in range(rounds):
        for arm in others[turn % len(others) :] + others[: turn % len(others)]:
            switch.set_to(bare)
            bare.call()
            before = time.thread_time_ns()
            bare.call()
            between = time.thread_time_ns()
            switch.set_to(arm)
            start = time.thread_time_ns()
            arm.call()
            samples[arm.name].append((time.thread_time_ns() - start, between - before))
    return _medians(samples)


def compare_process(
    arms: Sequence[Arm], switch: Switch, blocks: int, settle: Callable[[], None]
) -> dict[str, tuple[float, float]]:
    """Medians of process CPU in microseconds a call, over blocks of 50 calls, with everything that they leave to workers."""
    bare, *others = arms
    samples: dict[str, list[tuple[int, int]]] = {arm.name: [] for arm in others}

    def block(arm: Arm) -> int:
        switch.set_to(arm)
        settle()
        start = time.process_time_ns()
        for _ in range(50):
            arm.call()
        settle()
        return (time.process_time_ns() - start) // 50

    for turn in range(blocks):
        for arm in others[turn % len(others) :] + others[: turn % len(others)]:
            base = block(bare)
            samples[arm.name].append((block(arm), base))
    return _medians(samples)


def _medians(samples: dict[str, list[tuple[int, int]]]) -> dict[str, tuple[float, float]]:
    """Of each arm: the median bare call, and that plus the median difference of its pairs, which outlives a noisy machine."""
    found = {}
    for name, pairs in samples.items():
        base = statistics.median(b for _, b in pairs)
        found[name] = ((base + statistics.median(a - b for a, b in pairs)) / 1e3, base / 1e3)
    return found


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
    official = official_methods()
    installed = agentguard.instrument(agentguard.Policy.from_mapping(POLICY), store="memory://")
    switch = Switch(installed)
    mock = httpx2.MockTransport(_answer)
    chat = openai.OpenAI(base_url="http://llm.test/v1", api_key="x", http_client=httpx2.Client(transport=mock)).chat.completions
    claude = anthropic.Anthropic(base_url="http://llm.test", api_key="x", http_client=httpx2.Client(transport=mock)).messages
    aclient = openai.AsyncOpenAI(base_url="http://llm.test/v1", api_key="x", http_client=httpx2.AsyncClient(transport=mock))
    achat = aclient.chat.completions
    messages: Any = [{"role": "user", "content": "Hello there, what can you do for me today?"}]
    loop = asyncio.new_event_loop()

    def arms(make: Callable[[Callable[..., Any]], Callable[[], None]], plain: Any, wrapped: Any) -> list[Arm]:
        bound = wrapped.__get__(plain, type(plain))
        return [
            Arm("bare", False, make(plain.create)),
            Arm("agentguard", True, make(plain.create)),
            Arm("official genai", False, make(bound)),
        ]

    def once(create: Callable[..., Any], model: str) -> Callable[[], None]:
        return lambda: create(model=model, messages=messages, max_tokens=50)

    def awaited(create: Callable[..., Any]) -> Callable[[], None]:
        return lambda: loop.run_until_complete(create(model="gpt-5", messages=messages, max_tokens=50))

    def streamed(create: Callable[..., Any]) -> Callable[[], None]:
        def read() -> None:
            for _ in create(model="gpt-5", messages=messages, max_tokens=5000, stream=True):
                pass

        return read

    def settle() -> None:
        installed.guard.flush(10)
        tracer_provider.force_flush()

    by_openai = arms(lambda create: once(create, "gpt-5"), chat, official["chat"])
    by_anthropic = arms(lambda create: once(create, "claude-test"), claude, official["messages"])
    show("openai chat, calling thread", compare(by_openai, switch, rounds))
    show("anthropic messages, calling thread", compare(by_anthropic, switch, rounds))
    show("openai chat, asyncio, calling thread", compare(arms(awaited, achat, official["achat"]), switch, rounds))
    show("openai chat, whole process", compare_process(by_openai, switch, max(rounds // 20, 5), settle))
    streams = compare(arms(streamed, chat, official["chat"]), switch, max(rounds // 10, 10))
    show(f"openai stream, a chunk of {CHUNKS}", streams, per=CHUNKS)
    installed.uninstrument()
    loop.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)

"""What telemetry costs a call: `python benchmarks/bench_telemetry.py`.

On the calling thread there is one start of a span and its time as the current one, compared with a bare `start_span` of
the same six attributes, attached and detached, in rounds that alternate. What the worker does afterwards is measured
alone: it costs the process, not the caller. CPU time of the thread; medians over rounds.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from agentguard.core.call import LLMCall, Target, Usage
from agentguard.core.caller import Caller
from agentguard.events import Attempt, CallAdmitted, CallSettled
from agentguard.otel.metrics import Metrics
from agentguard.otel.spans import Spans
from agentguard.wire.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 60
CALLS = 300

TARGET = Target("https", "api.openai.com", 443, "/v1/chat/completions")
CALL = LLMCall("chat", "openai", "gpt-5-mini", TARGET, request={"temperature": 0.2, "max_completion_tokens": 500})
CALLER = Caller(("bot",), session="conversation")
ATTRIBUTES = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "server.address": "api.openai.com",
    "server.port": 443,
    "gen_ai.agent.name": "bot",
}


class Nowhere(SpanExporter):
    def export(self, _spans):
        return SpanExportResult.SUCCESS


def provider(**options) -> TracerProvider:
    made = TracerProvider(shutdown_on_exit=False, **options)
    made.add_span_processor(BatchSpanProcessor(Nowhere()))
    return made


def main() -> None:
    agent = provider()
    around = trace.set_span_in_context(agent.get_tracer("agentguard").start_span("invoke_agent bot"))
    print("\ncalling thread: begin, and current for one frame (us)        bare      ours     ratio")
    compare("recorded", provider())
    compare("not sampled", provider(sampler=ParentBased(ALWAYS_OFF)))
    token = context.attach(around)
    compare("recorded, inside an agent's span", agent)
    context.detach(token)
    print("\nworker: one settled call with one HTTP request (us)")
    worker()


def compare(title: str, traced: TracerProvider) -> None:
    spans, tracer = Spans(traced), traced.get_tracer("bare")
    bare, ours = [], []
    for _ in range(ROUNDS):
        bare.append(microseconds(lambda: start_bare(tracer)))
        ours.append(microseconds(lambda: start_ours(spans)))
    ratio = statistics.median(mine / other for mine, other in zip(ours, bare, strict=True))
    print(f"  {title:<52}{statistics.median(bare):>10.1f}{statistics.median(ours):>10.1f}{ratio:>10.2f}")


def start_bare(tracer: trace.Tracer) -> None:
    span = tracer.start_span(CALL.name, kind=trace.SpanKind.CLIENT, attributes=ATTRIBUTES)
    token = context.attach(trace.set_span_in_context(span))
    context.detach(token)


def start_ours(spans: Spans) -> None:
    with spans.current(spans.begin("call", CALL.name, CALL, CALLER)):
        pass


def worker() -> None:
    spans, metered = Spans(provider()), MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    for title, observers in (
        ("spans", [spans]),
        ("metrics, legacy names", [Metrics(metered)]),
        ("metrics, both names", [Metrics(metered, metric_names="dup")]),
    ):
        begun = [settled(spans.begin("call", CALL.name, CALL, CALLER)) for _ in range(ROUNDS * CALLS)]
        events = iter(begun)
        admitted = CallAdmitted(time.time(), "call", CALL, CALLER, 100, 0)

        def tell(observers=observers, events=events, admitted=admitted) -> None:
            event = next(events)
            for observer in observers:
                observer(admitted)
                observer(event)

        figures = [microseconds(tell) for _ in range(ROUNDS)]
        print(f"  {title:<52}{statistics.median(figures):>20.1f}")


def settled(span: object) -> CallSettled:
    now = time.time()
    answer = Answer(Usage(90, 60), None, "chatcmpl-1", "gpt-5-mini", ("stop",))
    attempts = (Attempt("POST", TARGET, now, now + 1, 200),)
    call = CallSettled(now + 1, "call", CALL, CALLER, now, Usage(90, 60), 4500, "complete", span=span)
    return call._replace(answer=answer, attempts=attempts)


def microseconds(action: Callable[[], None]) -> float:
    started = time.thread_time_ns()
    for _ in range(CALLS):
        action()
    return (time.thread_time_ns() - started) / CALLS / 1000


if __name__ == "__main__":
    main()

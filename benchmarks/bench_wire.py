"""What reading the wire costs, beside `json.loads` of the same bytes in the same run.

Targets: a chunk of about 200 bytes <= 2 us, a small request <= 5 us, 50 kB of prompt <= 30 us, a path that is no LLM's <= 0.3 us.
"""

from __future__ import annotations

import json
import time

from agentguard.wire import StreamScan, could_be, recognise
from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.openai_chat import FAMILY as CHAT
from agentguard.wire.openai_responses import FAMILY as RESPONSES

ROUNDS = 7

CHUNK = (
    b'data: {"id":"chatcmpl-BzP4","object":"chat.completion.chunk","created":1763812345,"model":"gpt-5-mini-2025-08-07",'
    b'"service_tier":"default","system_fingerprint":null,"choices":[{"index":0,"delta":%s,"finish_reason":null}],'
    b'"usage":null,"obfuscation":"tQ3x7Lk"}\n\n'
)
RESPONSES_CHUNK = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":12,'
    b'"item_id":"msg_68bf2b1c","output_index":0,"content_index":0,"delta":" world","logprobs":[],"obfuscation":"dhkS"}\n\n'
)
CHUNKS = {
    "openai chat": (CHAT, CHUNK % b'{"content":" world"}'),
    "openai chat, escapes": (CHAT, CHUNK % b'{"content":".\\n\\n"}'),
    "openai chat, tool arguments": (CHAT, CHUNK % b'{"tool_calls":[{"index":0,"function":{"arguments":"{\\"city"}}]}'),
    "openai responses": (RESPONSES, RESPONSES_CHUNK),
    "anthropic": (
        ANTHROPIC,
        (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
            b'"text":" world of"}              }\n\n'
        ),
    ),
}

PROSE = ("The quick brown fox jumps over the lazy dog. " * 1200)[:50_000]
TOOL = {
    "type": "function",
    "function": {
        "name": "search_kb",
        "description": "Looks things up in the knowledge base.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for."},
                "limit": {"type": "integer", "maximum": 100},
            },
            "required": ["query"],
        },
    },
}
REQUESTS = {
    "small": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital?"}]},
    "50 kB of prose": {"messages": [{"role": "user", "content": PROSE}]},
    "50 kB of base64": {"messages": [{"role": "user", "content": "QUJD" * 12_500}]},
    "50 kB of Chinese": {"messages": [{"role": "user", "content": "这是一个测试" * 2800}]},
    "20 tools": {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL] * 20},
    "100 turns": {"messages": [{"role": "user", "content": "And what is the capital of the next one?"}] * 100},
}

RESPONSE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-5",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris is the capital."}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 8,
            "total_tokens": 28,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
    }
).encode()


def best(function, times):
    """Microseconds a call, in the quietest of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(times):
            function()
        rounds.append((time.perf_counter() - begun) / times * 1e6)
    return min(rounds)


def show(name, ours, theirs=None):
    print(f"{name:34}{ours:9.2f} us" + ("" if theirs is None else f"   json.loads {theirs:8.2f} us   ratio {ours / theirs:5.2f}"))


def started(family, chunk):
    """A scan in the middle of its stream."""
    scan = StreamScan(family)
    for _ in range(6):
        scan.feed(chunk)
    return scan


def main():
    for name, (family, chunk) in CHUNKS.items():
        scan, document = started(family, chunk), chunk[chunk.index(b'{"') :]
        show(f"chunk, {name}", best(lambda s=scan, c=chunk: s.feed(c), 20_000), best(lambda d=document: json.loads(d), 20_000))
    for name, body in REQUESTS.items():
        body = {"model": "gpt-5-mini", **body}  # noqa: PLW2901
        document = json.dumps(body, ensure_ascii=False).encode()
        ours = best(lambda b=body: CHAT.read(b, "/v1/chat/completions"), 1000)
        show(f"request, {name}", ours, best(lambda d=document: json.loads(d), 1000))
    show("response", best(lambda: CHAT.read_response(RESPONSE), 10_000), best(lambda: json.loads(RESPONSE), 10_000))
    show("could_be, another path", best(lambda: could_be("/customers/42"), 100_000))
    show("could_be, another path, a query", best(lambda: could_be("/customers?id=42"), 100_000))
    show("recognise", best(lambda: recognise("/v1/chat/completions", REQUESTS["small"]), 50_000))


if __name__ == "__main__":
    main()

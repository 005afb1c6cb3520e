import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.core.call import Usage
from agentguard.wire import Answer
from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.openai_chat import FAMILY as CHAT
from agentguard.wire.openai_completions import FAMILY as COMPLETIONS
from agentguard.wire.openai_embeddings import FAMILY as EMBEDDINGS
from agentguard.wire.openai_responses import FAMILY as RESPONSES

FAMILIES = [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, ANTHROPIC]


def read(family, body):
    return family.read_response(json.dumps(body).encode())


def test_a_chat_response_is_read():
    answer = read(
        CHAT,
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-5-2025-08-07",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "Héllo",
                        "refusal": None,
                        "tool_calls": [
                            {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"id":1}'}},
                            {"id": "c2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
                        ],
                    },
                    "finish_reason": "tool_calls",
                },
                {"index": 1, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"},
            ],
            "usage": {
                "prompt_tokens": 20,
                "completion_tokens": 9,
                "total_tokens": 29,
                "prompt_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 2},
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        },
    )

    assert answer == Answer(
        usage=Usage(20, 9, cache_read_tokens=16, cache_write_tokens=2, reasoning_tokens=5),
        response_id="chatcmpl-1",
        response_model="gpt-5-2025-08-07",
        finish_reasons=("tool_calls", "stop"),
        tool_calls=("lookup", "shell"),
        service_tier="default",
        system_fingerprint="fp_1",
        text_bytes=6 + 6 + 8 + 5 + 2 + 1,
    )


def test_a_responses_response_is_read():
    answer = read(
        RESPONSES,
        {
            "id": "resp_1",
            "model": "gpt-5",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "abc"}]},
                {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "defg"}]},
                {"type": "function_call", "id": "fc_1", "name": "lookup", "arguments": "{}"},
                {"type": "local_shell_call", "id": "ls_1", "action": {"command": ["ls"]}},
            ],
            "usage": {
                "input_tokens": 30,
                "input_tokens_details": {"cached_tokens": 10},
                "output_tokens": 12,
                "output_tokens_details": {"reasoning_tokens": 7},
                "total_tokens": 42,
            },
        },
    )

    assert answer.usage == Usage(30, 12, cache_read_tokens=10, reasoning_tokens=7)
    assert answer.finish_reasons == ("max_output_tokens",)
    assert answer.tool_calls == ("lookup", "local_shell")
    assert answer.text_bytes == 3 + 4 + 6 + 2 + 9


def test_anthropic_input_is_the_sum_of_its_parts():
    answer = read(
        ANTHROPIC,
        {
            "id": "msg_1",
            "type": "message",
            "model": "claude-sonnet-4-5",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "xx"},
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": "toolu_1", "name": "lookup", "input": {"id": "abc"}},
                {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            ],
            "stop_reason": "tool_use",
            "usage": {
                "input_tokens": 4,
                "cache_creation_input_tokens": 100,
                "cache_read_input_tokens": 9,
                "output_tokens": 50,
                "output_tokens_details": {"thinking_tokens": 20},
                "service_tier": "standard",
            },
        },
    )

    assert answer.usage == Usage(113, 50, cache_read_tokens=9, cache_write_tokens=100, reasoning_tokens=20)
    assert answer.tool_calls == ("lookup",)
    assert answer.finish_reasons == ("tool_use",)
    assert answer.service_tier == "standard"
    assert answer.text_bytes == 2 + 5 + 6 + 5


def test_a_compaction_is_charged_beside_the_totals():
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "iterations": [
            {"type": "compaction", "input_tokens": 1000, "cache_read_input_tokens": 50, "output_tokens": 70},
            {"type": "message", "input_tokens": 10, "output_tokens": 5},
        ],
    }

    assert read(ANTHROPIC, {"type": "message", "usage": usage}).usage == Usage(1060, 75)


def test_a_completion_and_an_embedding_are_read():
    completion = {
        "id": "cmpl-1",
        "choices": [{"text": "abc", "index": 0, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }
    embedding = {
        "object": "list",
        "data": [{"embedding": [0.1]}],
        "model": "e",
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }

    assert read(COMPLETIONS, completion).usage == Usage(2, 3)
    assert read(COMPLETIONS, completion).text_bytes == 3
    assert read(EMBEDDINGS, embedding).usage == Usage(8, 0)


def test_only_the_end_of_many_vectors_is_parsed():
    vectors = [{"object": "embedding", "index": i, "embedding": [0.123456789] * 1536} for i in range(10)]
    answer = read(EMBEDDINGS, {"data": vectors, "usage": {"prompt_tokens": 80, "total_tokens": 80}, "model": "e"})

    assert answer.usage == Usage(80, 0)


def test_reasoning_that_stands_beside_the_completion_is_output():
    # xAI: 12 prompt + 2 completion + 317 reasoning = 331 total.
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 2,
        "total_tokens": 331,
        "completion_tokens_details": {"reasoning_tokens": 317},
    }

    assert read(CHAT, {"usage": usage}).usage == Usage(12, 319, reasoning_tokens=317)


@pytest.mark.parametrize("bad", [-1, "12", 10**12, 10**4000, True, None, 1.5, [], {}])
def test_a_malformed_count_is_ignored_and_half_a_usage_is_none(bad):
    bad_text = str(bad) if isinstance(bad, int) and bad > 10**4000 else json.dumps(bad) if abs_size(bad) else "9" * 5000
    chat = f'{{"id":"x","usage":{{"prompt_tokens":5,"completion_tokens":{bad_text}}}}}'.encode()
    anthropic = f'{{"id":"x","usage":{{"input_tokens":5,"output_tokens":{bad_text}}}}}'.encode()

    for family, body in ((CHAT, chat), (RESPONSES, anthropic), (ANTHROPIC, anthropic)):
        answer = family.read_response(body)
        assert answer.usage is None
        assert answer.response_id == "x"


def abs_size(value):
    return not isinstance(value, int) or value < 10**1000


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[1,2]",
        b"null",
        b"\xff\xfe\x00",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 100_000,
        b'{"choices":7,"output":{},"content":"x","usage":[],"id":{},"data":null}',
        b'{"choices":[7,null,{"message":[]},{"message":{"content":{},"tool_calls":{"a":1}}}]}',
        b'{"choices":[{"index":{},"finish_reason":[],"message":{"tool_calls":[{"index":[],"function":7}]}}]}',
        b'{"output":[{"type":[],"content":[7]},{"type":"function_call","name":{}}],"usage":{"input_tokens":NaN}}',
        b'{"content":[{"type":"tool_use","name":["x"],"input":7},3],"usage":{"iterations":[3,{"type":"compaction"}]}}',
        b'{"error":{"message":"overloaded"}}',
    ],
)
def test_foreign_bytes_give_an_empty_usage_and_never_raise(family, body):
    assert family.read_response(body).usage is None


@pytest.mark.parametrize("family", FAMILIES)
@given(body=st.binary(max_size=200))
def test_no_bytes_raise(family, body):
    family.read_response(body)


def test_what_a_response_calls_itself_is_bounded_and_utf8():
    response = {
        "id": "\ud83d",
        "model": "m" * 5_000_000,
        "choices": [{"finish_reason": "\udc00", "message": {"tool_calls": [{"function": {"name": "\ud83d" * 1000}}]}}],
    }

    answer = CHAT.read_response(json.dumps(response).encode())

    assert (answer.response_id, answer.response_model) == ("?", "m" * 256)
    assert (answer.finish_reasons, answer.tool_calls) == (("?",), ("?" * 256,))

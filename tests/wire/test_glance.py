"""A glance at a response never says too little."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.wire import most_tokens
from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.openai_chat import FAMILY as CHAT
from agentguard.wire.openai_responses import FAMILY as RESPONSES

COUNT = st.integers(0, 10**6)


@given(COUNT, COUNT, COUNT, st.text(max_size=40))
def test_it_is_never_below_what_reading_a_chat_completion_finds(prompt, completion, total, text):
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    body = json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()

    assert most_tokens(body) >= CHAT.read_response(body).usage.total_tokens


@given(COUNT, COUNT, COUNT, COUNT)
def test_it_is_never_below_what_reading_a_message_finds(tokens, read, written, output):
    usage = {
        "input_tokens": tokens,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": output,
    }
    body = json.dumps({"type": "message", "content": [], "usage": usage}).encode()

    assert most_tokens(body) >= ANTHROPIC.read_response(body).usage.total_tokens


@given(COUNT, COUNT)
def test_it_is_never_below_what_reading_a_response_finds(tokens, output):
    body = json.dumps({"output": [], "usage": {"input_tokens": tokens, "output_tokens": output}}).encode()

    assert most_tokens(body) >= RESPONSES.read_response(body).usage.total_tokens


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"usage": null}', b"[" * 20_000, b'{"usage":{"output_tokens":1}}' + b" " * 20_000]
)
def test_a_body_that_names_no_count_or_is_long_has_to_be_read(body):
    assert most_tokens(body) is None


def test_escaped_names_and_absurd_numbers_do_not_hide_a_count_that_reading_would_find():
    body = b'{"usage":{"prompt_tokens":10,"completion_tokens":99999999999999999999}}'

    assert most_tokens(body) is None or CHAT.read_response(body).usage is None

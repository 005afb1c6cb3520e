from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.testing import count_tokens, text_of
from agentguard.testing.tokens import cut, input_tokens


@given(tokens=st.integers(-2, 5_000), seed=st.integers(0, 2**32))
def test_a_text_of_n_tokens_counts_n_tokens_of_four_bytes(tokens, seed):
    text = text_of(tokens, seed=seed)

    assert count_tokens(text) == max(0, tokens)
    assert len(text.encode()) == 4 * max(0, tokens)


@given(text=st.text(), tokens=st.integers(0, 40))
def test_a_cut_text_is_a_beginning_of_at_most_so_many_tokens(text, tokens):
    beginning = cut(text, tokens)

    assert text.startswith(beginning)
    assert count_tokens(beginning) == min(tokens, count_tokens(text))


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, 2),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "system": "four"}, 3),
        ({"input": "hello", "instructions": "four"}, 3),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]}, 2),
        ({"input": [1, 2, 3]}, 3),
        ({"prompt": ["four", "four"]}, 2),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:..."}}]}]}, 0),
        ({"messages": [], "tools": [{"name": "f"}]}, count_tokens('[{"name":"f"}]')),
        ({}, 0),
    ],
)
def test_input_tokens_count_the_texts_of_a_prompt(body, tokens):
    assert input_tokens(body) == tokens

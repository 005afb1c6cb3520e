import copy
import json
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.measure import measure
from agentguard.wire.openai_chat import FAMILY as CHAT
from agentguard.wire.openai_completions import FAMILY as COMPLETIONS
from agentguard.wire.openai_embeddings import FAMILY as EMBEDDINGS
from agentguard.wire.openai_responses import COMPACT_FAMILY as COMPACT
from agentguard.wire.openai_responses import FAMILY as RESPONSES

FAMILIES = [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, ANTHROPIC]
PATH = "/v1/whatever"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)


def chat(**fields):
    return CHAT.read({"model": "gpt-5", "messages": [{"role": "user", "content": "hi"}], **fields}, PATH)


def test_a_chat_request_is_read():
    request = chat(stream=True, max_completion_tokens=100, n=3)

    assert request.model == "gpt-5"
    assert request.stream
    assert request.max_output_tokens == 100
    assert request.choices == 3
    assert request.input_visible
    assert request.opaque_parts == 0


@pytest.mark.parametrize(
    ("bound", "read"),
    [(None, None), (100, 100), ("100", 100), (100.0, 100), (0, 0), (-1, None), (True, None), ("lots", None), ({}, None)],
)
def test_a_bound_is_read_as_a_lenient_server_would(bound, read):
    assert chat(max_tokens=bound).max_output_tokens == read


def test_of_two_bounds_the_looser_counts():
    assert chat(max_tokens=10, max_completion_tokens=500).max_output_tokens == 500


def test_the_deployment_in_the_path_is_the_model_on_azure():
    request = CHAT.read({"model": "gpt-5-nano", "messages": []}, "/openai/deployments/big-one/chat/completions?api-version=1")

    assert request.model == "big-one"


def test_all_text_of_a_request_counts_and_parameters_do_not():
    plain = chat()

    assert chat(temperature=0.2, metadata={"a": "x" * 500}, user="someone").input_bytes == plain.input_bytes
    assert chat(unknown_field="x" * 500).input_bytes >= plain.input_bytes + 500
    assert chat(tools=[{"type": "function", "function": {"description": "d" * 500}}]).input_bytes > plain.input_bytes + 500


@given(st.lists(st.text(), min_size=1))
def test_the_measure_is_never_below_the_utf8_bytes_of_the_text(texts):
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in texts]
    request = CHAT.read({"model": "m", "messages": messages}, PATH)

    assert request.input_bytes >= sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    assert request.dense_bytes <= request.input_bytes


@given(st.lists(st.integers(min_value=0, max_value=200_000), min_size=1))
def test_a_prompt_of_token_ids_measures_at_least_a_byte_a_token(ids):
    assert EMBEDDINGS.read({"model": "m", "input": ids}, PATH).input_bytes >= len(ids)


def test_text_among_token_ids_is_not_overlooked():
    assert COMPLETIONS.read({"model": "m", "prompt": [1, "x" * 900, 2]}, PATH).input_bytes >= 900


@pytest.mark.parametrize("size", [64, 255, 256, 1000, 50_000])
def test_long_runs_without_white_space_are_dense(size):
    request = chat(messages=[{"role": "user", "content": "QUJD" * (size // 4)}])

    assert request.dense_bytes == size // 4 * 4


def test_a_dense_run_inside_of_prose_is_found():
    prose = "The quick brown fox jumps over the lazy dog. " * 100
    request = chat(messages=[{"role": "user", "content": prose + "QUJD" * 1000 + prose}])

    assert 3000 <= request.dense_bytes <= 4600


@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox jumps over the lazy dog. " * 100,
        "这是一个没有空格的句子" * 100,
        '{"name":"Ann","city":"Berlin","tags":["a","b"]},' * 100,
        "one\ntwo\nthree\n" * 100,
        "short_identifier_of_a_tool",
    ],
)
def test_text_is_not_dense(text):
    assert chat(messages=[{"role": "user", "content": text}]).dense_bytes == 0


@pytest.mark.parametrize(
    ("family", "part"),
    [
        (CHAT, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 5000}}),
        (CHAT, {"type": "input_audio", "input_audio": {"data": "QUJD" * 5000, "format": "wav"}}),
        (CHAT, {"type": "file", "file": {"file_data": "QUJD" * 5000}}),
        (RESPONSES, {"type": "input_image", "image_url": "data:image/png;base64," + "QUJD" * 5000}),
        (RESPONSES, {"type": "input_file", "file_data": "QUJD" * 5000, "filename": "a.pdf"}),
        (ANTHROPIC, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD" * 5000}}),
        (ANTHROPIC, {"type": "document", "source": {"type": "base64", "data": "QUJD" * 5000}}),
    ],
)
def test_media_are_opaque_and_no_text(family, part):
    shown = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
    request = family.read({"model": "m", "messages": shown, "input": shown}, PATH)

    assert request.opaque_parts == 2  # the same part stands in both fields
    assert not request.input_visible
    assert request.input_bytes < 400


def test_a_document_of_text_is_text():
    part = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "word " * 100}}
    request = ANTHROPIC.read({"model": "m", "messages": [{"role": "user", "content": [part]}]}, PATH)

    assert request.opaque_parts == 0
    assert request.input_visible
    assert request.input_bytes >= 500


def test_a_data_url_in_a_text_part_is_text():
    request = chat(messages=[{"role": "user", "content": "data:image/png;base64," + "QUJD" * 500}])

    assert request.input_bytes >= 2000
    assert request.dense_bytes >= 2000
    assert request.opaque_parts == 0


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (RESPONSES, {"previous_response_id": "resp_1"}),
        (RESPONSES, {"conversation": "conv_1"}),
        (RESPONSES, {"prompt": {"id": "pmpt_1", "variables": {"a": "b"}}}),
        (RESPONSES, {"tools": [{"type": "web_search"}]}),
        (RESPONSES, {"tools": [{"type": "function", "name": "f"}, {"type": "file_search", "vector_store_ids": []}]}),
        (RESPONSES, {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}),
        (RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://mcp.example"}]}),
        (CHAT, {"web_search_options": {}}),
        (CHAT, {"messages": iter(())}),
        (ANTHROPIC, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (ANTHROPIC, {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
        (ANTHROPIC, {"mcp_servers": [{"type": "url", "url": "https://mcp.example"}]}),
        (ANTHROPIC, {"container": "container_1"}),
    ],
)
def test_input_that_the_request_does_not_show_is_said(family, fields):
    plain = {"model": "m", "messages": [], "input": "hi"}

    assert family.read(plain, PATH).input_visible
    assert not family.read({**plain, **fields}, PATH).input_visible


def test_own_functions_are_visible():
    assert chat(tools=[{"type": "function", "function": {"name": "f"}}]).input_visible
    assert RESPONSES.read({"model": "m", "input": "x", "tools": [{"type": "function", "name": "f"}]}, PATH).input_visible
    assert ANTHROPIC.read({"model": "m", "messages": [], "tools": [{"name": "f", "input_schema": {}}]}, PATH).input_visible


def test_every_prompt_and_candidate_of_a_completion_is_a_choice():
    assert COMPLETIONS.read({"model": "m", "prompt": "a"}, PATH).choices == 1
    assert COMPLETIONS.read({"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 5}, PATH).choices == 10
    assert COMPLETIONS.read({"model": "m", "prompt": [1, 2, 3]}, PATH).choices == 1
    assert COMPLETIONS.read({"model": "m", "prompt": [[1, 2], [3]]}, PATH).choices == 2


def test_embeddings_generate_nothing():
    body = {"model": "m", "input": "x"}

    assert EMBEDDINGS.read(body, PATH).max_output_tokens == 0
    assert EMBEDDINGS.with_output_bound(body, 100, "api.openai.com") == body


@pytest.mark.parametrize(
    ("host", "model", "field"),
    [
        ("api.openai.com", "gpt-4o", "max_completion_tokens"),
        ("r.openai.azure.com", "gpt-4o", "max_completion_tokens"),
        ("localhost", "gpt-5-mini", "max_completion_tokens"),
        ("localhost", "o3", "max_completion_tokens"),
        ("localhost", "o4-mini", "max_completion_tokens"),
        ("localhost", "o1x", "max_tokens"),
        ("api.groq.com", "llama-3.3-70b", "max_tokens"),
        ("openrouter.ai", "openai/gpt-5", "max_tokens"),
    ],
)
def test_a_bound_is_written_as_the_host_spells_it(host, model, field):
    body = {"model": model, "messages": []}

    assert CHAT.with_output_bound(body, 64, host) == {**body, field: 64}
    assert body == {"model": model, "messages": []}


def test_a_bound_that_is_there_keeps_its_spelling():
    bounded = CHAT.with_output_bound({"model": "gpt-5", "messages": [], "max_tokens": -1}, 64, "api.openai.com")

    assert bounded == {"model": "gpt-5", "messages": [], "max_tokens": 64}


@pytest.mark.parametrize(
    ("family", "field"), [(COMPLETIONS, "max_tokens"), (RESPONSES, "max_output_tokens"), (ANTHROPIC, "max_tokens")]
)
def test_a_bound_is_written_as_the_family_spells_it(family, field):
    assert family.with_output_bound({"model": "m"}, 64, "host") == {"model": "m", field: 64}


@pytest.mark.parametrize("family", [CHAT, COMPLETIONS])
def test_a_stream_is_asked_for_its_usage_and_what_was_not_asked_for_is_hidden(family):
    asks = {"stream": True, "stream_options": {"include_usage": True}}

    assert family.with_usage({"stream": True}) == (asks, True)
    assert family.with_usage({"stream": True, "stream_options": None}) == (asks, True)
    assert family.with_usage({"stream": True, "stream_options": {"include_usage": False}}) == (asks, True)
    assert family.with_usage({"stream": True, "stream_options": {"include_obfuscation": False}}) == (
        {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": True}},
        True,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_needs_no_asking_is_left_alone(family):
    asks = {"stream": True, "stream_options": {"include_usage": True}}

    assert family.with_usage(asks) == (asks, False)
    assert family.with_usage({"stream": False}) == ({"stream": False}, False)
    assert family.with_usage({"model": "m"}) == ({"model": "m"}, False)


def test_a_host_that_refuses_the_question_is_not_asked():
    assert CHAT.with_usage({"stream": True}, "api.mistral.ai") == ({"stream": True}, False)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    body=st.dictionaries(
        st.sampled_from(
            ["messages", "input", "prompt", "model", "stream", "stream_options", "n", "best_of", "max_tokens", "tools", "x"]
        ),
        json_values,
    )
)
def test_no_body_is_changed_and_none_raises(family, body):
    before = copy.deepcopy(body)

    request = family.read(body, PATH)
    family.with_output_bound(body, 10, "host")
    family.with_usage(body)

    assert repr(body) == repr(before)
    assert request.input_bytes >= 0
    assert request.choices >= 1


def test_definitions_measure_about_what_they_are_as_json():
    tools = [{"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object"}}} for i in range(20)]
    written = len(json.dumps(tools))

    assert written <= chat(tools=tools).input_bytes <= 1.3 * written


def test_definitions_that_cannot_be_written_are_not_visible():
    request = chat(tools=[{"type": "function", "function": {"name": "f", "description": "d" * 500, "parameters": object()}}])

    assert request.input_bytes > 500
    assert not request.input_visible


def test_a_compaction_of_a_conversation_takes_no_bound():
    body = {"model": "m", "input": "x"}

    assert COMPACT.with_output_bound(body, 64, "host") == body


def test_deep_nesting_is_walked_without_recursion():
    deep: object = "word " * 10
    for _ in range(100_000):
        deep = [deep]

    assert measure([deep]).size == 50


def test_a_value_that_contains_itself_ends_the_walk():
    endless: list[object] = ["x"]
    endless.extend([endless] * 100)

    assert not measure([endless]).is_visible


def test_strange_leaves_are_measured_or_said_to_be_unseen():
    class Word(StrEnum):
        LONG = "x" * 99

    assert measure([Word.LONG]).size == 99
    assert measure([{"a": Word.LONG}]).size == 100
    assert measure([10**5000]).size > 5000
    assert measure([float("nan")]).is_visible
    assert measure([{1: "a"}]).size == 2
    assert measure(["\ud800"]).size == 3
    assert not measure([b"bytes"]).is_visible
    assert not measure([object()]).is_visible


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_name_is_one_that_a_span_and_a_store_can_hold(family):
    read = [family.read({"model": model, "input": "hi"}, PATH).model for model in ("gpt-\ud83d", "m" * 5_000_000, "modèle")]

    assert read == ["gpt-?", "m" * 256, "modèle"]

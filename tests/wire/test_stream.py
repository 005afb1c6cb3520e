import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.core.call import Usage
from agentguard.wire import StreamScan
from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.openai_chat import FAMILY as CHAT
from agentguard.wire.openai_completions import FAMILY as COMPLETIONS
from agentguard.wire.openai_responses import FAMILY as RESPONSES

SAMPLES = {
    "openai_chat.sse": CHAT,
    "openai_chat_tools.sse": CHAT,
    "azure_chat.sse": CHAT,
    "mistral_chat.sse": CHAT,
    "groq_chat.sse": CHAT,
    "perplexity_chat.sse": CHAT,
    "openrouter_chat.sse": CHAT,
    "openai_completions.sse": COMPLETIONS,
    "openai_responses.sse": RESPONSES,
    "anthropic_messages.sse": ANTHROPIC,
}


def scan(family, chunks, hide_usage=False):
    """The finished scan, and the bytes it handed on."""
    scanned = StreamScan(family, hide_usage)
    out = [scanned.feed(chunk) for chunk in chunks]
    tail = scanned.finish()
    return scanned, b"".join([*out, tail])


def found(scanned):
    return scanned.answer, scanned.output_bytes, scanned.events, scanned.is_done, scanned.failed


def parsed_only(family):
    """The same family without its short cuts: the meaning of every event is what parsing it says."""
    return dataclasses.replace(family, plain_event=None, dull_event=None)


def test_an_openai_chat_stream_is_metered(sample):
    scanned, out = scan(CHAT, [sample("openai_chat.sse")])

    assert scanned.answer.usage == Usage(19, 10, cache_read_tokens=4, reasoning_tokens=3)
    assert scanned.answer.response_id == "chatcmpl-C1"
    assert scanned.answer.response_model == "gpt-5-mini-2025-08-07"
    assert scanned.answer.finish_reasons == ("stop",)
    assert scanned.answer.service_tier == "default"
    assert scanned.answer.system_fingerprint == "fp_44709d6fcb"
    assert scanned.output_bytes == len('Hello wörld\n"quoted" €😀!'.encode())
    assert scanned.answer.text_bytes == scanned.output_bytes
    assert scanned.events == 3
    assert scanned.is_done
    assert not scanned.failed
    assert out == sample("openai_chat.sse")


def test_tool_calls_are_named_and_their_arguments_counted(sample):
    scanned, _ = scan(CHAT, [sample("openai_chat_tools.sse")])

    assert scanned.answer.tool_calls == ("search_kb", "delete_files")
    assert scanned.answer.usage is None
    assert scanned.output_bytes == len('search_kb{"query": "refunds"}delete_files')


def test_a_name_that_comes_in_pieces_or_twice_is_one_name():
    def delta(name):
        call = {"index": 0, "function": {"name": name, "arguments": ""}}
        event = {"id": "x", "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        return f"data: {json.dumps(event)}\n\n".encode()

    assert scan(CHAT, [delta("delete_"), delta("files")])[0].answer.tool_calls == ("delete_files",)
    assert scan(CHAT, [delta("search"), delta("search")])[0].answer.tool_calls == ("search",)


def test_an_anthropic_stream_is_metered(sample):
    scanned, _ = scan(ANTHROPIC, [sample("anthropic_messages.sse")])

    assert scanned.answer.usage == Usage(2121, 89, cache_read_tokens=2000, cache_write_tokens=100, reasoning_tokens=40)
    assert scanned.answer.response_id == "msg_01"
    assert scanned.answer.tool_calls == ("search_kb",)
    assert scanned.answer.finish_reasons == ("tool_use",)
    assert scanned.answer.service_tier == "standard"
    assert scanned.output_bytes == len('Let me seeI will look\nit up: ésearch_kb{"query": "refunds"}'.encode())
    assert scanned.is_done


def test_an_abandoned_anthropic_stream_knows_its_input_but_no_usage(sample):
    stream = sample("anthropic_messages.sse")
    scanned, _ = scan(ANTHROPIC, [stream[: stream.index(b"event: message_delta")]])

    assert scanned.answer.usage is None
    assert scanned.answer.input_usage == Usage(2121, 0, cache_read_tokens=2000, cache_write_tokens=100)
    assert not scanned.is_done


def test_a_responses_stream_is_metered(sample):
    scanned, _ = scan(RESPONSES, [sample("openai_responses.sse")])

    assert scanned.answer.usage == Usage(37, 21, cache_read_tokens=8, cache_write_tokens=2, reasoning_tokens=12)
    assert scanned.answer.response_id == "resp_1"
    assert scanned.answer.tool_calls == ("lookup",)
    assert scanned.answer.finish_reasons == ("completed",)
    assert scanned.output_bytes == len('ThinkHi therelookup{"id":7}')
    assert scanned.events == 6
    assert scanned.is_done


@pytest.mark.parametrize(
    ("name", "usage", "text"),
    [
        ("azure_chat.sse", Usage(14, 1), "Paris"),
        ("mistral_chat.sse", Usage(5, 3), "Bonjour !"),
        ("groq_chat.sse", Usage(36, 2), "Hi"),
        ("perplexity_chat.sse", Usage(4, 2), "One two"),
        ("openai_completions.sse", Usage(5, 3), "\n\nThis is"),
    ],
)
def test_compatible_servers_are_metered(sample, name, usage, text):
    scanned, _ = scan(SAMPLES[name], [sample(name)])

    assert scanned.answer.usage == usage
    assert scanned.output_bytes == len(text)


def test_an_error_inside_of_a_stream_ends_it(sample):
    scanned, _ = scan(CHAT, [sample("openrouter_chat.sse")])

    assert scanned.failed
    assert scanned.is_done
    assert scanned.output_bytes == len("HmmYes")


@pytest.mark.parametrize(
    ("family", "event"),
    [
        (ANTHROPIC, b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'),
        (RESPONSES, b'event: error\ndata: {"type":"error","code":"server_error","message":"x","sequence_number":1}\n\n'),
        (RESPONSES, b'data: {"type":"response.failed","response":{"id":"r","status":"failed","usage":null}}\n\n'),
        (CHAT, b'data: {"error":{"message":"The server had an error"}}\n\n'),
        (CHAT, b"event: error\ndata: Internal Server Error\n\n"),
    ],
)
def test_every_family_tells_its_errors(family, event):
    scanned, _ = scan(family, [event])

    assert scanned.failed
    assert scanned.is_done


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_the_end_of_a_response_is_no_failure(status):
    event = {"type": f"response.{status}", "response": {"status": status, "usage": {"input_tokens": 1, "output_tokens": 2}}}
    scanned, _ = scan(RESPONSES, [f"data: {json.dumps(event)}\n\n".encode()])

    assert scanned.is_done
    assert not scanned.failed
    assert scanned.answer.usage == Usage(1, 2)


@pytest.mark.parametrize("name", ["openai_chat.sse", "azure_chat.sse", "openai_completions.sse"])
def test_exactly_the_usage_event_is_hidden(sample, name):
    stream = sample(name)
    events = stream.split(b"\n\n")
    shown = b"\n\n".join(event for event in events if b'"prompt_tokens"' not in event)

    scanned, out = scan(SAMPLES[name], [stream], hide_usage=True)

    assert out == shown
    assert out.count(b"data:") == stream.count(b"data:") - 1
    assert scanned.answer.usage is not None


@pytest.mark.parametrize("name", ["mistral_chat.sse", "groq_chat.sse", "perplexity_chat.sse", "anthropic_messages.sse"])
def test_an_event_that_carries_more_than_usage_is_not_hidden(sample, name):
    assert scan(SAMPLES[name], [sample(name)], hide_usage=True)[1] == sample(name)


def test_a_usage_event_without_an_empty_line_at_the_end_of_the_stream_is_read_and_hidden():
    event = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'

    scanned, out = scan(CHAT, [event], hide_usage=True)

    assert out == b""
    assert scanned.answer.usage == Usage(1, 2)


def test_chunks_are_handed_on_as_they_are_when_nothing_is_hidden(sample):
    scanned = StreamScan(CHAT, hide_usage=True)
    for event in sample("openai_chat.sse").split(b"\n\n")[:4]:
        chunk = event + b"\n\n"
        assert scanned.feed(chunk) is chunk


def test_nothing_is_withheld_when_nothing_is_to_be_hidden():
    scanned = StreamScan(CHAT)
    half = b'data: {"id":"x","cho'

    assert scanned.feed(half) is half
    assert scanned.finish() == b""


def test_a_partial_event_is_withheld_until_it_is_known():
    scanned = StreamScan(CHAT, hide_usage=True)

    assert scanned.feed(b'data: {"choices":[{"de') == b""
    assert scanned.feed(b'lta":{"content":"a"}}]}\n\ndata: [DO') == b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    assert scanned.finish() == b"data: [DO"


@pytest.mark.parametrize("hide_usage", [False, True])
def test_an_endless_event_is_handed_on_unread_and_the_next_one_is_read(monkeypatch, hide_usage):
    monkeypatch.setattr("agentguard.wire.sse.LONGEST_EVENT", 1000)
    monkeypatch.setattr("agentguard.wire.stream.LONGEST_EVENT", 1000)
    endless = [b"data: " + b"x" * 500] * 9
    after = b'\n\ndata: {"id":"x","choices":[{"index":0,"delta":{"content":"ab"}}]}\n\n'

    scanned, out = scan(CHAT, [*endless, after], hide_usage)

    assert out == b"".join([*endless, after])
    assert scanned.output_bytes == 2


def test_an_escape_that_is_none_is_counted_as_it_stands():
    scanned, _ = scan(CHAT, [b'data: {"id":"x","choices":[]}\n\n', b'data: {"choices":[{"delta":{"content":"\\uZZ"}}]}\n\n'])

    assert scanned.output_bytes == 4


def test_null_usage_is_no_usage():
    scanned, _ = scan(CHAT, [b'data: {"id":"x","choices":[],"usage":null}\n\n'], hide_usage=True)

    assert scanned.answer.usage is None


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("ends", [b"\r\n", b"\r"])
def test_line_ends_do_not_matter(sample, name, ends):
    stream = sample(name)

    assert found(scan(SAMPLES[name], [stream.replace(b"\n", ends)])[0]) == found(scan(SAMPLES[name], [stream])[0])


def test_comments_pings_names_and_lines_of_data_are_understood():
    stream = (
        b"\xef\xbb\xbf: hello\n\n:\n\nid: 7\nretry: 10\nevent: chunk\n"
        b'data: {"id":"x","choices":[{"index":0,\ndata: "delta":{"content":"ab"}}]}\n\n'
        b"event: ping\ndata:\n\ndata:[DONE]\n\n"
    )

    scanned, out = scan(CHAT, [stream], hide_usage=True)

    assert scanned.output_bytes == 2
    assert scanned.is_done
    assert out == stream


def test_a_server_that_forgets_its_empty_lines_is_metered_at_the_end():
    one = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"ab"}}]}\n'

    scanned, _ = scan(CHAT, [one, one, b"data: [DONE]\n"])

    assert scanned.output_bytes == 4
    assert scanned.is_done


@pytest.mark.parametrize("hide_usage", [False, True])
def test_a_whole_response_instead_of_a_stream_is_read(hide_usage):
    body = {
        "id": "x",
        "choices": [{"message": {"content": "abc"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    document = json.dumps(body, indent=1).encode()

    scanned, out = scan(CHAT, [document[:20], document[20:]], hide_usage)

    assert scanned.answer.usage == Usage(1, 2)
    assert scanned.output_bytes == 3
    assert out == document


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("hide_usage", [False, True])
def test_a_stream_cut_at_every_byte_is_the_same_stream(sample, name, hide_usage):
    stream = sample(name)
    whole, out = scan(SAMPLES[name], [stream], hide_usage)
    bytewise, cut_out = scan(SAMPLES[name], [stream[i : i + 1] for i in range(len(stream))], hide_usage)

    assert found(bytewise) == found(whole)
    assert cut_out == out


@pytest.mark.parametrize("name", SAMPLES)
def test_the_short_cuts_say_what_parsing_says(sample, name):
    family = SAMPLES[name]

    assert found(scan(family, [sample(name)])[0]) == found(scan(parsed_only(family), [sample(name)])[0])


# -- laws over made-up streams

texts = st.text(max_size=20) | st.sampled_from(['"', "\\", '\\"', "}\n\n", '"delta":"x"', "data: ", "é", "😀", "\u2028", "\\u20"])
nulls = st.dictionaries(st.sampled_from(["logprobs", "stop_reason", "token_ids"]), st.none())
usages = st.none() | st.fixed_dictionaries({"prompt_tokens": st.integers(-1, 99), "completion_tokens": st.integers(-1, 99)})


@st.composite
def chat_events(draw):
    key = draw(st.sampled_from(["content", "reasoning_content", "reasoning", "refusal", "arguments", "name", "none"]))
    value = draw(texts | st.none())
    delta = {
        "arguments": {"tool_calls": [{"index": draw(st.integers(0, 1)), "function": {"arguments": value}}]},
        "name": {"tool_calls": [{"index": draw(st.integers(0, 1)), "function": {"name": value, "arguments": ""}}]},
        "none": {},
    }.get(key, {key: value})
    if draw(st.booleans()):
        delta = {"role": "assistant", **delta, "refusal": None}
    ends = draw(st.sampled_from([None, None, None, "stop"]))
    choice = {"index": draw(st.integers(0, 1)), "delta": delta, "finish_reason": ends, **draw(nulls)}
    if draw(st.booleans()):
        choice["message"] = {"content": "cumulative"}
    event = {"id": "chatcmpl-1", "created": draw(st.integers(0, 9)), "choices": [choice] * draw(st.sampled_from([1, 1, 1, 2, 0]))}
    if draw(st.booleans()):
        event["usage"] = draw(usages)
    if draw(st.booleans()):
        event["obfuscation"] = draw(texts)
    if draw(st.integers(0, 9)) == 9:
        event["error"] = draw(st.none() | st.just({"message": "x"}))
    return event


@st.composite
def completion_events(draw):
    choice = {"text": draw(texts), "index": 0, "finish_reason": draw(st.none() | st.just("stop")), **draw(nulls)}
    return {"id": "cmpl-1", "choices": [choice] * draw(st.integers(0, 2)), "usage": draw(usages)}


@st.composite
def responses_events(draw):
    kind = draw(
        st.sampled_from(["output_text.delta", "function_call_arguments.delta", "audio.delta", "output_text.done", "in_progress"])
    )
    event = {"type": f"response.{kind}", "sequence_number": draw(st.integers(0, 10**6)), "item_id": "i", "delta": draw(texts)}
    if draw(st.booleans()):
        event |= {"logprobs": [], "obfuscation": draw(texts)}
    if draw(st.booleans()):
        event["delta"] = event.pop("delta")
    return event


@st.composite
def anthropic_events(draw):
    kind = draw(st.sampled_from(["text", "thinking", "input_json", "signature", "citations"]))
    key = {"text": "text", "thinking": "thinking", "input_json": "partial_json", "signature": "signature"}.get(kind, "citation")
    delta = {"type": f"{kind}_delta", key: draw(texts)}
    if draw(st.booleans()):
        delta["text"] = draw(texts)
    return {"type": "content_block_delta", "index": draw(st.integers(0, 3)), "delta": delta}


EVENTS = {CHAT: chat_events(), COMPLETIONS: completion_events(), RESPONSES: responses_events(), ANTHROPIC: anthropic_events()}
HEADS = {
    CHAT: {"id": "chatcmpl-1", "choices": []},
    COMPLETIONS: {"id": "cmpl-1", "choices": []},
    RESPONSES: {"type": "response.created", "response": {"id": "r"}},
    ANTHROPIC: {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 1, "output_tokens": 1}}},
}


@st.composite
def streams(draw, family):
    ends = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    ascii_only = draw(st.booleans())
    lines = []
    for event in [HEADS[family], *draw(st.lists(EVENTS[family], max_size=6))]:
        if draw(st.booleans()) and "type" in event:
            lines.append(f"event: {event['type']}")
        document = json.dumps(event, separators=separators, ensure_ascii=ascii_only)
        lines += [f"data: {document}", ""]
        lines += draw(
            st.sampled_from([[], [], [], [": ping", ""], [""], ["data: not json", ""], ["event: ping", "data: {}", ""]])
        )
    lines += draw(st.sampled_from([[], ["data: [DONE]", ""]]))
    return ends.join([*lines, ""]).encode("utf-8", "surrogatepass")


@st.composite
def cuts(draw, stream):
    at = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    return [stream[a:b] for a, b in zip([0, *at], [*at, len(stream)], strict=True)]


@pytest.mark.parametrize("family", EVENTS, ids=lambda family: family.name)
@given(data=st.data(), hide_usage=st.booleans())
def test_no_chunking_changes_what_is_found_or_handed_on(family, data, hide_usage):
    stream = data.draw(streams(family))
    whole, out = scan(family, [stream], hide_usage)

    cut, cut_out = scan(family, data.draw(cuts(stream)), hide_usage)

    assert found(cut) == found(whole)
    assert cut_out == out
    if not hide_usage:
        assert out == stream


@pytest.mark.parametrize("family", EVENTS, ids=lambda family: family.name)
@given(data=st.data(), hide_usage=st.booleans())
def test_no_chunking_changes_what_is_found_in_a_broken_stream(family, data, hide_usage):
    stream = bytearray(data.draw(streams(family)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream)))
        stream[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.sampled_from([b"", b"\n", b"\r", b"\n\n", b'"', b"\\", b"{"])
        )
    whole, out = scan(family, [bytes(stream)], hide_usage)

    cut, cut_out = scan(family, data.draw(cuts(bytes(stream))), hide_usage)

    assert found(cut) == found(whole)
    assert cut_out == out


@pytest.mark.parametrize("family", EVENTS, ids=lambda family: family.name)
@given(data=st.data())
def test_no_short_cut_changes_what_is_found(family, data):
    stream = data.draw(streams(family))

    assert found(scan(family, [stream])[0]) == found(scan(parsed_only(family), [stream])[0])


@pytest.mark.parametrize("family", EVENTS, ids=lambda family: family.name)
@given(data=st.data())
def test_what_is_hidden_is_the_usage_event_and_nothing_else(family, data):
    stream = data.draw(streams(family)).replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    _, out = scan(family, [stream], hide_usage=True)

    def is_usage(event):
        try:
            document = json.loads(event.removeprefix(b"data: "))
        except ValueError:
            return False
        return family in (CHAT, COMPLETIONS) and document.get("choices") == [] and bool(document.get("usage"))

    events = stream.lstrip(b"\n").split(b"\n\n")
    shown = [event for event in events if not is_usage(event.strip(b"\n"))]
    assert [event.strip() for event in out.split(b"\n\n") if event.strip()] == [e.strip() for e in shown if e.strip()]


@pytest.mark.parametrize("family", EVENTS, ids=lambda family: family.name)
@given(chunks=st.lists(st.binary(max_size=60) | st.sampled_from([b"data: {}\n\n", b'data: {"', b"\n\n", b"\r"]), max_size=10))
def test_any_bytes_are_handed_on_and_none_raise(family, chunks):
    assert scan(family, chunks)[1] == b"".join(chunks)
    assert scan(family, chunks, hide_usage=True)[1] == b"".join(chunks)

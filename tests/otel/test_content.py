"""Prompts are captured when asked for, and shaped as the conventions say."""

from __future__ import annotations

import json

import pytest

from agentguard.otel import semconv as names
from agentguard.otel.content import MAX_BYTES, VARIABLE, Content, content_asked_for

from .conftest import CHAT


def captured(**body):
    found = Content().of_span(CHAT._replace(request=body))
    return {name: json.loads(text) for name, text in found.items()}


@pytest.mark.parametrize("word", ["", "NO_CONTENT", "EVENT_ONLY", "true", "nonsense"])
def test_nothing_is_captured_unless_a_span_is_named(monkeypatch, word):
    monkeypatch.setenv(VARIABLE, word)

    assert content_asked_for(None) is None


@pytest.mark.parametrize("word", ["SPAN_ONLY", "span_and_event"])
def test_the_variable_or_the_argument_asks_for_it(monkeypatch, word):
    monkeypatch.setenv(VARIABLE, word)

    assert content_asked_for(None) is not None
    assert content_asked_for("NO_CONTENT") is None
    assert content_asked_for("SPAN_ONLY") is not None


def test_an_unknown_word_is_told(monkeypatch, caplog):
    monkeypatch.setenv(VARIABLE, "everything")

    content_asked_for(None)

    assert "'EVERYTHING' is none of" in caplog.text


def test_messages_of_every_api_have_one_shape():
    text = [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]

    assert captured(messages=[{"role": "user", "content": "hi"}]) == {names.INPUT_MESSAGES: text}
    assert captured(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]) == {names.INPUT_MESSAGES: text}
    assert captured(input="hi", instructions="be brief") == {
        names.INPUT_MESSAGES: text,
        names.SYSTEM_INSTRUCTIONS: [{"type": "text", "content": "be brief"}],
    }
    assert captured(prompt=["hi"]) == {names.INPUT_MESSAGES: text}


def test_of_images_and_files_only_the_kind_is_captured():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    assert captured(messages=[{"role": "user", "content": [image]}]) == {
        names.INPUT_MESSAGES: [{"role": "user", "parts": [{"type": "image_url"}]}]
    }


def test_content_that_is_too_long_is_left_out():
    assert captured(input="x" * (MAX_BYTES + 1)) == {}


def test_a_request_that_is_no_mapping_has_no_content():
    assert Content().of_span(CHAT) == {}

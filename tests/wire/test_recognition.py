import pytest

from agentguard.wire import could_be, provider_of, recognise
from agentguard.wire.anthropic_messages import FAMILY as ANTHROPIC
from agentguard.wire.openai_chat import FAMILY as CHAT

CHAT_BODY = {"model": "m", "messages": []}
PROMPT_BODY = {"model": "m", "prompt": "x"}
INPUT_BODY = {"model": "m", "input": "x"}


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", CHAT_BODY, "openai_chat"),
        ("/chat/completions", CHAT_BODY, "openai_chat"),
        ("/any/prefix/v1/chat/completions/", CHAT_BODY, "openai_chat"),
        ("/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", CHAT_BODY, "openai_chat"),
        ("/OpenAI/Deployments/gpt-4o/Chat/Completions", CHAT_BODY, "openai_chat"),
        ("/v1/chat/completion%73", CHAT_BODY, "openai_chat"),
        ("/v1/completions", CHAT_BODY, "openai_chat"),
        ("/v1/completions", PROMPT_BODY, "openai_completions"),
        ("/v1/completions", {"model": "davinci-002"}, "openai_completions"),
        ("/v1/embeddings", INPUT_BODY, "openai_embeddings"),
        ("/v1/responses", INPUT_BODY, "openai_responses"),
        ("/v1/responses?beta=true", {"prompt": {"id": "pmpt_1"}}, "openai_responses"),
        ("/v1/responses", {"model": "m", "previous_response_id": "resp_1"}, "openai_responses"),
        ("/v1/responses/compact", INPUT_BODY, "openai_responses_compact"),
        ("/v1/messages", CHAT_BODY, "anthropic_messages"),
        ("/v1/messages?beta=true", CHAT_BODY, "anthropic_messages"),
        ("/anthropic//v1//messages", CHAT_BODY, "anthropic_messages"),
    ],
)
def test_an_llm_call_is_recognised_by_path_and_shape(path, body, name):
    family = recognise(path, body)

    assert could_be(path)
    assert family is not None
    assert family.name == name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/batches", {"requests": []}),
        ("/v1/messages/count_tokens", CHAT_BODY),
        ("/v1/responses/resp_1", INPUT_BODY),
        ("/v1/responses/resp_1/cancel", {}),
        ("/v1/responses/input_tokens", INPUT_BODY),
        ("/v1/chat/completions/chatcmpl-1", {"metadata": {}}),
        ("/v1/threads/thread_1/messages", {"role": "user", "content": "x"}),
        ("/api/completionsx", PROMPT_BODY),
        ("/customers/42", INPUT_BODY),
        ("", CHAT_BODY),
        ("/", CHAT_BODY),
    ],
)
def test_other_paths_are_not_even_parsed(path, body):
    assert not could_be(path)
    assert recognise(path, body) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/forms/7/responses", {"answers": ["yes"]}),
        ("/v1/chat/completions", {"prompt_id": 1}),
        ("/v1/embeddings", {"vectors": []}),
        ("/v1/messages", {"text": "hello", "to": "bob"}),
        ("/autocomplete/completions", {"query": "he"}),
        ("/v1/responses", {"input": "no model, no prompt"}),
    ],
)
def test_a_body_of_another_shape_is_no_llm_call(path, body):
    assert recognise(path, body) is None


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("api.openai.com", "openai"),
        ("API.OpenAI.com.", "openai"),
        ("eu.api.openai.com", "openai"),
        ("my-resource.openai.azure.com", "azure.ai.openai"),
        ("api.anthropic.com", "anthropic"),
        ("api.groq.com", "groq"),
        ("api.together.xyz", "together"),
        ("api.mistral.ai", "mistral_ai"),
        ("api.deepseek.com", "deepseek"),
        ("api.x.ai", "x_ai"),
        ("api.perplexity.ai", "perplexity"),
        ("openrouter.ai", "openrouter"),
        ("generativelanguage.googleapis.com", "gcp.gemini"),
        ("localhost", "openai"),
        ("openai.azure.com.evil.example", "openai"),
    ],
)
def test_the_provider_is_told_by_the_host_where_it_is_certain(host, provider):
    assert provider_of(host, CHAT) == provider


def test_an_unknown_host_serves_the_default_of_the_family():
    assert provider_of("llm.internal", ANTHROPIC) == "anthropic"

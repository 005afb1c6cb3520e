"""The real openai SDK must find nothing odd about the provider."""

from __future__ import annotations

import openai
import pytest
from pydantic import BaseModel

from agentguard.testing import Reply, ToolCall, count_tokens

HELLO = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}},
            "required": ["query"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def client(provider):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
        yield client


def test_chat_says_what_was_scripted_and_reports_its_usage(provider, client):
    provider.reply(Reply(text="Hi there."))

    completion = client.chat.completions.create(model="gpt-5", messages=HELLO)

    assert completion.choices[0].message.content == "Hi there."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens == count_tokens("hello")
    assert completion.usage.completion_tokens == count_tokens("Hi there.")
    assert provider.tokens == completion.usage.total_tokens


def test_chat_stream_has_usage_only_when_asked(provider, client):
    silent = list(client.chat.completions.create(model="gpt-5", messages=HELLO, stream=True))
    told = list(
        client.chat.completions.create(model="gpt-5", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )

    assert [chunk.usage for chunk in silent] == [None] * 18
    assert [chunk.usage for chunk in told[:-1]] == [None] * 18
    assert (told[-1].choices, told[-1].usage.completion_tokens) == ([], 16)
    assert told[0].choices[0].delta.role == "assistant"
    assert told[-2].choices[0].finish_reason == "stop"


def test_chat_stream_helper_assembles_text_and_tool_calls(provider, client):
    provider.reply(Reply(text="Let me look.", tool_calls=[ToolCall(name="search", arguments={"query": "Oslo in May"})]))

    with client.chat.completions.stream(
        model="gpt-5", messages=HELLO, tools=[TOOL], stream_options={"include_usage": True}
    ) as stream:
        completion = stream.get_final_completion()

    message = completion.choices[0].message
    assert message.content == "Let me look."
    assert message.tool_calls[0].function.name == "search"
    assert message.tool_calls[0].function.parsed_arguments == {"query": "Oslo in May"}
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage.total_tokens == provider.tokens


def test_chat_parse_gets_an_instance_without_any_script(provider, client):
    parsed = client.chat.completions.parse(model="gpt-5", messages=HELLO, response_format=City)

    assert parsed.choices[0].message.parsed == City(name="ant", people=1)


def test_chat_proposes_tool_calls(provider, client):
    provider.reply(Reply(tool_calls=[ToolCall(name="search", arguments={"query": "a"}), ToolCall(name="stop")]))

    message = client.chat.completions.create(model="gpt-5", messages=HELLO).choices[0].message

    assert message.content is None
    assert [call.function.name for call in message.tool_calls] == ["search", "stop"]
    assert len({call.id for call in message.tool_calls}) == 2


def test_chat_cut_by_its_bound_says_length(provider, client):
    completion = client.chat.completions.create(model="gpt-5", messages=HELLO, max_completion_tokens=3)

    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == count_tokens(completion.choices[0].message.content) == 3


def test_each_choice_is_charged(provider, client):
    completion = client.chat.completions.create(model="gpt-5", messages=HELLO, n=3, max_tokens=5)

    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage.completion_tokens == provider.output_tokens == 15


def test_each_choice_of_a_stream_is_charged(provider, client):
    chunks = list(client.chat.completions.create(model="gpt-5", messages=HELLO, n=2, max_tokens=5, stream=True))

    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}
    assert provider.output_tokens == 10


def test_raw_and_streaming_responses_carry_the_headers_of_the_real_one(provider, client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-5", messages=HELLO)
    with client.chat.completions.with_streaming_response.create(model="gpt-5", messages=HELLO) as streamed:
        ids = [raw.headers["x-request-id"], streamed.headers["x-request-id"]]
        parsed = streamed.parse()

    assert raw.parse().choices[0].message.content == parsed.choices[0].message.content
    assert len(set(ids)) == 2
    assert raw.headers["x-ratelimit-remaining-requests"] == "9999"
    assert raw.headers["x-ratelimit-reset-requests"] == "0s"


def test_response_has_text_and_usage(provider, client):
    response = client.responses.create(model="gpt-5", input="hello", instructions="be brief")

    assert response.status == "completed"
    assert count_tokens(response.output_text) == response.usage.output_tokens == 16
    assert response.usage.input_tokens == count_tokens("hello") + count_tokens("be brief")


def test_response_stream_reports_usage_at_its_end(provider, client):
    events = list(client.responses.create(model="gpt-5", input="hello", stream=True, max_output_tokens=2))

    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert events[-1].response.usage.output_tokens == 2
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


def test_response_stream_helper_assembles_text_and_tool_calls(provider, client):
    provider.reply(Reply(text="Let me look.", tool_calls=[ToolCall(name="search", arguments={"query": "Oslo in May"})]))

    with client.responses.stream(model="gpt-5", input="hello") as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()

    assert "response.function_call_arguments.done" in kinds
    assert response.output_text == "Let me look."
    assert response.output[1].arguments == '{"query": "Oslo in May"}'
    assert response.usage.total_tokens == provider.tokens


def test_response_parse_gets_an_instance_without_any_script(provider, client):
    assert client.responses.parse(model="gpt-5", input="hello", text_format=City).output_parsed == City(name="ant", people=1)


def test_legacy_completions_answer_every_prompt(provider, client):
    completion = client.completions.create(model="davinci", prompt=["hello", "world"], max_tokens=4)

    assert [choice.index for choice in completion.choices] == [0, 1]
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (4, 8)


def test_legacy_completions_stream(provider, client):
    chunks = list(client.completions.create(model="davinci", prompt="hello", stream=True))

    assert count_tokens("".join(chunk.choices[0].text for chunk in chunks)) == 16
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_embeddings_charge_input_only(provider, client):
    embeddings = client.embeddings.create(model="text-embedding-3-small", input=["hello", "world"], dimensions=8)

    assert [len(item.embedding) for item in embeddings.data] == [8, 8]
    assert embeddings.usage.total_tokens == provider.tokens == 4


def test_embeddings_come_as_floats_too(provider, client):
    embeddings = client.embeddings.create(model="e", input="hello", encoding_format="float")

    assert sum(number**2 for number in embeddings.data[0].embedding) == pytest.approx(1, abs=1e-4)


def test_models_are_listed_and_cost_no_call(provider, client):
    names = [model.id for model in client.models.list()]

    assert client.models.retrieve(names[0]).id == names[0]
    assert (provider.calls, len(provider.requests)) == (0, 2)


def test_azure_deployments_are_understood(provider):
    with openai.AzureOpenAI(azure_endpoint=provider.base_url, api_key="sk-azure", api_version="2025-01-01") as client:
        completion = client.chat.completions.create(model="my-deployment", messages=HELLO)

    assert completion.model == "my-deployment"
    assert provider.requests == ["/openai/deployments/my-deployment/chat/completions"]


async def exercise(base_url):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="sk-test") as client:
        whole = await client.chat.completions.create(model="gpt-5", messages=HELLO)
        chunks = [chunk async for chunk in await client.responses.create(model="gpt-5", input="hello", stream=True)]
    return whole.usage.total_tokens + chunks[-1].response.usage.total_tokens


@pytest.mark.asyncio
async def test_async_client_works_too(provider):
    assert await exercise(provider.url("/v1")) == provider.tokens


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
def test_scripted_errors_are_the_sdks_own(provider, client, status, error):
    provider.reply(Reply(status=status, text="no"))

    with pytest.raises(error) as raised:
        client.with_options(max_retries=0).chat.completions.create(model="gpt-5", messages=HELLO)

    assert raised.value.body["message"] == "no"
    assert (provider.calls, provider.served, provider.tokens) == (1, 0, 0)


def test_rate_limit_is_retried_after_the_given_time(provider, client):
    provider.reply_next(Reply(status=429, retry_after=0.01, fail_times=2))

    client.chat.completions.create(model="gpt-5", messages=HELLO)

    assert [request.status for request in provider.requests] == [429, 429, 200]
    assert (provider.calls, provider.served) == (3, 1)


def test_an_error_inside_a_stream_is_raised_by_the_sdk(provider, client):
    provider.reply(Reply(error_code="server_error", text="broken", truncate_after=2))

    with pytest.raises(openai.APIError, match="broken"):
        list(client.chat.completions.create(model="gpt-5", messages=HELLO, stream=True))

    assert provider.requests[0].chunks_sent == 2


def test_a_missing_parameter_is_a_bad_request(provider, client):
    with pytest.raises(openai.BadRequestError, match="Missing required parameter: 'messages'"):
        client.post("/chat/completions", cast_to=object, body={"model": "gpt-5"})


def test_gzip_is_unpacked_by_the_client(provider, client):
    provider.reply(Reply(text="Hi there.", gzip=True))

    raw = client.chat.completions.with_raw_response.create(model="gpt-5", messages=HELLO)
    chunks = list(client.chat.completions.create(model="gpt-5", messages=HELLO, stream=True))

    assert raw.headers["content-encoding"] == "gzip"
    assert raw.parse().choices[0].message.content == "Hi there."
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hi there."

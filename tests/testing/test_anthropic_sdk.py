"""The real anthropic SDK must find nothing odd about the provider."""

from __future__ import annotations

import anthropic
import pytest
from pydantic import BaseModel

from agentguard.testing import Reply, ToolCall, count_tokens

ASK = {"model": "claude-test", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}


class City(BaseModel):
    name: str
    people: int


@pytest.fixture
def client(provider):
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test") as client:
        yield client


def test_message_says_what_was_scripted_and_reports_its_usage(provider, client):
    provider.reply(Reply(text="Hi there."))

    message = client.messages.create(**ASK)

    assert message.content[0].text == "Hi there."
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, count_tokens("Hi there."))
    assert provider.tokens == 2 + count_tokens("Hi there.")


def test_cached_input_is_not_part_of_input_tokens(provider, client):
    provider.reply(Reply(input_tokens=100, cached_tokens=60, cache_write_tokens=10))

    usage = client.messages.create(**ASK).usage

    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (30, 60, 10)
    assert provider.input_tokens == 100


def test_stream_carries_input_first_and_cumulative_output_last(provider, client):
    events = list(client.messages.create(**ASK | {"max_tokens": 2}, stream=True))

    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].message.usage.input_tokens == 2
    assert events[5].usage.output_tokens == 2
    assert events[5].delta.stop_reason == "max_tokens"


@pytest.mark.parametrize("kind", ["messages", "beta.messages"])
def test_stream_helper_assembles_text_and_tool_calls(provider, client, kind):
    provider.reply(Reply(text="Let me look.", tool_calls=[ToolCall(name="search", arguments={"query": "Oslo in May"})]))
    messages = client.beta.messages if kind == "beta.messages" else client.messages

    with messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == "Let me look."
    assert message.content[1].input == {"query": "Oslo in May"}
    assert message.stop_reason == "tool_use"
    assert message.usage.input_tokens + message.usage.output_tokens == provider.tokens


def test_parse_gets_an_instance_without_any_script(provider, client):
    assert client.messages.parse(**ASK, output_format=City).parsed_output == City(name="ant", people=1)


def test_tool_runner_calls_the_tool_and_asks_again(provider, client):
    provider.reply_next(Reply(tool_calls=[ToolCall(name="double", arguments={"number": 21})]), Reply(text="42"))

    @anthropic.beta_tool
    def double(number: int) -> str:
        """Double a number."""
        return str(number * 2)

    final = client.beta.messages.tool_runner(**ASK, tools=[double]).until_done()

    assert final.content[0].text == "42"
    assert provider.requests[1].json["messages"][-1]["content"][0]["content"] == "42"


def test_raw_and_streaming_responses_carry_the_headers_of_the_real_one(provider, client):
    raw = client.messages.with_raw_response.create(**ASK)
    with client.messages.with_streaming_response.create(**ASK) as streamed:
        parsed = streamed.parse()

    assert raw.parse().content == parsed.content
    assert raw.headers["request-id"].startswith("req_")
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "9999"
    assert raw.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")


def test_counting_tokens_costs_no_call(provider, client):
    count = client.messages.count_tokens(model=ASK["model"], messages=ASK["messages"])

    assert count.input_tokens == 2
    assert (provider.calls, provider.tokens) == (0, 0)


def test_models_are_listed_in_anthropics_form(provider, client):
    names = [model.id for model in client.models.list()]

    assert client.models.retrieve(names[0]).id == names[0]


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.APIStatusError, "overloaded_error"),
    ],
)
def test_scripted_errors_are_the_sdks_own(provider, client, status, error, kind):
    provider.reply(Reply(status=status))

    with pytest.raises(error) as raised:
        client.with_options(max_retries=0).messages.create(**ASK)

    assert raised.value.body["error"]["type"] == kind
    assert raised.value.request_id == raised.value.body["request_id"]


def test_rate_limit_is_retried_after_the_given_time(provider, client):
    provider.reply_next(Reply(status=429, retry_after=0.01, fail_times=2))

    client.messages.create(**ASK)

    assert [request.status for request in provider.requests] == [429, 429, 200]


def test_an_error_inside_a_stream_is_raised_by_the_sdk(provider, client):
    provider.reply(Reply(error_code="overloaded_error", truncate_after=1))

    with pytest.raises(anthropic.APIStatusError) as raised:
        list(client.messages.create(**ASK, stream=True))

    assert raised.value.body["error"]["type"] == "overloaded_error"
    assert provider.requests[0].chunks_sent == 1


def test_max_tokens_is_required(provider, client):
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: Field required"):
        client.post("/v1/messages", cast_to=object, body={"model": "claude", "messages": []})


@pytest.mark.asyncio
async def test_async_client_works_too(provider):
    async with anthropic.AsyncAnthropic(base_url=provider.base_url, api_key="sk-test") as client:
        whole = await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as stream:
            streamed = await stream.get_final_message()

    usages = (whole.usage, streamed.usage)
    assert sum(usage.input_tokens + usage.output_tokens for usage in usages) == provider.tokens

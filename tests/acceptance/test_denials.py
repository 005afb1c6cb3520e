"""A denial arrives as our exception, after one attempt, with the rule, its place, and what to do."""

from __future__ import annotations

import asyncio
import pickle

import anthropic
import httpx
import httpx2
import openai
import pytest

from agentguard import (
    AgentIsolated,
    BudgetExceeded,
    Denied,
    EgressDenied,
    ModelDenied,
    Policy,
    RateLimited,
    ToolDenied,
    agent,
)
from agentguard.events import CallDenied, CallSettled, ToolProposed
from agentguard.testing import Recorder, Reply, ToolCall

POLICY = """\
agents:
  - name: worker
    external_calls:
      allowed_domains: ["127.0.0.1"]
    llm:
      models: ["gpt-5*", "claude-*"]
    budgets:
      - {limit: 1000 tokens}
"""

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def policy(tmp_path):
    file = tmp_path / "agents.yaml"
    file.write_text(POLICY)
    return Policy.from_yaml(file)


def by_openai(url, model="gpt-5", **more):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
        return client.chat.completions.create(model=model, messages=HELLO, **({"max_tokens": 16} | more))


def by_anthropic(url, model="claude-sonnet-5", **more):
    with anthropic.Anthropic(base_url=url, api_key="sk-test") as client:
        return client.messages.create(model=model, messages=HELLO, **({"max_tokens": 16} | more))


def by_async_openai(url, model="gpt-5", **more):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-test") as client:
            return await client.chat.completions.create(model=model, messages=HELLO, **({"max_tokens": 16} | more))

    return asyncio.run(main())


def by_async_anthropic(url, model="claude-sonnet-5", **more):
    async def main():
        async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-test") as client:
            return await client.messages.create(model=model, messages=HELLO, **({"max_tokens": 16} | more))

    return asyncio.run(main())


SDKS = pytest.mark.parametrize("call", [by_openai, by_anthropic, by_async_openai, by_async_anthropic])


def check(denied, line, rule, remedy):
    """It names rule, place and remedy, and survives a pickle."""
    error = denied.value
    assert error.rule == rule
    assert error.decision.place.endswith(f"agents.yaml:{line}")
    assert f"agents.yaml:{line}" in str(error)
    assert remedy in error.remedy
    assert error.remedy in str(error)
    assert not isinstance(error, OSError | httpx.HTTPError | httpx2.HTTPError)
    thawed = pickle.loads(pickle.dumps(error))
    assert type(thawed) is error.plain_type()
    assert (str(thawed), thawed.decision, thawed.rule) == (str(error), error.decision, error.rule)


@SDKS
def test_without_a_guard_the_attacker_receives(call, recorder):
    with pytest.raises((openai.APIError, anthropic.APIError, AttributeError, ValueError)):
        call(recorder.base_url).usage.total_tokens  # noqa: B018 - an answer of plain text is none

    assert recorder.calls >= 1


@SDKS
def test_a_host_that_is_not_listed_receives_nothing(call, recorder, guarded, policy):
    one = guarded(policy=policy)

    with pytest.raises(EgressDenied, match=r"agent 'worker' may not reach '127\.0\.0\.2:\d+'") as denied:
        call(recorder.base_url)

    assert recorder.calls == 0
    check(denied, 4, "external_calls.allowed_domains", "agentguard policy explain http://127.0.0.2")
    [told] = one.told(CallDenied)
    assert (told.decision, told.enforced, told.caller.agent) == (denied.value.decision, True, "worker")
    assert denied.value.call.target.host == "127.0.0.2"


@SDKS
def test_a_call_beyond_the_budget_is_not_sent(call, provider, guarded, policy):
    one = guarded(policy=policy)

    with pytest.raises(BudgetExceeded, match=r"of 1,000 tokens are left") as denied:
        call(provider.base_url, max_tokens=5000)

    assert provider.calls == 0
    check(denied, 8, "budgets[0]", "1000 tokens")
    assert (denied.value.limit, denied.value.spent, denied.value.held) == (1000, 0, 0)
    assert denied.value.requested > 5000
    assert denied.value.resets_at is None
    assert len(one.told(CallDenied)) == 1


@SDKS
def test_a_model_that_is_not_listed_is_not_asked(call, provider, guarded, policy):
    guarded(policy=policy)

    with pytest.raises(ModelDenied, match="may not use model 'davinci'") as denied:
        call(provider.base_url, model="davinci")

    assert provider.calls == 0
    check(denied, 5, "llm.models", "davinci")


@SDKS
def test_an_isolated_agent_sends_nothing(call, provider, guarded, policy):
    one = guarded(policy=policy)
    one.guard.isolate("agent:worker", by="on call", why="a drill")

    with pytest.raises(AgentIsolated, match="agent:worker is isolated") as denied:
        call(provider.base_url)
    one.guard.restore("agent:worker", by="on call")
    call(provider.base_url)

    assert provider.calls == 1
    assert "agentguard restore agent:worker" in denied.value.remedy
    assert type(pickle.loads(pickle.dumps(denied.value))) is AgentIsolated


@SDKS
def test_a_rate_limit_refuses_with_the_time_to_wait(call, provider, guarded):
    guarded("1_requests_per_hour")
    call(provider.base_url)

    with pytest.raises(RateLimited) as denied:
        call(provider.base_url)

    assert provider.calls == 1
    assert 3000 < denied.value.retry_after <= 3720


@pytest.mark.parametrize("call", [by_openai, by_async_openai])
def test_an_openai_client_is_redirected_without_a_guard(call, provider, recorder):
    provider.redirect("/v1/chat/completions", to=recorder.url("/steal"))

    with pytest.raises((openai.APIError, AttributeError)):
        call(provider.base_url).usage.total_tokens  # noqa: B018 - as above

    assert recorder.calls >= 1


@SDKS
def test_a_redirect_to_a_host_that_is_not_listed_is_denied_before_the_second_request(call, provider, recorder, guarded, policy):
    one = guarded(policy=policy)
    for path in "/v1/chat/completions", "/v1/messages":
        provider.redirect(path, to=recorder.url("/steal"))

    with pytest.raises(EgressDenied) as denied:
        call(provider.base_url)

    assert len(provider.requests) == 1
    assert recorder.calls == 0
    check(denied, 4, "external_calls.allowed_domains", "http://127.0.0.2")
    assert len(one.told(CallDenied)) == 1
    assert one.spent() == 0
    [settled] = one.told(CallSettled)
    assert [attempt.was_sent for attempt in settled.attempts] == [True, False]


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_redirect_of_a_bare_client_is_denied_before_the_second_request(library, provider, recorder, guarded, policy):
    one = guarded(policy=policy)
    provider.redirect("/start", to=recorder.url("/steal"))

    with library.Client(follow_redirects=True) as client, pytest.raises(EgressDenied):
        client.get(provider.url("/start"))

    assert provider.requests == ["/start"]
    assert recorder.calls == 0
    assert one.spent() == 0


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_async_redirect_of_a_bare_client_is_denied_before_the_second_request(library, provider, recorder, guarded, policy):
    guarded(policy=policy)
    provider.redirect("/start", to=recorder.url("/steal"))

    async def main():
        async with library.AsyncClient(follow_redirects=True) as client:
            await client.get(provider.url("/start"))

    with pytest.raises(EgressDenied):
        asyncio.run(main())

    assert provider.requests == ["/start"]
    assert recorder.calls == 0


@SDKS
def test_a_denial_below_the_sdk_passes_except_clauses_of_its_own_errors_too(call, provider, recorder, guarded, policy):
    guarded(policy=policy)
    for path in "/v1/chat/completions", "/v1/messages":
        provider.redirect(path, to=recorder.url("/steal"))

    with pytest.raises(Denied) as denied:
        call(provider.base_url)

    assert isinstance(denied.value, openai.OpenAIError | anthropic.AnthropicError)
    assert not isinstance(denied.value, openai.APIError | anthropic.APIError)


@SDKS
def test_a_forbidden_tool_that_the_model_proposes_is_told(call, provider, guarded):
    one = guarded("10000 tokens", tools={"allowed": ["search"]})
    provider.reply(Reply(tool_calls=[ToolCall(name="delete_all")]))

    call(provider.base_url)

    [proposed] = one.told(ToolProposed)
    assert (proposed.tool, proposed.decision.rule) == ("delete_all", "tools.allowed")
    assert one.spent() == provider.tokens


@SDKS
def test_a_forbidden_tool_that_the_model_proposes_is_an_error_where_the_policy_says_so(call, provider, guarded):
    one = guarded("10000 tokens", tools={"allowed": ["search"], "proposed": "deny"})
    provider.reply(Reply(tool_calls=[ToolCall(name="delete_all")]))

    with pytest.raises(ToolDenied, match="delete_all"):
        call(provider.base_url)

    assert provider.calls == 1
    assert one.spent() == provider.tokens
    assert len(one.told(CallSettled)) == 1


@SDKS
def test_a_forbidden_tool_in_a_stream_is_an_error_where_the_policy_says_so(call, provider, guarded):
    one = guarded("10000 tokens", tools={"allowed": ["search"], "proposed": "deny"})
    provider.reply(Reply(tool_calls=[ToolCall(name="delete_all", arguments={"what": "everything"})]))

    with pytest.raises(ToolDenied, match="delete_all"):
        drained(call, provider)

    assert provider.calls == 1
    assert one.spent() == provider.tokens
    assert len(one.told(CallSettled)) == 1


def drained(call, provider):
    """Stream by a client that is open meanwhile."""
    chat = {"model": "gpt-5", "messages": HELLO, "stream": True, "max_tokens": 16}
    claude = chat | {"model": "claude-sonnet-5"}

    async def main():
        if call is by_async_openai:
            async with openai.AsyncOpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
                return [chunk async for chunk in await client.chat.completions.create(**chat)]
        async with anthropic.AsyncAnthropic(base_url=provider.base_url, api_key="sk-test") as client:
            return [chunk async for chunk in await client.messages.create(**claude)]

    if call is by_openai:
        with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
            return list(client.chat.completions.create(**chat))
    if call is by_anthropic:
        with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test") as client:
            return list(client.messages.create(**claude))
    return asyncio.run(main())


def test_in_report_mode_everything_is_told_and_nothing_refused(provider, recorder, guarded, policy):
    import dataclasses

    one = guarded(policy=dataclasses.replace(policy, mode="report"))
    provider.redirect("/start", to=recorder.url("/steal"))

    by_openai(provider.base_url, model="davinci", max_tokens=5000)
    with httpx2.Client(follow_redirects=True) as client:
        client.get(provider.url("/start"))

    assert provider.calls == recorder.calls == 1
    assert {told.decision.rule for told in one.told(CallDenied)} == {"llm.models", "external_calls.allowed_domains"}
    assert not any(told.enforced for told in one.told(CallDenied))
    assert sum(told.usage.total_tokens for told in one.told(CallSettled)) == provider.tokens


def test_a_proxy_that_is_not_listed_receives_nothing(provider, recorder, guarded, policy):
    guarded(policy=policy)

    with httpx2.Client(proxy=recorder.base_url) as client, pytest.raises(EgressDenied, match=r"127\.0\.0\.2"):
        client.get(provider.url("/start"))

    assert recorder.calls == 0


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_proxy_from_the_environment_is_judged_too(library, provider, recorder, guarded, policy, monkeypatch):
    guarded(policy=policy)
    monkeypatch.setenv("HTTP_PROXY", recorder.base_url)

    with library.Client() as client, pytest.raises(EgressDenied, match=r"127\.0\.0\.2"):
        client.get(provider.url("/start"))

    assert recorder.calls == 0


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_host_header_that_names_another_host_is_judged_too(library, provider, guarded, policy):
    guarded(policy=policy)

    with library.Client() as client, pytest.raises(EgressDenied, match=r"evil\.example"):
        client.get(provider.url("/start"), headers={"host": "evil.example"})

    assert provider.requests == []


def test_a_denial_is_the_same_in_every_agent_of_a_chain(provider, guarded):
    open_host = {"allowed_domains": ["127.0.0.1"]}
    document = {
        "agents": [
            {"name": "outer", "external_calls": open_host, "llm": {"models": ["gpt-5*"]}},
            {"name": "inner", "external_calls": open_host, "llm": {"models": ["gpt-4*"]}},
        ],
    }
    guarded(policy=Policy.from_mapping(document))

    with agent("outer"), agent("inner"):
        for model in "gpt-5", "gpt-4.1":
            with pytest.raises(ModelDenied):
                by_openai(provider.base_url, model=model)

    assert provider.calls == 0


def test_ten_threads_share_one_denial_each(recorder, guarded, policy):
    from concurrent.futures import ThreadPoolExecutor

    one = guarded(policy=policy)

    with ThreadPoolExecutor(10) as pool:
        errors = [pool.submit(by_openai, recorder.base_url).exception() for _ in range(10)]

    assert {type(error) for error in errors} == {EgressDenied}
    assert recorder.calls == 0
    assert len(one.told(CallDenied)) == 10


def test_a_client_that_is_closed_by_a_denial_is_usable_afterwards(provider, guarded, policy, openai_client):
    guarded(policy=policy)

    with pytest.raises(BudgetExceeded):
        openai_client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=5000)
    openai_client.chat.completions.create(model="gpt-5", messages=HELLO, max_tokens=16)

    assert provider.calls == 1


def test_recorders_of_two_hosts_receive_what_is_allowed(guarded):
    with Recorder("127.0.0.2") as allowed, Recorder("127.0.0.3") as blocked:
        guarded(external_calls={"allowed_domains": ["127.0.0.2"], "blocked_domains": ["*"]})
        with httpx2.Client() as client:
            client.get(allowed.url("/x"))
            with pytest.raises(EgressDenied):
                client.get(blocked.url("/x"))

        assert (allowed.calls, blocked.calls) == (1, 0)

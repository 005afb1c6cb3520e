"""The real SDKs against the loopback provider."""

from __future__ import annotations

import anthropic
import openai
import pytest

from agentguard.testing import text_of

PROMPT = text_of(100)
"""A hundred tokens to the provider, who counts four bytes as one."""

MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def messages():
    return MESSAGES


@pytest.fixture
def openai_client(provider):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test", max_retries=2) as client:
        yield client


@pytest.fixture
def anthropic_client(provider):
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test", max_retries=2) as client:
        yield client

"""The real SDKs against the loopback provider."""

from __future__ import annotations

from pathlib import Path

import anthropic
import certifi
import openai
import pytest

from agentguard.testing import text_of

PROMPT = text_of(100)
"""A hundred tokens to the provider, who counts four bytes as one."""

MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="session", autouse=True)
def _one_certificate(tmp_path_factory):
    """Every client loads the world's certificates when it is built, which takes 35 ms; here is no TLS, so one will do."""
    end = "-----END CERTIFICATE-----\n"
    certificate = tmp_path_factory.mktemp("tls") / "one.pem"
    certificate.write_text(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate))
        yield


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

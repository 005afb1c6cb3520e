"""The hosts of the providers that a policy may name: `llm.providers: [openai]` makes them reachable."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from agentguard.policy.hosts import HostPattern

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PROVIDER_HOSTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "anthropic": ("api.anthropic.com",),
        "azure": (),  # every customer has a host there, an attacker too: the policy names its own under allowed_domains
        "cohere": ("api.cohere.com", "api.cohere.ai"),
        "deepseek": ("api.deepseek.com",),
        "gemini": ("generativelanguage.googleapis.com",),
        "groq": ("api.groq.com",),
        "mistral": ("api.mistral.ai", "codestral.mistral.ai"),
        "openai": ("api.openai.com", "*.api.openai.com"),  # the wildcard: data residency (eu.api.openai.com)
        "openrouter": ("openrouter.ai",),
        "perplexity": ("api.perplexity.ai",),
        "together": ("api.together.xyz", "api.together.ai"),
        "xai": ("api.x.ai", "*.api.x.ai"),  # the wildcard: regions (eu-west-1.api.x.ai)
    }
)
"""Host patterns by the policy's word for a provider. A pattern is spelled as in `external_calls.allowed_domains`."""


def patterns_of(providers: Iterable[str]) -> Iterator[HostPattern]:
    """The hosts of some providers."""
    for provider in providers:
        yield from map(HostPattern.parse, PROVIDER_HOSTS[provider])


def provider_of(host: str) -> str | None:
    """The provider that a canonical host belongs to; None when it is none's."""
    return next((name for name in PROVIDER_HOSTS if any(pattern.matches(host) for pattern in patterns_of([name]))), None)

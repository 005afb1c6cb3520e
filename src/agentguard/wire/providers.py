"""Who serves a request: OpenTelemetry's provider name, told by the host where that is certain."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from agentguard.policy.providers import PROVIDER_HOSTS

if TYPE_CHECKING:
    from agentguard.wire.family import Family

# https://opentelemetry.io/docs/specs/semconv/registry/attributes/gen-ai/ where it differs from the policy's word.
_NAMES = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}

_BY_HOST: dict[str, str] = {}
_BY_SUFFIX: dict[str, str] = {".openai.azure.com": "azure.ai.openai", ".cognitiveservices.azure.com": "azure.ai.openai"}
for _word, _patterns in PROVIDER_HOSTS.items():
    for _pattern in _patterns:
        _known = _BY_SUFFIX if _pattern.startswith("*") else _BY_HOST
        _known[_pattern.removeprefix("*")] = _NAMES.get(_word, _word)


@lru_cache(maxsize=1024)
def provider_of(host: str, family: Family) -> str:
    """OpenTelemetry's name for who serves this host; the family's default when the host does not tell."""
    host = host.lower().rstrip(".")
    known = _BY_HOST.get(host)
    if known is not None:
        return known
    for suffix, name in _BY_SUFFIX.items():
        if host.endswith(suffix):
            return name
    return family.default_provider

"""The LLM providers that a policy may name, and the hosts that naming one opens.

Names are OpenTelemetry's `gen_ai.provider.name`. Only hosts that belong to the provider alone are opened: where every
customer gets a host of its own (Azure), a wildcard would reach anybody's, so the policy lists the one it means.
"""

from __future__ import annotations

from functools import cache

from agentguard.policy.hosts import HostPattern

# fmt: off
_AWS_REGIONS = (
    "af-south-1", "ap-east-2", "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-south-2",
    "ap-southeast-1", "ap-southeast-2", "ap-southeast-3", "ap-southeast-4", "ap-southeast-5", "ap-southeast-7",
    "ca-central-1", "ca-west-1", "eu-central-1", "eu-central-2", "eu-north-1", "eu-south-1", "eu-south-2", "eu-west-1",
    "eu-west-2", "eu-west-3", "il-central-1", "me-central-1", "me-south-1", "mx-central-1", "sa-east-1", "us-east-1",
    "us-east-2", "us-gov-east-1", "us-gov-west-1", "us-west-1", "us-west-2",
)
_GOOGLE_REGIONS = (
    "africa-south1", "asia-east1", "asia-east2", "asia-northeast1", "asia-northeast2", "asia-northeast3", "asia-south1",
    "asia-south2", "asia-southeast1", "asia-southeast2", "australia-southeast1", "australia-southeast2",
    "europe-central2", "europe-north1", "europe-southwest1", "europe-west1", "europe-west2", "europe-west3",
    "europe-west4", "europe-west6", "europe-west8", "europe-west9", "europe-west10", "europe-west12", "me-central1",
    "me-central2", "me-west1", "northamerica-northeast1", "northamerica-northeast2", "southamerica-east1",
    "southamerica-west1", "us-central1", "us-east1", "us-east4", "us-east5", "us-south1", "us-west1", "us-west2",
    "us-west3", "us-west4",
)
# fmt: on
_GEMINI = ("generativelanguage.googleapis.com",)
_VERTEX = (
    "aiplatform.googleapis.com",
    "aiplatform.us.rep.googleapis.com",
    "aiplatform.eu.rep.googleapis.com",
    *(f"{region}-aiplatform.googleapis.com" for region in _GOOGLE_REGIONS),
)

PROVIDERS: dict[str, tuple[str, ...]] = {
    "anthropic": ("api.anthropic.com",),
    "aws.bedrock": tuple(f"bedrock-runtime.{region}.amazonaws.com" for region in _AWS_REGIONS),
    "azure.ai.inference": (),
    "azure.ai.openai": (),
    "cohere": ("api.cohere.com", "api.cohere.ai"),
    "deepseek": ("api.deepseek.com",),
    "gcp.gemini": _GEMINI,
    "gcp.gen_ai": _GEMINI + _VERTEX,
    "gcp.vertex_ai": _VERTEX,
    "groq": ("api.groq.com",),
    "ibm.watsonx.ai": tuple(
        f"{region}.ml.cloud.ibm.com" for region in ("au-syd", "ca-tor", "eu-de", "eu-gb", "jp-tok", "us-south")
    ),
    "mistral_ai": ("api.mistral.ai", "codestral.mistral.ai"),
    "moonshot_ai": ("api.moonshot.ai", "api.moonshot.cn"),
    "openai": ("api.openai.com", "eu.api.openai.com", "us.api.openai.com"),
    "openrouter": ("openrouter.ai",),
    "perplexity": ("api.perplexity.ai",),
    "together_ai": ("api.together.ai", "api.together.xyz"),
    "x_ai": ("api.x.ai",),
}
"""Hosts by provider; an empty entry is a provider without a host of its own."""


@cache
def hosts_of(provider: str) -> tuple[HostPattern, ...]:
    """The hosts that naming a provider opens, at their HTTPS port. Unknown providers have none."""
    return tuple(HostPattern.parse(f"{host}:443") for host in PROVIDERS.get(provider, ()))

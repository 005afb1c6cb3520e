"""The wire: which bytes are an LLM call, and what did it use. Pure functions of bytes; the standard library only."""

from agentguard.policy.providers import PROVIDER_HOSTS
from agentguard.wire.answer import Answer
from agentguard.wire.family import Family, Request
from agentguard.wire.glance import most_tokens
from agentguard.wire.providers import provider_of
from agentguard.wire.recognition import could_be, recognise
from agentguard.wire.stream import StreamScan

__all__ = [
    "PROVIDER_HOSTS",
    "Answer",
    "Family",
    "Request",
    "StreamScan",
    "could_be",
    "most_tokens",
    "provider_of",
    "recognise",
]

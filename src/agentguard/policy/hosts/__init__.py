"""Hosts: one spelling for each, patterns over them, and the verdict of a policy's lists. Standard library and idna only."""

from agentguard.policy.hosts.patterns import HostPattern, Kind
from agentguard.policy.hosts.rules import UNKNOWN_PORT, HostRules, Look, Verdict
from agentguard.policy.hosts.spaces import IPNetwork, Space, space_of, space_of_name
from agentguard.policy.hosts.spelling import HostError, IPAddress, address_of, canonical, fold, in_url

__all__ = [
    "UNKNOWN_PORT",
    "HostError",
    "HostPattern",
    "HostRules",
    "IPAddress",
    "IPNetwork",
    "Kind",
    "Look",
    "Space",
    "Verdict",
    "address_of",
    "canonical",
    "fold",
    "in_url",
    "space_of",
    "space_of_name",
]

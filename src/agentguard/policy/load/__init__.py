"""From a file, a text or a mapping to a `Policy`: every fault at once, or the policy. The only place of pydantic and yaml."""

from agentguard.policy.load.read import from_file, from_mapping, from_toml, from_yaml
from agentguard.policy.load.shape import json_schema

__all__ = ["from_file", "from_mapping", "from_toml", "from_yaml", "json_schema"]

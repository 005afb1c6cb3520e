"""The policy: what may be done, as data. Loading a file is lazy: the model alone needs neither pydantic nor yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentguard.policy.model import Policy

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Policy"]


def _from_yaml(source: str | bytes | os.PathLike[str]) -> Policy:
    """The policy of a YAML file, given by its path, or of YAML text (bytes, or a string of several lines).

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    from agentguard.policy.load import from_yaml

    return from_yaml(source)


def _from_toml(source: str | bytes | os.PathLike[str]) -> Policy:
    """The policy of a TOML file or text: its `[tool.agentguard]`, or the whole when there is none.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    from agentguard.policy.load import from_toml

    return from_toml(source)


def _from_mapping(document: Mapping[str, Any]) -> Policy:
    """The policy that a mapping of the file's shape says.

    Raises:
        PolicyError: It does not load; every fault is named.
    """
    from agentguard.policy.load import from_mapping

    return from_mapping(document)


def _json_schema() -> dict[str, Any]:
    """The JSON schema of a policy file, for editors and CI."""
    from agentguard.policy.load import json_schema

    return json_schema()


Policy.from_yaml = staticmethod(_from_yaml)
Policy.from_toml = staticmethod(_from_toml)
Policy.from_mapping = staticmethod(_from_mapping)
Policy.json_schema = staticmethod(_json_schema)

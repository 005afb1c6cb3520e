"""The smallest JSON value that a schema accepts, so that an unscripted reply to `.parse` can be parsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SMALLEST: Mapping[str, Any] = {"string": "ant", "integer": 1, "number": 1.0, "boolean": True, "null": None}


def instance_of(schema: Mapping[str, Any]) -> Any:
    """A value of a JSON schema as SDKs derive it from types; formats and patterns of strings are not looked at."""
    return _instance_of(schema, schema.get("$defs", {}))


def _instance_of(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        return _instance_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(key, ())
        if {"type": "null"} in choices:
            return None  # also the way out of a type that may hold itself
        if choices:
            return _instance_of(choices[0], definitions)
    return _of_type(schema, definitions)


def _of_type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "object")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        kind = kind[0]
    if kind == "array":
        return [_instance_of(schema["items"], definitions) for _ in range(schema.get("minItems", 0))]
    if kind == "object":
        required = schema.get("required", ())
        return {name: _instance_of(schema["properties"][name], definitions) for name in required}
    return schema.get("minimum", _SMALLEST[kind])

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import BaseModel, Field

from agentguard.testing._schema import instance_of


class Colour(Enum):
    RED = "red"


class Node(BaseModel):
    name: str
    kind: Literal["leaf"]
    colour: Colour
    size: int = Field(ge=3)
    weight: float
    children: list[Node]
    parent: Node | None
    pair: list[int] = Field(min_length=2)


def test_a_model_reads_the_smallest_instance_of_its_own_schema():
    instance = instance_of(Node.model_json_schema())

    assert Node.model_validate(instance).model_dump(mode="json") == {
        "name": "ant",
        "kind": "leaf",
        "colour": "red",
        "size": 3,
        "weight": 1.0,
        "children": [],
        "parent": None,
        "pair": [1, 1],
    }

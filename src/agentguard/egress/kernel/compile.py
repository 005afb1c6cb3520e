"""Reads a policy for a supervisor, which reads no YAML itself: `python -I compile.py POLICY MODE` prints its boundary as JSON."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    sys.path.insert(0, __file__.rsplit("/", 4)[0])

from agentguard.egress.boundary import Boundary
from agentguard.errors import PolicyError
from agentguard.policy.reload import PolicyFile


def main(path: str, mode: str) -> int:
    """Print the boundary, or why there is none."""
    try:
        boundary = Boundary.of(PolicyFile(path).load())
    except PolicyError as error:
        sys.stderr.write(str(error))
        return 1
    if boundary.is_open:
        sys.stderr.write("an agent lists no hosts: the boundary would be open")
        return 1
    sys.stdout.write(Boundary(reaches=boundary.reaches, is_enforced=mode != "report", path=boundary.path).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))

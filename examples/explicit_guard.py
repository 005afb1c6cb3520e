"""No patching: a `Guard` of your own, put into one client as its transport. Other clients of the process are left alone."""

import httpx2
import openai

import agentguard
from agentguard.integrations.httpx import GuardTransport
from agentguard.testing import Provider, Recorder

POLICY = """
version: 1
agents:
  - name: worker
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
    budgets:
      - {limit: 2 calls}
"""


def main() -> None:
    guard = agentguard.Guard(agentguard.Policy.from_yaml(POLICY))
    with Provider() as provider, Recorder("127.0.0.2") as other, httpx2.Client(transport=GuardTransport(guard)) as guarded:
        client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-none", http_client=guarded)
        for number in range(1, 4):
            try:
                client.responses.create(model="gpt-5-mini", input="Hello.", max_output_tokens=20)
                print(f"call {number}: answered")
            except agentguard.BudgetExceeded as denied:
                print(f"call {number}: {denied}")
        try:
            guarded.get(other.url("/"))
        except agentguard.EgressDenied as denied:
            print(denied)
        httpx2.get(other.url("/unguarded"))
        guard.close()
        assert provider.calls == 2
        assert other.requests == ["/unguarded"]


if __name__ == "__main__":
    main()

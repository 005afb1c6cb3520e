"""A budget for one piece of work, over and above the policy's: `with agentguard.budget(...)`."""

import openai

import agentguard
from agentguard.testing import Provider, Reply

POLICY = """
version: 1
agents:
  - name: planner
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
"""


def main() -> None:
    with Provider() as provider, agentguard.instrument(agentguard.Policy.from_yaml(POLICY), store="memory://"):
        provider.reply(Reply(output_tokens=400))
        client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-none")
        with agentguard.budget(usd="0.0020", calls=10) as block:
            try:
                while True:
                    client.responses.create(model="gpt-5-mini", input="One more idea.", max_output_tokens=400)
                    print(f"spent ${block.spent.usd}, {block.spent.calls} calls; left ${block.remaining.usd}")
            except agentguard.BudgetExceeded as denied:
                print(denied)
        print(f"after the block: spent ${block.spent.usd} in {block.spent.calls} calls")
        assert block.spent.calls == provider.calls == 2


if __name__ == "__main__":
    main()

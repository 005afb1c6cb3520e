"""A budget is reserved before each call and settled after it. What does not fit is refused before anything is sent."""

import openai

import agentguard
from agentguard.testing import Provider, Reply

POLICY = """
version: 1
agents:
  - name: writer
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
    budgets:
      - {limit: 1000 tokens, per: session}
"""


def main() -> None:
    with Provider() as provider, agentguard.instrument(agentguard.Policy.from_yaml(POLICY), store="memory://"):
        provider.reply(Reply(output_tokens=300))
        client = openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-none")
        with agentguard.session(user="u-17"):
            for number in range(1, 6):
                try:
                    answer = client.chat.completions.create(
                        model="gpt-5-mini", max_completion_tokens=300, messages=[{"role": "user", "content": "A verse, please."}]
                    )
                except agentguard.BudgetExceeded as denied:
                    print(f"call {number}: {denied}")
                else:
                    print(f"call {number}: {answer.usage.total_tokens} tokens")
        print(f"the provider was asked {provider.calls} times and served {provider.tokens} tokens")
        assert provider.calls == 3


if __name__ == "__main__":
    main()

"""A stream is metered as it flows. One that outgrows its budget is cut, whatever the provider was asked for."""

import anthropic

import agentguard
from agentguard.testing import Provider, Reply

POLICY = """
version: 1
agents:
  - name: novelist
    external_calls: {allowed_domains: [127.0.0.1], blocked_domains: ["*"]}
    budgets:
      - {limit: 2000 tokens}
"""


def main() -> None:
    with Provider() as provider, agentguard.instrument(agentguard.Policy.from_yaml(POLICY), store="memory://"):
        provider.reply(Reply(output_tokens=5000, ignore_max_tokens=True, chunks=100, chunk_delay=0.01))
        client = anthropic.Anthropic(base_url=provider.base_url, api_key="none")
        read = 0
        try:
            with client.messages.stream(
                model="claude-haiku-4-5", max_tokens=1000, messages=[{"role": "user", "content": "A novel, please."}]
            ) as stream:
                for text in stream.text_stream:
                    read += len(text)
        except agentguard.BudgetExceeded as denied:
            print(f"cut after {read:,} characters: {denied}")
        provider.wait_idle()
        print(f"of 5,000 tokens the provider could send {provider.tokens:,}")
        assert 0 < provider.tokens <= 2050


if __name__ == "__main__":
    main()

"""Agents and tools have names, so the policy can tell them apart. An agent inside another may do only what both may."""

import agentguard

POLICY = """
version: 1
agents:
  - name: assistant
    tools: {allowed: [search, send_mail]}
  - name: researcher
    tools: {allowed: [search]}
"""


@agentguard.tool
def search(words: str) -> str:
    return f"three pages about {words}"


@agentguard.tool(cost_usd="0.001")
def send_mail(to: str) -> str:
    return f"sent to {to}"


@agentguard.agent("researcher")
def research() -> str:
    print("  researcher:", search("guards"))
    return send_mail("everybody@example.com")


@agentguard.agent("assistant")
def assist() -> None:
    print("  assistant:", send_mail("you@example.com"))
    research()


def main() -> None:
    with agentguard.instrument(agentguard.Policy.from_yaml(POLICY), store="memory://"):
        refused = None
        try:
            assist()
        except agentguard.ToolDenied as denied:
            refused = denied
        print(f"  refused: {refused}")
        assert refused is not None


if __name__ == "__main__":
    main()

"""`python -m agentguard`: the command line without its script."""

from agentguard.cli import main

main(prog_name="agentguard")

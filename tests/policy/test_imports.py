"""Who builds a policy by hand pays for no file format."""

import subprocess
import sys


def test_the_model_and_the_hosts_import_neither_pydantic_nor_yaml_nor_idna():
    program = (
        "import sys, agentguard.policy, agentguard.policy.hosts, agentguard.policy.diff, agentguard.policy.dump, "
        "agentguard.policy.reload, agentguard.policy.unenforced;"
        "agentguard.policy.hosts.canonical('api.ourservice.com');"
        "print([name for name in ('pydantic', 'yaml', 'idna', 'tomllib') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"

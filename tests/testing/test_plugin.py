from __future__ import annotations

import subprocess
import sys


def test_the_plugins_fixtures_work_in_a_users_test(pytester):
    pytester.makeconftest("from agentguard.testing.plugin import frozen_clock, provider, recorder")
    pytester.makepyfile(
        """
        import urllib.request

        def test_agent(provider, recorder, frozen_clock):
            urllib.request.urlopen(provider.url("/v1/models")).close()
            frozen_clock.advance(1)
            assert provider.requests == ["/v1/models"]
            assert recorder.requests == []
        """,
    )

    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_loading_the_plugin_imports_no_server():
    code = "import sys, agentguard.testing.plugin as _; print([m for m in sys.modules if m.startswith('agentguard.')])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert loaded.stdout.strip() == "['agentguard.testing', 'agentguard.testing.plugin']"


def test_every_public_name_can_be_imported():
    import agentguard.testing

    names = {name: getattr(agentguard.testing, name) for name in agentguard.testing.__all__}

    assert dir(agentguard.testing) == sorted(names)

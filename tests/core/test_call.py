"""A target is written down so that it can be read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentguard.core.call import Target

schemes = st.sampled_from(["http", "https", "ws", "tcp", "udp", "dns"])
hosts = st.sampled_from(["api.test", "a-1.test", "_x.test"]) | st.ip_addresses().map(str)
paths = st.sampled_from(["/", "/v1/chat/completions"])


@given(scheme=schemes, host=hosts, port=st.integers(0, 65535), path=paths)
def test_a_target_is_read_back(scheme, host, port, path):
    target = Target(scheme, host, port, path)

    found = Target.of(str(target))

    assert found == target or (port == 0 and found == target._replace(port=found.port))


def test_an_ipv6_address_is_told_apart_from_its_port():
    assert str(Target("https", "2001:db8::1", 8443, "/")) == "https://[2001:db8::1]:8443/"
    assert str(Target("https", "2001:db8::1", 443, "/")) == "https://[2001:db8::1]/"

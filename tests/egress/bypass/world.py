"""The world of the battery: which names and addresses there are, which of them the policy allows, and what an attempt aims at."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from secrets import choice
from string import ascii_lowercase

# Public addresses, reachable by nobody outside of the battery's own network namespace.
ALLOWED4, ALLOWED6 = "93.184.215.14", "2606:2800:220:1::14"
PARTNER4 = "93.184.215.15"
NARROW4 = "93.184.215.16"
DENIED4, DENIED6 = "93.184.215.17", "2606:2800:220:1::17"
BLOCKED4 = "93.184.215.18"
UDP_ALLOWED4 = "93.184.215.20"
NAMESERVER4 = "10.0.0.53"
PRIVATE4, CARRIER4, HOME4, OFFICE4 = "10.1.2.3", "100.64.1.1", "192.168.7.7", "172.16.9.9"
METADATA4, METADATA6 = "169.254.169.254", "fd00:ec2::254"

# The same denied server, written into an IPv6 address.
NAT64 = "64:ff9b::5db8:d711"
NAT64_PRIVATE = "64:ff9b::a01:203"
SIX_TO_FOUR = "2002:5db8:d711::1"
TEREDO = "2001:0:5db8:d711::1"
COMPATIBLE = "::5db8:d711"
MAPPED = "::ffff:93.184.215.17"

ADDRESSES = (
    ALLOWED4, ALLOWED6, PARTNER4, NARROW4, DENIED4, DENIED6, BLOCKED4, UDP_ALLOWED4, NAMESERVER4, PRIVATE4, CARRIER4, HOME4,
    OFFICE4, METADATA6, NAT64, NAT64_PRIVATE, SIX_TO_FOUR, TEREDO, COMPATIBLE,
)  # fmt: skip
"""What `lo` carries; the metadata service has an interface of its own, as link-local addresses do."""

HTTP, HTTPS, ALTERNATE, TLS_ALTERNATE, PROXY, SOCKS, DNS, POSTGRES, UDP, PROVIDER, BANNER = (
    80, 443, 8080, 8443, 3128, 1080, 53, 5432, 9000, 8701, 2525,
)  # fmt: skip

# Names and what they resolve to. A name that is not here is answered as its nearest parent is.
ZONE: dict[str, tuple[str, ...]] = {
    "allowed.test": (ALLOWED4, ALLOWED6),
    "front.allowed.test": (ALLOWED4,),
    "partner.test": (DENIED4,),
    "shop.partner.test": (PARTNER4,),
    "inner.partner.test": (PRIVATE4,),
    "loop.partner.test": ("127.0.0.1",),
    "meta.partner.test": (METADATA4,),
    "nat.partner.test": (NAT64_PRIVATE,),
    "mapped.partner.test": ("::ffff:10.1.2.3",),
    "mixed.partner.test": (PRIVATE4, PARTNER4),
    "blocked.partner.test": (BLOCKED4,),
    "narrow.test": (NARROW4,),
    "xallowed.test": (DENIED4,),
    "denied.test": (DENIED4, DENIED6),
    "four.denied.test": (DENIED4,),
    "six.denied.test": (DENIED6,),
    "front.denied.test": (ALLOWED4,),
    "attacker.test": (DENIED4,),
    "metadata.google.internal": (METADATA4,),
}
ALIASES = {"alias.partner.test": "blocked.partner.test"}
REBINDING = {"rebind.partner.test": (PARTNER4, PRIVATE4), "rebind-meta.partner.test": (PARTNER4, METADATA4)}
"""Names whose first answer is harmless, and every later one is not. Their TTL is 0."""

POLICY = f"""\
agent_config:
  name: battery
  external_calls:
    allowed_domains:
      - allowed.test
      - "*.partner.test"
      - "narrow.test:{TLS_ALTERNATE}"
      - "127.0.0.1:{PROVIDER}"
    blocked_domains: ["*", blocked.partner.test]
  llm: {{}}
"""
POLICY_WITH_UDP = POLICY.replace("    allowed_domains:", "    allow_udp: true\n    allowed_domains:")


def is_allowed_name(name: str) -> bool:
    """Whether the policy above allows to look a name up."""
    name = name.lower().rstrip(".")
    return name in {"allowed.test", "narrow.test"} or (name.endswith(".partner.test") and name != "blocked.partner.test")


def is_allowed_address(address: str, port: int) -> bool:
    """Whether a contact at this address and port is none of a denied server's."""
    folded = str(ipaddress.ip_address(address))
    if folded in {ALLOWED4, ALLOWED6, PARTNER4, UDP_ALLOWED4}:
        return True
    return (folded, port) in {(NARROW4, TLS_ALTERNATE), ("127.0.0.1", PROVIDER)} or (folded, port) == (NAMESERVER4, DNS)


TOKEN = re.compile(r"xq[a-z]{12}qx")
"""What marks an attempt's data. Letters only: it survives a DNS label, a header, a user name and a change of case."""


def new_token() -> str:
    return f"xq{''.join(choice(ascii_lowercase) for _ in range(12))}qx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What one attempt wants to bring out, and where to. `token` must reach a server that the policy denies."""

    token: str
    scratch: str
    certificates: str

    def url(self, host: str = "denied.test", *, scheme: str = "http", port: int | None = None) -> str:
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}{'' if port is None else f':{port}'}/{self.token}"

    def request(self, host: str = "denied.test", *, more: str = "Connection: close\r\n") -> bytes:
        """An HTTP request that carries the token."""
        return f"GET /{self.token} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()

    @property
    def secret(self) -> bytes:
        return self.token.encode()

    @property
    def secret_name(self) -> str:
        """A name in the attacker's zone: to ask for it is to tell him."""
        return f"{self.token}.attacker.test"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificates)

    def redirect(self, to: str, *, status: int = 302) -> str:
        """A page of an allowed server that sends the client on."""
        from urllib.parse import quote

        return f"http://allowed.test/redirect/{status}/{quote(to, safe='')}"

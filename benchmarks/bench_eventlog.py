"""What the event log costs the worker, per event. Target: at most 15 us."""

from __future__ import annotations

import tempfile
import time

from agentguard.audit import EventLog
from agentguard.core.call import HTTPCall, LLMCall, Target, Usage
from agentguard.core.caller import Caller
from agentguard.core.decision import Reason, deny
from agentguard.events import Attempt, CallAdmitted, CallDenied, CallSettled
from agentguard.policy.model import Rule
from agentguard.wire.answer import Answer

EVENTS = 50_000
ROUNDS = 5

CALLER = Caller(agents=("researcher",), session="5f0c3c1e-6b1d-4e53-9d1e-2f9c8f1b7a10", user="u-17")
TARGET = Target("https", "api.openai.com", 443, "/v1/chat/completions")
CHAT = LLMCall("chat", "openai", "gpt-5-mini", TARGET, input_bytes=4000)
POST = HTTPCall("POST", Target("https", "paste.evil.example", 443, "/new"))
DENIAL = deny(Reason.EGRESS, Rule("external_calls.allowed_domains", "agents.yaml", 12), "no", "add it")
ANSWER = Answer(response_id="chatcmpl-123", response_model="gpt-5-mini-2026-01-01", finish_reasons=("stop",))
ATTEMPTS = (Attempt("POST", TARGET, 1_767_225_600.1, 1_767_225_601.2, 200),)
USAGE = Usage(1200, 300, 800)

KINDS = {
    "call admitted": CallAdmitted(1_767_225_600.0, "a1b2c3-1", CHAT, CALLER, 1500, 3_000_000),
    "call settled": CallSettled(
        1_767_225_602.0, "a1b2c3-1", CHAT, CALLER, 1_767_225_600.0, USAGE, 912_000, "complete", "", ANSWER, ATTEMPTS, None, 1500
    ),
    "call denied (written at once)": CallDenied(1_767_225_600.0, "a1b2c3-2", POST, CALLER, DENIAL, True),
}


def main() -> None:
    for name, event in KINDS.items():
        best = min(measured(event) for _ in range(ROUNDS))
        print(f"{name:32}{best:6.2f} us per event, process CPU {'ok' if best <= 15 else 'OVER'}")


def measured(event):
    with tempfile.TemporaryDirectory() as directory:
        log = EventLog(directory)
        log(event)
        begun = time.process_time()
        for _ in range(EVENTS):
            log(event)
        log.flush()
        spent = time.process_time() - begun
        log.close()
    return spent / EVENTS * 1e6


if __name__ == "__main__":
    main()

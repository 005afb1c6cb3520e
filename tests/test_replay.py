"""Past calls under another policy: logs that a real guard has written, on a clock that stands still."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentguard
from agentguard import Denied, Guard, HTTPCall, LLMCall, Policy, Usage
from agentguard.audit import EventLog, read_events, record_of
from agentguard.audit.past import history
from agentguard.context import CALLER
from agentguard.core.call import Target
from agentguard.core.caller import Caller
from agentguard.events import Attempt, CallDenied
from agentguard.policy.model import Price
from agentguard.replay import replay
from agentguard.testing import FrozenClock

OPENAI = Target("https", "api.openai.com", 443, "/v1/chat/completions")


def policy(*budgets, mode="enforce", **agent):
    worker = {
        "name": "bot",
        "llm": {"providers": ["openai"]},
        "external_calls": {"allowed_domains": ["*.acme.com"], "blocked_domains": ["*"]},
        "budgets": [{"limit": budget} if isinstance(budget, str) else budget for budget in budgets],
    }
    return Policy.from_mapping({"mode": mode, "agents": [worker | agent]})


class Prices:
    """Ten dollars for a million tokens in, twenty for a million out."""

    def price(self, provider, model, input_tokens):
        return Price(input=10 * 10**9, output=20 * 10**9)


class Recording:
    """A guard, and what it has told."""

    def __init__(self, recorded_policy, **more):
        self.clock = FrozenClock()
        self.records = []
        self.guard = Guard(recorded_policy, clock=self.clock, prices=Prices(), **more)
        self.guard.observe(lambda event: self.records.append(json.loads(json.dumps(record_of(event)))))

    def call(self, call, usage=None, seconds=1.0, caller=None, hops=()):
        token = CALLER.set(caller) if caller is not None else None
        try:
            with self.guard.admit(call) as admission:
                self.clock.advance(seconds)
                admission.attempts.extend(hops)
                admission.settle(usage or Usage())
        except Denied:
            return False
        finally:
            if token is not None:
                CALLER.reset(token)
        return True

    def get(self, host="api.acme.com", **more):
        return self.call(HTTPCall("GET", Target("https", host, 443, "/")), **more)

    def chat(self, tokens, model="gpt-5", **more):
        call = LLMCall("chat", "openai", model, OPENAI, max_output_tokens=tokens, input_bytes=0)
        return self.call(call, Usage(0, tokens), **more)

    def history(self):
        assert self.guard.flush()
        return history(self.records)

    def under(self, other):
        return replay(other, self.history().calls, Prices())


@pytest.fixture
def recording():
    made = []

    def record(recorded_policy, **more):
        made.append(Recording(recorded_policy, **more))
        return made[-1]

    yield record
    for one in made:
        one.guard.close()


def rules(groups):
    return {group.rule: group.calls for group in groups}


def test_a_host_that_the_other_policy_does_not_list_would_have_been_refused(recording):
    past = recording(policy())
    past.get("a.acme.com")
    past.get("a.acme.com")
    past.get("b.acme.com")

    found = past.under(policy(external_calls={"allowed_domains": ["b.acme.com"]}))

    (group,) = found.refused
    assert (group.agent, group.rule, group.calls, group.what) == (
        "bot",
        "external_calls.allowed_domains",
        2,
        (("GET a.acme.com", 2),),
    )
    assert "'a.acme.com'" in group.example
    assert found.allowed == ()


def test_a_host_that_was_refused_and_is_listed_now_would_have_been_allowed(recording):
    past = recording(policy())
    assert not past.get("pastebin.com")

    found = past.under(policy(external_calls={"allowed_domains": ["*.acme.com", "pastebin.com"]}))

    assert (found.refused, rules(found.allowed)) == ((), {"external_calls.allowed_domains": 1})


def test_what_report_mode_only_recorded_was_refused_then_and_is_now(recording):
    past = recording(policy(mode="report"))
    assert past.get("pastebin.com")

    found = past.under(policy())

    assert (found.refused, found.allowed, rules(found.still_refused)) == ((), (), {"external_calls.allowed_domains": 1})


def test_a_redirect_is_judged_as_the_host_that_is_called(recording):
    past = recording(policy())
    target = Target("https", "cdn.acme.com", 443, "/")
    past.get("api.acme.com", hops=[Attempt("GET", target, 1.0, 2.0, 200)])

    found = past.under(policy(external_calls={"allowed_domains": ["api.acme.com"]}))

    assert rules(found.refused) == {"external_calls.allowed_domains": 1}


def test_models_are_judged(recording):
    past = recording(policy())
    past.chat(10, "gpt-5")
    past.chat(10, "o3")

    found = past.under(policy(llm={"providers": ["openai"], "models": ["gpt-5*"]}))

    assert rules(found.refused) == {"llm.models": 1}


def test_tools_that_ran_and_that_were_refused_are_judged(recording):
    @agentguard.tool
    def search():
        return 1

    @agentguard.tool
    def remove():
        return 2

    past = recording(policy(tools={"allowed": ["search"]}))
    with past.guard:
        search()
        with pytest.raises(Denied):
            remove()

    found = past.under(policy(tools={"allowed": ["remove"]}))

    assert [group.what for group in found.refused] == [(("tool search", 1),)]
    assert [group.what for group in found.allowed] == [(("tool remove", 1),)]


def test_a_tool_that_report_mode_let_run_is_one_call(recording):
    @agentguard.tool
    def remove():
        return 2

    past = recording(policy(mode="report", tools={"allowed": []}))
    with past.guard:
        remove()

    assert past.under(policy(tools={"allowed": []})).calls == 1


def test_a_token_budget_fills_with_what_was_used(recording):
    past = recording(policy())
    for _ in range(5):
        past.chat(300)

    found = past.under(policy("1000 tokens"))

    (group,) = found.refused
    assert (group.rule, group.calls) == ("budgets[0]", 2)
    assert "1,000 tokens" in group.example


def test_a_call_that_would_have_been_refused_uses_nothing_up(recording):
    past = recording(policy())
    for tokens in (800, 900, 150):
        past.chat(tokens)

    assert rules(past.under(policy("1000 tokens")).refused) == {"budgets[0]": 1}


def test_a_money_budget_counts_at_the_other_policys_prices(recording):
    past = recording(policy())
    for _ in range(3):
        past.chat(1000)  # two cents each

    assert rules(past.under(policy("$0.05")).refused) == {"budgets[0]": 1}
    dear = {"providers": ["openai"], "prices": {"gpt-5": {"input": "$1", "output": "$100"}}}
    assert rules(past.under(policy("$0.15", llm=dear)).refused) == {"budgets[0]": 2}


def test_a_window_starts_anew_on_the_recorded_clock(recording):
    past = recording(policy())
    for _ in range(4):
        past.chat(600, seconds=1800)

    assert past.under(policy({"limit": "1200 tokens", "every": "hour"})).refused == ()
    assert rules(past.under(policy({"limit": "1200 tokens", "every": "day"})).refused) == {"budgets[0]": 2}


def test_a_rate_is_kept_on_the_recorded_clock(recording):
    past = recording(policy())
    for _ in range(12):
        past.get(seconds=6.0)

    assert rules(past.under(policy("5_requests_per_minute")).refused) == {"budgets[0]": 6}
    assert past.under(policy("12_requests_per_minute")).refused == ()


def test_sessions_are_counted_apart(recording):
    past = recording(policy())
    for session in ("a", "b", "a", "b"):
        past.chat(400, caller=Caller(("bot",), session))

    assert past.under(policy({"limit": "800 tokens", "per": "session"})).refused == ()
    assert rules(past.under(policy({"limit": "700 tokens", "per": "session"})).refused) == {"budgets[0]": 2}


def test_calls_at_once_would_have_waited(recording):
    past = recording(policy())
    call = HTTPCall("GET", Target("https", "api.acme.com", 443, "/"))
    first, second = past.guard.begin(call), past.guard.begin(call)
    past.clock.advance(1)
    first.settle()
    second.settle()
    past.get()

    found = past.under(policy("1 concurrent_calls"))

    assert (found.refused, found.waited) == ((), 1)


def waiting(policy_of_limits, wait):
    return dataclasses.replace(policy_of_limits, limits=dataclasses.replace(policy_of_limits.limits, wait_seconds=wait))


def test_a_call_waits_for_a_window_as_long_as_the_policy_says(recording):
    past = recording(policy())
    for _ in range(12):
        past.get(seconds=2.0)

    limited = policy("5_requests_per_minute")

    assert past.under(limited).waited == 0
    assert rules(past.under(waiting(limited, 20)).refused) == {"budgets[0]": 7}
    patient = past.under(waiting(limited, 300))
    assert (patient.refused, patient.waited) == ((), 7)


def test_of_calls_that_wait_for_a_window_no_more_go_than_it_holds(recording):
    past = recording(policy())
    for _ in range(4):
        past.chat(400, seconds=5.0)
    limited = policy({"limit": "800 tokens", "every": "60s"})

    found = past.under(waiting(limited, 62))

    assert (found.calls, found.refused, found.waited) == (4, (), 2)
    assert rules(past.under(waiting(limited, 30)).refused) == {"budgets[0]": 2}


def test_a_budget_for_life_is_not_waited_for(recording):
    past = recording(policy())
    past.get()
    past.get()

    found = past.under(waiting(policy("1 calls"), 300))

    assert (rules(found.refused), found.waited) == ({"budgets[0]": 1}, 0)


def test_an_isolation_is_not_the_policys_refusal(recording):
    past = recording(policy())
    past.guard.isolate("agent:bot", by="me", why="test")
    assert not past.get()

    found = past.under(policy())

    assert (found.calls, found.allowed, found.still_refused) == (1, (), ())


def test_broken_records_are_passed_over_and_counted(recording):
    past = recording(policy())
    past.get()
    past.history()
    broken = [record | {"target": "https://"} for record in past.records if record["kind"] == "call_settled"]
    odd = [
        {"kind": "call_denied", "at_us": 1},
        {"kind": "unheard of", "at_us": 2},
        {"kind": "scope_ended", "at_us": 1, "scope": 3},
    ]

    found = history([*past.records, *broken, *odd])

    assert (len(found.calls), found.unreadable) == (1, 2)


def test_what_the_layers_below_http_refused_is_read_as_far_as_it_names_a_host(recording):
    past = recording(policy())
    for target in (
        Target("tcp", "10.0.0.7", 5432, "/"),
        Target("dns", "db.acme.com", 0, ""),
        Target("unix", "/run/docker.sock", 0, ""),
        Target("af_packet", "AF_PACKET", 0, ""),
    ):
        decision = past.guard.check(HTTPCall("GET", Target("https", "else.example", 443, "/")))
        past.guard.tell(
            CallDenied(past.clock.time(), next(past.guard.ids), HTTPCall("CONNECT", target), Caller(), decision, True)
        )

    found = past.history()

    assert [str(call.call.target) for call in found.calls] == ["tcp://10.0.0.7:5432/", "dns://db.acme.com:0/"]
    assert found.unreadable == 0
    listed = policy(external_calls={"allowed_domains": ["10.0.0.7:5432", "db.acme.com:5432"]})
    assert (past.under(listed).calls, rules(past.under(listed).allowed)) == (1, {"external_calls.allowed_domains": 1})


def test_a_log_on_disk_is_what_is_replayed(recording, tmp_path):
    past = recording(policy())
    log = EventLog(tmp_path)
    past.guard.observe(log)
    past.get("a.acme.com")
    past.get("pastebin.com")
    past.guard.flush()
    log.close()

    found = replay(policy(external_calls={"allowed_domains": ["pastebin.com"]}), history(read_events(tmp_path)).calls)

    assert (found.calls, rules(found.refused), len(found.allowed)) == (2, {"external_calls.allowed_domains": 1}, 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "chat", "elsewhere"]),
        st.integers(1, 500),
        st.sampled_from([1.0, 7.0, 30.0, 400.0, 4000.0]),
        st.sampled_from(["s1", "s2", None]),
    ),
    max_size=25,
)
BUDGETS = st.lists(
    st.sampled_from(
        [
            "3 calls",
            "10_requests_per_minute",
            "2_requests_per_minute",
            {"limit": "5 calls", "every": "hour"},
            {"limit": "4 calls", "per": "session"},
            {"limit": "6 calls", "over": "external"},
            {"limit": "600 tokens", "every": "hour"},
            {"limit": "1000 tokens", "per": "session"},
            {"limit": "$0.02", "every": "hour"},
        ]
    ),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, BUDGETS)
def test_under_the_policy_that_was_in_force_nothing_would_have_been_refused_that_was_allowed(steps, budgets):
    past = Recording(policy(*budgets))
    try:
        for kind, tokens, seconds, session in steps:
            caller = Caller(("bot",), session)
            if kind == "chat":
                past.chat(tokens, seconds=seconds, caller=caller)
            else:
                past.get("api.acme.com" if kind == "get" else "else.example", seconds=seconds, caller=caller)

        found = past.under(policy(*budgets))

        assert found.calls == len(steps)
        assert found.refused == ()
        if not any("tokens" in str(budget) or "$" in str(budget) for budget in budgets):
            assert found.allowed == ()  # nothing was estimated: the same history, the same answers
    finally:
        past.guard.close()

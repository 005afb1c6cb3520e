"""Seams stand where they should, are put back when somebody takes them away, and leave no trace when they are removed."""

from __future__ import annotations

import functools
import logging
import sys
import types

import anthropic
import httpx2
import openai
import pytest
import wrapt
from opentelemetry.instrumentation.utils import unwrap
from wrapt import wrap_function_wrapper

import agentguard
from agentguard import BudgetExceeded, Guard, Policy, SeamError
from agentguard.events import CallAdmitted, CallSettled, PolicyLoaded, SeamChanged
from agentguard.integrations._seam import Hook, Integration, Seam, Seams, version_of
from agentguard.integrations.registry import integrations

HELLO = [{"role": "user", "content": "hello"}]
OPENAI = openai._base_client.SyncAPIClient
BUDGET = {"limit": "1000 tokens"}
WORKER = {"name": "worker", "external_calls": {"allowed_domains": ["127.0.0.1"]}, "llm": {}, "budgets": [BUDGET]}


@pytest.fixture
def policy():
    return Policy.from_mapping({"agents": [WORKER]})


@pytest.fixture
def events():
    return []


@pytest.fixture(autouse=True)
def _own_state(monkeypatch, tmp_path):
    monkeypatch.setenv("AGENTGUARD_STATE_DIR", str(tmp_path))
    yield
    agentguard.uninstrument()


@pytest.fixture
def instrument(policy, events):
    def instrument(**more):
        return agentguard.instrument(policy, store="memory://", observers=[events.append], **more)

    return instrument


@pytest.fixture
def client(provider):
    with openai.OpenAI(base_url=provider.url("/v1"), api_key="sk-test") as client:
        yield client


def create(client, **more):
    return client.chat.completions.create(model="gpt-5", messages=HELLO, **({"max_tokens": 16} | more))


def told(instrumentation, events, kind):
    instrumentation.guard.flush()
    return [event for event in events if type(event) is kind]


def states(instrumentation, library):
    return {status.state for status in instrumentation.status() if status.library == library}


def spent(instrumentation):
    return sum(balance.spent for _, balance in instrumentation.guard.usage())


# --- on ----------------------------------------------------------------------------------------------------------------


def test_every_observer_is_told_of_the_policy_that_is_in_force(instrument, events, policy):
    instrument().guard.flush()

    [loaded] = [event for event in events if isinstance(event, PolicyLoaded)]
    assert loaded.agents == tuple(agent.name for agent in policy.agents)


def test_status_lists_every_seam_of_an_installed_library(instrument):
    status = instrument().status()

    assert {one.library for one in status} >= {
        "openai",
        "anthropic",
        "httpx",
        "httpx2",
        "requests",
        "urllib3",
        "aiohttp",
        "python",
    }
    assert all(version_of(one.library) for one in status), "what is not installed is not listed"
    seam = next(one for one in status if one.seam == "openai._base_client:SyncAPIClient.request")
    assert (seam.library, seam.version, seam.state) == ("openai", openai.__version__, "hooked")


def test_a_library_that_is_not_imported_waits(policy):
    code = """
import agentguard
agent = {"name": "worker", "llm": {}}
with agentguard.instrument(agentguard.Policy.from_mapping({"agents": [agent]}), store="memory://") as one:
    print({status.state for status in one.status() if status.library == "openai"})
    import openai
    print({status.state for status in one.status() if status.library in {"openai", "httpx2"}})
"""
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.split("\n")[:2] == ["{'waiting'}", "{'hooked'}"]


def test_instrument_is_idempotent(instrument, provider, client, events):
    first, second = instrument(), instrument()

    create(client)

    assert first is second
    assert len(told(first, events, CallAdmitted)) == 1
    assert spent(first) == provider.tokens


def test_instrument_is_a_context_manager(policy, provider, client):
    original = vars(OPENAI)["request"]

    with agentguard.instrument(policy, store="memory://"):
        assert vars(OPENAI)["request"] is not original
        create(client)

    assert vars(OPENAI)["request"] is original
    with pytest.raises(agentguard.NotInstrumented):
        agentguard.current_guard()


def test_only_the_named_libraries_are_hooked(instrument, provider, client):
    one = instrument(only=["httpx2"])

    create(client)

    assert {status.library for status in one.status()} == {"httpx2"}
    assert spent(one) == provider.tokens


def test_an_unknown_library_is_refused(instrument):
    with pytest.raises(ValueError, match="nosuchlib"):
        instrument(only=["nosuchlib"])


def test_a_second_seam_on_the_same_call_passes_it_through(instrument, provider, client, events):
    one = instrument()
    again = Seams(integrations(lambda module: None), lambda: one.guard, lambda *change: None)
    again.install()

    try:
        create(client)
        list(create(client, stream=True))
        with httpx2.Client() as bare:
            bare.post(provider.url("/v1/chat/completions"), json={"model": "gpt-5", "messages": HELLO, "max_tokens": 16})
    finally:
        again.remove()

    assert len(told(one, events, CallAdmitted)) == len(told(one, events, CallSettled)) == provider.calls == 3
    assert spent(one) == provider.tokens


def test_a_scoped_guard_takes_the_place_of_the_default(instrument, provider, client, policy):
    one = instrument()
    scoped = Guard(policy)

    with scoped:
        create(client)
    scoped.close()

    assert spent(one) == 0
    assert sum(balance.spent for _, balance in scoped.usage()) == provider.tokens


# --- off ---------------------------------------------------------------------------------------------------------------


def seams_of_process():
    """What stands on every seam now."""
    found = {}
    for one in integrations(lambda module: None):
        for hook in one.hooks:
            if hook.seam.module in sys.modules:
                owner, name, value = wrapt.resolve_path(sys.modules[hook.seam.module], hook.seam.path)
                found[str(hook.seam)] = vars(owner).get(name, value)
    return found


def test_uninstrument_puts_back_the_very_functions_that_stood_there(instrument):
    before = seams_of_process()

    instrument().uninstrument()

    after = seams_of_process()
    assert {seam for seam in before if before[seam] is not after[seam]} == set()
    assert len(before) > 10


def test_uninstrument_twice_is_once(instrument):
    one = instrument()

    one.uninstrument()
    one.uninstrument()
    agentguard.uninstrument()

    assert one.status() == []


def foreign(wrapped, instance, args, kwargs):
    foreign.calls += 1
    return wrapped(*args, **kwargs)


foreign.calls = 0


@pytest.fixture
def untouched():
    """Puts everything back that a test does to openai's client."""
    original = vars(OPENAI)["request"]
    foreign.calls = 0
    yield original
    OPENAI.request = original


def test_a_foreign_wrapper_above_stays_and_works_when_we_go(instrument, provider, client, untouched):
    one = instrument()
    wrap_function_wrapper(openai._base_client, "SyncAPIClient.request", foreign)

    create(client)
    one.uninstrument()
    create(client, max_tokens=5000)

    assert (foreign.calls, provider.calls) == (2, 2)
    assert vars(OPENAI)["request"].__wrapped__ is untouched


def test_a_foreign_wrapper_below_stays_and_works_when_we_go(instrument, provider, client, untouched):
    wrap_function_wrapper(openai._base_client, "SyncAPIClient.request", foreign)
    theirs = vars(OPENAI)["request"]
    one = instrument()

    create(client)
    one.uninstrument()
    create(client, max_tokens=5000)

    assert (foreign.calls, provider.calls) == (2, 2)
    assert vars(OPENAI)["request"] is theirs


def close_over_request():
    """What many tools do: a plain function in the place of ours, with ours in its closure."""
    ours = OPENAI.request

    @functools.wraps(ours)
    def request(*args, **kwargs):
        foreign.calls += 1
        return ours(*args, **kwargs)

    OPENAI.request = request


def test_below_a_foreign_closure_we_are_inert_when_we_go(instrument, provider, client, untouched):
    one = instrument()
    close_over_request()

    create(client)
    with pytest.raises(BudgetExceeded):
        create(client, max_tokens=5000)
    one.uninstrument()
    create(client, max_tokens=5000)

    assert (foreign.calls, provider.calls) == (3, 2)


def test_instrumenting_anew_over_a_foreign_closure_counts_once(instrument, provider, client, events, untouched):
    instrument().uninstrument()
    first = instrument()
    close_over_request()
    first.uninstrument()
    events.clear()
    provider.clear()
    second = instrument()

    create(client)

    assert len(told(second, events, CallAdmitted)) == provider.calls == 1
    assert spent(second) == provider.tokens


def test_a_bound_method_that_was_captured_before_we_went_is_free(instrument, provider, client):
    one = instrument()
    request = client.chat.completions.create

    one.uninstrument()
    request(model="gpt-5", messages=HELLO, max_tokens=5000)

    assert provider.calls == 1


def test_a_stream_that_is_open_when_we_go_goes_on(instrument, provider, client):
    one = instrument()
    stream = create(client, stream=True)

    next(stream)
    one.uninstrument()

    assert len(list(stream)) > 10


# --- taken away --------------------------------------------------------------------------------------------------------


def test_a_seam_below_that_somebody_removes_is_noticed_and_put_back_at_the_next_call(instrument, provider, client, events):
    one = instrument()
    create(client)
    unwrap(httpx2.Client, "send")
    unwrap(httpx2.Client, "_send_single_request")
    assert states(one, "httpx2") == {"hooked", "lost"}

    create(client)

    assert states(one, "httpx2") == {"hooked"}
    lost = [event.seam for event in told(one, events, SeamChanged) if event.state == "lost"]
    assert lost == ["httpx2:Client.send", "httpx2:Client._send_single_request"]
    assert spent(one) == provider.tokens
    assert len(told(one, events, CallSettled)[-1].attempts) == 1


def test_a_redirect_is_denied_although_somebody_removed_the_seam_below(instrument, provider, recorder, client):
    instrument()
    provider.redirect("/v1/chat/completions", to=recorder.url("/steal"))
    unwrap(httpx2.Client, "_send_single_request")

    with pytest.raises(agentguard.EgressDenied):
        create(client)

    assert recorder.calls == 0


def test_without_its_own_seam_an_sdks_call_is_counted_below(instrument, provider, client, events):
    one = instrument()
    unwrap(OPENAI, "request")

    create(client)
    with pytest.raises(BudgetExceeded):
        create(client, max_tokens=5000)

    assert "lost" in states(one, "openai")
    assert provider.calls == 1
    assert spent(one) == provider.tokens


def test_a_class_that_is_patched_whole_is_noticed_too(instrument, provider, client, monkeypatch):
    one = instrument()
    monkeypatch.setattr(httpx2.Client, "send", vars(httpx2.Client)["send"].__wrapped__)

    create(client)

    assert states(one, "httpx2") == {"hooked"}
    assert spent(one) == provider.tokens
    one.uninstrument()


# --- missing -----------------------------------------------------------------------------------------------------------


def test_a_seam_that_is_missing_raises_where_the_policy_enforces(instrument, monkeypatch, policy):
    monkeypatch.delattr(OPENAI, "request")
    before = vars(httpx2.Client)["send"]

    with pytest.raises(SeamError, match=rf"openai {openai.__version__} has no openai\._base_client:SyncAPIClient\.request"):
        instrument()

    assert vars(httpx2.Client)["send"] is before, "nothing is left half done"
    with pytest.raises(agentguard.NotInstrumented):
        agentguard.current_guard()


def test_a_seam_of_another_shape_is_missing(instrument, monkeypatch):
    monkeypatch.setattr(OPENAI, "request", lambda self, everything: None)

    with pytest.raises(SeamError):
        instrument()


def test_a_seam_that_is_missing_is_logged_and_told_where_the_policy_reports(instrument, monkeypatch, caplog, events, provider):
    monkeypatch.delattr(OPENAI, "request")

    with caplog.at_level(logging.ERROR, "agentguard"):
        one = instrument(mode="report")
    with anthropic.Anthropic(base_url=provider.base_url, api_key="sk-test") as client:
        client.messages.create(model="claude-sonnet-5", messages=HELLO, max_tokens=16)

    assert "missing" in states(one, "openai")
    assert any("not observed" in record.message for record in caplog.records)
    assert [event.seam for event in told(one, events, SeamChanged) if event.state == "missing"]
    assert spent(one) == provider.tokens, "the other libraries are"


FAKE = "agentguard_fake_library"


@pytest.fixture
def fake():
    """A library of our own, to be imported later."""
    module = types.ModuleType(FAKE)

    class Client:
        def send(self, request):
            return f"sent {request}"

        def post(self, body):
            return self.send(body)

    module.Client = Client
    yield module
    sys.modules.pop(FAKE, None)


def passing(seen):
    def wrap(resolve):
        def send(wrapped, instance, args, kwargs):
            seen.append(resolve())
            return wrapped(*args, **kwargs)

        return send

    return wrap


def seams_on(seam, seen, changes, fallback=None):
    hook = Hook(seam, passing(seen), passing(seen) if fallback else None)
    return Seams([Integration("pytest", (hook,))], lambda: "guard", lambda *change: changes.append(change))


def test_a_fallback_stands_in_for_a_seam_that_is_gone(fake):
    seen, changes = [], []
    sys.modules[FAKE] = fake
    seams = seams_on(Seam(FAKE, "Client._gone", fallback=Seam(FAKE, "Client.send")), seen, changes, fallback=True)

    seams.install()
    fake.Client().send("x")
    [status] = seams.status()
    seams.remove()

    assert seen == ["guard"]
    assert status.state == "fallback"
    assert [state for _, _, state in changes] == ["fallback", "removed"]


def test_a_parameter_that_is_gone_makes_a_seam_missing(fake):
    seen, changes = [], []
    sys.modules[FAKE] = fake
    seams = seams_on(Seam(FAKE, "Client.send", ("request", "stream")), seen, changes)

    with pytest.raises(SeamError, match="in the shape that agentguard relies on"):
        seams.install()
    seams.remove()

    assert [state for _, _, state in changes] == ["missing"]


def test_what_was_captured_under_a_closure_goes_inert(fake):
    seen, changes = [], []
    sys.modules[FAKE] = fake
    seams = seams_on(Seam(FAKE, "Client.send"), seen, changes)
    seams.install()
    ours = fake.Client.send
    fake.Client.send = lambda self, request: f"{ours(self, request)} by another"

    seams.remove()
    fake.Client().send("x")

    assert seen == [None], "it is still on the path, and finds no guard"


def test_a_library_that_is_imported_later_without_its_seam_fails_its_import_or_is_forgiven(fake, tmp_path, monkeypatch, caplog):
    (tmp_path / f"{FAKE}.py").write_text("class Client: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen, changes = [], []
    hook = Hook(Seam(FAKE, "Client.send"), passing(seen))
    forgiving = Seams([Integration("pytest", (hook,))], lambda: "guard", lambda *change: changes.append(change), lambda: True)
    forgiving.install()
    __import__(FAKE)
    forgiving.remove()
    del sys.modules[FAKE]
    strict = Seams([Integration("pytest", (hook,))], lambda: "guard", lambda *change: changes.append(change))
    strict.install()

    with pytest.raises(SeamError):
        __import__(FAKE)
    strict.remove()

    assert [state for _, _, state in changes] == ["missing", "missing"]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["agentguard"]

"""Who is calling: identity narrows, is carried on purpose only, and is what limits count against."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from agentguard import (
    AgentIsolated,
    BudgetExceeded,
    EgressDenied,
    Guard,
    HTTPCall,
    LLMCall,
    ModelDenied,
    NotInstrumented,
    Policy,
    StoreUnavailable,
    ToolDenied,
    Usage,
    agent,
    budget,
    propagate,
    session,
)
from agentguard.context import BudgetBlock, current_caller, waiting
from agentguard.core.call import Target, ToolCall
from agentguard.core.caller import NOBODY

HERE = Target("http", "127.0.0.1", 80, "/v1/chat/completions")


def call(model="gpt-5", max_tokens=100):
    return LLMCall("chat", "openai", model, HERE, max_output_tokens=max_tokens)


def get(host):
    return HTTPCall.to("GET", f"http://{host}/")


def agents(*documents, **more):
    return Policy.from_mapping({"agents": list(documents)} | more)


def named(name, *hosts, **more):
    return {"name": name, "external_calls": {"allowed_domains": list(hosts or ["127.0.0.1"])}, "llm": {}} | more


@pytest.fixture
def guard():
    """Make a guard that is in scope."""
    made = []

    def make(*documents, agent=None, **more):
        one = Guard(agents(*documents, **more), agent=agent)
        made.append(one.__enter__())
        return one

    yield make
    for one in reversed(made):
        one.__exit__(None, None, None)
        one.close()


def use(guard, tokens=10, **more):
    with guard.admit(call(**more)) as admission:
        admission.settle(Usage(0, tokens))


def spent(guard):
    """What each subject has spent."""
    return {row.subject: balance.spent for row, balance in guard.usage()}


# --- agents ------------------------------------------------------------------------------------------------------------


def test_nobody_is_the_only_agent_of_the_policy(guard):
    one = guard(named("worker", budgets=[{"limit": "1000 tokens"}]))

    use(one)

    assert current_caller() == NOBODY
    assert one.identified(NOBODY).agent == "worker"
    assert spent(one) == {"agent:worker": 10}


def test_a_bare_thread_is_charged_to_the_process_agent(guard):
    one = guard(named("worker", budgets=[{"limit": "1000 tokens"}]), named("other"), agent="worker")

    thread = threading.Thread(target=use, args=(one,))
    thread.start()
    thread.join()

    assert spent(one) == {"agent:worker": 10}


def test_without_identity_among_several_agents_only_what_all_may_is_allowed(guard):
    one = guard(named("a", "127.0.0.1", "both.example", "a.example"), named("b", "127.0.0.1", "both.example", "b.example"))

    allowed = {host for host in ("both.example", "a.example", "b.example") if one.check(get(host)).allowed}

    assert allowed == {"both.example"}


def test_without_identity_among_several_agents_the_call_is_charged_to_all(guard):
    one = guard(named("a", budgets=[{"limit": "1000 tokens"}]), named("b", budgets=[{"limit": "50 tokens"}]))

    with pytest.raises(BudgetExceeded):
        use(one)
    with agent("a"):
        use(one)

    assert spent(one) == {"agent:a": 10, "agent:b": 0}


def test_an_agent_that_the_policy_does_not_name_may_do_what_all_may(guard):
    one = guard(named("a", "127.0.0.1", "both.example", "a.example"), named("b", "127.0.0.1", "both.example"))

    with agent("stranger"):
        assert one.check(get("both.example")).allowed
        refusal = one.check(get("a.example"))

    assert not refusal.allowed
    assert "stranger" in refusal.message


def test_a_stranger_inside_of_an_agent_gains_nothing(guard):
    one = guard(named("a", "127.0.0.1"), named("b", "127.0.0.1", "b.example"))

    with agent("a"), agent("stranger"):
        assert not one.check(get("b.example")).allowed


def test_nested_agents_may_do_what_both_may(guard):
    one = guard(
        named(
            "outer",
            "127.0.0.1",
            "both.example",
            "outer.example",
            llm={"models": ["gpt-*"]},
            tools={"allowed": ["search", "mail"]},
        ),
        named("inner", "127.0.0.1", "both.example", "inner.example", llm={"models": ["gpt-5*"]}, tools={"allowed": ["search"]}),
    )

    with agent("outer"), agent("inner"):
        hosts = {host for host in ("both.example", "outer.example", "inner.example") if one.check(get(host)).allowed}
        models = {model for model in ("gpt-4", "gpt-5", "o3") if one.check(call(model)).allowed}
        tools = {tool for tool in ("search", "mail") if one.check(ToolCall(tool)).allowed}
    with agent("inner"), agent("outer"):
        reversed_hosts = {host for host in ("both.example", "outer.example", "inner.example") if one.check(get(host)).allowed}

    assert hosts == reversed_hosts == {"both.example"}
    assert models == {"gpt-5"}
    assert tools == {"search"}


def test_nested_agents_are_both_charged(guard):
    one = guard(named("outer", budgets=[{"limit": "1000 tokens"}]), named("inner", budgets=[{"limit": "150 tokens"}]))

    with agent("outer"), agent("inner"):
        use(one)
        use(one)
        use(one, tokens=90)
        with pytest.raises(BudgetExceeded, match="150 tokens"):
            use(one)
        assert current_caller().agents == ("outer", "inner")

    assert spent(one) == {"agent:outer": 110, "agent:inner": 110}


def test_an_agent_inside_of_itself_is_itself(guard):
    guard(named("a"))

    with agent("a"), agent("a"):
        assert current_caller().agents == ("a",)


def test_an_isolation_of_any_agent_of_the_chain_stops_the_call(guard):
    one = guard(named("outer"), named("inner"))
    one.isolate("agent:outer", by="on call", why="a drill")

    with agent("outer"), agent("inner"), pytest.raises(AgentIsolated):
        use(one)
    with agent("inner"):
        use(one)


def test_an_agent_that_the_policy_does_not_name_is_told_of_once(guard, caplog):
    one = guard(named("researcher"), named("writer"))
    for _ in range(2):
        with agent("resaercher"):
            one.check(get("127.0.0.1"))

    (warning,) = [record.getMessage() for record in caplog.records]
    assert "names no agent 'resaercher' (did you mean 'researcher'?)" in warning


@pytest.mark.parametrize("subject", ["session:s1", "user:u1", "fleet", "agent:worker"])
def test_whatever_is_isolated_stops_its_calls(guard, subject):
    one = guard(named("worker"))
    with session("s1", user="u1"):
        use(one)
        one.isolate(subject, by="on call", why="a drill")

        with pytest.raises(AgentIsolated, match=f"{subject} is isolated"):
            use(one)
        one.restore(subject, by="on call")
        use(one)


# --- threads -----------------------------------------------------------------------------------------------------------


def test_a_thread_of_ones_own_loses_identity_and_propagate_keeps_it(guard):
    guard(named("a"), named("b"))

    with agent("a"), session("s1"), ThreadPoolExecutor(1) as pool:
        bare = pool.submit(current_caller).result()
        carried = pool.submit(propagate(current_caller)).result()

    assert bare == NOBODY
    assert (carried.agents, carried.session) == (("a",), "s1")


def test_a_thread_that_lost_identity_has_the_narrower_rights(guard):
    one = guard(named("a", "127.0.0.1", "a.example"), named("b", "127.0.0.1"))

    with agent("a"), one, ThreadPoolExecutor(1) as pool:
        assert one.check(get("a.example")).allowed
        assert not pool.submit(one.check, get("a.example")).result().allowed
        assert pool.submit(propagate(one.check), get("a.example")).result().allowed


def test_propagate_carries_what_was_current_when_it_was_made(guard):
    guard(named("a"), named("b"))

    with agent("a"):
        carried = propagate(current_caller)
    with agent("b"):
        assert carried().agents == ("a",)


def test_one_propagated_function_runs_in_many_threads_at_once(guard):
    guard(named("a"))
    barrier = threading.Barrier(8, timeout=10)

    def work():
        barrier.wait()
        return current_caller().agent

    with agent("a"), ThreadPoolExecutor(8) as pool:
        carried = propagate(work)
        assert {future.result() for future in [pool.submit(carried) for _ in range(8)]} == {"a"}


def test_tasks_inherit_identity_and_do_not_mix_it(guard):
    guard(named("a"), named("b"))

    async def work(name):
        with agent(name):
            await asyncio.sleep(0)
            inner = asyncio.create_task(inherited())
            await asyncio.sleep(0)
            return await inner, current_caller().agent

    async def inherited():
        return current_caller().agent

    async def main():
        return await asyncio.gather(*(work(name) for name in "abab"))

    assert asyncio.run(main()) == [("a", "a"), ("b", "b")] * 2


# --- sessions, users, interactions -------------------------------------------------------------------------------------


def test_each_session_has_a_budget_of_its_own(guard):
    one = guard(named("worker", budgets=[{"limit": "150 tokens", "per": "session"}]))

    for name in ("s1", "s2"):
        with session(name):
            use(one, tokens=100)
            with pytest.raises(BudgetExceeded, match=f"session {name}"):
                use(one)

    assert spent(one) == {"session:s1@agent:worker": 100, "session:s2@agent:worker": 100}


def test_a_session_that_is_continued_keeps_what_it_has_spent(guard):
    one = guard(named("worker", budgets=[{"limit": "150 tokens", "per": "session"}]))

    with session("s1"):
        use(one, tokens=100)
    with session("s1"), pytest.raises(BudgetExceeded):
        use(one)


def test_a_session_without_an_id_gets_one():
    with session() as first, session() as second:
        assert first.id != second.id
        assert current_caller().session == second.id
    assert current_caller().session is None


def test_calls_without_a_session_share_one_so_that_leaving_it_out_gains_nothing(guard):
    one = guard(named("worker", budgets=[{"limit": "150 tokens", "per": "session"}]))

    use(one, tokens=100)
    with pytest.raises(BudgetExceeded):
        use(one)


def test_each_user_has_a_budget_of_its_own_over_all_sessions(guard):
    one = guard(named("worker", budgets=[{"limit": "150 tokens", "per": "user"}]))

    with session("s1", user="u1"):
        use(one, tokens=100)
    with session("s2", user="u1"), pytest.raises(BudgetExceeded):
        use(one)
    with session("s3", user="u2"):
        use(one)

    assert spent(one) == {"user:u1@agent:worker": 100, "user:u2@agent:worker": 10}


def test_a_session_inside_of_a_session_keeps_the_user(guard):
    with session("s1", user="u1"), session("s2") as inner:
        assert (inner.user, current_caller().user) == ("u1", "u1")


def test_the_outermost_agent_of_a_turn_opens_an_interaction(guard):
    one = guard(named("a", budgets=[{"limit": "2 calls", "per": "interaction"}]), named("b"))

    for _ in range(2):
        with agent("a"):
            first = current_caller().interaction
            use(one)
            with agent("b"):
                assert current_caller().interaction == first
                use(one)
            with pytest.raises(BudgetExceeded):
                use(one)


def test_an_interaction_can_be_marked_by_hand(guard):
    one = guard(named("worker", budgets=[{"limit": "1 calls", "per": "interaction"}]))

    with session("s1") as turns:
        for turn in ("t1", "t2"):
            with turns.interaction(turn) as opened:
                assert opened == turn
                use(one)
                with pytest.raises(BudgetExceeded):
                    use(one)


def test_each_model_has_a_budget_of_its_own(guard):
    one = guard(named("worker", budgets=[{"limit": "150 tokens", "per": "model"}]))

    use(one, tokens=100, model="gpt-5")
    use(one, tokens=100, model="o3")
    with pytest.raises(BudgetExceeded):
        use(one, model="o3")

    assert spent(one) == {"model:gpt-5@agent:worker": 100, "model:o3@agent:worker": 100}


def test_a_team_shares_what_is_the_teams(guard):
    one = guard(
        named("a", team="support", budgets=[{"limit": "250 tokens", "per": "team"}]),
        named("b", team="support", budgets=[{"limit": "250 tokens", "per": "team"}]),
    )

    with agent("a"):
        use(one, tokens=100)
    with agent("b"):
        use(one, tokens=100)
        with pytest.raises(BudgetExceeded):
            use(one)

    assert spent(one) == {"team:support": 200}


def test_the_fleet_shares_what_is_the_fleets(guard):
    one = guard(named("a"), named("b"), limits={"fleet": [{"limit": "250 tokens"}]})

    for name in "ab":
        with agent(name):
            use(one, tokens=100)
    with agent("a"), pytest.raises(BudgetExceeded):
        use(one)

    assert spent(one) == {"fleet": 200}


# --- budget blocks -----------------------------------------------------------------------------------------------------


def test_a_budget_block_bounds_what_happens_inside(guard):
    one = guard(named("worker", budgets=[{"limit": "10000 tokens"}]))

    with budget(tokens=250) as block:
        use(one, tokens=100)
        assert (block.spent.tokens, block.remaining.tokens) == (100, 150)
        use(one, tokens=100)
        with pytest.raises(BudgetExceeded, match="250 tokens"):
            use(one)
    use(one)

    assert (block.spent.tokens, block.remaining.tokens) == (200, 50)
    assert spent(one) == {"agent:worker": 210}


def test_what_is_held_inside_of_a_block_is_not_remaining(guard):
    one = guard(named("worker"))

    with budget(tokens=1000, calls=5) as block, one.admit(call(max_tokens=300)) as admission:
        assert block.remaining.tokens < 700
        assert (block.spent.tokens, block.remaining.calls) == (0, 4)
        admission.settle(Usage(1, 2))
        assert block.remaining.tokens == 997


def test_blocks_nest_and_the_narrower_one_refuses(guard):
    one = guard(named("worker"))

    with budget(tokens=1000) as outer, budget(tokens=250) as inner:
        use(one, tokens=100)
        use(one, tokens=100)
        with pytest.raises(BudgetExceeded):
            use(one)

    assert outer.spent.tokens == inner.spent.tokens == 200


def test_a_block_counts_calls_and_money(guard):
    prices = {"gpt-5": {"input": "$1", "output": "$10"}}
    one = guard(named("worker", llm={"prices": prices}))

    with budget(usd="0.005", calls=3) as block:
        use(one, tokens=100)
        assert block.spent.usd == Decimal("0.001")
        use(one, tokens=100)
        use(one, tokens=100)
        with pytest.raises(BudgetExceeded, match="3 calls"):
            use(one)

    assert (block.spent.usd, block.remaining.usd, block.spent.calls) == (Decimal("0.003"), Decimal("0.002"), 3)
    assert block.spent.tokens is None


def test_a_block_binds_the_threads_that_carry_it(guard):
    one = guard(named("worker"))

    with budget(calls=1), ThreadPoolExecutor(1) as pool:
        pool.submit(propagate(use), one).result()
        with pytest.raises(BudgetExceeded):
            pool.submit(propagate(use), one).result()


def test_a_call_that_still_carries_an_ended_block_is_refused(guard):
    one = guard(named("worker"))

    with budget(calls=5):
        late = propagate(use)

    with pytest.raises(BudgetExceeded):
        late(one)


def test_a_call_that_settles_after_its_block_is_charged_elsewhere(guard):
    one = guard(named("worker", budgets=[{"limit": "1000 tokens"}]))

    with budget(tokens=500):
        admission = one.begin(call())
    admission.settle(Usage(0, 50))

    assert spent(one) == {"agent:worker": 50}


@pytest.mark.parametrize("usd", [0.5, 1.0])
def test_float_money_is_refused(guard, usd):
    guard(named("worker"))

    with pytest.raises(TypeError, match=f"money is exact: write usd='{usd}'"), budget(usd=usd):
        pass


@pytest.mark.parametrize(
    ("amounts", "message"), [({"usd": "much"}, "is not an amount"), ({}, "at least one of usd, tokens and calls")]
)
def test_a_block_without_an_amount_is_refused(guard, amounts, message):
    guard(named("worker"))

    with pytest.raises(ValueError, match=message), budget(**amounts):
        pass


def test_a_block_without_a_guard_is_refused():
    with pytest.raises(NotInstrumented), budget(calls=1):
        pass


def test_denials_of_every_kind_pickle(guard):
    one = guard(
        named("worker", llm={"models": ["gpt-5"]}, tools={"allowed": []}, budgets=[{"limit": "10 tokens"}]),
    )
    asked = {EgressDenied: get("evil.example"), ModelDenied: call("o3"), ToolDenied: ToolCall("x"), BudgetExceeded: call()}

    for kind, what in asked.items():
        with pytest.raises(kind) as denied:
            one.begin(what)
        thawed = pickle.loads(pickle.dumps(denied.value))
        assert (type(thawed), str(thawed), thawed.call) == (kind, str(denied.value), what)


@pytest.mark.parametrize(
    ("bounds", "error", "said"),
    [
        ({"tokens": "5000"}, TypeError, r"tokens is an int, such as tokens=5000: found '5000'"),
        ({"calls": 1.5}, TypeError, r"calls is an int, such as calls=5000: found 1\.5"),
        ({"calls": True}, TypeError, r"calls is an int"),
        ({"tokens": 0}, ValueError, r"tokens is at least 1: found 0"),
        ({"usd": Decimal("NaN")}, ValueError, r"is not an amount such as '0\.50'"),
        ({"usd": "1e9999999"}, ValueError, r"is not an amount such as '0\.50'"),
        ({"usd": Decimal("Infinity")}, ValueError, r"is not an amount such as '0\.50'"),
        ({}, ValueError, r"needs at least one of usd, tokens and calls"),
    ],
)
def test_a_block_says_what_bounds_it_expects(guard, bounds, error, said):
    guard(named("a"))

    with pytest.raises(error, match=said), budget(**bounds):
        pass


@pytest.mark.parametrize("block", [lambda: budget(calls=1), lambda: session("s"), lambda: waiting(1)])
def test_a_block_is_entered_once_and_says_so(guard, block):
    guard(named("a"))
    one = block()
    with one:
        pass

    with pytest.raises(RuntimeError, match="has been entered before"), one:
        pass

    assert current_caller() is NOBODY


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_stands_around_each_run_of_the_function_that_it_decorates(guard, is_async):
    one = guard(named("a"))

    @budget(calls=1)
    def run():
        one.begin(call()).settle(Usage(1, 1))
        with pytest.raises(BudgetExceeded):
            one.begin(call())
        return current_caller().blocks

    @budget(calls=1)
    async def arun():
        await asyncio.sleep(0)
        return run.__wrapped__()

    first, second = (asyncio.run(arun()) if is_async else run() for _ in range(2))

    assert len(first) == len(second) == 1
    assert first != second


def test_a_block_around_a_generator_is_refused(guard):
    guard(named("a"))

    with pytest.raises(TypeError, match=r"budget\(\) cannot stand around a generator"):

        @budget(calls=1)
        def pages():
            yield


@pytest.mark.parametrize("block", [lambda: budget(calls=1), lambda: session("s"), lambda: waiting(1), lambda: agent("a")])
def test_a_block_in_a_generator_that_is_closed_from_another_task_ends_quietly(guard, block):
    guard(named("a"))

    async def pages():
        with block():
            yield 1

    async def read_one_and_leave():
        reading = pages()
        await asyncio.create_task(anext(reading))
        await reading.aclose()

    asyncio.run(read_one_and_leave())

    assert current_caller() is NOBODY


def test_what_a_block_raises_is_not_hidden_by_a_store_that_is_down(guard):
    one = guard(named("a"))

    class Down:
        def __getattr__(self, name):
            return getattr(one.ledger, name)

        def read(self, keys):
            raise StoreUnavailable

    with pytest.raises(KeyError), BudgetBlock(Down(), None, 10, None).entered():
        raise KeyError("of the program")


@pytest.mark.parametrize("seconds", ["5s", None, True])
def test_a_wait_is_a_number(seconds):
    with pytest.raises(TypeError, match=r"a wait is a number of seconds, such as 5 or 0\.5"), waiting(seconds):
        pass

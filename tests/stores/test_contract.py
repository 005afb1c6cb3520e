"""What every store promises, asked of each."""

from __future__ import annotations

import threading
import time

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind, Refused
from agentguard.policy.model import Limit, OnStoreDown, Over, Per, Rule, Unit, Window
from agentguard.stores.base import FORGET_MEMBER_SECONDS, GRANTED, Granted, Member, Reserve
from agentguard.stores.leased import HORIZON_SECONDS, LeasedStore
from agentguard.stores.redis import RedisStore

TOKENS = LimitRow.of("agent:a", Limit(amount=100, unit=Unit.TOKENS))
MONEY = LimitRow.of("team:t", Limit(amount=1000, unit=Unit.USD, window=Window("day"), warn_at=(50, 80)))
CALLS = LimitRow.of("session:s", Limit(amount=3, unit=Unit.CALLS, per=Per.SESSION))
AT_ONCE = LimitRow.of("agent:a", Limit(amount=2, unit=Unit.CONCURRENT_CALLS))
RATE = LimitRow.of("agent:a", Limit(amount=2, unit=Unit.CALLS, window=Window(seconds=60.0), warn_at=(50,)))
ROWS = (TOKENS, MONEY, CALLS, AT_ONCE, RATE)


def charges(**amounts: int) -> tuple[Charge, ...]:
    by_name = {"tokens": TOKENS, "money": MONEY, "calls": CALLS, "at_once": AT_ONCE, "rate": RATE}
    return tuple(Charge(by_name[name].key, amount) for name, amount in amounts.items())


def balance(store, row):
    (found,) = store.read([row.key])
    return found.spent, found.held


@pytest.fixture
def store(store):
    store.register(ROWS)
    return store


def test_a_grant_holds_what_settles_and_spends_what_does_not(store):
    answer = store.reserve(Reserve("1", charges(tokens=40, money=300, calls=1, at_once=1, rate=1)))

    assert answer == Granted((), answer.crossed)
    assert [(row.spent, row.held) for row in store.read([row.key for row in ROWS])] == [(0, 40), (0, 300), (1, 0), (0, 1), (1, 0)]


def test_a_settlement_replaces_what_is_held_by_what_was_used(store):
    store.reserve(Reserve("1", charges(tokens=40, money=300, calls=1, at_once=1)))

    settled = store.settle("1", Amounts(tokens=25, nanos=120))

    assert settled.first
    assert [(row.spent, row.held) for row in store.read([row.key for row in ROWS])] == [(25, 0), (120, 0), (1, 0), (0, 0), (0, 0)]


def test_usage_beyond_the_reservation_is_charged_and_the_next_call_is_refused(store):
    store.reserve(Reserve("1", charges(tokens=40)))
    store.settle("1", Amounts(tokens=130))

    refused = store.reserve(Reserve("2", charges(tokens=1)))

    assert refused == Refused(RefusalKind.EXHAUSTED, TOKENS.key, 100, 130, 0, 1, None)


def test_a_refusal_takes_nothing_from_any_row(store):
    store.reserve(Reserve("1", charges(money=900)))

    refused = store.reserve(Reserve("2", charges(tokens=10, calls=1, at_once=1, rate=1, money=200)))

    assert refused.kind is RefusalKind.CONTENDED
    assert (refused.row, refused.held, refused.requested) == (MONEY.key, 900, 200)
    assert [(row.spent, row.held) for row in store.read([row.key for row in ROWS])] == [(0, 0), (0, 900), (0, 0), (0, 0), (0, 0)]


def test_the_same_id_gets_the_same_answer_and_is_charged_once(store):
    first = store.reserve(Reserve("1", charges(tokens=60, calls=2)))

    again = store.reserve(Reserve("1", charges(tokens=60, calls=2)))

    assert again == first == GRANTED
    assert (balance(store, TOKENS), balance(store, CALLS)) == ((0, 60), (2, 0))


def test_the_same_id_gets_its_soft_steps_and_its_forced_refusal_again(store):
    request = Reserve("1", charges(rate=1, tokens=101), force=True)
    first = store.reserve(request)

    assert store.reserve(request) == first
    assert first.crossed[0][:2] == (RATE.key, 50)
    assert first.refused.row == TOKENS.key


def test_a_second_settlement_changes_nothing(store):
    store.reserve(Reserve("1", charges(tokens=40)))
    store.settle("1", Amounts(tokens=25))

    assert not store.settle("1", Amounts(tokens=99)).first
    assert not store.settle("never asked", Amounts(tokens=99)).first
    assert balance(store, TOKENS) == (25, 0)


def test_an_exhausted_row_outranks_a_contended_one(store):
    store.reserve(Reserve("1", charges(tokens=100)))
    store.reserve(Reserve("2", charges(calls=3)))

    refused = store.reserve(Reserve("3", charges(tokens=1, calls=1)))

    assert (refused.kind, refused.row) == (RefusalKind.EXHAUSTED, CALLS.key)


def test_a_row_that_is_not_known_refuses_and_is_never_read_as_nothing_spent(store):
    unknown = Charge("agent:b|tokens|life|all", 1)

    refused = store.reserve(Reserve("1", (*charges(tokens=101), unknown)))

    assert refused == Refused(RefusalKind.UNREGISTERED, unknown.row)
    assert store.reserve(Reserve("2", (unknown,), force=True)) == Refused(RefusalKind.UNREGISTERED, unknown.row)
    assert store.read([unknown.row]) == []


def test_a_request_that_charges_a_row_twice_is_an_error_and_takes_nothing(store):
    with pytest.raises(ValueError, match="charges a row twice"):
        store.reserve(Reserve("1", charges(tokens=60) + charges(tokens=60)))

    assert balance(store, TOKENS) == (0, 0)
    assert store.reserve(Reserve("1", charges(tokens=100))) == GRANTED


def test_a_request_without_charges_is_granted(store):
    assert store.reserve(Reserve("1", ())) == GRANTED
    assert store.settle("1", Amounts(5, 5)).first


def test_force_takes_what_does_not_fit_and_says_what_it_passed_over(store):
    granted = store.reserve(Reserve("1", charges(tokens=150), force=True))

    assert granted.refused == Refused(RefusalKind.EXHAUSTED, TOKENS.key, 100, 0, 0, 150, None)
    assert balance(store, TOKENS) == (0, 150)


def test_an_extension_takes_all_that_is_asked_for(store):
    store.reserve(Reserve("1", charges(tokens=40, money=10)))

    assert store.extend("1", charges(tokens=20, money=5)) == Granted(charges(tokens=20, money=5))
    assert (balance(store, TOKENS), balance(store, MONEY)) == ((0, 60), (0, 15))
    store.settle("1", Amounts(55, 12))
    assert (balance(store, TOKENS), balance(store, MONEY)) == ((55, 0), (12, 0))


def test_an_extension_takes_the_largest_share_that_is_left_in_equal_proportion(store):
    store.reserve(Reserve("1", charges(tokens=90, money=10)))

    granted = store.extend("1", charges(tokens=30, money=300))

    assert granted == Granted(charges(tokens=10, money=100))


def test_an_extension_is_refused_when_nothing_is_left(store):
    store.reserve(Reserve("1", charges(tokens=100)))

    refused = store.extend("1", charges(tokens=30))

    assert (refused.kind, refused.row) == (RefusalKind.CONTENDED, TOKENS.key)
    assert balance(store, TOKENS) == (0, 100)


def test_an_extension_may_reach_rows_that_the_call_did_not_hold(store):
    store.reserve(Reserve("1", charges(tokens=10)))

    store.extend("1", charges(money=50, calls=1))

    assert (balance(store, MONEY), balance(store, CALLS)) == ((0, 50), (1, 0))
    store.settle("1", Amounts(5, 20))
    assert (balance(store, MONEY), balance(store, CALLS)) == ((20, 0), (1, 0))


def test_an_extension_of_a_call_that_is_not_open_is_refused(store):
    assert store.extend("1", charges(tokens=1)) == Refused(RefusalKind.UNREGISTERED, "1")


def test_a_settlement_after_the_end_of_the_window_does_not_count_in_the_next(store, clock):
    store.reserve(Reserve("1", charges(money=700, tokens=10)))
    clock.advance(86400)

    assert balance(store, MONEY) == (0, 0)
    assert store.reserve(Reserve("2", charges(money=1000))) == GRANTED
    store.settle("1", Amounts(5, 600))

    assert (balance(store, MONEY), balance(store, TOKENS)) == ((0, 1000), (5, 0))


def test_an_extension_after_the_end_of_the_window_is_held_in_the_next(store, clock):
    store.reserve(Reserve("1", charges(money=700)))
    clock.advance(86400)
    store.extend("1", charges(money=200))

    assert balance(store, MONEY) == (0, 200)
    store.settle("1", Amounts(nanos=750))
    assert balance(store, MONEY) == (50, 0)


def test_a_window_never_moves_back(store, clock):
    store.reserve(Reserve("1", charges(money=1000)))
    clock.advance(86400)
    store.reserve(Reserve("2", charges(money=900)))

    clock.set_time(clock.time() - 86400)

    assert store.reserve(Reserve("3", charges(money=200))).kind is RefusalKind.CONTENDED
    assert balance(store, MONEY) == (0, 900)


def test_a_refusal_says_when_it_would_fit(store, clock):
    store.reserve(Reserve("1", charges(rate=2)))
    clock.advance(30)
    rate = store.reserve(Reserve("2", charges(rate=1)))
    money = store.reserve(Reserve("3", charges(money=1000))) and store.reserve(Reserve("4", charges(money=1)))
    too_much = store.reserve(Reserve("5", charges(money=1001)))

    assert rate.retry_at == clock.time() - 30 + 61
    assert money.retry_at == clock.time() - 30 + 86400
    assert too_much.retry_at is None
    clock.set_time(rate.retry_at)
    assert isinstance(store.reserve(Reserve("6", charges(rate=1))), Granted)


def test_a_soft_step_is_told_once_in_a_window(store, clock):
    def spend(name: str, nanos: int):
        store.reserve(Reserve(name, charges(money=nanos)))
        return [(step.percent, step.spent) for step in store.settle(name, Amounts(nanos=nanos)).crossed]

    assert [spend("1", 400), spend("2", 150), spend("3", 100), spend("4", 200)] == [[], [(50, 550)], [], [(80, 850)]]
    clock.advance(86400)
    assert spend("5", 900) == [(80, 900)]


def test_a_raised_limit_keeps_what_was_counted_and_tells_its_steps_anew(store):
    store.reserve(Reserve("1", charges(money=600)))
    store.settle("1", Amounts(nanos=600))

    store.register([LimitRow.of("team:t", Limit(amount=2000, unit=Unit.USD, window=Window("day"), warn_at=(50, 80)))])
    store.reserve(Reserve("2", charges(money=1400)))
    crossed = store.settle("2", Amounts(nanos=500)).crossed

    assert [(step.percent, step.spent, step.amount) for step in crossed] == [(50, 1100, 2000)]


def test_a_lowered_limit_refuses_at_once(store):
    store.reserve(Reserve("1", charges(tokens=60)))

    store.register([LimitRow.of("agent:a", Limit(amount=50, unit=Unit.TOKENS))])

    assert store.reserve(Reserve("2", charges(tokens=1))).kind is RefusalKind.CONTENDED
    assert store.extend("1", charges(tokens=1)).kind is RefusalKind.CONTENDED


def test_registering_again_changes_nothing(store):
    store.reserve(Reserve("1", charges(tokens=60)))

    store.register(ROWS)

    assert balance(store, TOKENS) == (0, 60)


def test_a_forgotten_row_is_not_known_and_a_hold_on_it_settles_into_nothing(store):
    store.reserve(Reserve("1", charges(tokens=60, money=5)))

    store.forget([TOKENS.key, "never registered"])

    assert store.reserve(Reserve("2", charges(tokens=1))).kind is RefusalKind.UNREGISTERED
    store.register([TOKENS])
    assert store.settle("1", Amounts(50, 3)).first
    assert (balance(store, TOKENS), balance(store, MONEY)) == ((0, 0), (3, 0))


def test_a_row_registered_in_the_place_of_a_forgotten_one_is_another(store):
    latest = LimitRow.of("session:latest", Limit(amount=9, unit=Unit.TOKENS))
    store.register([latest])
    store.reserve(Reserve("1", (Charge(latest.key, 9),)))
    store.forget([latest.key])
    store.register([latest])

    store.settle("1", Amounts(tokens=7))

    assert balance(store, latest) == (0, 0)


def test_an_isolated_subject_is_refused_until_it_is_restored(store, clock):
    first = store.isolate("agent:a", on=True, by="ada", why="drill")
    refused = store.reserve(Reserve("1", charges(tokens=1), ("fleet", "agent:a")))
    other = store.reserve(Reserve("2", charges(tokens=1), ("fleet", "agent:b")))
    listed = list(store.isolations())
    second = store.isolate("agent:a", on=False, by="ada", why="done")

    assert refused == Refused(RefusalKind.ISOLATED, "agent:a")
    assert other == GRANTED
    assert listed == [("agent:a", "ada", "drill", clock.time())]
    assert second > first
    assert store.isolations() == []
    assert store.reserve(Reserve("3", charges(tokens=1), ("fleet", "agent:a"))) == GRANTED


def test_a_call_that_is_open_keeps_its_grant_when_its_agent_is_isolated(store):
    store.reserve(Reserve("1", charges(tokens=1), ("agent:a",)))
    store.isolate("agent:a", on=True, by="ada", why="drill")

    assert store.reserve(Reserve("1", charges(tokens=1), ("agent:a",))) == GRANTED


def test_rows_are_read_in_the_order_asked_and_unknown_ones_are_left_out(store):
    assert [row.row for row in store.read([MONEY.key, "unknown", TOKENS.key])] == [MONEY.key, TOKENS.key]
    assert store.read([]) == []


def test_the_ledger_names_every_row_with_its_limit(store, clock):
    everything = Limit(
        amount=7,
        unit=Unit.TOKENS,
        per=Per.USER,
        window=Window(seconds=90.0),
        over=Over.LLM,
        warn_at=(10, 20),
        on_store_down=OnStoreDown.OPEN,
        text="7 tokens",
        rule=Rule("agents[0].budgets[1]", "agents.yaml", 12),
    )
    store.register([LimitRow.of("user:u", everything)])

    ledger = dict(store.rows())

    assert set(ledger) == {*ROWS, LimitRow.of("user:u", everything)}
    assert next(row.limit.rule for row in ledger if row.subject == "user:u") == Rule("agents[0].budgets[1]", "agents.yaml", 12)
    assert ledger[MONEY].resets_at == clock.time() + 86400
    assert ledger[TOKENS].resets_at is None


def test_reading_changes_nothing(store, clock):
    store.reserve(Reserve("1", charges(money=1000)))
    clock.advance(86400)
    assert balance(store, MONEY) == (0, 0)
    store.rows()

    clock.set_time(clock.time() - 86400)

    assert balance(store, MONEY) == (0, 1000)


def test_watchers_hear_of_settlements_and_isolations_until_they_close(store):
    told = threading.Event()
    store.reserve(Reserve("1", charges(tokens=1)))
    store.reserve(Reserve("2", charges(tokens=1)))
    watch = store.watch(told.set)

    store.settle("1", Amounts())
    assert told.wait(10)
    told.clear()
    store.isolate("agent:a", on=True, by="ada", why="drill")
    assert told.wait(10)
    watch.close()
    watch.close()
    told.clear()
    store.settle("2", Amounts())
    assert not told.is_set()


def try_until_answered(store, clock, request):
    """A store's own thread looks on now and then, and may be doing so just now: nobody else has the store here."""
    deadline = time.monotonic() + 10
    while (answer := store.try_reserve(request)) is None:
        assert time.monotonic() < deadline, "nobody decides, and yet there is no answer"
        time.sleep(0.001)
        clock.advance(HORIZON_SECONDS)  # for the second call within it a slice is due, which only those can take who may wait
    return answer


def test_an_answer_is_there_at_once_while_nobody_else_decides(store, clock):
    if isinstance(store.store if isinstance(store, LeasedStore) else store, RedisStore):
        assert store.try_reserve(Reserve("1", charges(tokens=1))) is None  # each answer comes over the network
        return
    assert try_until_answered(store, clock, Reserve("1", charges(tokens=1))) == GRANTED
    refused = store.try_reserve(Reserve("2", charges(tokens=100)))
    if isinstance(store, LeasedStore) and store.may_block:
        assert refused is None  # before that is final, slices are given back and recalled
    else:
        assert refused.kind is RefusalKind.CONTENDED


def test_renewing_and_sweeping_leave_the_calls_of_a_living_process_alone(store, clock):
    store.reserve(Reserve("1", charges(tokens=60)))
    for _ in range(4):
        clock.advance(300)
        store.renew()
        assert store.sweep() == 0

    assert balance(store, TOKENS) == (0, 60)


def test_of_a_hundred_threads_exactly_five_pass_a_limit_of_five(store):
    row = LimitRow.of("agent:crowd", Limit(amount=5, unit=Unit.TOKENS))
    store.register([row])
    together = threading.Barrier(100)
    answers = []

    def call(name: str) -> None:
        together.wait()
        answers.append(store.reserve(Reserve(name, (Charge(row.key, 1),))))

    threads = [threading.Thread(target=call, args=(str(number),)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(isinstance(answer, Granted) for answer in answers) == 5
    assert len(answers) == 100
    assert balance(store, row) == (0, 5)


def member(store, **changed):
    return Member(store.me, "host", 1, "bot", "1.0", "digest", "enforce", 0, 100.0)._replace(**changed)


def test_the_epoch_grows_with_every_isolation_and_restoration(store):
    before = store.epoch()

    told = [store.isolate("agent:a", on=on, by="ada", why="drill") for on in (True, False)]

    assert told == [before + 1, before + 2]
    assert store.epoch() == before + 2


def test_listeners_hear_of_isolations_until_they_close_and_of_no_settlements(store):
    heard = threading.Semaphore(0)
    listening = store.watch_isolations(heard.release)
    while heard.acquire(timeout=0.2):
        pass  # the first look of a listener may count as a change

    def is_heard(id):
        store.reserve(Reserve(id, charges(tokens=1)))
        store.settle(id, Amounts(1))
        return heard.acquire(timeout=0.1)

    has_heard_of_settlements = is_heard("1") and is_heard("2")  # the first look of one may also be late
    store.isolate("agent:a", on=True, by="ada", why="drill")
    has_heard_of_isolation = heard.acquire(timeout=10)
    listening.close()
    while heard.acquire(timeout=0.1):
        pass
    store.isolate("agent:a", on=False, by="ada", why="drill")

    assert (has_heard_of_settlements, has_heard_of_isolation) == (False, True)
    assert not heard.acquire(timeout=0.1)


def test_a_process_is_a_member_until_it_leaves(store, clock):
    store.beat(member(store, epoch=3))
    clock.advance(5)
    store.beat(member(store, epoch=4))

    listed = list(store.members())
    store.leave(store.me)

    assert listed == [member(store, epoch=4, at=clock.time())]
    assert list(store.members()) == []


def test_a_process_that_is_not_heard_of_is_forgotten(store, clock):
    store.beat(member(store))

    clock.advance(FORGET_MEMBER_SECONDS + 1)

    assert list(store.members()) == []


def test_what_calls_in_flight_hold_is_listed_with_its_holder(store):
    store.reserve(Reserve("1", charges(tokens=40, calls=1, at_once=1)))
    store.reserve(Reserve("2", charges(tokens=2)))
    store.settle("2", Amounts(2))

    (hold,) = store.holds()

    assert (hold.id, hold.holder) == ("1", store.me)
    assert set(hold.charges) == {Charge(TOKENS.key, 40), Charge(AT_ONCE.key, 1)}


def test_a_correction_takes_back_what_was_spent(store):
    store.reserve(Reserve("1", charges(tokens=40, money=300, calls=2)))
    store.settle("1", Amounts(130, 300))

    for name, amount, actual in (("tokens", -60, Amounts(-60)), ("money", -100, Amounts(0, -100)), ("calls", -1, Amounts())):
        store.reserve(Reserve(f"correct-{name}", charges(**{name: amount}), force=True))
        store.settle(f"correct-{name}", actual)

    assert [balance(store, row) for row in (TOKENS, MONEY, CALLS)] == [(70, 0), (200, 0), (1, 0)]


# --- words of which UTF-8 has none: they come from files' names, and from JSON ------------------------------------------

LONE = LimitRow.of("session:\udc80@agent:a", Limit(amount=9, unit=Unit.TOKENS, per=Per.SESSION, warn_at=(50,)))


def test_a_row_with_a_lone_surrogate_is_counted_and_read_back(store):
    store.register([LONE])
    call = "call\udc81"

    taken = store.reserve(Reserve(call, (Charge(LONE.key, 5),), (LONE.subject,)))
    more = store.extend(call, [Charge(LONE.key, 1)])
    refused = store.reserve(Reserve("2", (Charge(LONE.key, 9),), (LONE.subject,)))

    assert (taken.refused, more.charges) == (None, (Charge(LONE.key, 1),))
    assert (refused.kind, refused.row) == (RefusalKind.CONTENDED, LONE.key)
    assert LONE in [row for row, _ in store.rows()]
    assert [(hold.id, hold.charges) for hold in store.holds()] == [(call, (Charge(LONE.key, 6),))]
    assert store.settle(call, Amounts(6)).first
    assert balance(store, LONE) == (6, 0)
    store.forget([LONE.key])
    assert store.read([LONE.key]) == []


def test_a_subject_with_a_lone_surrogate_is_isolated_and_restored(store):
    store.isolate(LONE.subject, on=True, by="\udc81", why="\udc82")

    assert store.reserve(Reserve("1", (), (LONE.subject,))) == Refused(RefusalKind.ISOLATED, LONE.subject)
    assert [isolation[:3] for isolation in store.isolations()] == [(LONE.subject, "\udc81", "\udc82")]
    store.isolate(LONE.subject, on=False, by="ada", why="\udc82")
    assert store.reserve(Reserve("2", (), (LONE.subject,))) == GRANTED

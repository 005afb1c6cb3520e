"""What calls have used without the store is charged to it once: by many threads, across forks, and while streams go on."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import pytest

from agentguard.core.limits import Amounts, Charge, LimitRow, RefusalKind
from agentguard.errors import StoreUnavailable
from agentguard.policy.model import Limit, OnStoreDown, Per, Unit, Window
from agentguard.stores.base import GRANTED, NOT_SETTLED, SETTLED, Granted, Reserve
from agentguard.stores.memory import MemoryStore
from agentguard.stores.sqlite import SqliteStore
from agentguard.stores.standby import Standby

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
warns_of_threads = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"
)  # 3.12 warns in a process with threads: that is what is tested


class Failing:
    """A store that gives no answer while it is down, and can lose its answers to settlements."""

    is_down = False
    loses_settlements = False

    def _answer(self):
        if self.is_down:
            raise StoreUnavailable("down")

    def register(self, rows):
        self._answer()
        super().register(rows)

    def forget(self, keys):
        self._answer()
        super().forget(keys)

    def reserve(self, request):
        self._answer()
        return super().reserve(request)

    def extend(self, id, charges):
        self._answer()
        return super().extend(id, charges)

    def settle(self, id, actual):
        self._answer()
        settled = super().settle(id, actual)
        if self.loses_settlements:
            raise StoreUnavailable("the answer was lost")
        return settled

    def read(self, keys):
        self._answer()
        return super().read(keys)

    def sweep(self):
        self._answer()
        return super().sweep()


class Memory(Failing, MemoryStore):
    pass


class Sqlite(Failing, SqliteStore):
    pass


class Meeting(Memory):
    """Two threads that pay at the same time meet before each verb, and know it when there is only one."""

    may_block = True

    def __init__(self):
        super().__init__()
        self.door = threading.Barrier(2)
        self.meets = False

    def _meet(self):
        if self.meets:
            with suppress(threading.BrokenBarrierError):
                self.door.wait(0.2)

    def sweep(self):
        with suppress(threading.BrokenBarrierError):
            self.door.wait(5)
        self.meets = True
        return super().sweep()

    def reserve(self, request):
        self._meet()
        return super().reserve(request)

    def settle(self, id, actual):
        self._meet()
        return super().settle(id, actual)


def row(
    subject: str = "agent:a",
    amount: int = 100_000,
    down: OnStoreDown = OnStoreDown.OPEN,
    per: Per = Per.AGENT,
    unit: Unit = Unit.TOKENS,
) -> LimitRow:
    return LimitRow.of(subject, Limit(amount=amount, unit=unit, per=per, on_store_down=down, window=Window("day")))


OPEN = row()
LOCAL = row("agent:local", 10_000, OnStoreDown.LOCAL)


def on_standby(store, *rows: LimitRow) -> Standby:
    standby = Standby(store)
    standby.register(rows)
    standby.sweep()
    return standby


def ask(standby: Standby, name: str, *rows: LimitRow, amount: int = 50):
    return standby.reserve(Reserve(name, tuple(Charge(one.key, amount) for one in rows), rows=rows))


def use(standby: Standby, name: str, *rows: LimitRow, amount: int = 50) -> None:
    assert ask(standby, name, *rows, amount=amount) == GRANTED
    assert standby.settle(name, Amounts(amount)) is SETTLED


def counted(store, limit_row: LimitRow = OPEN) -> tuple[int, int]:
    (balance,) = store.read([limit_row.key])
    return balance.spent, balance.held


@contextmanager
def fork():
    """Run a block in a forked child; its exit code is the verdict."""
    pid = os.fork()
    if pid == 0:
        return_code = 1
        try:
            yield True
            return_code = 0
        finally:
            os._exit(return_code)
    yield False
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# --- paying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owed", [1, 4])
def test_two_threads_that_sweep_at_once_charge_what_is_owed_once(owed):
    store = Meeting()
    standby = Standby(store)
    standby.register((OPEN,))
    store.is_down = True
    for number in range(owed):
        use(standby, str(number), OPEN)
    store.is_down = False

    with ThreadPoolExecutor(2) as threads:
        sweeps = [threads.submit(standby.sweep) for _ in range(2)]

    assert [one.result() for one in sweeps] == [0, 0]
    assert counted(store) == (50 * owed, 0)


def test_whoever_comes_second_does_not_wait_for_the_first_to_pay():
    paying, may_end = threading.Event(), threading.Event()

    class Slow(Memory):
        def settle(self, id, actual):
            paying.set()
            assert may_end.wait(10)
            return super().settle(id, actual)

    store = Slow()
    standby = on_standby(store, OPEN)
    store.is_down = True
    use(standby, "1", OPEN)
    store.is_down = False
    first = threading.Thread(target=standby.sweep)
    first.start()
    assert paying.wait(10)

    assert standby.sweep() == 0  # the first still pays
    may_end.set()
    first.join()

    assert counted(store) == (50, 0)


def test_a_debt_that_cannot_be_paid_to_the_end_is_paid_later_and_once():
    store = Memory()
    standby = on_standby(store, OPEN)
    store.is_down = True
    use(standby, "1", OPEN)
    use(standby, "2", OPEN)
    store.is_down = False
    store.loses_settlements = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            standby.sweep()
    store.loses_settlements = False

    standby.sweep()

    assert counted(store) == (100, 0)


def test_a_row_that_was_forgotten_does_not_keep_other_debts_from_being_paid():
    block = row("budget:1")
    store = Memory()
    standby = on_standby(store, OPEN, block)
    store.is_down = True
    use(standby, "0", OPEN, block)
    store.is_down = False
    standby.forget([block.key])
    store.is_down = True
    for number in range(1, 20):
        use(standby, str(number), OPEN)
    store.is_down = False

    standby.sweep()

    assert counted(store) == (1000, 0)
    assert store.read([block.key]) == []


def test_a_store_that_has_lost_its_rows_is_told_anew_and_charged():
    store = Memory()
    standby = on_standby(store, OPEN)
    store.is_down = True
    for number in range(3):
        use(standby, str(number), OPEN)
    store.is_down = False
    store.forget([OPEN.key])

    standby.sweep()

    assert counted(store) == (150, 0)


def test_a_debt_that_the_store_does_not_take_yet_does_not_stand_before_the_others_for_ever():
    class Picky(Memory):
        def reserve(self, request):
            if request.id == "0":
                self.forget([OPEN.key])
            return super().reserve(request)

    other = row("agent:b")
    store = Picky()
    standby = on_standby(store, OPEN, other)
    store.is_down = True
    use(standby, "0", OPEN)
    for number in range(1, 4):
        use(standby, str(number), other)
    store.is_down = False

    standby.sweep()
    standby.sweep()

    assert counted(store, other) == (150, 0)


def test_rows_of_the_outage_are_registered_when_it_is_over():
    new = row("agent:new")
    store = Memory()
    standby = on_standby(store)
    store.is_down = True
    standby.register((new,))
    store.is_down = False

    standby.sweep()

    assert counted(store, new) == (0, 0)


# --- forks ----------------------------------------------------------------------------------------------------------


@needs_fork
@warns_of_threads
def test_what_a_process_owes_is_not_paid_by_its_forked_child_too(path):
    store = Sqlite(path)
    standby = on_standby(store, OPEN)
    store.is_down = True
    for number in range(10):
        use(standby, str(number), OPEN)
    ask(standby, "open", OPEN)

    with fork() as is_child:
        if is_child:
            store.is_down = False
            standby.sweep()
            assert counted(store) == (0, 0)
            assert standby.settle("open", Amounts(50)) == NOT_SETTLED
    store.is_down = False
    standby.sweep()

    assert counted(store) == (500, 50)
    assert standby.settle("open", Amounts(20)) == SETTLED
    assert counted(store) == (520, 0)
    standby.close()


@needs_fork
@warns_of_threads
def test_a_child_that_was_forked_while_another_thread_paid_pays_what_it_owes_itself(path):
    paying, may_end = threading.Event(), threading.Event()

    class Slow(Sqlite):
        def settle(self, id, actual):
            if id == "parent":
                paying.set()
                assert may_end.wait(10)
            return super().settle(id, actual)

    store = Slow(path)
    standby = on_standby(store, OPEN)
    store.is_down = True
    use(standby, "parent", OPEN)
    store.is_down = False
    sweeping = threading.Thread(target=standby.sweep)
    sweeping.start()
    assert paying.wait(10)

    with fork() as is_child:
        if is_child:
            store.is_down = True
            use(standby, "child", OPEN, amount=7)
            store.is_down = False
            standby.sweep()
    may_end.set()
    sweeping.join()

    assert counted(store) == (57, 0)
    standby.close()


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_row", [OPEN, LOCAL])
def test_a_stream_goes_on_when_an_outage_begins_and_ends_and_is_charged_once(limit_row):
    store = Memory()
    standby = on_standby(store, limit_row)
    more = (Charge(limit_row.key, 10),)
    store.is_down = True
    assert ask(standby, "stream", limit_row) == GRANTED

    assert standby.extend("stream", more) == Granted(more)
    store.is_down = False
    assert standby.extend("stream", more) == Granted(more)
    standby.sweep()
    assert counted(store, limit_row) == (0, 70)
    assert standby.extend("stream", more) == Granted(more)
    assert counted(store, limit_row) == (0, 80)
    store.is_down = True
    assert standby.extend("stream", more) == Granted(more)
    store.is_down = False
    standby.sweep()
    assert standby.settle("stream", Amounts(85)) == SETTLED
    standby.sweep()

    assert counted(store, limit_row) == (85, 0)
    assert not standby.settle("stream", Amounts(85)).first


def test_a_stream_that_ends_in_the_next_outage_is_settled_when_that_is_over():
    store = Memory()
    standby = on_standby(store, LOCAL)
    store.is_down = True
    ask(standby, "stream", LOCAL)
    store.is_down = False
    standby.sweep()
    store.is_down = True
    with pytest.raises(StoreUnavailable):  # whoever settles does so again
        standby.settle("stream", Amounts(30))
    store.is_down = False
    standby.settle("stream", Amounts(30))
    standby.sweep()

    assert counted(store, LOCAL) == (30, 0)


def test_a_stream_under_a_closed_limit_is_cut_by_an_outage():
    closed = row("agent:closed", down=OnStoreDown.CLOSED)
    store = Memory()
    standby = on_standby(store, closed, OPEN)
    ask(standby, "stream", closed, OPEN)
    store.is_down = True

    with pytest.raises(StoreUnavailable):
        standby.extend("stream", (Charge(OPEN.key, 10), Charge(closed.key, 10)))


def test_streams_of_an_outage_share_the_local_part_and_the_next_outage_begins_anew():
    store = Memory()
    standby = on_standby(store, LOCAL)
    store.is_down = True
    ask(standby, "1", LOCAL, amount=600)
    more = (Charge(LOCAL.key, 600),)

    part = standby.extend("1", more)
    full = standby.extend("1", more)
    assert part == Granted((Charge(LOCAL.key, 400),))  # a tenth of 10,000 is for this process
    assert full.kind is RefusalKind.CONTENDED

    store.is_down = False
    standby.sweep()
    assert counted(store, LOCAL) == (0, 1000)
    store.is_down = True
    assert standby.extend("1", more) == Granted(more)  # of 9,000 that were left, a tenth
    assert standby.extend("1", more) == Granted((Charge(LOCAL.key, 300),))


def test_a_part_of_an_extension_is_the_same_share_of_every_charge():
    money = row("agent:money", 10_000, OnStoreDown.LOCAL, unit=Unit.USD)
    store = Memory()
    standby = on_standby(store, OPEN, money)
    store.is_down = True
    standby.reserve(Reserve("1", (Charge(OPEN.key, 10), Charge(money.key, 500))))

    answer = standby.extend("1", (Charge(OPEN.key, 20), Charge(money.key, 1000)))

    assert answer == Granted((Charge(OPEN.key, 10), Charge(money.key, 500)))


def test_an_extension_of_a_row_that_was_forgotten_is_refused():
    block = row("budget:1")
    store = Memory()
    standby = on_standby(store, OPEN, block)
    store.is_down = True
    ask(standby, "1", OPEN, block)
    with pytest.raises(StoreUnavailable):
        standby.forget([block.key])

    assert standby.extend("1", (Charge(OPEN.key, 1), Charge(block.key, 1))).kind is RefusalKind.UNREGISTERED


def test_streams_that_begin_grow_and_end_while_the_store_comes_and_goes_are_charged_once_each():
    store = Memory()
    limits = (row(amount=10**9), row("agent:local", 10**9, OnStoreDown.LOCAL))
    standby = on_standby(store, *limits)
    have_ended = threading.Event()

    with ThreadPoolExecutor(9) as threads:
        around = [threads.submit(come_and_go, store, have_ended)]
        around += [threads.submit(keep_sweeping, standby, have_ended) for _ in range(2)]
        streams = [threads.submit(stream, standby, f"{thread}-{number}", limits) for thread in range(6) for number in range(60)]
        wait(streams)
        have_ended.set()
    store.is_down = False
    standby.sweep()

    for one in (*around, *streams):
        one.result()
    assert [counted(store, one) for one in limits] == [(60 * 360, 0)] * 2
    assert standby._outage._local.holds() == []


def stream(standby: Standby, name: str, limits: tuple[LimitRow, ...]) -> None:
    """One call that takes 50, three times 5 more, and has used 60."""
    assert isinstance(ask(standby, name, *limits), Granted)
    for _ in range(3):
        assert isinstance(standby.extend(name, tuple(Charge(one.key, 5) for one in limits)), Granted)
    while True:
        with suppress(StoreUnavailable):
            standby.settle(name, Amounts(60))
            return


def keep_sweeping(standby: Standby, have_ended: threading.Event) -> None:
    while not have_ended.is_set():
        with suppress(StoreUnavailable):
            standby.sweep()


def come_and_go(store: Memory, have_ended: threading.Event) -> None:
    while not have_ended.wait(0.001):
        store.is_down = not store.is_down
    store.is_down = False


# --- many rows ------------------------------------------------------------------------------------------------------


class Reading(Memory):
    """A store that notes what it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked: list[list[str]] = []

    def read(self, keys):
        self.asked.append(list(keys))
        return super().read(keys)


def sessions(number: int, down: OnStoreDown = OnStoreDown.LOCAL) -> list[LimitRow]:
    return [row(f"session:{one}", 1000, down, Per.SESSION) for one in range(number)]


def test_a_sweep_reads_the_rows_of_agents_each_time_and_those_of_many_sessions_in_turn():
    store = Reading()
    standby = Standby(store)
    many = sessions(2000)
    standby.register([*many, LOCAL])

    for _ in range(8):
        standby.sweep()

    assert all(LOCAL.key in keys for keys in store.asked)
    assert max(map(len, store.asked)) < 300
    assert {key for keys in store.asked for key in keys} == {one.key for one in (*many, LOCAL)}


def test_a_row_that_was_never_read_is_read_next():
    store = Reading()
    standby = Standby(store)
    standby.register(sessions(1000))
    standby.sweep()
    for _ in range(3):
        standby.sweep()
    new = row("session:new", 1000, OnStoreDown.LOCAL, Per.SESSION)
    standby.register([new])

    standby.sweep()

    assert new.key in store.asked[-1]


def test_a_decision_without_the_store_reads_none_of_the_rows_of_others():
    store = Memory()
    standby = on_standby(store, *sessions(2000), LOCAL)
    store.is_down = True
    asked = []
    read = standby._outage._local.read
    standby._outage._local.read = lambda keys: asked.append(keys) or read(keys)

    ask(standby, "1", LOCAL)

    assert [list(keys) for keys in asked] == [[LOCAL.key]]


def test_rows_of_sessions_are_not_remembered_for_ever():
    standby = Standby(Memory())
    standby.register([LOCAL])
    for one in sessions(20_000):
        standby.register([one])

    assert len(standby._outage._rows) <= 4097
    assert LOCAL.key in standby._outage._rows


def test_rows_of_limits_that_are_closed_are_not_remembered():
    standby = Standby(Memory())

    standby.register(sessions(10, OnStoreDown.CLOSED))

    assert not standby._outage._rows


def test_rows_that_something_is_owed_to_are_remembered_and_charged():
    store = Memory()
    standby = Standby(store)
    store.is_down = True
    first, *others = sessions(10_000)
    standby.register([first])
    use(standby, "1", first)
    for one in others:
        standby.register([one])
    store.is_down = False

    standby.sweep()

    assert counted(store, first) == (50, 0)


def test_sessions_that_are_used_are_remembered_rather_than_those_that_came_later():
    store = Memory()
    standby = Standby(store)
    old, *others = sessions(10_000)
    standby.register([old])
    for number, one in enumerate(others):
        standby.register([one])
        if number % 1000 == 0:
            use_in_store(standby, f"call-{number}", old)
            for _ in range(20):
                standby.sweep()
    store.is_down = True

    assert ask(standby, "1", old) == GRANTED


def use_in_store(standby: Standby, name: str, limit_row: LimitRow) -> None:
    assert ask(standby, name, limit_row) == GRANTED
    standby.settle(name, Amounts(1))


def test_an_open_session_that_is_not_remembered_goes_on_and_a_local_one_is_refused():
    store = Memory()
    standby = Standby(store)
    opened = row("session:open", 1000, OnStoreDown.OPEN, Per.SESSION)
    local = row("session:local", 1000, OnStoreDown.LOCAL, Per.SESSION)
    standby.register([opened, local])
    standby.register(sessions(10_000))
    store.is_down = True

    use(standby, "1", opened)
    with pytest.raises(StoreUnavailable):
        ask(standby, "2", local)
    store.is_down = False
    standby.sweep()

    assert counted(store, opened) == (50, 0)


def test_a_stream_that_was_extended_without_the_store_frees_its_local_hold():
    store = Memory()
    standby = on_standby(store, LOCAL)
    ask(standby, "1", LOCAL)
    store.is_down = True
    assert isinstance(standby.extend("1", (Charge(LOCAL.key, 10),)), Granted)
    store.is_down = False

    standby.sweep()

    assert standby._outage._local.holds() == []
    assert standby._outage._local.rows() == []


def test_a_row_without_any_left_when_it_was_last_read_is_refused_without_the_store():
    store = Memory()
    standby = on_standby(store, LOCAL)
    ask(standby, "1", LOCAL, amount=10_000)
    standby.sweep()
    store.is_down = True

    refused = ask(standby, "2", LOCAL)

    assert refused.kind is RefusalKind.EXHAUSTED

"""Any order of everything, through slices: against the ledger of `test_machine`, and against a store without slices."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from agentguard.core.limits import Amounts, Charge, Refused
from agentguard.policy.model import Unit
from agentguard.stores.leased import LeasedStore
from agentguard.stores.memory import MemoryStore

from .test_machine import CALLS, CHARGES, ROWS, USAGE, AnyOrder


def alike(rows: tuple[int, ...], tokens: int, nanos: int) -> tuple[Charge, ...]:
    """What a call of the guard charges: every row of a unit the same."""
    of_unit = {Unit.TOKENS: tokens, Unit.USD: nanos, Unit.CALLS: 1}
    return tuple(Charge(ROWS[place].key, of_unit[ROWS[place].limit.unit]) for place in rows)


ALIKE = st.builds(alike, st.sampled_from([(0,), (0, 3), (0, 2, 5), (0, 1, 2, 3, 4)]), st.integers(1, 2), st.integers(1, 3))
MANY = "ijklmn"


class LeasedInAnyOrder(AnyOrder):
    """With calls that repeat, since nothing else is admitted from slices."""

    def make_stores(self) -> list:
        return [self.leased(MemoryStore(self.clock))]

    def leased(self, behind) -> LeasedStore:
        return LeasedStore(behind, self.clock, horizon_seconds=20.0, most_calls=4)

    def is_refused_as(self, answer, expected, charges, now) -> bool:
        """The same kind, by a row that has no room either: of another one the store may not know yet what was used of slices."""
        mine = tuple(charge for charge in charges if charge.row == answer.row)
        return answer.kind is expected[0] and self.ledger.refuses(mine, now) == answer[:2]

    @rule(call=st.sampled_from([*"abcdefgh", *MANY]), actual=USAGE)
    def settle(self, call, actual) -> None:
        """Within what was reserved: usage beyond it is charged when the slice gives account, and slices stand until then."""

        def held(unit) -> int:
            grants = [grant for grant in self.ledger.grants if grant.call == call and grant.spent is None]
            return min((grant.amount for grant in grants if grant.row.limit.unit is unit), default=0)

        AnyOrder.settle(self, call, Amounts(min(actual.tokens, held(Unit.TOKENS)), min(actual.nanos, held(Unit.USD))))

    @rule(call=CALLS, charges=CHARGES)
    def extend(self, call, charges) -> None:
        """As the guard does: every row of a unit alike, and what runs past its window is another test's."""
        leased = self.stores[-1]
        grant = leased._leases.grant(call)
        if grant is None or (grant[0].chain.more(charges) is not None and self.clock.time() < grant[0].ends):
            AnyOrder.extend(self, call, charges)

    @rule(call=CALLS, charges=ALIKE)
    def reserve_alike(self, call, charges) -> None:
        self.reserve(call, charges, "fleet", False)

    @rule(calls=st.integers(2, len(MANY)), charges=ALIKE, used=st.integers(0, 3))
    def reserve_and_settle_many(self, calls, charges, used) -> None:
        for call in MANY[:calls]:
            self.reserve(call, charges, "fleet", False)
        for call in MANY[:calls]:
            self.settle(call, Amounts(used, used))

    @rule(call=CALLS, charges=ALIKE)
    def extend_alike(self, call, charges) -> None:
        self.extend(call, tuple(charge for charge in charges if "|calls|" not in charge.row))

    @rule()
    def sweep(self) -> None:
        """As a living process does, which keeps its own holds from being overdue."""
        self.stores[-1].renew()
        assert self.stores[-1].sweep() == 0

    @invariant()
    def what_was_used_of_a_slice_is_never_less_than_nothing(self) -> None:
        leases = self.stores[-1]._leases
        for part in leases.all():
            assert min(part.used(leases._held(part)[0])) >= 0


class LeasedFromAFileInAnyOrder(LeasedInAnyOrder):
    """As from memory; and now and then the history goes on in another process, on the same file."""

    def make_stores(self) -> list:
        self.other = self.leased(self.make_sqlite())
        return [self.leased(self.make_sqlite())]

    def teardown(self) -> None:
        self.other.close()
        super().teardown()

    @rule()
    def go_on_in_the_other(self) -> None:
        """What calls in flight hold is their process's: it settles first, and gives back what lies idle."""
        for call in list(self.ledger.open):
            self.settle(call, Amounts())
        self.stores[0].close()
        self.stores, self.other = [self.other], self.leased(self.make_sqlite())


class LeasedAndNotLeasedAgree(LeasedInAnyOrder):
    def make_stores(self) -> list:
        return [MemoryStore(self.clock), self.leased(MemoryStore(self.clock))]

    def ask(self, verb: str, *args, **kwargs):
        """Every answer is the same, but for which of several full rows refuses, and for when a soft step is told.

        That is when the store hears of what was used.
        """
        answers = [getattr(store, verb)(*args, **kwargs) for store in self.stores]
        plain = [answer._replace(crossed=()) if hasattr(answer, "crossed") else answer for answer in answers]
        if all(isinstance(answer, Refused) for answer in plain) and plain[0].row != plain[1].row:
            assert plain[0].kind is plain[1].kind
        else:
            assert plain[0] == plain[1]
        return plain[0]


TestLeasedInAnyOrder = LeasedInAnyOrder.TestCase
TestLeasedInAnyOrder.settings = settings(max_examples=25, stateful_step_count=50, deadline=None)
TestLeasedFromAFileInAnyOrder = LeasedFromAFileInAnyOrder.TestCase
TestLeasedFromAFileInAnyOrder.settings = settings(max_examples=15, stateful_step_count=50, deadline=None)
TestLeasedAndNotLeasedAgree = LeasedAndNotLeasedAgree.TestCase
TestLeasedAndNotLeasedAgree.settings = settings(max_examples=25, stateful_step_count=50, deadline=None)

"""The ledger's rules alone: what an ad event earns, what a call may reserve, what it is charged."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.ad_ledger import domain
from services.ad_ledger.domain import (
    QUARTERS,
    AdEvent,
    Duplicate,
    Kind,
    Lot,
    LotKey,
    Moved,
    Recorded,
    RefusalReason,
    Refused,
    ReserveRequest,
    Tariff,
    TariffRule,
    Ticket,
    ViewState,
)

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
VISITOR = UUID(int=1)
QUARTER = TariffRule(credit_permille=250, credit_flat_ms=0)
NOTHING = TariffRule(credit_permille=0, credit_flat_ms=0)
TARIFF = Tariff(
    version="t1",
    valid_from=NOON - timedelta(days=30),
    daily_cap_ms=3_600_000,
    tolerance_ms=300,
    rules={kind: QUARTER if kind in QUARTERS else NOTHING for kind in Kind},
)
IN_ORDER = (
    Kind.PAGE_HIT,
    Kind.START,
    Kind.FIRST_QUARTILE,
    Kind.MIDPOINT,
    Kind.THIRD_QUARTILE,
    Kind.COMPLETE,
)


def ticket(number: int = 1, *, duration_ms: int = 16_000, issued_at: datetime = NOON) -> Ticket:
    return Ticket(
        ticket_id=UUID(int=number),
        visitor_id=VISITOR,
        duration_ms=duration_ms,
        issued_at=issued_at,
        expires_at=issued_at + timedelta(hours=1),
    )


def at_position(of: Ticket, kind: Kind, **changes: object) -> AdEvent:
    """An honest event: as far into the video as it says."""
    position_ms = of.duration_ms * QUARTERS.get(kind, 0) // 4
    event = AdEvent(
        visitor_id=VISITOR,
        ticket=of,
        kind=kind,
        position_ms=position_ms,
        at=of.issued_at + timedelta(milliseconds=position_ms),
    )
    return event._replace(**changes)  # type: ignore[arg-type]  # whichever field a test names


def empty() -> ViewState:
    return ViewState(seen={}, watches={})


def play(
    state: ViewState, events: Iterable[AdEvent], tariffs: tuple[Tariff, ...] = (TARIFF,)
) -> list[Recorded | Duplicate | Refused]:
    decisions = []
    for event in events:
        decision = domain.decide_view(state, event, tariffs)
        if isinstance(decision, Recorded):
            domain.apply_view(state, decision)
        decisions.append(decision)
    return decisions


def lots_of(decisions: Iterable[Recorded | Duplicate | Refused]) -> dict[LotKey, Lot]:
    """What the decisions' grants make of lots that were not there before."""
    lots: dict[LotKey, Lot] = {}
    for decision in decisions:
        if isinstance(decision, Recorded) and (posting := domain.grant(decision)) is not None:
            lot = lots.get(posting.lot) or domain.new_lot(posting.lot, posting.visitor_id)
            lots[posting.lot] = domain.post(lot, posting)
    return lots


class TestViews:
    def test_a_view_from_start_to_end_earns_a_second_for_a_second(self):
        """R-A3: credit in proportion to consumption, by the tariff."""
        one = ticket()
        decisions = play(empty(), [at_position(one, kind) for kind in IN_ORDER])
        assert lots_of(decisions)[one.key].available_ms == 16_000

    def test_half_a_view_earns_half(self):
        """R-A3."""
        one = ticket()
        decisions = play(empty(), [at_position(one, kind) for kind in IN_ORDER[:4]])
        assert lots_of(decisions)[one.key].available_ms == 8_000

    def test_the_same_event_twice_in_one_batch_earns_once(self):
        """L3, and the fold sees duplicates inside the batch."""
        one = ticket()
        events = [at_position(one, kind) for kind in IN_ORDER for _ in range(3)]
        decisions = play(empty(), events)
        assert sum(isinstance(d, Duplicate) for d in decisions) == 2 * len(IN_ORDER)
        assert lots_of(decisions)[one.key].granted_ms == 16_000

    @pytest.mark.parametrize("kind", [k for k in Kind if k in domain.PREDECESSOR])
    def test_what_needs_a_predecessor_is_refused_without_it(self, kind):
        """R-A3: order of events."""
        late = at_position(ticket(), kind, at=NOON + timedelta(minutes=5))
        assert play(empty(), [late]) == [Refused(reason=RefusalReason.OUT_OF_ORDER)]

    def test_no_faster_than_the_video(self):
        """R-A3: a quartile that comes before the video can have got there."""
        one = ticket()
        state = empty()
        play(state, [at_position(one, Kind.START)])
        early = at_position(one, Kind.FIRST_QUARTILE, at=NOON + timedelta(milliseconds=3_699))
        assert play(state, [early]) == [Refused(reason=RefusalReason.TOO_FAST)]
        just = early._replace(at=NOON + timedelta(milliseconds=3_700))  # the tolerance is 300 ms
        assert isinstance(play(state, [just])[0], Recorded)

    def test_two_ads_at_once_earn_for_one(self):
        """No more than the speed of the video: tickets hoarded and played together."""
        state = empty()
        tickets = [ticket(n) for n in range(1, 6)]
        decisions = play(state, [at_position(one, kind) for kind in IN_ORDER for one in tickets])
        earned = sum(d.credit_ms for d in decisions if isinstance(d, Recorded))
        assert earned == 16_000
        assert Refused(reason=RefusalReason.PARALLEL_VIEW) in decisions

    def test_time_watched_yesterday_is_not_watched_again_after_midnight(self):
        """Two tickets of two UTC days, played in the same seconds around midnight."""
        midnight = datetime(2026, 11, 23, tzinfo=UTC)
        before = ticket(1, issued_at=midnight - timedelta(seconds=1))
        after = ticket(2, issued_at=midnight)
        state = empty()
        end = midnight + timedelta(seconds=16)
        play(state, [at_position(before, kind, at=end) for kind in IN_ORDER])
        decisions = play(state, [at_position(after, kind, at=end) for kind in IN_ORDER])
        earned = sum(d.credit_ms for d in decisions if isinstance(d, Recorded))
        assert earned == 0

    def test_a_position_claimed_short_of_the_quartile_is_refused(self):
        state, one = empty(), ticket()
        play(state, [at_position(one, Kind.START)])
        short = at_position(one, Kind.FIRST_QUARTILE, position_ms=3_000)
        assert play(state, [short]) == [Refused(reason=RefusalReason.POSITION_MISMATCH)]

    def test_someone_elses_ticket_counts_nothing(self):
        stolen = at_position(ticket(), Kind.START, visitor_id=UUID(int=2))
        refusal = Refused(reason=RefusalReason.TICKET_OF_OTHER_VISITOR)
        assert play(empty(), [stolen]) == [refusal]

    @pytest.mark.parametrize(
        ("offset_s", "reason"),
        [(3601, RefusalReason.TICKET_EXPIRED), (-1, RefusalReason.TICKET_NOT_YET_ISSUED)],
        ids=["expired", "not-yet-issued"],
    )
    def test_a_ticket_out_of_its_time_counts_nothing(self, offset_s, reason):
        event = at_position(ticket(), Kind.START, at=NOON + timedelta(seconds=offset_s))
        assert play(empty(), [event]) == [Refused(reason=reason)]

    def test_the_daily_cap_cuts_the_credit_but_records_the_view(self):
        """Daily caps are counted from the ledger."""
        one = ticket()
        capped = replace(TARIFF, daily_cap_ms=6_000)
        decisions = play(empty(), [at_position(one, kind) for kind in IN_ORDER], (capped,))
        assert lots_of(decisions)[one.key].available_ms == 6_000
        assert [d.capped for d in decisions if isinstance(d, Recorded)][-3:] == [True, True, True]

    def test_the_tariff_in_force_at_the_event_decides(self):
        """R-A3: the tariff is data with a date."""
        double = replace(
            TARIFF, version="t2", valid_from=NOON + timedelta(seconds=6),
            rules={
                **TARIFF.rules, Kind.MIDPOINT: TariffRule(credit_permille=500, credit_flat_ms=7)
            },
        )  # fmt: skip
        state, one = empty(), ticket()
        decisions = play(state, [at_position(one, k) for k in IN_ORDER[:4]], (TARIFF, double))
        recorded = [(d.tariff_version, d.credit_ms) for d in decisions if isinstance(d, Recorded)]
        assert recorded[-2:] == [("t1", 4_000), ("t2", 8_007)]

    def test_without_a_tariff_nothing_is_granted(self):
        assert play(empty(), [at_position(ticket(), Kind.START)], ()) == [
            Refused(reason=RefusalReason.NO_TARIFF)
        ]

    @given(
        order=st.permutations([(n, kind) for n in (1, 2) for kind in IN_ORDER]),
        delay_s=st.integers(0, 40),
        repeats=st.integers(1, 2),
    )
    @settings(max_examples=150, deadline=None)
    def test_whatever_the_order_nobody_earns_more_than_was_watched_or_played(
        self, order, delay_s, repeats
    ):
        """L3, R-A3: redelivered, reordered or forged."""
        state = empty()
        at = NOON + timedelta(seconds=delay_s)
        events = [at_position(ticket(n), kind, at=at) for n, kind in order] * repeats
        decisions = play(state, events)
        earned_ms = sum(d.credit_ms for d in decisions if isinstance(d, Recorded))
        assert earned_ms <= min(32_000, delay_s * 1000 + TARIFF.tolerance_ms)
        assert earned_ms == sum(lot.granted_ms for lot in lots_of(decisions).values())


def filled_lot(number: int, available_ms: int, *, day_offset: int = 0) -> Lot:
    key = LotKey((NOON + timedelta(days=day_offset)).date(), UUID(int=number))
    return replace(domain.new_lot(key, VISITOR), granted_ms=available_ms, available_ms=available_ms)


def request(wanted_ms: int) -> ReserveRequest:
    return ReserveRequest(
        reservation_id=UUID("0192f0c1-2b00-7000-8000-000000000001"),
        visitor_id=VISITOR,
        wanted_ms=wanted_ms,
        lease_ms=60_000,
        at=NOON,
    )


class TestReservations:
    def test_the_lot_that_expires_first_gives_first(self):
        old, new = filled_lot(1, 5_000, day_offset=-2), filled_lot(2, 5_000)
        moved = domain.reserve([new, old], request(7_000), NOON)
        assert isinstance(moved, Moved)
        assert [(s.lot, s.reserved_ms) for s in moved.reservation.shares] == [
            (old.key, 5_000),
            (new.key, 2_000),
        ]

    def test_expired_credit_is_not_reserved(self):
        dead = filled_lot(1, 5_000, day_offset=-7)
        assert domain.reserve([dead], request(5_000), NOON) == Refused(
            reason=RefusalReason.NO_CREDIT
        )

    def test_what_was_not_used_goes_back(self):
        """R-A5, L5: charged what was talked, the rest returned."""
        lots = [filled_lot(1, 5_000, day_offset=-1), filled_lot(2, 5_000)]
        moved = domain.reserve(lots, request(10_000), NOON)
        assert isinstance(moved, Moved)
        settled = domain.settle(moved.reservation, 6_000, NOON)
        assert [(p.operation, p.amount_ms) for p in settled.postings] == [
            (domain.Operation.SPEND, 5_000),
            (domain.Operation.SPEND, 1_000),
            (domain.Operation.RELEASE, 4_000),
        ]
        assert settled.reservation.spent_ms == 6_000

    def test_nobody_is_charged_more_than_was_reserved(self):
        """C2, L2: an overrun is the platform's loss."""
        moved = domain.reserve([filled_lot(1, 5_000)], request(5_000), NOON)
        assert isinstance(moved, Moved)
        assert domain.settle(moved.reservation, 99_000, NOON).reservation.spent_ms == 5_000

    def test_a_reservation_cannot_end_twice(self):
        """L5."""
        moved = domain.reserve([filled_lot(1, 5_000)], request(5_000), NOON)
        assert isinstance(moved, Moved)
        ended = domain.settle(moved.reservation, 1, NOON).reservation
        with pytest.raises(AssertionError, match="exactly once"):
            domain.settle(ended, 1, NOON)


class LedgerMachine(RuleBasedStateMachine):
    """Grants, reservations and ends in any order: after each step L1, L2, L4, L5 hold."""

    @initialize()
    def begin(self) -> None:
        self.lots: dict[LotKey, Lot] = {}
        self.platform: dict[domain.Account, int] = dict.fromkeys(domain.Account, 0)
        self.held: list[domain.Reservation] = []
        self.now = NOON
        self.n_tickets = 0
        self.charged_ms = 0

    def post(self, postings: tuple[domain.Posting, ...]) -> None:
        for posting in postings:
            self.lots[posting.lot] = domain.post(self.lots[posting.lot], posting)
        for (_, account), amount in domain.platform_deltas(postings).items():
            self.platform[account] += amount

    @rule(amount_ms=st.integers(1, 60_000), days=st.integers(0, 1))
    def grant(self, amount_ms: int, days: int) -> None:
        self.now += timedelta(days=days)
        self.n_tickets += 1
        key = LotKey(self.now.date(), UUID(int=self.n_tickets))
        self.lots[key] = domain.new_lot(key, VISITOR)
        self.post(
            (
                domain.Posting(
                    lot=key, visitor_id=VISITOR, operation=domain.Operation.GRANT,
                    amount_ms=amount_ms, at=self.now, kind=Kind.COMPLETE, tariff_version="t1",
                ),
            )
        )  # fmt: skip

    @rule(wanted_ms=st.integers(1, 100_000))
    def reserve(self, wanted_ms: int) -> None:
        moved = domain.reserve(self.lots.values(), request(wanted_ms), self.now)
        if isinstance(moved, Moved):
            assert moved.reservation.reserved_ms <= wanted_ms
            self.post(moved.postings)
            self.held.append(moved.reservation)

    @precondition(lambda self: self.held)
    @rule(talk_ms=st.integers(0, 200_000), index=st.integers(0, 9))
    def settle(self, talk_ms: int, index: int) -> None:
        reservation = self.held.pop(index % len(self.held))
        moved = domain.settle(reservation, domain.charge_ms(talk_ms), self.now)
        assert moved.reservation.spent_ms == min(talk_ms, reservation.reserved_ms)
        self.charged_ms += moved.reservation.spent_ms
        self.post(moved.postings)

    @rule()
    def expire(self) -> None:
        for lot in list(self.lots.values()):
            if lot.available_ms and lot.expires_at <= self.now:
                self.post((domain.expire(lot, self.now),))

    @invariant()
    def all_accounts_sum_to_zero(self) -> None:
        """L1."""
        visitors = sum(lot.available_ms + lot.reserved_ms for lot in self.lots.values())
        assert sum(self.platform.values()) + visitors == 0

    @invariant()
    def lots_are_whole(self) -> None:
        """L2, L4, L5: what is reserved is what is held; what is spent is what was charged."""
        for lot in self.lots.values():
            parts = (lot.available_ms, lot.reserved_ms, lot.spent_ms, lot.expired_ms)
            assert min(parts) >= 0
            assert sum(parts) + lot.clawed_back_ms == lot.granted_ms
        reserved = sum(lot.reserved_ms for lot in self.lots.values())
        assert reserved == sum(r.reserved_ms for r in self.held)
        assert sum(lot.spent_ms for lot in self.lots.values()) == self.charged_ms


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

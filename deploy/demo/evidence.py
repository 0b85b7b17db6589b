"""The evidence chain of a visit, read from the databases as an auditor may.

ad event -> posting -> reservation -> call legs -> CDR -> settlement, each linked to the next by
ids; `Chain.gaps` says in words where it does not hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from deploy.demo.errors import DemoError
from deploy.demo.people import Person, e164
from deploy.demo.visitor import Visit
from deploy.local.stack import LocalStack
from deploy.phones import PhoneCall, PhoneExchange
from deploy.phones.phone import TONE_OF_CALLED_HZ, TONE_OF_CALLER_HZ

SIP_OK = 200
CUT_AT_LIMIT = "talk_limit"
HEARD_BY_LEG = {"a": TONE_OF_CALLED_HZ, "b": TONE_OF_CALLER_HZ}
"""Each telephone must hear the tone of the other one."""

Row = asyncpg.Record

_EVENTS = """
SELECT kind, viewed_at, position_ms, credit_ms, tariff_version, visitor_id FROM ad_view
WHERE ticket_id = $1 ORDER BY viewed_at, position_ms
"""
_POSTINGS = """
SELECT posting_id, operation, debit_account, credit_account, amount_ms, posted_at, kind,
       reservation_id
FROM posting WHERE ticket_id = $1 ORDER BY posting_id
"""
_RESERVATION = """
SELECT state, reserved_ms, spent_ms, requested_at, connected_at, ended_at, visitor_id
FROM reservation WHERE reservation_id = $1
"""
_VIEW_ADDRESS = "SELECT host(address) FROM ad_view_address WHERE ticket_id = $1"
_CALL_ADDRESS = "SELECT host(address) FROM call_address WHERE call_id = $1"
_CDR = "SELECT * FROM cdr WHERE call_id = $1"
_TRACE = "SELECT traceparent FROM call WHERE call_id = $1"
_LEGS = """
SELECT leg, dialled_at, ringing_at, answered_at, ended_at, duration_ms, sip_status, bye_status,
       is_down
FROM call_leg WHERE call_id = $1 ORDER BY leg
"""
_PROOFS = """
SELECT count(*) FROM consent_record r JOIN consent_subject s USING (proof_id)
WHERE r.decision_id = $1 AND s.visitor_id = $2
"""


@dataclass(frozen=True, kw_only=True)
class LegFigures:
    """A leg as both sides saw it: call control's record and the telephone's counters."""

    leg: str
    ring_ms: int | None
    duration_ms: int | None
    sip_status: int | None
    is_down: bool
    rtp_sent: int
    rtp_received: int
    heard_hz: int | None


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All that the databases and the telephones say about one visit."""

    visit: Visit
    visitor_id: str
    trace_id: str
    events: Sequence[Row]
    postings: Sequence[Row]
    reservation: Row
    cdr: Row
    legs: Sequence[LegFigures]
    leg_rows: Sequence[Row]
    n_consent_proofs: int
    addresses: tuple[str | None, str | None]

    @property
    def credited_ms(self) -> int:
        """What the ad earned: the sum of the grants."""
        return self._sum("grant")

    @property
    def reserved_ms(self) -> int:
        """What the call set aside: the sum of the reserving postings."""
        return self._sum("reserve")

    @property
    def charged_ms(self) -> int:
        """What the talk cost: the sum of the spending postings."""
        return self._sum("spend")

    @property
    def talk_ms(self) -> int:
        """How long they talked, by the CDR."""
        return int(self.cdr["talk_ms"])

    @property
    def overrun_ms(self) -> int:
        """How far the talk ran past what was reserved, by the CDR."""
        return int(self.cdr["overrun_ms"])

    def _sum(self, operation: str) -> int:
        return sum(p["amount_ms"] for p in self.postings if p["operation"] == operation)

    def gaps(self) -> list[str]:
        """Return in words what does not fit together; empty = the chain holds."""
        return [
            f"visitor {self.visit.person.number}: {what}"
            for what, holds in (*self._credit_checks(), *self._call_checks())
            if not holds
        ]

    def _credit_checks(self) -> list[tuple[str, bool]]:
        visit, reservation = self.visit, self.reservation
        address = visit.person.address
        return [
            ("the ad earned nothing", self.credited_ms > 0),
            (
                "the grants are not what the ad events earned",
                self.credited_ms == sum(event["credit_ms"] for event in self.events),
            ),
            ("the page showed another credit", visit.earned_ms == self.credited_ms),
            ("not all credit was reserved", self.reserved_ms == self.credited_ms),
            ("the reservation differs", self.reserved_ms == reservation["reserved_ms"]),
            ("the reservation is not settled", reservation["state"] == "settled"),
            ("the settlement differs", self.charged_ms == reservation["spent_ms"]),
            ("the page was told another price", visit.spent_ms == self.charged_ms),
            (
                "the charge is not the talk, up to what was reserved",
                self.charged_ms == min(self.talk_ms, self.reserved_ms),
            ),
            ("the visitor's address was not recorded", self.addresses == (address, address)),
            ("the choice of consent is not on record", self.n_consent_proofs > 0),
        ]

    def _call_checks(self) -> list[tuple[str, bool]]:
        visit, cdr = self.visit, self.cdr
        numbers = (e164(visit.person.callback_number), e164(visit.person.destination_number))
        checks = [
            ("the page was told another talk", visit.talk_ms == self.talk_ms),
            ("the call was not cut when the credit ended", cdr["reason"] == CUT_AT_LIMIT),
            (
                "the CDR has other numbers",
                (cdr["callback_number"], cdr["destination_number"]) == numbers,
            ),
            ("the CDR lacks a leg", [leg.leg for leg in self.legs] == ["a", "b"]),
        ]
        for leg in self.legs:
            heard = f"{leg.heard_hz} Hz" if leg.heard_hz else "nothing"
            checks += [
                (f"leg {leg.leg} heard {heard}", leg.heard_hz == HEARD_BY_LEG[leg.leg]),
                (f"leg {leg.leg} was answered with {leg.sip_status}", leg.sip_status == SIP_OK),
                (f"leg {leg.leg} may still be up", leg.is_down),
            ]
        return checks


async def gather(
    stack: LocalStack, exchange: PhoneExchange, visits: Sequence[Visit]
) -> list[Chain]:
    """Read the chain of each visit.

    Raises:
        DemoError: a link is missing.
    """
    ledger, calls, consent = [
        await asyncpg.connect(stack.admin_dsn(name))
        for name in ("ad_ledger", "call_control", "consent")
    ]
    try:
        return [await _chain(visit, exchange, ledger, calls, consent) for visit in visits]
    finally:
        for connection in (ledger, calls, consent):
            await connection.close()


async def _chain(
    visit: Visit, exchange: PhoneExchange, ledger: Any, calls: Any, consent: Any
) -> Chain:
    events = await ledger.fetch(_EVENTS, visit.ticket_id)
    reservation = await ledger.fetchrow(_RESERVATION, visit.call_id)
    cdr = await calls.fetchrow(_CDR, visit.call_id)
    for name, link in (("ad event", events), ("reservation", reservation), ("CDR", cdr)):
        if not link:
            raise DemoError(f"Visitor {visit.person.number} has no {name} in the database.")
    visitor_id = events[0]["visitor_id"]
    leg_rows = await calls.fetch(_LEGS, visit.call_id)
    return Chain(
        visit=visit,
        visitor_id=str(visitor_id),
        trace_id=(await calls.fetchval(_TRACE, visit.call_id)).split("-")[1],
        events=events,
        postings=await ledger.fetch(_POSTINGS, visit.ticket_id),
        reservation=reservation,
        cdr=cdr,
        legs=[_leg(row, _phone_call(exchange, visit.person, row["leg"])) for row in leg_rows],
        leg_rows=leg_rows,
        n_consent_proofs=await consent.fetchval(_PROOFS, visit.decision_id, visitor_id),
        addresses=(
            await ledger.fetchval(_VIEW_ADDRESS, visit.ticket_id),
            await calls.fetchval(_CALL_ADDRESS, visit.call_id),
        ),
    )


def _phone_call(exchange: PhoneExchange, person: Person, leg: str) -> PhoneCall:
    typed = person.callback_number if leg == "a" else person.destination_number
    seen = exchange.phones[e164(typed)].calls
    return seen[-1] if seen else PhoneCall(was_offered=False)


def _leg(row: Row, phone: PhoneCall) -> LegFigures:
    ring_ms = None
    if row["ringing_at"] is not None and row["answered_at"] is not None:
        ring_ms = round((row["answered_at"] - row["ringing_at"]).total_seconds() * 1000)
    return LegFigures(
        leg=row["leg"],
        ring_ms=ring_ms,
        duration_ms=row["duration_ms"],
        sip_status=row["sip_status"],
        is_down=row["is_down"],
        rtp_sent=phone.rtp_sent,
        rtp_received=phone.rtp_received,
        heard_hz=phone.heard_hz,
    )

"""What must hold when the dust has settled: by query, and against what visitors were told.

Three witnesses: the services' own invariants (the SQL that runs in production); queries of the
run's own that compare the databases with each other and with the answers of the gateway; and what
the services told one another on Kafka (`witness`).
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from schemas import topics
from services.ad_ledger.store import INVARIANTS as LEDGER
from services.call_control.store import INVARIANTS as CALLS
from services.chassis.kafka import KafkaLogin
from services.consent.store import INVARIANTS as CONSENT
from tests.chaos.people import QUARTERS, Told
from tests.chaos.witness import Account

INVARIANTS: Mapping[str, Mapping[str, str]] = {
    "ad_ledger": LEDGER,
    "call_control": CALLS,
    "consent": CONSENT,
}
QUARTER_MS = 15_000 // 4
"""What a quarter of the 15 s ad earns under tariff 2026-1 (R-A3)."""

_OPEN = {
    # settled means: nothing of these is left
    "ad_ledger": "SELECT count(*) FROM reservation WHERE state = 'held'",
    "call_control": "SELECT count(*) FROM call WHERE state NOT IN ('ended', 'refused')",
}
_UNSENT = """
SELECT count(*) FROM outbox o, outbox_cursor c WHERE (o.txid, o.id) > (c.txid, c.id)
"""


async def n_open(dsns: Mapping[str, str]) -> dict[str, int]:
    """Return what is under way still: open calls, held reservations, unsent events."""
    found = {}
    for service, dsn in dsns.items():
        connection = await asyncpg.connect(dsn)
        try:
            if service in _OPEN:
                found[f"{service} open"] = int(await connection.fetchval(_OPEN[service]))
            found[f"{service} unsent"] = int(await connection.fetchval(_UNSENT))
        finally:
            await connection.close()
    return {name: n for name, n in found.items() if n}


async def n_waiting(dsns: Mapping[str, str], login: KafkaLogin, prefix: str) -> int:
    """Return how many records the services have not yet handled, all topics together."""
    ends = await _ends(login, prefix)
    left = 0
    for service, dsn in dsns.items():
        connection = await asyncpg.connect(dsn)
        try:
            rows = await connection.fetch("SELECT topic, part, next_offset FROM consumer_offset")
        finally:
            await connection.close()
        done = {(row["topic"], row["part"]): row["next_offset"] for row in rows}
        for topic in topics.REGISTRY:
            # whoever sends outside reads all of these into memory, and keeps no offset
            in_memory = (topics.CONSENT_STATE, topics.CONSENT_PROGRESS, topics.REGISTER)
            if service in topic.consumers and topic not in in_memory:
                for part in range(topic.partitions):
                    left += ends[topic.name, part] - done.get((topic.name, part), 0)
    return left


async def _ends(login: KafkaLogin, prefix: str) -> dict[tuple[str, int], int]:
    consumer = AIOKafkaConsumer(**login.options(), group_id=None)
    await consumer.start()
    try:
        tps = [
            TopicPartition(prefix + topic.name, part)
            for topic in topics.REGISTRY
            for part in range(topic.partitions)
        ]
        ends = await consumer.end_offsets(tps)
    finally:
        await consumer.stop()
    return {(tp.topic.removeprefix(prefix), tp.partition): end for tp, end in ends.items()}


async def judge(dsns: Mapping[str, str], told: Sequence[Told], account: Account) -> list[str]:
    """Return everything that is wrong, in words without personal data; empty = all holds."""
    wrong: list[str] = []
    for service, dsn in dsns.items():
        connection = await asyncpg.connect(dsn)
        try:
            for name, sql in INVARIANTS.get(service, {}).items():
                if n := int(await connection.fetchval(sql)):
                    wrong.append(f"{service}: {name} is violated by {n} rows")
        finally:
            await connection.close()
    ledger = await _fetch(dsns["ad_ledger"], _LEDGER)
    calls = await _fetch(dsns["call_control"], _CALLS)
    credited = {row["ticket_id"]: row for row in await _fetch(dsns["ad_ledger"], _CREDITED)}
    wrong += _credits(credited, told)
    wrong += _settlements(ledger, calls)
    wrong += _calls(calls, told)
    wrong += _accounts(await _fetch(dsns["ad_ledger"], _VISITORS), account.balances)
    wrong += _announcements(calls, account)
    return wrong


_CREDITED = """
SELECT l.ticket_id, l.granted_ms, p.n_grants, p.sum_ms, p.n_kinds
FROM lot l JOIN (
    SELECT ticket_id, count(*) AS n_grants, sum(amount_ms)::bigint AS sum_ms,
           count(DISTINCT kind) AS n_kinds
    FROM posting WHERE operation = 'grant' GROUP BY ticket_id) p USING (ticket_id)
"""
_LEDGER = "SELECT reservation_id, state, reserved_ms, spent_ms FROM reservation"
_VISITORS = """
SELECT visitor_id, l.available_ms, l.reserved_ms, l.spent_ms, coalesce(r.spent_ms, 0) AS settled_ms
FROM (SELECT visitor_id, sum(available_ms)::bigint AS available_ms,
             sum(reserved_ms)::bigint AS reserved_ms, sum(spent_ms)::bigint AS spent_ms
      FROM lot GROUP BY visitor_id) l
LEFT JOIN (SELECT visitor_id, sum(spent_ms)::bigint AS spent_ms
           FROM reservation GROUP BY visitor_id) r USING (visitor_id)
"""
_CALLS = """
SELECT c.call_id, c.state, c.reason, c.reserved_ms, c.talk_ms,
       count(l.leg) AS n_legs, count(l.answered_at) AS n_answered,
       count(*) FILTER (WHERE l.answered_at IS NOT NULL AND NOT l.is_down) AS n_up
FROM call c LEFT JOIN call_leg l USING (call_day, call_id)
GROUP BY c.call_id, c.state, c.reason, c.reserved_ms, c.talk_ms
"""


def _credits(credited: Mapping[Any, Any], told: Sequence[Told]) -> list[str]:
    """L3, L6: each acknowledged quarter is credited, once; nothing that was never sent is."""
    wrong: Counter[str] = Counter()
    for one in told:
        row = credited.get(one.ticket_id)
        granted_ms = row["granted_ms"] if row else 0
        least_ms = QUARTER_MS * sum(kind in QUARTERS for kind in one.acknowledged)
        most_ms = QUARTER_MS * sum(kind in QUARTERS for kind in one.tried)
        if granted_ms < least_ms:
            wrong["visitors lost credit that was acknowledged (L3)"] += 1
        if granted_ms > most_ms:
            wrong["visitors were credited twice (L3)"] += 1
        if row and (row["n_grants"] != row["n_kinds"] or row["sum_ms"] != granted_ms):
            wrong["lots are not the sum of one grant an event (L1, L6)"] += 1
    known = {one.ticket_id for one in told}
    wrong["lots belong to a ticket that nobody was given"] += sum(
        ticket not in known for ticket in credited
    )
    return [f"{n} {what}" for what, n in wrong.items() if n]


def _settlements(ledger: Sequence[Any], calls: Sequence[Any]) -> list[str]:
    """L5, C1, C4: a call has one reservation, which ended with what the call used."""
    by_call = {row["call_id"]: row for row in calls}
    wrong = Counter(_fault_of(row, by_call.get(row["reservation_id"])) for row in ledger)
    reserved = {row["reservation_id"] for row in ledger}
    wrong["calls were dialled without a reservation (C1)"] = sum(
        bool(row["n_legs"]) and row["call_id"] not in reserved for row in calls
    )
    wrong["talks lack a leg (C4)"] = sum(
        (row["talk_ms"] or 0) > 0 and row["n_answered"] != 2 for row in calls
    )
    return [f"{n} {what}" for what, n in wrong.items() if n and what]


def _fault_of(reservation: Any, call: Any) -> str:
    """Return what is wrong with a reservation, or nothing."""
    if reservation["state"] == "held":
        return "reservations never ended (L5)"
    if call is None:
        return "reservations belong to no call (C1)"
    used_ms = min(call["talk_ms"] or 0, reservation["reserved_ms"])
    if reservation["state"] == "void" and used_ms:
        return "talks were not charged (C4)"
    if reservation["state"] == "settled" and reservation["spent_ms"] != used_ms:
        return "reservations were not settled with what was talked (L5)"
    return ""


def _calls(calls: Sequence[Any], told: Sequence[Told]) -> list[str]:
    """C3: whatever was accepted ended, and all legs are down."""
    wrong: Counter[str] = Counter()
    ended = {row["call_id"] for row in calls if row["state"] in ("ended", "refused")}
    for row in calls:
        if row["call_id"] not in ended:
            wrong["calls never ended (C3)"] += 1
        elif row["n_up"]:
            wrong["ended calls have a leg that is not down (C3)"] += 1
    for one in told:
        wrong["calls were accepted and lost"] += sum(call not in ended for call in one.call_ids)
    return [f"{n} {what}" for what, n in wrong.items() if n]


def _accounts(visitors: Sequence[Any], balances: Mapping[Any, tuple[int, int]]) -> list[str]:
    """No second lost: what lots lost to talk is what was settled, and pages show what is left."""
    wrong: Counter[str] = Counter()
    for row in visitors:
        if row["spent_ms"] != row["settled_ms"]:
            wrong["visitors paid other than was settled (L5)"] += 1
        if row["reserved_ms"]:
            wrong["visitors have credit that is reserved for no call (L5)"] += 1
        if balances.get(row["visitor_id"]) != (row["available_ms"], row["reserved_ms"]):
            wrong["visitors were last told another balance than the ledger's"] += 1
    return [f"{n} {what}" for what, n in wrong.items()]


def _announcements(calls: Sequence[Any], account: Account) -> list[str]:
    """C3 as others heard it: one end per call that had a reservation, with its talk.

    A double has the id of its original; a second end has an id of its own.
    """
    wrong: Counter[str] = Counter()
    ends: dict[Any, dict[Any, int]] = {}
    for one in account.ends:
        ends.setdefault(one.event.call_id, {})[one.id] = one.event.talk_ms
    for row in calls:
        if row["reserved_ms"] is None:
            continue
        heard = ends.get(row["call_id"], {})
        if len(heard) != 1:
            wrong[f"calls have {len(heard)} call-end events instead of one (C3)"] += 1
        elif [*heard.values()] != [row["talk_ms"] or 0]:
            wrong["call-end events tell another talk than the call's (C4)"] += 1
    started = {one.event.call_id for one in account.starts}
    wrong["calls started, as others heard, and never ended (C3)"] += len(started - ends.keys())
    wrong["dead letters"] += account.n_dead
    return [f"{n} {what}" for what, n in wrong.items() if n]


async def figures(dsns: Mapping[str, str]) -> dict[str, int]:
    """Return what the run was made of, as counts."""
    (ledger,) = await _fetch(
        dsns["ad_ledger"],
        "SELECT (SELECT count(*) FROM ad_view) AS ad_events,"
        " (SELECT coalesce(sum(granted_ms), 0)::bigint FROM lot) AS granted_ms,"
        " (SELECT coalesce(sum(spent_ms), 0)::bigint FROM reservation) AS spent_ms",
    )
    (calls,) = await _fetch(
        dsns["call_control"],
        "SELECT count(*) AS calls, count(*) FILTER (WHERE talk_ms > 0) AS talks,"
        " count(*) FILTER (WHERE reason = 'orphaned') AS orphaned,"
        " coalesce(max(overrun_ms), 0)::bigint AS overrun_max_ms FROM call",
    )
    return {**dict(ledger), **dict(calls)}


async def _fetch(dsn: str, sql: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(sql))
    finally:
        await connection.close()


async def settled(
    dsns: Mapping[str, str], login: KafkaLogin, prefix: str, within_s: float
) -> dict[str, int]:
    """Wait until nothing is under way; return what still is when the time is up."""
    deadline_s = asyncio.get_running_loop().time() + within_s
    while True:
        left = await n_open(dsns)
        if waiting := await n_waiting(dsns, login, prefix):
            left["records waiting"] = waiting
        if not left or asyncio.get_running_loop().time() > deadline_s:
            return left
        await asyncio.sleep(1.0)

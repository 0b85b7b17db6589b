"""What a person is told about a rule, an order, a record, on real PostgreSQL (R-D9)."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from schemas import topics
from schemas.record import Happening, RecordV1
from schemas.retention import (
    DataKind,
    DocumentClass,
    RetentionOrderV1,
    RetentionReceiptV1,
    TableCount,
)
from services.chassis.ids import TimeOrderedIds
from services.retention.explain import EXIT_REFUSED, EXIT_UNKNOWN, Explainer, parse
from services.retention.handlers import on_receipts
from services.retention.person_orders import Author, PersonOrders
from services.retention.protections import Scope
from services.retention.records import Records
from services.retention.schedule import Schedule, load
from services.retention.settings import DEFAULT_SCHEDULE
from services.retention.store import Store
from services.retention.sweep import issue
from tests.support.bench import Bench, open_bench, received
from tests.support.holders import register, signed
from tests.support.identities import sign
from tests.support.schedules import reviewed
from tests.support.stack import World

WORLD_SERVICES = ("retention",)
SCHEDULE = reviewed()
IDS = TimeOrderedIds()


class StoppedClock:
    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "retention", Store) as found:
        await found.fetch("SELECT chassis_outbox_maintain()")
        yield found


async def ask(
    bench: Bench[Store],
    *arguments: object,
    schedule: Schedule = SCHEDULE,
) -> int:
    """Ask as a person does, with the bench's clock."""
    question = parse([str(argument) for argument in arguments])
    async with bench.connection.transaction(readonly=True):
        explainer = Explainer(Store(bench.connection), schedule, StoppedClock(bench.now))
        return await explainer.run(question)


async def told(
    bench: Bench[Store],
    capsys: pytest.CaptureFixture[str],
    *arguments: object,
    schedule: Schedule = SCHEDULE,
) -> dict[str, Any]:
    assert await ask(bench, *arguments, "--json", schedule=schedule) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


async def sweep(bench: Bench[Store]) -> list[RetentionOrderV1]:
    async with bench.transaction() as ctx:
        await issue(ctx, SCHEDULE, bench.now, overdue_after=timedelta(minutes=15), again=True)
        return bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)


async def answer(bench: Bench[Store], order: RetentionOrderV1, *services: str) -> None:
    batch = [
        RetentionReceiptV1(
            order_id=order.order_id,
            service=service,
            kind=order.kind,
            counts=(TableCount(table="lot", n_partitions=1, n_rows=7),),
            done_at=bench.now,
        )
        for service in services
    ]
    async with bench.transaction() as ctx:
        await on_receipts(
            ctx, [received(topics.RETENTION_RECEIPT, one, bench.now) for one in batch]
        )


async def test_a_kind_is_explained_with_its_rule_its_sweep_and_its_orders(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: which rule, since when, when an item is due, when it was ordered and done."""
    order = next(entry for entry in await sweep(bench) if entry.kind is DataKind.AD_USE)
    await answer(bench, order, *topics.RETENTION_ORDER.consumers)
    found = await told(bench, capsys, "ad_use", "--event", "2026-11-22T18:00:00Z")
    assert found["rule"]["requirement"] == "R-D5"
    assert found["rule"]["valid_from"] == "2021-12-01"
    assert found["rule"]["valid_until"] is None
    assert found["rule"]["period"] == "at most 7 x 24 hours after the event"
    assert found["item"]["due_at"] == "2026-11-29T18:00:00+00:00"
    assert found["item"]["ordered_from"] == "2026-11-28T22:00:00+00:00"
    assert found["last_sweep"]["schedule_version"] == SCHEDULE.version
    assert found["orders"][0]["order_id"] == str(order.order_id)
    assert found["orders"][0]["is_complete"] is True
    assert found["orders"][0]["completed_at"] == bench.now.isoformat()
    assert {receipt["service"] for receipt in found["orders"][0]["receipts"]} == set(
        topics.RETENTION_ORDER.consumers
    )


async def test_what_happened_after_the_day_is_not_told(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: orders of the day itself are, in Berlin."""
    bench.now = datetime(2024, 5, 10, 21, 59, tzinfo=UTC)
    (order,) = [entry for entry in await sweep(bench) if entry.kind is DataKind.TRAFFIC_DATA]
    on_the_day = await told(bench, capsys, "traffic_data", "--on", "2024-05-10")
    assert [entry["order_id"] for entry in on_the_day["orders"]] == [str(order.order_id)]
    before = await told(bench, capsys, "traffic_data", "--on", "2024-05-09")
    assert (before["orders"], before["last_sweep"]) == ([], None)


@pytest.mark.parametrize(
    ("on", "years", "until"),
    [("2024-12-31", 10, "2025-01-01"), ("2025-01-01", 8, None)],
)
async def test_the_rule_of_a_past_day_is_told(
    bench: Bench[Store],
    capsys: pytest.CaptureFixture[str],
    on: str,
    years: int,
    until: str | None,
) -> None:
    """R-D6, R-D9: vouchers by the law of the day that was asked for."""
    arguments = ("contract", "--on", on, "--event", "2023-06-30")
    found = await told(bench, capsys, *arguments)
    assert found["rule"]["valid_until"] == until
    assert f"booking vouchers and invoices {years} years" in found["rule"]["period"]
    assert found["item"]["blocked_at"] == "2024-12-31T23:00:00+00:00"
    assert found["item"]["due_at"]["booking_voucher"] == f"{2023 + years}-12-31T23:00:00+00:00"


async def test_addresses_are_explained_with_the_threat_of_the_day(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-C3: who assessed it, when it ends; without one an item is due at once."""
    released = load(DEFAULT_SCHEDULE)
    normal = await told(bench, capsys, "ip_address", "--on", "2026-02-01", schedule=released)
    assert normal["threat"]["level"] == "normal"
    (assessment,) = normal["threat"]["assessments"]
    assert assessment["author"] == "data-protection contact"
    assert (assessment["assessed_on"], assessment["ends_on"]) == ("2026-01-05", "2027-01-05")
    none = await told(
        bench,
        capsys,
        *("ip_address", "--on", "2027-01-05", "--event", "2027-01-05T12:00:00Z"),
        schedule=released,
    )
    assert none["threat"] == {"level": "none", "assessments": []}
    assert none["item"]["due_at"] == "2027-01-05T12:00:00+00:00"


async def test_what_is_never_stored_is_never_due(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D1."""
    found = await told(bench, capsys, "web_use", "--event", "2026-11-22T18:00:00Z")
    assert found["item"]["due_at"] is None
    assert found["rule"]["action"] == "never_store"


async def test_an_order_is_explained_by_the_rules_of_its_own_day(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9, D3: who has answered what, who has not."""
    order = next(entry for entry in await sweep(bench) if entry.kind is DataKind.IP_ADDRESS)
    await answer(bench, order, "consent")
    found = await told(bench, capsys, order.order_id)
    assert found["rule"]["requirement"] == "R-D4"
    assert found["schedule_version"] == SCHEDULE.version
    assert found["order"]["silent"] == ["ad_ledger", "call_control"]
    assert found["order"]["receipts"][0]["counts"][0]["n_rows"] == 7
    assert "deeds" not in found["order"]


async def test_an_order_is_not_explained_by_a_later_schedule(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: by the release of the version that its sweep wrote down, whatever is in force now."""
    order = next(entry for entry in await sweep(bench) if entry.kind is DataKind.AD_USE)
    document = SCHEDULE.model_dump(mode="json")
    for rule in document["rules"]:
        if rule["kind"] == "ad_use":
            rule["period"]["hours"] = 24
    later = Schedule.model_validate({**document, "version": "test.later"}, strict=False)
    found = await told(bench, capsys, order.order_id, schedule=later)
    assert found["rule"]["period"] == "at most 7 x 24 hours after the event"
    assert found["schedule_version"] == SCHEDULE.version
    kind = await told(bench, capsys, "ad_use", schedule=later)
    assert kind["rule"]["period"] == "at most 24 hours after the event"


async def test_a_record_is_explained_with_what_was_told_and_done(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D6, R-D9: its dates, why it is kept, its orders with their deeds and answers."""
    event = RecordV1(
        record_id=IDS.new(),
        kind=DataKind.CONTRACT,
        document_class=DocumentClass.BOOKS,
        holder="billing",
        happened=Happening.CONTRACT_ENDED,
        happened_on=date(2023, 5, 1),
    )
    audit = event.model_copy(update={"happened": Happening.TAX_ASSESSMENT_OPENED})
    async with bench.transaction() as ctx:
        batch = [signed(received(topics.RECORD, one, bench.now)) for one in (event, audit)]
        await Records(SCHEDULE, register(["billing"])).on_records(ctx, batch)
    (order,) = [entry for entry in await sweep(bench) if event.record_id in entry.record_ids]
    await answer(bench, order, "billing")
    found = await told(bench, capsys, event.record_id)
    assert found["record"]["holder"] == "billing"
    assert [entry["happened"] for entry in found["record"]["told"]] == [
        "contract_ended",
        "tax_assessment_opened",
    ]
    assert found["due"] == {"block": "2024-12-31T23:00:00+00:00"}
    assert found["open_exceptions"] == ["tax_assessment_open"]
    (done,) = found["orders"]
    assert (done["deed"], done["is_complete"]) == ("block", True)
    of_order = await told(bench, capsys, order.order_id)
    assert of_order["order"]["deeds"] == {"block": len(order.record_ids)}
    # as of a day by whose rules it is asked for
    assert (await told(bench, capsys, event.record_id, "--on", "2024-01-01"))["rule"][
        "valid_until"
    ] == "2025-01-01"


async def test_a_hold_is_explained_with_its_case_its_steps_and_its_orders(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D3, R-D9: ground, who and when, until when at the latest, and whom it asked."""
    today = bench.now.date()
    scope = Scope(
        kinds=("traffic_data", "ad_use"),
        from_day=today - timedelta(days=3),
        before_day=today,
        names_visitors=False,
    )
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        hold_id = await orders.propose_hold(
            Author(staff_id="staff-1", case_number="STRAF-2026-9"),
            ground="prosecution",
            scope=scope,
            review_on=today + timedelta(days=90),
            visitor_ids=(),
        )
        await orders.place_hold("staff-2", hold_id)
    found = await told(bench, capsys, hold_id)
    assert found["protection"]["is"] == "hold"
    assert found["protection"]["is_in_force"] is True
    assert found["protection"]["case_number"] == "STRAF-2026-9"
    assert found["protection"]["review_on"] == (today + timedelta(days=90)).isoformat()
    assert [(entry["step"], entry["by"]) for entry in found["steps"]] == [
        ("placed", "staff-2"),
        ("proposed", "staff-1"),
    ]
    assert [rule["requirement"] for rule in found["rules"]] == ["R-D5", "R-D5"]
    (order,) = found["orders"]
    assert order["silent"] == list(topics.RETENTION_ORDER.consumers)


async def test_an_order_about_persons_is_explained_without_them(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9, D3, D4: what was ordered by whom, who has answered what, who is waived."""
    names = [uuid4() for _ in range(3)]
    silent, *others = topics.RETENTION_ORDER.consumers
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        author = Author(staff_id="staff-1", case_number="AUSK-2026-9")
        (order_id,) = await orders.erase(author, names)
        (order,) = bench.enqueued(ctx, topics.RETENTION_ORDER, RetentionOrderV1)
    await answer(bench, order, *others)
    bench.now += timedelta(minutes=16)
    told_now: dict[str, Any] = {}
    for staff_id, reason in (("staff-2", "dead_letter"), ("staff-3", None)):
        async with bench.transaction() as ctx:
            orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
            await orders.waive(staff_id, order_id, silent, reason)
        told_now = await told(bench, capsys, order_id)
        assert told_now["order"]["is_complete"] is (reason is None)
        assert len(told_now["order"]["waivers_proposed"]) == (reason is not None)
    found = told_now["order"]
    assert (found["action"], found["case_number"]) == ("erase", "AUSK-2026-9")
    assert (found["ordered_by"], found["confirmed_by"]) == ("staff-1", None)
    assert (found["n_visitors"], found["kinds"]) == (3, ["ad_use", "ip_address", "traffic_data"])
    assert found["schedule_version_when_made"] == SCHEDULE.version
    assert found["expected"] == list(topics.RETENTION_ORDER.consumers)
    (waived,) = found["waived"]
    assert (waived["holder"], waived["reason"]) == (silent, "dead_letter")
    assert (waived["proposed_by"], waived["confirmed_by"]) == ("staff-2", "staff-3")
    assert {receipt["service"] for receipt in found["receipts"]} == set(others)
    assert found["receipts"][0]["counts"][0]["n_rows"] == 7
    assert found["completed_at"] == bench.now.isoformat()
    assert not any(str(name) in json.dumps(told_now) for name in names)
    before = (await told(bench, capsys, "traffic_data"))["orders_about_persons"]["erase"]
    assert before >= 1


async def test_a_hold_s_order_tells_who_proposed_and_who_confirmed(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D3, R-D9: of its beginning and of its end."""
    today = bench.now.date()
    scope = Scope(kinds=("ad_use",), from_day=None, before_day=today, names_visitors=False)
    async with bench.transaction() as ctx:
        orders = PersonOrders(ctx, SCHEDULE, timedelta(minutes=15), sign=sign)
        hold_id = await orders.propose_hold(
            Author(staff_id="staff-1", case_number="STRAF-2026-9"),
            ground="prosecution",
            scope=scope,
            review_on=today + timedelta(days=90),
            visitor_ids=(),
        )
        (placed,) = await orders.place_hold("staff-2", hold_id)
        await orders.propose_release("staff-3", hold_id)
        released = await orders.release_hold("staff-4", hold_id)
    for order_id, ordered, confirmed in (
        (placed, "staff-1", "staff-2"),
        (released, "staff-3", "staff-4"),
    ):
        found = (await told(bench, capsys, order_id))["order"]
        assert (found["ordered_by"], found["confirmed_by"]) == (ordered, confirmed)
        assert found["protection_id"] == str(hold_id)


async def test_lines_say_the_same_as_json(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: for a person: each fact on its line."""
    await sweep(bench)
    assert await ask(bench, "ad_use", "--event", "2026-11-22T18:00:00Z") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kind: ad_use"
    assert "  requirement: R-D5" in lines
    assert "  is controller confirmed: yes" in lines
    assert "  due at: 2026-11-29T18:00:00+00:00" in lines
    assert any(line.startswith("  - order id: ") for line in lines)
    assert "    silent: ad_ledger, call_control, consent" in lines
    assert not any(character in "\n".join(lines) for character in "{}[]'")


async def test_an_unknown_id_and_a_day_without_rule_are_said(
    bench: Bench[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """R-D9: with a status of their own."""
    unknown = IDS.new()
    assert await ask(bench, unknown) == EXIT_UNKNOWN
    assert (
        capsys.readouterr().err
        == f"retention: no order, record, hold or restriction has the id {unknown}\n"
    )
    assert await ask(bench, "ad_use", "--on", "2021-11-30") == EXIT_REFUSED
    assert "no rule for ad_use is in force on 2021-11-30" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["newsletter"], "neither an id nor one of web_use, ip_address"),
        (["ad_use", "--on", "yesterday"], "invalid fromisoformat value"),
        (["01936f00-0000-7000-8000-000000000000", "--event", "2026-01-01"], "--event belongs"),
    ],
)
def test_a_question_that_means_nothing_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == EXIT_REFUSED
    assert says in capsys.readouterr().err

"""Consent's handlers on real PostgreSQL, under the service's own role (R-F2, R-F3, R-D5)."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import httpx
import pytest

from schemas import topics
from schemas.consent import (
    ConsentChange,
    ConsentChoice,
    ConsentDecision,
    ConsentMethod,
    ConsentStateV1,
    ConsentV1,
    Purpose,
    PurposeState,
)
from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.chassis.errors import Poison
from services.chassis.ids import TimeOrderedIds
from services.consent import catalogues, chain_store, domain, receipts
from services.consent.classification import TABLES
from services.consent.handlers import forget_states, known_recipients, on_consents
from services.consent.http import build_http
from services.consent.store import INVARIANTS, Store
from services.gateway.http import models
from services.privacy import calendar, chain
from services.privacy.chain import SigningKeys, VerifyKeys
from services.privacy.executor import Executor, Hooks
from services.privacy.invariants import D2_INVARIANTS
from tests.support.bench import Bench, new_visitor_id, open_bench, received
from tests.support.issuing import issuer
from tests.support.protected import carry_out
from tests.support.stack import World

WORLD_SERVICES = ("consent",)
IDS = TimeOrderedIds()
KEYS = SigningKeys({"k1": bytes(range(32)).hex()})
ISSUER = issuer(KEYS)
CURRENT = "2026-11.3"
NAMED = ("ad-partner", "adgrx-com", "amazon-adsystem-com", "stickyadstv-com")
"""Whom it names for marketing."""
GIVEN, REFUSED = ConsentDecision.GIVEN, ConsentDecision.REFUSED
WITHDRAWN = ConsentDecision.WITHDRAWN


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(
        world, "consent", Store, days_of=("consent_subject", "privacy_erased")
    ) as found:
        yield found


def consent(
    visitor_id: UUID,
    *choices: tuple[Purpose, ConsentDecision],
    decision_id: UUID | None = None,
) -> ConsentV1:
    return ConsentV1(
        decision_id=decision_id or IDS.new(),
        visitor_id=visitor_id,
        choices=tuple(ConsentChoice(purpose=p, decision=d) for p, d in choices),
        catalogue_version=CURRENT,
        wording_version="2026-11.1",
        language="de",
        method=ConsentMethod.BANNER,
    )


async def take(bench: Bench[Store], *events: tuple[ConsentV1, datetime]) -> list[ConsentStateV1]:
    """Handle the events as one poll and return the states that it published."""
    async with bench.transaction() as ctx:
        await on_consents(ctx, [received(topics.CONSENT, event, at) for event, at in events])
        return bench.enqueued(ctx, topics.CONSENT_STATE, ConsentStateV1)


def in_force(state: ConsentStateV1) -> dict[str, bool]:
    return {entry.purpose.value: entry.in_force for entry in state.purposes}


async def test_a_decision_is_recorded_with_its_proof_and_published(bench: Bench[Store]) -> None:
    """R-F2: who, what, when, how, and for which versions."""
    visitor = new_visitor_id()
    event = consent(visitor, (Purpose.MARKETING, GIVEN), (Purpose.STATISTICS, REFUSED))
    (state,) = await take(bench, (event, bench.now))
    assert state.visitor_id == visitor
    assert in_force(state) == {"marketing": True, "statistics": False}
    rows = await bench.fetch(
        """
        SELECT r.* FROM consent_record r JOIN consent_subject s USING (proof_id)
        WHERE s.visitor_id = $1 ORDER BY purpose
        """,
        visitor,
    )
    assert [(r["purpose"], r["decision"], r["method"], r["language"]) for r in rows] == [
        ("marketing", "given", "banner", "de"),
        ("statistics", "refused", "banner", "de"),
    ]
    assert {(r["catalogue_version"], r["wording_version"]) for r in rows} == {
        (CURRENT, "2026-11.1")
    }
    assert {r["decided_at"] for r in rows} == {bench.now}
    assert {r["ends_on"] for r in rows} == {calendar.berlin_date(bench.now + timedelta(days=6))}
    assert visitor not in {row["proof_id"] for row in rows}


async def test_the_same_decision_again_records_and_publishes_nothing(bench: Bench[Store]) -> None:
    """R-F2: by its natural key, within a poll and in a later one."""
    event = consent(new_visitor_id(), (Purpose.MARKETING, GIVEN))
    assert len(await take(bench, (event, bench.now), (event, bench.now))) == 1
    assert await take(bench, (event, bench.now)) == []
    rows = await bench.fetch("SELECT FROM consent_record WHERE decision_id = $1", event.decision_id)
    assert len(rows) == 1


async def test_withdrawal_is_published_and_keeps_when_it_was_in_force(bench: Bench[Store]) -> None:
    """R-F3, K2: for the future only."""
    visitor, earlier, later = new_visitor_id(), bench.now - timedelta(minutes=1), bench.now
    await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), earlier))
    (state,) = await take(bench, (consent(visitor, (Purpose.MARKETING, WITHDRAWN)), later))
    (purpose,) = state.purposes
    assert (purpose.in_force, purpose.since, purpose.reaches) == (False, later, NAMED)
    assert [(c.decision, c.at) for c in purpose.changes] == [
        (WITHDRAWN, later),
        (GIVEN, earlier),
    ]


async def test_an_older_decision_that_comes_late_changes_nothing_in_force(
    bench: Bench[Store],
) -> None:
    """R-F3: a withdrawal is not undone by the consent before it; the history is made whole."""
    visitor = new_visitor_id()
    await take(bench, (consent(visitor, (Purpose.MARKETING, WITHDRAWN)), bench.now))
    earlier = bench.now - timedelta(hours=30)
    (state,) = await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), earlier))
    assert in_force(state) == {"marketing": False}
    assert len(state.purposes[0].changes) == 2


async def test_a_visitor_keeps_one_proof_in_the_day_of_the_first_decision(
    bench: Bench[Store],
) -> None:
    """R-D5: the link goes 7 x 24 h after the first decision, in whatever order they came."""
    visitor = new_visitor_id()
    days = [bench.now - timedelta(days=n) for n in (1, 0, 2)]
    for at in days:
        await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), at))
    (link,) = await bench.fetch(
        "SELECT subject_day, proof_id FROM consent_subject WHERE visitor_id = $1", visitor
    )
    assert link["subject_day"] == calendar.utc_date(min(days))
    rows = await bench.fetch("SELECT FROM consent_record WHERE proof_id = $1", link["proof_id"])
    assert len(rows) == 3


async def test_a_choice_by_a_catalogue_nobody_published_is_a_counted_refusal(
    bench: Bench[Store],
) -> None:
    """R-F2: what was agreed to could not be shown: nothing recorded, nothing in force."""
    event = consent(new_visitor_id(), (Purpose.MARKETING, GIVEN))
    event = event.model_copy(update={"catalogue_version": "2019.9"})
    assert await take(bench, (event, bench.now)) == []
    rows = await bench.fetch("SELECT FROM consent_record WHERE decision_id = $1", event.decision_id)
    assert rows == []


@pytest.mark.parametrize(
    "shown",
    [
        {"catalogue_version": "2019.9"},
        {"wording_version": "2019.9"},
        {"language": "fr"},
    ],
    ids=lambda shown: next(iter(shown)),
)
async def test_a_denial_counts_whatever_was_shown(
    bench: Bench[Store], shown: dict[str, str]
) -> None:
    """R-F2, R-F3: agreed to nothing that could be shown; a withdrawal needs no version at all."""
    visitor = new_visitor_id()
    given = consent(visitor, (Purpose.MARKETING, GIVEN)).model_copy(update=shown)
    async with bench.transaction() as ctx:
        await on_consents(ctx, [received(topics.CONSENT, given, bench.now)])
        assert ctx.counts["consent", "refused_catalogue_unknown"] == 1
    await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now))
    withdrawn = ConsentV1(
        decision_id=IDS.new(),
        visitor_id=visitor,
        choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=WITHDRAWN),),
        method=ConsentMethod.PAGE,
        page="/privacy",
    )
    (state,) = await take(bench, (withdrawn, bench.now + timedelta(minutes=1)))
    assert in_force(state) == {"marketing": False}
    (row,) = await bench.fetch(
        "SELECT * FROM consent_record WHERE decision_id = $1", withdrawn.decision_id
    )
    assert (row["catalogue_version"], row["language"], row["page"]) == (None, None, "/privacy")


async def test_choices_about_recipients_are_recorded_and_published(bench: Bench[Store]) -> None:
    """R-F2, R-E2: per purpose and recipient; each with its own proof, all in the receipt."""
    visitor = new_visitor_id()
    event = consent(visitor, (Purpose.MARKETING, GIVEN)).model_copy(
        update={
            "choices": (
                ConsentChoice(purpose=Purpose.MARKETING, decision=GIVEN),
                ConsentChoice(purpose=Purpose.MARKETING, decision=REFUSED, recipient="adgrx-com"),
                ConsentChoice(purpose=Purpose.MARKETING, decision=REFUSED, recipient="nobody"),
            )
        }
    )
    (state,) = await take(bench, (event, bench.now), (event, bench.now))
    found = [(one.recipient, one.in_force) for one in state.purposes]
    assert found == [(None, True), *((name, name != "adgrx-com") for name in NAMED)]
    rows = await bench.fetch(
        "SELECT recipient, decision FROM consent_record WHERE decision_id = $1 ORDER BY recipient",
        event.decision_id,
    )
    assert [tuple(row) for row in rows] == [("", "given"), ("adgrx-com", "refused")]
    async with bench.transaction() as ctx:
        recorded = await ctx.store.recorded_of(visitor)
    (signed,) = receipts.receipts(recorded, ISSUER, bench.now)
    told = [
        {to["dct:identifier"] for to in process["dpv:hasRecipient"]}
        for process in signed["receipt"]["dpv:hasRecordOfActivity"]["dpv:hasProcess"]
    ]
    assert told == [set(NAMED), {"adgrx-com"}], "who is named by nobody but the version shown too"
    assert await take(bench, (event, bench.now)) == []


async def test_a_signal_and_a_question_without_an_answer(bench: Bench[Store]) -> None:
    """R-G6, R-F3: the browser objects until the visitor answers; a closed question is none."""
    visitor = new_visitor_id()

    def signal() -> ConsentV1:
        return ConsentV1(
            decision_id=IDS.new(),
            visitor_id=visitor,
            choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.OBJECTED),),
            method=ConsentMethod.SIGNAL,
        )

    minute = timedelta(minutes=1)
    (state,) = await take(bench, (signal(), bench.now))
    assert in_force(state) == {"marketing": False}
    (state,) = await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now + minute))
    assert in_force(state) == {"marketing": True}
    for event in (
        signal(),
        consent(visitor, (Purpose.MARKETING, ConsentDecision.SERVED)),
        consent(visitor, (Purpose.MARKETING, ConsentDecision.DISMISSED)),
    ):
        assert await take(bench, (event, bench.now + 2 * minute)) == []
        rows = await bench.fetch(
            "SELECT FROM consent_record WHERE decision_id = $1", event.decision_id
        )
        assert len(rows) == 1, "recorded, without effect"
    assert in_force(await _served(bench, visitor)) == {"marketing": True}


async def test_who_was_heard_is_asked_again_only_about_what_widens(
    bench: Bench[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-F2: a new version that adds a recipient asks again; one that mends a typo does not."""

    async def is_to_be_asked(visitor: UUID) -> bool:
        transport = httpx.ASGITransport(app=build_http(bench.transaction, ISSUER))
        async with httpx.AsyncClient(transport=transport, base_url="http://consent") as client:
            found = (await client.get(f"/v1/visitors/{visitor}/question")).json()
        return bool(found["is_to_be_asked"])

    silent, shown = new_visitor_id(), new_visitor_id()
    await take(bench, (consent(shown, (Purpose.MARKETING, ConsentDecision.SERVED)), bench.now))
    assert await is_to_be_asked(silent)
    assert await is_to_be_asked(shown)
    heard = []
    for decision in (GIVEN, REFUSED, WITHDRAWN, ConsentDecision.DISMISSED):
        heard.append(new_visitor_id())
        await take(bench, (consent(heard[-1], (Purpose.MARKETING, decision)), bench.now))
        assert not await is_to_be_asked(heard[-1])
    current = catalogues.known().by_version[CURRENT]
    texts = current.entries[0].purpose.model_copy(update={"de": "Ohne Tippfehler."})
    mended = current.model_copy(
        update={
            "version": "2026-11.3",
            "valid_from": current.valid_from + timedelta(seconds=1),
            "entries": (
                current.entries[0].model_copy(update={"purpose": texts}),
                *current.entries[1:],
            ),
        }
    )
    more = current.entries[0].model_copy(update={"id": "one-more", "recipient": "new.example"})
    wider = mended.model_copy(update={"version": "2026-11.4", "entries": (*mended.entries, more)})
    for new, asks in ((mended, False), (wider, True)):
        found = catalogues.Catalogues(by_version={c.version: c for c in (current, new)})
        monkeypatch.setattr(catalogues, "known", lambda found=found: found)
        assert [await is_to_be_asked(visitor) for visitor in heard] == [asks] * len(heard)
    # and what was agreed to reaches nobody whom only the new version names (R-E2)
    state = await _served(bench, heard[0])
    found_states = [(one.recipient, one.in_force, one.reaches) for one in state.purposes]
    assert found_states == [(None, True, NAMED)]


def test_a_record_has_room_for_every_state() -> None:
    """R-F2: what the register and the catalogues name fits; a cut could lose a denial."""
    purposes = {purpose for purpose, _ in known_recipients()} | set(Purpose)
    assert len(known_recipients()) + len(purposes) <= domain.STATES_MAX
    at = datetime(2026, 11, 22, 18, 3, 31, 123456, tzinfo=UTC)
    largest = ConsentStateV1(
        visitor_id=new_visitor_id(),
        purposes=tuple(
            PurposeState(
                purpose=Purpose.PREFERENCES,
                recipient="x" * 64,
                in_force=False,
                since=at,
                changes=(ConsentChange(decision=WITHDRAWN, at=at),) * domain.CHANGES_MAX,
            )
            for _ in range(domain.STATES_MAX)
        ),
    )
    assert len(largest.model_dump_json(exclude_none=True)) < topics.MESSAGE_BYTES_MAX


async def test_refusing_what_is_necessary_is_a_counted_refusal(bench: Bench[Store]) -> None:
    """R-F2: a value with its reason; nothing is recorded, nothing published."""
    event = consent(new_visitor_id(), (Purpose.NECESSARY, REFUSED))
    async with bench.transaction() as ctx:
        await on_consents(ctx, [received(topics.CONSENT, event, bench.now)])
        assert ctx.counts["consent", "refused_purpose_necessary"] == 1
        assert ctx.outbox.rows == []
    assert (
        await bench.fetch("SELECT FROM consent_subject WHERE visitor_id = $1", event.visitor_id)
        == []
    )


async def test_a_decision_id_with_another_content_is_poison(bench: Bench[Store]) -> None:
    """R-F2: the same key with another body never passes silently."""
    event = consent(new_visitor_id(), (Purpose.MARKETING, GIVEN))
    await take(bench, (event, bench.now))
    other = consent(event.visitor_id, (Purpose.MARKETING, REFUSED), decision_id=event.decision_id)
    with pytest.raises(Poison, match="decision_contradicts"):
        await take(bench, (other, bench.now))
    stolen = consent(new_visitor_id(), (Purpose.MARKETING, GIVEN), decision_id=event.decision_id)
    with pytest.raises(Poison, match="decision_of_another_visitor"):
        await take(bench, (stolen, bench.now))


UNTIMELY = {
    "too_old": -timedelta(hours=73),
    "weeks_old": -timedelta(days=40),
    "from_the_future": timedelta(minutes=6),
    "days_ahead": timedelta(days=9),
}


@pytest.mark.parametrize("name", UNTIMELY)
@pytest.mark.parametrize("denial", [WITHDRAWN, REFUSED, ConsentDecision.OBJECTED])
async def test_a_denial_by_a_wrong_clock_counts_from_when_it_came(
    bench: Bench[Store], name: str, denial: ConsentDecision
) -> None:
    """R-F3, R-G7: accepted, so never lost; told again, by then with an instant that can be too."""
    visitor = new_visitor_id()
    await take(
        bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now - timedelta(hours=1))
    )
    event, told_at = consent(visitor, (Purpose.MARKETING, denial)), bench.now + UNTIMELY[name]
    (state,) = await take(bench, (event, told_at))
    assert in_force(state) == {"marketing": False}
    assert state.purposes[0].since == bench.now
    came_at = bench.now
    for later in (timedelta(minutes=3), timedelta(days=1), timedelta(days=1)):
        bench.now += later
        assert await take(bench, (event, told_at), (event, told_at)) == []
    (row,) = await bench.fetch(
        "SELECT * FROM consent_record WHERE decision_id = $1", event.decision_id
    )
    assert row["decided_at"] == came_at
    assert in_force(await _served(bench, visitor)) == {"marketing": False}


@pytest.mark.parametrize("ahead", [timedelta(0), timedelta(minutes=4)])
async def test_a_denial_by_a_wrong_clock_outlasts_what_came_before_it(
    bench: Bench[Store], ahead: timedelta
) -> None:
    """R-F3, R-G7: also an agreement of the same instant, or one told a little ahead."""
    visitor = new_visitor_id()
    # the lower id, as a clock that is behind would make it
    event = consent(visitor, (Purpose.MARKETING, WITHDRAWN))
    given = consent(visitor, (Purpose.MARKETING, GIVEN))
    assert event.decision_id < given.decision_id
    await take(bench, (given, bench.now + ahead))
    (state,) = await take(bench, (event, bench.now - timedelta(days=9)))
    assert in_force(state) == {"marketing": False}
    again = consent(visitor, (Purpose.MARKETING, GIVEN))
    bench.now += timedelta(seconds=1)
    (state,) = await take(bench, (again, bench.now + ahead))
    assert in_force(state) == {"marketing": True}, "and whoever agrees after it has agreed"


async def test_an_agreement_told_ahead_counts_from_when_kafka_had_it(bench: Bench[Store]) -> None:
    """K2, R-F3: read hours later, its instant is not ahead any more; the withdrawal still holds."""
    visitor, came_at = new_visitor_id(), bench.now
    given, withdrawn = (
        received(topics.CONSENT, consent(visitor, (Purpose.MARKETING, verdict)), at)._replace(
            appended_at=appended_at
        )
        for verdict, at, appended_at in (
            (GIVEN, came_at + timedelta(minutes=4), came_at),
            (WITHDRAWN, came_at + timedelta(minutes=1), came_at + timedelta(minutes=1)),
        )
    )
    bench.now += timedelta(hours=2)
    async with bench.transaction() as ctx:
        await on_consents(ctx, [given, withdrawn])
        assert ctx.counts["consent", "taken_as_of_receipt"] == 1
    state = await _served(bench, visitor)
    assert in_force(state) == {"marketing": False}
    (row,) = await bench.fetch(
        "SELECT * FROM consent_record WHERE decision_id = $1", given.event.decision_id
    )
    assert row["decided_at"] == came_at
    # a broker whose clock is ahead of ours makes nothing later than now
    other = new_visitor_id()
    told_at = bench.now + timedelta(minutes=4)
    record = received(topics.CONSENT, consent(other, (Purpose.MARKETING, GIVEN)), told_at)
    async with bench.transaction() as ctx:
        await on_consents(ctx, [record._replace(appended_at=bench.now + timedelta(hours=1))])
    assert (await _served(bench, other)).purposes[0].since == bench.now


async def test_a_denial_by_a_wrong_clock_of_whom_nobody_knew_has_its_link(
    bench: Bench[Store],
) -> None:
    """R-F3, R-D5: the link stands in the day it came: there is none of its own clock."""
    visitor = new_visitor_id()
    event = consent(visitor, (Purpose.MARKETING, WITHDRAWN))
    await take(bench, (event, bench.now + timedelta(days=30)))
    (row,) = await bench.fetch("SELECT * FROM consent_subject WHERE visitor_id = $1", visitor)
    assert row["subject_day"] == bench.now.date()


@pytest.mark.parametrize("name", ["too_old", "from_the_future"])
async def test_an_agreement_by_a_wrong_clock_becomes_a_dead_letter(
    bench: Bench[Store], name: str
) -> None:
    """R-F2, R-D5: nothing is in force by it, and nothing accepted is dropped unseen; once."""
    visitor = new_visitor_id()
    event = consent(visitor, (Purpose.MARKETING, GIVEN), (Purpose.STATISTICS, REFUSED))
    told_at = bench.now + UNTIMELY[name]
    for n_letters in (1, 0):
        async with bench.transaction() as ctx:
            await on_consents(ctx, [received(topics.CONSENT, event, told_at)])
            assert ctx.counts["consent", f"refused_{name}"] == 1
            letters = [
                row for row in ctx.outbox.rows if row.topic == topics.CONSENT.dead_letter.name
            ]
            assert len(letters) == n_letters
        if letters:
            assert dict(letters[0].headers)["dead_letter_reason"] == name.encode()
            assert ConsentV1.model_validate_json(letters[0].payload or b"") == event
    rows = await bench.fetch(
        "SELECT purpose FROM consent_record WHERE decision_id = $1", event.decision_id
    )
    assert [row["purpose"] for row in rows] == ["statistics"], "the denial in it counts"
    # the clock is mended, and the letter sent again
    bench.now = max(told_at, bench.now)
    if name == "from_the_future":
        (state,) = await take(bench, (event, told_at))
        assert in_force(state) == {"marketing": True, "statistics": False}


async def test_a_decision_older_than_its_topic_allows_puts_nothing_in_force(
    bench: Bench[Store],
) -> None:
    """R-D5."""
    event = consent(new_visitor_id(), (Purpose.MARKETING, GIVEN))
    assert await take(bench, (event, bench.now - timedelta(hours=73))) == []
    assert (
        await bench.fetch("SELECT FROM consent_record WHERE decision_id = $1", event.decision_id)
        == []
    )


async def test_any_split_order_and_repetition_ends_in_the_same_state(bench: Bench[Store]) -> None:
    """R-F2: decisions of three days, shuffled, repeated and cut into polls by a seed."""
    finals = set()
    for seed in range(8):
        rng, visitor = random.Random(seed), new_visitor_id()
        script = [
            (
                consent(visitor, (purpose, decision)),
                bench.now - timedelta(days=n % 3, minutes=n),
            )
            for n, (purpose, decision) in enumerate(
                (purpose, decision)
                for purpose in (Purpose.MARKETING, Purpose.STATISTICS, Purpose.PREFERENCES)
                for decision in (GIVEN, WITHDRAWN, REFUSED, ConsentDecision.OBJECTED)
            )
        ]
        events = script + rng.sample(script, 6)
        rng.shuffle(events)
        while events:
            n = rng.randint(1, 5)
            await take(bench, *events[:n])
            del events[:n]
        finals.add((await _served(bench, visitor)).model_dump_json(exclude={"visitor_id"}))
    assert len(finals) == 1


async def _served(bench: Bench[Store], visitor: UUID) -> ConsentStateV1:
    transport = httpx.ASGITransport(app=build_http(bench.transaction, ISSUER))
    async with httpx.AsyncClient(transport=transport, base_url="http://consent") as client:
        response = await client.get(f"/v1/visitors/{visitor}/consent")
    assert response.status_code == 200
    return ConsentStateV1.model_validate_json(response.content)


async def test_a_visitor_gets_receipts_and_the_catalogue_again(bench: Bench[Store]) -> None:
    """R-F2, R-F3: signed, with a termination for the withdrawal; what was shown, as it was."""
    visitor, later = new_visitor_id(), bench.now + timedelta(minutes=1)
    await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now))
    await take(bench, (consent(visitor, (Purpose.MARKETING, WITHDRAWN)), later))
    transport = httpx.ASGITransport(app=build_http(bench.transaction, ISSUER))
    async with httpx.AsyncClient(transport=transport, base_url="http://consent") as client:
        signed = (await client.get(f"/v1/visitors/{visitor}/receipts")).json()
        public = VerifyKeys((await client.get("/v1/receipt-keys")).json())
        modes = (await client.get(f"/v1/visitors/{visitor}/consent-mode")).json()
        shown = (await client.get("/v1/catalogue", params={"language": "de"})).json()
        again = await client.get(f"/v1/catalogues/{shown['version']}", params={"language": "de"})
        unknown = await client.get("/v1/catalogues/2019.9", params={"language": "de"})
        keys = (await client.get("/v1/receipt-keys")).json()
        question = (await client.get(f"/v1/visitors/{visitor}/question")).json()
    # as the gateway's OpenAPI document describes them, field for field
    models.CatalogueAnswer.model_validate(shown)
    models.QuestionAnswer.model_validate(question)
    models.ReceiptKeysAnswer.model_validate(keys)
    models.ConsentModeAnswer.model_validate(modes)
    for entry in signed:
        models.ReceiptAnswer.model_validate(entry)
    assert [entry["receipt"]["dct:type"] for entry in signed] == ["decision", "termination"]
    assert all(receipts.verify(entry, public) for entry in signed)
    assert modes["ad_storage"] == "denied"
    assert again.json() == shown
    assert shown["hash"] == catalogues.published()[shown["version"]]["de"]
    assert unknown.status_code == 404


async def test_questions_and_signals_by_the_hundred_hide_no_choice(bench: Bench[Store]) -> None:
    """R-F2, R-F3: a page that was shown often is no reason to ask again or to forget a receipt."""
    visitor, minute = new_visitor_id(), timedelta(minutes=1)
    given = consent(visitor, (Purpose.MARKETING, GIVEN), (Purpose.STATISTICS, REFUSED))
    await take(bench, (given, bench.now - 600 * minute))
    closed = consent(visitor, (Purpose.MARKETING, ConsentDecision.DISMISSED))
    await take(bench, (closed, bench.now - 599 * minute))
    noise = [consent(visitor, (Purpose.MARKETING, ConsentDecision.SERVED)) for _ in range(300)] + [
        ConsentV1(
            decision_id=IDS.new(),
            visitor_id=visitor,
            choices=(ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.OBJECTED),),
            method=ConsentMethod.SIGNAL,
        )
        for _ in range(300)
    ]
    await take(bench, *[(one, bench.now - n * minute / 2) for n, one in enumerate(noise)])
    toggles = [consent(visitor, (Purpose.STATISTICS, REFUSED)) for _ in range(100)]
    await take(bench, *[(one, bench.now - n * minute / 2) for n, one in enumerate(toggles)])
    async with bench.transaction() as ctx:
        recorded = await ctx.store.recorded_of(visitor)
    found = {(one.decision_id, one.purpose) for one in recorded}
    assert {(given.decision_id, p) for p in ("marketing", "statistics")} <= found, "and whole"
    assert (closed.decision_id, "marketing") in found
    assert (toggles[0].decision_id, "statistics") in found
    transport = httpx.ASGITransport(app=build_http(bench.transaction, ISSUER))
    async with httpx.AsyncClient(transport=transport, base_url="http://consent") as client:
        answer = await client.get(f"/v1/visitors/{visitor}/receipts")
        question = (await client.get(f"/v1/visitors/{visitor}/question")).json()
    assert len(answer.content) < 2**20, "what the gateway hands on at most"
    told = {one["receipt"]["dct:identifier"] for one in answer.json()}
    assert f"{given.decision_id}#receipt" in told
    assert not question["is_to_be_asked"]


async def test_an_erasure_publishes_that_nothing_is_in_force(bench: Bench[Store]) -> None:
    """R-G3, K3: under the visitor's key, once, and for nobody whom consent does not know."""
    visitor, other = new_visitor_id(), new_visitor_id()
    await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now))
    order = RetentionOrderV1(
        order_id=IDS.new(),
        kind=DataKind.AD_USE,
        action=RetentionAction.ERASE,
        before_day=bench.now.date() + timedelta(days=1),
        as_of=bench.now,
        visitor_ids=(visitor, other),
    )
    executor = Executor(TABLES, simulation=True, hooks=Hooks(settle=forget_states))
    async with bench.transaction() as ctx:
        await executor.on_orders(ctx, [received(topics.RETENTION_ORDER, order, bench.now)])
        states = bench.enqueued(ctx, topics.CONSENT_STATE, ConsentStateV1)
    assert [(state.visitor_id, state.purposes) for state in states] == [(visitor, ())]
    assert (await _served(bench, visitor)).purposes == ()


async def test_a_visitor_without_decision_has_nothing_in_force(bench: Bench[Store]) -> None:
    """R-F4: an answer like any other, not an error."""
    assert (await _served(bench, new_visitor_id())).purposes == ()


async def test_records_can_be_neither_changed_nor_deleted_by_the_service(
    bench: Bench[Store],
) -> None:
    """R-F2: append-only, also past the parent table, by a partition's own name."""
    year = calendar.berlin_date(bench.now).year
    await take(bench, (consent(new_visitor_id(), (Purpose.MARKETING, GIVEN)), bench.now))
    for statement in (
        "UPDATE consent_record SET decision = 'given'",
        "DELETE FROM consent_record",
        "TRUNCATE consent_record",
        f"DELETE FROM consent_record_y{year}",
        f"DROP TABLE consent_record_y{year}",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await bench.fetch(statement)


async def test_a_proof_outlives_its_link_by_years_and_is_then_dropped(bench: Bench[Store]) -> None:
    """R-D5, R-D10: after 7 x 24 h no visitor; after the third calendar year no proof."""
    visitor = new_visitor_id()
    await take(bench, (consent(visitor, (Purpose.MARKETING, GIVEN)), bench.now))
    executor = Executor(TABLES, simulation=True)
    today = bench.now.date()
    ends_year = calendar.berlin_date(bench.now + timedelta(days=6)).year
    count = "SELECT count(*) FROM consent_record"
    (kept,) = await bench.fetch(count)

    async def drop(kind: DataKind, before_day: object) -> None:
        order = RetentionOrderV1.model_validate(
            {
                "order_id": IDS.new(),
                "kind": kind,
                "action": RetentionAction.DROP,
                "before_day": before_day,
                "as_of": bench.now,
            }
        )
        await carry_out(bench, executor, order)

    await drop(DataKind.AD_USE, today + timedelta(days=1))
    assert (await _served(bench, visitor)).purposes == ()
    assert await bench.fetch(count) == [kept]
    # the years before: the record stays until its own year's end lies three years back
    await drop(DataKind.CONSENT_RECORD, today.replace(year=ends_year, month=1, day=1))
    assert await bench.fetch(count) == [kept]
    await drop(DataKind.CONSENT_RECORD, today.replace(year=ends_year + 1, month=1, day=1))
    assert (await bench.fetch(count))[0]["count"] == 0
    # the chain is whole though every record and salt has gone (K1)
    async with bench.transaction() as ctx:
        parts = [await ctx.store.chain_part(part) for part in range(chain_store.PARTS)]
    assert sum(len(part.entries) for part in parts) > 0
    assert all(chain.verify(part.entries) == [] for part in parts)
    # what is being written to is there again
    await take(bench, (consent(new_visitor_id(), (Purpose.MARKETING, GIVEN)), bench.now))


async def test_the_invariants_hold_and_can_fail(bench: Bench[Store], world: World) -> None:
    """R-D5, D1: each query runs under the service's role and counts what it should."""
    for name, sql in INVARIANTS.items():
        assert (await bench.fetch(sql))[0]["count"] == 0, name
    old = bench.now.date() - timedelta(days=8)
    await bench.fetch("SELECT chassis_day_add('consent_subject', $1)", old)
    proof, visitor = new_visitor_id(), new_visitor_id()
    insert = "INSERT INTO consent_subject (subject_day, visitor_id, proof_id) VALUES ($1, $2, $3)"
    await bench.fetch(insert, old, visitor, proof)
    await bench.fetch(insert, bench.now.date(), visitor, proof)
    found = {name: (await bench.fetch(sql))[0]["count"] for name, sql in INVARIANTS.items()}
    assert found == {
        **dict.fromkeys(D2_INVARIANTS, 0),
        "d1_no_day_partition_too_old": 1,
        "d1_no_year_partition_too_old": 0,
        "one_proof_per_visitor": 2,
        "every_subject_has_a_record": 2,
    }
    await bench.fetch("DELETE FROM consent_subject WHERE visitor_id = $1", visitor)
    owner = await asyncpg.connect(world.owner_url("consent"))
    await owner.execute(f"DROP TABLE consent_subject_{old:y%Ym%md%d}")
    await owner.close()

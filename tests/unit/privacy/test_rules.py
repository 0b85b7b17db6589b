"""The gate's rules: a table of decisions, each row tested, and random ones beside another reading.

`gate_table.json` is read against the register that is shipped and a few recipients besides, which
have what the shipped ones lack: clauses, certificates, a contract, an end.
"""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.privacy.declare import Purpose
from services.privacy.gate import Permit, Question, Refusal, RefusalReason
from services.privacy.recipients import FILE, Register, parse
from services.privacy.rules import Change, ConsentFacts, RuleBook, always, decide

VISITOR = UUID("a0000000-5a3c-4f1e-9b7d-000000000000")
TABLE = json.loads(Path(__file__).with_name("gate_table.json").read_text())
SHIPPED: dict[str, Any] = json.loads(FILE.read_bytes())


def _like(other: str, recipient_id: str, **changes: Any) -> dict[str, Any]:
    found = next(r for r in SHIPPED["recipients"] if r["recipient_id"] == other)
    return {**found, "recipient_id": recipient_id, **changes}


def _signed(decision: str, valid_from: str, valid_until: str | None = None) -> list[dict[str, Any]]:
    return [{"decision": decision, "valid_from": valid_from, "valid_until": valid_until}]


FRAMEWORK, SHIELD = "(EU) 2023/1795", "(EU) 2016/1250"
_OLD = {"valid_from": "2015-01-01"}
_OLD_SETTLEMENT = [
    {
        **next(r for r in SHIPPED["recipients"] if r["recipient_id"] == "s-vi-serve-com")[
            "permissions"
        ][0],
        **_OLD,
    }
]
DATA = {
    **SHIPPED,
    "recipients": [
        *SHIPPED["recipients"],
        _like("amazon-adsystem-com", "us-certified", certified=_signed(FRAMEWORK, "2021-12-01")),
        _like(
            "amazon-adsystem-com",
            "us-lapsed",
            certified=_signed(FRAMEWORK, "2023-07-10", "2026-11-22"),
        ),
        _like("amazon-adsystem-com", "us-clauses", clauses=_signed("(EU) 2021/914", "2022-03-01")),
        _like("s-vi-serve-com", "us-old-clauses", clauses=_signed("2010/87/EU", "2021-01-01")),
        _like(
            "s-vi-serve-com",
            "us-shield",
            **_OLD,
            permissions=_OLD_SETTLEMENT,
            certified=_signed(SHIELD, "2016-08-01"),
        ),
        _like("s-vi-serve-com", "ended", country="IE", valid_until="2022-06-01"),
        _like("it-operations", "processor-with-contract", contract_on="2022-02-01"),
    ],
}
REGISTER = parse(json.dumps(DATA).encode())


def _facts(row: Mapping[str, Any]) -> ConsentFacts:
    changes = tuple(
        Change(at=datetime.fromisoformat(at), in_force=given_) for at, given_ in row["marketing"]
    )
    named = {("marketing", row["recipient"]): changes} if row.get("is_named", True) else {}
    return ConsentFacts(
        is_fresh=row["is_fresh"], changes={"marketing": changes}, of_recipients=named
    )


def _question(row: Mapping[str, Any]) -> Question:
    return Question(
        recipient=row["recipient"],
        purpose=Purpose(row["purpose"]),
        fields=frozenset(row["fields"]),
        visitor_id=VISITOR if row["has_visitor"] else None,
        happened_at=datetime.fromisoformat(row["happened_at"]),
        asked_at=datetime.fromisoformat(row["asked_at"]),
        country=row["country"],
    )


@pytest.mark.parametrize("row", TABLE, ids=[row["name"] for row in TABLE])
async def test_each_row_of_the_table(row):
    """R-E1, R-E2, R-F4, K2, K3: the decision as the data have it, by the rule and by the gate's."""
    question, facts = _question(row), _facts(row)
    verdict = decide(question, REGISTER, facts)
    assert (verdict.question, verdict.register_version) == (question, REGISTER.version)
    if isinstance(verdict, Refusal):
        assert verdict.reason.value == row["expected"]
    else:
        assert row["expected"] == {
            "fields": sorted(verdict.fields),
            "basis": verdict.basis.value,
            "ground": verdict.country.value,
        }
        assert (verdict.consent is not None) == (verdict.basis.value == "Art. 6(1)(a)")

    def facts_of(visitor_id: UUID, now: datetime) -> ConsentFacts:
        assert (visitor_id, now) == (VISITOR, question.asked_at)
        return facts

    assert await RuleBook(always(REGISTER), facts_of)(question) == verdict


def test_the_table_has_every_reason_but_that_of_no_rules():
    """K3: a reason without a row is a refusal that nobody has seen."""
    assert {row["expected"] for row in TABLE if isinstance(row["expected"], str)} == {
        reason.value for reason in RefusalReason
    }
    assert {row["expected"]["ground"] for row in TABLE if isinstance(row["expected"], dict)} == {
        "not_a_third_country", "adequacy", "standard_clauses", "contract_with_the_person"
    }  # fmt: skip
    assert {row["recipient"] for row in TABLE} >= {r["recipient_id"] for r in DATA["recipients"]}


# ---------------------------------------------------------------------- a second reading


def reference(row: Mapping[str, Any]) -> list[str] | None:
    """Return the fields that may go by the duty's text, read from the raw data; None = refused."""
    asked = datetime.fromisoformat(row["asked_at"])
    then = datetime.fromisoformat(row["happened_at"])
    today = asked.astimezone(ZoneInfo("Europe/Berlin")).date().isoformat()

    def now(*entries: dict[str, Any]) -> list[dict[str, Any]]:
        return [e for e in entries if e["valid_from"] <= today < (e["valid_until"] or "9999-12-31")]

    for r in now(*[r for r in DATA["recipients"] if r["recipient_id"] == row["recipient"]]):
        for p in now(*[p for p in r["permissions"] if p["purpose"] == row["purpose"]]):
            land = r["country"] or row["country"]
            lists = {c["decision"] for c in now(*r["certified"])}
            laws = [a for a in now(*DATA["adequacy"]) if a["country"] == land]
            adequate = any(not a["certified_only"] or a["decision"] in lists for a in laws)
            valid = {c["decision"] for c in now(*DATA["clause_decisions"])}
            clauses = any(c["decision"] in valid for c in now(*r["clauses"]))
            abroad = land not in DATA["eea"]
            said = [(datetime.fromisoformat(at), g) for at, g in row["marketing"]]
            given_at = [
                next((g and t - at < timedelta(days=6) for at, g in said if at <= t), False)
                for t in (then, asked)
            ] + [row.get("is_named", True), bool(said) and said[0][1]]
            if (
                land
                and not (abroad and not (adequate or clauses or p["is_contract_with_person"]))
                and not (r["kind"] == "processor" and (r["contract_on"] or "9") > today)
                and (not p["consent"] or (row["is_fresh"] and row["has_visitor"] and all(given_at)))
                and then - asked <= timedelta(minutes=5)
            ):
                return sorted(set(p["fields"]) & set(row["fields"])) or None
    return None


_FIELDS = sorted({f for r in DATA["recipients"] for p in r["permissions"] for f in p["fields"]})
_BOUNDS = sorted(
    {
        datetime.fromisoformat(f"{entry[key]}T00:00:00+00:00")
        for entry in [
            *DATA["adequacy"], *DATA["clause_decisions"], *DATA["recipients"],
            *(c for r in DATA["recipients"] for c in [*r["certified"], *r["clauses"]]),
        ]
        for key in ("valid_from", "valid_until")
        if entry[key] and entry[key] > "2015"
    }
)  # fmt: skip
_SECONDS = st.integers(-90_000, 90_000).map(lambda s: timedelta(seconds=s))
_ASKED = st.builds(lambda bound, by: bound + by, st.sampled_from(_BOUNDS), _SECONDS) | st.builds(
    lambda by: datetime(2026, 11, 22, 12, tzinfo=UTC) + by, _SECONDS
)


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    asked = draw(_ASKED)
    instants = st.sampled_from([timedelta(hours=n) for n in (-72, -3, -1, 0)])
    then = asked + draw(instants | st.sampled_from([timedelta(minutes=n) for n in (4, 5, 6)]))
    said = instants | st.sampled_from([timedelta(minutes=2), timedelta(days=-6)])
    changes = draw(st.lists(st.tuples(said, st.booleans()), max_size=4))
    ordered = sorted(dict(changes).items(), reverse=True)
    recipient = draw(st.sampled_from([*DATA["recipients"], {"recipient_id": "nobody"}]))
    purposes = [p["purpose"] for p in recipient.get("permissions", [])] or ["call"]
    return {
        "recipient": recipient["recipient_id"],
        "purpose": draw(st.sampled_from(purposes) | st.sampled_from([p.value for p in Purpose])),
        "fields": draw(st.lists(st.sampled_from([*_FIELDS, "name"]), unique=True, min_size=1)),
        "has_visitor": draw(st.booleans() | st.just(value=True)),
        "happened_at": then.isoformat(),
        "asked_at": asked.isoformat(),
        "country": draw(st.sampled_from([None, "DE", "US", "CH", "BR"])),
        "is_fresh": draw(st.booleans() | st.just(value=True)),
        "is_named": draw(st.booleans() | st.just(value=True)),
        "marketing": [[(asked + by).isoformat(), given_] for by, given_ in ordered],
    }


@given(questions())
def test_random_questions_are_decided_as_the_duty_reads(row):
    """R-E2, K2, K3: the same answer as twenty lines over the raw data."""
    verdict = decide(_question(row), REGISTER, _facts(row))
    found = sorted(verdict.fields) if isinstance(verdict, Permit) else None
    assert found == reference(row)


# ---------------------------------------------------------------------- the register's data


def broken(**changes: Any) -> bytes:
    """Return the shipped register with one recipient changed."""
    recipients = [{**SHIPPED["recipients"][0], **changes}, *SHIPPED["recipients"][1:]]
    return json.dumps({**SHIPPED, "recipients": recipients}).encode()


_PERMISSION = SHIPPED["recipients"][0]["permissions"][0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "at as a whole: Invalid JSON"),
        (broken(country="Switzerland"), "at recipients.0.country"),
        (broken(valid_until="2020-01-01"), "at recipients.0: ends before it begins"),
        (broken(contract_on="2022-01-01"), "has a contract on processing and is no processor"),
        (broken(clauses=_signed("2099/1", "2022-01-01")), "ad-partner has clauses of an unknown"),
        (broken(certified=_signed("2000/518/EC", "2022-01-01")), "ad-partner is on a list of an"),
        (broken(recipient_id="adgrx-com"), "has two entries for the same day"),
        (broken(permissions=[_PERMISSION, _PERMISSION]), "has two entries for the same day"),
        (broken(permissions=[{**_PERMISSION, "consent": "marketing"}]), "exactly where its basis"),
        (broken(permissions=[{**_PERMISSION, "basis": "Art. 6(1)(a)"}]), "exactly where its basis"),
        (broken(permissions=[{**_PERMISSION, "fields": ["a", "a"]}]), "names a field twice"),
        (broken(permissions=[{**_PERMISSION, "purpose": "sale"}]), "permissions.0.purpose"),
        (broken(more="x"), "at recipients.0.more: Extra inputs are not permitted"),
    ],
)
def test_wrong_data_are_refused_in_one_sentence(content, said):
    """R-E1: where, and why."""
    with pytest.raises(ValueError, match="recipient register is wrong") as caught:
        parse(content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_change_of_the_data_is_another_version():
    """R-E2: a verdict can be read by what it was decided by."""
    one, other = parse(FILE.read_bytes()), parse(FILE.read_bytes() + b"\n")
    assert one.version != other.version
    assert one.version.startswith(f"{SHIPPED['version']}+")


def test_an_entry_may_follow_another_of_its_id():
    """R-E1: adequacy, contracts and addresses change over time."""
    first = {**SHIPPED["recipients"][0], "valid_until": "2026-01-01"}
    second = {**SHIPPED["recipients"][0], "valid_from": "2026-01-01", "name": "the next"}
    found: Register = parse(json.dumps({**SHIPPED, "recipients": [first, second]}).encode())
    # days are Berlin's
    eve, year = datetime(2025, 12, 31, 22, 59, tzinfo=UTC), datetime(2025, 12, 31, 23, tzinfo=UTC)
    old = found.recipient("ad-partner", found.day_of(eve))
    new = found.recipient("ad-partner", found.day_of(year))
    assert old is not None
    assert new is not None
    assert (old.valid_until, new.name) == (date(2026, 1, 1), "the next")

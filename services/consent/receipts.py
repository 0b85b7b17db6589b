"""Consent receipts by ISO/IEC TS 27560 in the W3C's DPV profile: JSON-LD, signed. Pure.

A receipt says what was decided, by which version and wording, when and by what means, who would
get which data, for how long, and how it is withdrawn, under the proof id: who keeps it can show it
after the link from visitor to proof has gone (ADR 0013). Its form is that of the guide of the
DPV's group, https://w3id.org/dpv/guides/consent-27560; a test knows the terms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

from services.consent.domain import NECESSARY, Verdict
from services.consent.settings import Settings
from services.privacy import chain
from services.privacy.chain import SigningKeys, VerifyKeys
from services.privacy.recipients import Register

CONTEXT = {
    "dct": "http://purl.org/dc/terms/",
    "dpv": "https://w3id.org/dpv#",
    "eu": "https://w3id.org/dpv/legal/eu#",
    "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
    "loc": "https://w3id.org/dpv/loc#",
    "pd": "https://w3id.org/dpv/pd#",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "schema": "https://schema.org/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_OURS = "tag:callpartner.de,2026:receipt/"
OUTER_CONTEXT = {name: f"{_OURS}{name}" for name in ("receipt", "key_id", "signature")}
"""What stands around a receipt; the receipt has its own context, so that it stands alone."""
PROFILE = "https://w3id.org/dpv/schema/dpv-27560#"
STATUS = {
    Verdict.GIVEN: "dpv:ConsentGiven",
    Verdict.REFUSED: "dpv:ConsentRefused",
    Verdict.WITHDRAWN: "dpv:ConsentWithdrawn",
    # no consent stands after it; that it was an objection is said beside
    Verdict.OBJECTED: "dpv:ConsentRefused",
    Verdict.DISMISSED: "dpv:ConsentRequestDeferred",
    Verdict.SERVED: "dpv:ConsentRequested",
}
PURPOSE = {
    "necessary": "dpv:ServiceProvision",
    "preferences": "dpv:ServicePersonalisation",
    "statistics": "dpv:ServiceUsageAnalytics",
    "marketing": "dpv:PersonalisedAdvertising",
}
DATA = {
    "necessary": ("pd:UID",),
    "preferences": ("pd:Preference",),
    "statistics": ("pd:BrowsingBehaviour",),
    "marketing": ("pd:BrowsingBehaviour", "pd:IPAddress", "pd:UID"),
}
"""What is processed for a purpose: at least what the register lets anybody have."""
DATA_OF_FIELD = {
    "address": "pd:IPAddress",
    "signal.ticket_id": "pd:UID",
    "signal.viewed_at": "pd:BrowsingBehaviour",
    "signal.visitor_id": "pd:UID",
}
ANSWER_BYTES_MAX = 1_000_000
"""Under what the gateway hands on of one answer."""
RIGHTS = ("A7-3", "A15", "A16", "A17", "A18", "A20", "A21", "A77")
DATA_KEPT_FOR = "P7D"
"""Longest life of what an ad-financed use leaves (R-D5)."""
RECORD_KEPT_YEARS = 3
"""A record goes with the end of this calendar year after the one its consent ended in (R-D10)."""
CONSENT_MODE = {
    "marketing": ("ad_storage", "ad_user_data", "ad_personalization"),
    "statistics": ("analytics_storage",),
    "preferences": ("functionality_storage", "personalization_storage"),
}
"""Google Consent Mode v2: which of its keys each purpose speaks for."""


@dataclass(frozen=True, kw_only=True)
class Controller:
    """Who answers for the processing, as a receipt names it.

    Attributes:
        contact: where rights are exercised: `mailto:` or a page.
        page: where a choice is changed or withdrawn.
    """

    iri: str
    name: str
    contact: str
    page: str

    @classmethod
    def of(cls, settings: Settings) -> "Controller":
        """Return who the settings say."""
        return cls(
            iri=settings.controller_iri,
            name=settings.controller_name,
            contact=settings.controller_contact,
            page=settings.controller_page,
        )


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One purpose of a recorded decision, with what a receipt says of it.

    Attributes:
        ends_on: by which day (Berlin) the consent ends at the latest.
        named: ids of the recipients that the version shown names for the purpose; of that in
            force, where nothing was shown.
        shown_hash: SHA-256 (hex) of all that was shown, in its language; None = nobody knows.
    """

    decision_id: UUID
    proof_id: UUID
    purpose: str
    verdict: Verdict
    method: str
    decided_at: datetime
    ends_on: date
    catalogue_version: str | None = None
    wording_version: str | None = None
    language: str | None = None
    recipient: str | None = None
    page: str | None = None
    named: frozenset[str] = field(default=frozenset())
    shown_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """What a receipt takes from elsewhere than the record."""

    controller: Controller
    register: Register
    keys: SigningKeys


def receipts(recorded: Iterable[Recorded], issuer: Issuer, now: datetime) -> list[dict[str, Any]]:
    """Return a signed receipt for each decision, the oldest first."""
    by_decision: dict[UUID, list[Recorded]] = {}
    for one in sorted(recorded, key=lambda one: (one.decided_at, one.decision_id, one.purpose)):
        by_decision.setdefault(one.decision_id, []).append(one)
    return [sign(_receipt(of, issuer, now), issuer.keys) for of in by_decision.values()]


def _receipt(of: Sequence[Recorded], issuer: Issuer, now: datetime) -> dict[str, Any]:
    first = of[0]
    # a withdrawal or objection ends what was given: its receipt is a termination receipt
    terminates = any(one.verdict in {Verdict.WITHDRAWN, Verdict.OBJECTED} for one in of)
    return {
        "@context": CONTEXT,
        "@id": f"urn:uuid:{first.decision_id}#receipt",
        "@type": "dpv:ConsentReceipt",
        "dct:conformsTo": ["ISO/IEC TS 27560:2023", _iri(f"{PROFILE}receipt")],
        "dct:type": "termination" if terminates else "decision",
        "dct:identifier": f"{first.decision_id}#receipt",
        "dct:created": _instant(now),
        "dct:publisher": _iri(issuer.controller.iri),
        "schema:recipient": _iri(f"urn:uuid:{first.proof_id}"),
        "dpv:hasRecordOfActivity": _record(of, issuer),
    }


def _record(of: Sequence[Recorded], issuer: Issuer) -> dict[str, Any]:
    first, controller = of[0], issuer.controller
    until = date(max(one.ends_on for one in of).year + RECORD_KEPT_YEARS, 12, 31)
    record = {
        "@id": f"urn:uuid:{first.decision_id}",
        "@type": "dpv:ConsentRecord",
        "dct:conformsTo": _iri(f"{PROFILE}record"),
        "dct:identifier": first.decision_id,
        "dct:issued": _instant(first.decided_at),
        "dpv:hasDataController": {
            "@id": controller.iri,
            "@type": "dpv:DataController",
            "dpv:hasName": controller.name,
            "dpv:hasContact": controller.contact,
        },
        "dpv:hasDataSubject": _iri(f"urn:uuid:{first.proof_id}"),
        "dpv:hasJurisdiction": _iri("loc:DE"),
        "dpv:hasApplicableLaw": _iri("eu:law-GDPR"),
        "dpv:hasStorageCondition": _until(until),
        "dpv:hasConsentControl": {
            "@type": "dpv:WithdrawConsent",
            # the page may be where the controller is reached as well: it is named once
            "dpv:isExercisedAt": list(dict.fromkeys([controller.page, controller.contact])),
            # whom no cookie recognises any more names this number, by e-mail, letter or telephone
            "dct:identifier": first.proof_id,
        },
        "dpv:hasRight": [_right(name, controller) for name in RIGHTS],
        "dpv:hasProcess": [_process(one, issuer) for one in of],
    }
    if first.language is not None:
        record["dct:language"] = first.language
    if first.wording_version is not None:
        # a withdrawal in one step and a signal answer no question: no notice was shown
        record["dpv:hasNotice"] = _notice(first)
    return record


def _right(name: str, controller: Controller) -> dict[str, Any]:
    right: dict[str, Any] = {"@type": ["dpv:DataSubjectRight", f"eu-gdpr:{name}"]}
    if name != "A77":  # a complaint goes to an authority
        right["dpv:isExercisedAt"] = controller.contact
    return right


def _notice(one: Recorded) -> dict[str, Any]:
    notice: dict[str, Any] = {
        "@type": "dpv:ConsentNotice",
        "dct:identifier": one.catalogue_version,
        "dct:hasVersion": one.wording_version,
        "dct:language": one.language,
        "schema:sha256": one.shown_hash,
    }
    return {name: value for name, value in notice.items() if value is not None}


def _process(one: Recorded, issuer: Issuer) -> dict[str, Any]:
    is_consent = one.purpose != NECESSARY
    is_kept_beyond = one.catalogue_version is None and one.verdict is Verdict.GIVEN
    process: dict[str, Any] = {
        "@type": "dpv:Process",
        "dct:title": one.purpose,
        "dct:description": one.verdict.value,
        "dpv:hasPurpose": _iri(PURPOSE[one.purpose]),
        "dpv:hasPersonalData": [_iri(name) for name in DATA[one.purpose]],
        # what the contract needs rests on it: there is nothing to consent to, nor to withdraw
        "dpv:hasLegalBasis": _iri("eu-gdpr:A6-1-a" if is_consent else "eu-gdpr:A6-1-b"),
        "dpv:hasNecessity": _iri("dpv:Optional" if is_consent else "dpv:Required"),
        "dpv:hasRecipient": _recipients(one, issuer),
        "dpv:hasStorageCondition": _until(one.ends_on) if is_kept_beyond else _for(DATA_KEPT_FOR),
        "dpv:isIndicatedBy": _iri("dpv:DataSubject"),
        "dpv:isIndicatedAtTime": _instant(one.decided_at),
        "dpv:hasIndicationMethod": one.method,
    }
    if is_consent:
        process["dpv:hasConsentStatus"] = {"@type": STATUS[one.verdict]}
    if one.verdict is Verdict.GIVEN:
        process["dct:valid"] = _day(one.ends_on)
    if one.page is not None:
        process["dpv:hasLocation"] = one.page
    return process


def _recipients(one: Recorded, issuer: Issuer) -> list[dict[str, Any]]:
    """Return who would get something, and where; nobody else = the controller alone."""
    names = [one.recipient] if one.recipient else sorted(one.named)
    if not names:
        return [_iri(issuer.controller.iri)]
    found = []
    for name in names:
        said: dict[str, Any] = {
            "@id": f"{_OURS}recipient/{name}",
            "@type": "dpv:Recipient",
            "dct:identifier": name,
        }
        known = issuer.register.recipient(name, issuer.register.day_of(one.decided_at))
        if known is not None:
            said["dpv:hasName"] = known.name
            if known.country is not None:
                said["dpv:hasJurisdiction"] = _iri(f"loc:{known.country}")
        found.append(said)
    return found


def _iri(name: str) -> dict[str, Any]:
    return {"@id": name}


def _instant(at: datetime) -> dict[str, Any]:
    return {"@type": "xsd:dateTime", "@value": at}


def _day(day: date) -> dict[str, Any]:
    return {"@type": "xsd:date", "@value": day}


def _until(day: date) -> dict[str, Any]:
    until = {"@type": "dpv:UntilTimeDuration", "rdf:value": _day(day)}
    return {"@type": "dpv:StorageDuration", "dpv:hasDuration": until}


def _for(duration: str) -> dict[str, Any]:
    value = {"@type": "xsd:duration", "@value": duration}
    return {"@type": "dpv:StorageDuration", "dpv:hasDuration": value}


def sign(receipt: Mapping[str, Any], keys: SigningKeys) -> dict[str, Any]:
    """Return a receipt with its signature beside it: Ed25519 over its canonical bytes."""
    kid, signature = keys.sign(_signed(receipt))
    return {
        "@context": OUTER_CONTEXT,
        "receipt": receipt,
        "key_id": kid,
        "signature": signature.hex(),
    }


def verify(signed: Mapping[str, Any], keys: VerifyKeys) -> bool:
    """Whether a receipt, also one read back from JSON, is as it was signed."""
    try:
        signature = bytes.fromhex(signed["signature"])
        return keys.is_valid(signed["key_id"], signature, _signed(signed["receipt"]))
    except (KeyError, TypeError, ValueError):
        return False


def _signed(receipt: Mapping[str, Any]) -> bytes:
    # the type keeps a receipt's signature from standing for an anchor's
    return chain.canonical({"type": "receipt", "receipt": receipt})


def as_json(signed: Mapping[str, Any]) -> bytes:
    """Return a signed receipt's bytes for the person, in the very form that was signed."""
    return chain.canonical(signed)


def newest(texts: Sequence[bytes]) -> list[bytes]:
    """Return as many of the newest (last) ones as `ANSWER_BYTES_MAX` has room for, in order."""
    left, found = ANSWER_BYTES_MAX, []
    for text in reversed(texts):
        left -= len(text) + 1
        if left < 0:
            break
        found.append(text)
    return found[::-1]


def consent_mode(in_force: dict[str, bool]) -> dict[str, str]:
    """Return Google Consent Mode v2's keys; what was not decided is denied."""
    return {
        "security_storage": "granted",
        **{
            key: "granted" if in_force.get(purpose, False) else "denied"
            for purpose, names in CONSENT_MODE.items()
            for key in names
        },
    }

"""Consent receipts in the form of ISO/IEC TS 27560: JSON-LD with the W3C's DPV terms, signed. Pure.

A receipt says what was decided, by which version and wording, when and by what means, under the
proof id: who keeps it can show it after the link from visitor to proof has gone (ADR 0013).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from services.consent.domain import Verdict
from services.privacy import chain
from services.privacy.chain import SigningKeys, VerifyKeys

CONTEXT = {
    "dct": "http://purl.org/dc/terms/",
    "dpv": "https://w3id.org/dpv#",
    "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
}
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
CONSENT_MODE = {
    "marketing": ("ad_storage", "ad_user_data", "ad_personalization"),
    "statistics": ("analytics_storage",),
    "preferences": ("functionality_storage", "personalization_storage"),
}
"""Google Consent Mode v2: which of its keys each purpose speaks for."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One purpose of a recorded decision, with what a receipt says of it."""

    decision_id: UUID
    proof_id: UUID
    purpose: str
    verdict: Verdict
    method: str
    decided_at: datetime
    catalogue_version: str | None = None
    wording_version: str | None = None
    language: str | None = None
    recipient: str | None = None
    page: str | None = None


def receipts(
    recorded: Iterable[Recorded], *, controller: str, keys: SigningKeys
) -> list[dict[str, Any]]:
    """Return a signed receipt for each decision, the oldest first.

    Args:
        controller: IRI of the controller.
    """
    by_decision: dict[UUID, list[Recorded]] = {}
    for one in sorted(recorded, key=lambda one: (one.decided_at, one.decision_id, one.purpose)):
        by_decision.setdefault(one.decision_id, []).append(one)
    return [sign(_receipt(of, controller), keys) for of in by_decision.values()]


def _receipt(of: Sequence[Recorded], controller: str) -> dict[str, Any]:
    first = of[0]
    # a withdrawal or objection ends what was given: its receipt is a termination receipt
    terminates = any(one.verdict in {Verdict.WITHDRAWN, Verdict.OBJECTED} for one in of)
    receipt = {
        "@context": CONTEXT,
        "@id": f"urn:uuid:{first.decision_id}",
        "@type": "dpv:ConsentReceipt",
        "dct:conformsTo": "ISO/IEC TS 27560:2023",
        "dct:type": "termination" if terminates else "decision",
        "dct:identifier": first.decision_id,
        "dct:issued": first.decided_at,
        "dpv:hasDataController": {"@id": controller},
        "dpv:hasDataSubject": {"@id": f"urn:uuid:{first.proof_id}"},
        "dpv:hasLegalBasis": {"@id": "eu-gdpr:A6-1-a"},
        "dpv:hasProcess": [_process(one) for one in of],
    }
    if first.wording_version is not None:
        # a withdrawal in one step and a signal answer no question: no notice was shown
        receipt["dct:language"] = first.language
        receipt["dpv:hasNotice"] = {
            "dct:identifier": first.catalogue_version,
            "dct:hasVersion": first.wording_version,
            "dct:language": first.language,
        }
    return receipt


def _process(one: Recorded) -> dict[str, Any]:
    process: dict[str, Any] = {
        "dpv:hasPurpose": {"@id": PURPOSE[one.purpose]},
        "dct:title": one.purpose,
        "dpv:hasConsentStatus": {"@id": STATUS[one.verdict]},
        "dct:description": one.verdict.value,
        "dpv:isIndicatedAtTime": one.decided_at,
        "dpv:hasIndicationMethod": one.method,
    }
    if one.recipient is not None:
        process["dpv:hasRecipient"] = one.recipient
    if one.page is not None:
        process["dpv:hasLocation"] = one.page
    return process


def sign(receipt: dict[str, Any], keys: SigningKeys) -> dict[str, Any]:
    """Return a receipt with its signature beside it: Ed25519 over its canonical bytes."""
    kid, signature = keys.sign(_signed(receipt))
    return {"receipt": receipt, "key_id": kid, "signature": signature.hex()}


def verify(signed: dict[str, Any], keys: VerifyKeys) -> bool:
    """Whether a receipt, also one read back from JSON, is as it was signed."""
    try:
        signature = bytes.fromhex(signed["signature"])
        return keys.is_valid(signed["key_id"], signature, _signed(signed["receipt"]))
    except (KeyError, TypeError, ValueError):
        return False


def _signed(receipt: dict[str, Any]) -> bytes:
    # the type keeps a receipt's signature from standing for an anchor's
    return chain.canonical({"type": "receipt", "receipt": receipt})


def as_json(signed: dict[str, Any]) -> bytes:
    """Return a signed receipt's bytes for the person, in the very form that was signed."""
    return chain.canonical(signed)


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

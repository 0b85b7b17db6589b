"""Which links of the chain of evidence are acts of staff, and which two are one decision (R-D3)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from services.privacy.acts import Act

_AT = {
    "protection_step": "done_at",
    "review": "proposed_at",
    "review_confirmation": "confirmed_at",
    "waiver": "proposed_at",
    "waiver_confirmation": "confirmed_at",
}
_HALF_OF = {"placed": "placed", "proposed": "placed"} | dict.fromkeys(
    ("release_proposed", "released"), "released"
)
_SPECIAL_THREAT = "special_threat"


class Recorded(NamedTuple):
    """A link whose content is there: its number, its kind, whose it is, the content's one text."""

    seq: int
    what: str
    ref: UUID
    text: bytes


def of_links(links: Sequence[Recorded]) -> Iterator[Act]:
    """Return the acts of staff among links; the others say what they are about."""
    contents = {
        (link.what, link.ref): json.loads(link.text)
        for link in links
        if link.what in ("order", "protection")
    }
    for link in links:
        if link.what in _AT or link.what == "person_order":
            content = json.loads(link.text)
            key_id, signature = content.pop("key_id", None), content.pop("signature", None)
            yield Act(
                seq=link.seq,
                what=link.what,
                staff_id=content["staff_id"],
                at=_instant(link, content, contents),
                content=content,
                key_id=key_id,
                signature=None if signature is None else bytes.fromhex(signature),
                pair=_pair(link, content, contents),
                is_for_schedule=_is_for_schedule(link, content, contents),
            )


_Contents = Mapping[tuple[str, UUID], Mapping[str, Any]]


def _instant(link: Recorded, content: Mapping[str, Any], contents: _Contents) -> datetime:
    if link.what == "person_order":
        # an order whose own row is gone is a finding of its own
        text = contents.get(("order", link.ref), {}).get("issued_at", "9999-12-30T00:00:00+00:00")
    else:
        text = content[_AT[link.what]]
    return datetime.fromisoformat(text)


def _pair(
    link: Recorded, content: Mapping[str, Any], contents: _Contents
) -> tuple[str, UUID] | None:
    match link.what:
        case "protection_step":
            # a restriction is what the person asked for: one does it
            is_hold = contents.get(("protection", link.ref), {}).get("is_hold", True)
            half = _HALF_OF.get(content["step"])
            return (half, link.ref) if is_hold and half is not None else None
        case "review" | "review_confirmation":
            return "review", link.ref
        case "waiver" | "waiver_confirmation":
            return "waiver", link.ref
        case _:
            return None


def _is_for_schedule(link: Recorded, content: Mapping[str, Any], contents: _Contents) -> bool:
    if link.what == "person_order":
        order = contents.get(("order", link.ref), {})
        return order.get("action") == "release" and content["n_visitors"] == 0
    if link.what != "protection_step":
        return False
    ground = contents.get(("protection", link.ref), {}).get("ground")
    return content["step"] == "withdrawn" or (
        content["step"] == "released" and ground == _SPECIAL_THREAT
    )

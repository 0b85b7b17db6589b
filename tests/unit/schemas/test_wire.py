"""Models of the wire: strict in types, tolerant of fields they do not know, frozen."""

import pytest
from pydantic import ValidationError

from schemas.call import CallStartV1

GOOD = (
    '{"call_id": "019aabcd-1234-7abc-8def-0123456789ab",'
    ' "visitor_id": "8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01",'
    ' "connected_at": "2026-11-22T19:00:00+01:00", "reserved_ms": 15000, "added_later": true}'
)


def test_unknown_field_is_passed_over_and_an_event_cannot_be_changed() -> None:
    """A newer producer's field does not stop an older consumer."""
    event = CallStartV1.model_validate_json(GOOD)
    assert "added_later" not in event.model_dump()
    with pytest.raises(ValidationError):
        event.reserved_ms = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("15000", '"15000"', "int_type"),
        ("15000", "15000.5", "int_type"),
        ("15000", "-1", "greater_than_equal"),
        ("15000", "604800001", "less_than_equal"),
        ("-7abc-", "-4abc-", "value_error"),
        ("+01:00", "", "timezone_aware"),
    ],
)
def test_type_is_never_guessed(old: str, new: str, kind: str) -> None:
    """Strict: no text for a number, no naive instant, no id that is not the server's."""
    with pytest.raises(ValidationError) as caught:
        CallStartV1.model_validate_json(GOOD.replace(old, new))
    assert [error["type"] for error in caught.value.errors()] == [kind]

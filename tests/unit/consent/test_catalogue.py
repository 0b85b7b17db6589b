"""The consent catalogue as data (R-F1, R-F2, R-F4)."""

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.consent import catalogues
from services.consent.catalogues import Catalogue, CatalogueError, Category, Diff
from services.privacy import recipients

FIRST = json.loads((catalogues.FOLDER / "2026-11.1.json").read_text())


def version(**changes: Any) -> Catalogue:
    return Catalogue.model_validate({**deepcopy(FIRST), **changes})


def with_entry(name: str, **changes: Any) -> Catalogue:
    entries = deepcopy(FIRST["entries"])
    for entry in entries:
        if entry["id"] == name:
            entry.update(changes)
    return version(entries=entries)


def test_the_published_catalogue_holds_the_notices_entries_and_our_own() -> None:
    """R-F1: six of the notice, all four keys of the vast-client, our own, and the partner's."""
    catalogue = catalogues.load().by_version["2026-11.3"]
    by_provider: dict[str, list[str | None]] = {}
    for entry in catalogue.entries:
        by_provider.setdefault(entry.provider, []).append(entry.name)
    assert by_provider == {
        "adgrx.com": ["bridge"],
        "amazon-adsystem.com": ["ecm3"],
        "stickyadstv.com": ["pxld", None],
        "ad-partner": [None],
        "callpartner.de": [
            "vast-client-total-calls",
            "vast-client-total-calls-timeout",
            "vast-client-last-successful-ad",
            "__VASTStorage__",
            "visit",
            "consent-choice",
        ],
    }
    assert {e.country for e in catalogue.entries if e.adequacy == "not_adequate"} == {"US"}


def test_what_is_unclassified_cannot_be_consented_to() -> None:
    """R-F4: and what needs consent is blocked until then."""
    catalogue = catalogues.load().by_version["2026-11.3"]
    assert catalogue.consentable == {"necessary", "marketing"}
    assert all(
        e.blocked_until_accepted for e in catalogue.entries if e.category != Category.NECESSARY
    )


def test_whoever_needs_consent_by_the_register_is_named_in_the_catalogue() -> None:
    """R-E1, R-F1, R-F4: else nobody could agree to it, and it would never get anything."""
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    named = catalogues.load().in_force(now).recipients
    asked = {
        (permission.consent.value, recipient.recipient_id)
        for entries in recipients.load().by_id.values()
        for recipient in entries
        for permission in recipient.permissions
        if permission.consent is not None
    }
    assert asked
    assert {recipient for purpose, recipient in asked if recipient not in named[purpose]} <= {
        # its keys are not classified, so that nothing of it can be agreed to (R-F4)
        "s-vi-serve-com",
    }


def test_every_published_version_is_what_it_was() -> None:
    """R-F2: what was shown can be shown again exactly; these hashes never change."""
    assert catalogues.published() == {
        "2026-11.1": {
            "de": "04ad18e6eff3fc6e2719b499330bfcd0607f806bee40136a1e9ef2269382f15c",
            "en": "3d7f168d14ebf3416746573b6e7539a25f9077fac9fdba4f99385f406313f113",
        },
        "2026-11.2": {
            "de": "2a4062d1110b01d3c9bf603a4be507b260ad6d025e5f2a031e8166ef29447f37",
            "en": "c32705473b83d8482b43aae85f50db5992e1aedf8089364a4ce9658fe98f9124",
        },
        "2026-11.3": {
            "de": "fd1868fa82c0c2911aa27ae3e946ffb036d17afd9fcc12c875787ea6c11d4e5c",
            "en": "885d379bb618077f94f4a6ed8a351a8890a36ef8c18ea58a3d7fb3a5c04a1fc0",
        },
    }
    catalogue = catalogues.load().by_version["2026-11.1"]
    assert catalogue.hashes() == catalogues.published()["2026-11.1"]
    assert catalogue.shown("de")["wording"]["accept"] == "Erlauben"
    with pytest.raises(CatalogueError, match="language"):
        catalogue.shown("fr")


def test_who_answered_is_not_asked_again_for_a_better_text() -> None:
    """R-F2: 2026-11.3 says more truly how long a choice is kept, and adds nobody and nothing."""
    known = catalogues.load()
    better = catalogues.diff(known.by_version["2026-11.2"], known.by_version["2026-11.3"])
    assert not better.asks_again
    assert better.other == ("consent-choice: purpose",)
    assert catalogues.diff(known.by_version["2026-11.1"], known.by_version["2026-11.3"]).asks_again


def test_a_published_version_that_was_changed_is_refused(tmp_path: Path) -> None:
    """R-F2: by load and by publish; the same content again changes nothing."""
    document = deepcopy(FIRST)
    path = tmp_path / "2026-11.1.json"
    path.write_text(json.dumps(document))
    hashes = catalogues.fix("2026-11.1", tmp_path)
    assert catalogues.fix("2026-11.1", tmp_path) == hashes
    document["wording"]["de"]["title"] = "Anders"
    path.write_text(json.dumps(document))
    for act in (
        lambda: catalogues.load(tmp_path),
        lambda: catalogues.fix("2026-11.1", tmp_path),
    ):
        with pytest.raises(CatalogueError, match="was changed after it was published"):
            act()


def test_a_new_version_takes_over_at_its_instant() -> None:
    """R-F2."""
    begin = datetime(2027, 1, 1, tzinfo=UTC)
    old, new = version(), version(version="2027-01.1", valid_from=begin)
    both = catalogues.Catalogues(by_version={old.version: old, new.version: new})
    assert both.in_force(begin - timedelta(microseconds=1)) == old
    assert both.in_force(begin) == new
    with pytest.raises(CatalogueError, match="in force"):
        both.in_force(datetime(2020, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("bridge", {"blocked_until_accepted": False}, "blocked"),
        ("visit", {"recipient": "adgrx.com"}, "recipient"),
        ("bridge", {"purpose": {"de": "nur deutsch"}}, "entries.0.purpose.en"),
        ("bridge", {"country": "USA"}, "country"),
        ("bridge", {"id": "ecm3"}, "same id"),
        ("bridge", {"expiry": "1 day"}, "expiry"),
        ("bridge", {"source": "https://cm.adgrs.com/bridge?id=1"}, "source"),
    ],
)
def test_wrong_data_is_refused_in_one_sentence(
    tmp_path: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    """R-F1."""
    document = deepcopy(FIRST)
    for entry in document["entries"]:
        if entry["id"] == name:
            entry.update(changes)
    path = tmp_path / "2026-11.1.json"
    path.write_text(json.dumps(document))
    with pytest.raises(CatalogueError, match=said) as caught:
        catalogues.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "widened"),
    [
        ("bridge", {"purposes": ["real_time_bidding", "profile"]}, "bridge: purposes"),
        ("bridge", {"recipient": "other.example"}, "bridge: recipient"),
        ("bridge", {"expiry": "P1D"}, "bridge: expiry"),
        ("pxld", {"expiry": "persistent"}, "pxld: expiry"),
        ("pxld", {"country": "US"}, "pxld: country"),
        ("pxld", {"adequacy": "not_adequate"}, "pxld: adequacy"),
        ("vast-client-total-calls", {"category": "statistics"},
         "vast-client-total-calls: category"),
    ],
)  # fmt: skip
def test_what_widens_asks_again(name: str, changes: dict[str, Any], widened: str) -> None:
    """R-F2."""
    found = catalogues.diff(version(), with_entry(name, **changes))
    assert found.widens == (widened,)
    assert found.asks_again


def test_a_new_entry_asks_again_unless_it_can_never_be_set() -> None:
    """R-F2, R-F4."""
    fresh = {**deepcopy(FIRST["entries"][0]), "id": "fresh"}
    wider = version(entries=[*deepcopy(FIRST["entries"]), fresh])
    assert catalogues.diff(version(), wider).widens == ("fresh: added",)
    unknown = version(entries=[*deepcopy(FIRST["entries"]), {**fresh, "category": "unclassified"}])
    assert catalogues.diff(version(), unknown) == Diff(widens=(), other=("fresh: added",))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("bridge", {"purpose": {"de": "Gebote.", "en": "Bids."}}, "bridge: purpose"),
        ("pxld", {"expiry": "session"}, "pxld: expiry"),
        ("pxld", {"purposes": ["retargeting"]}, "pxld: purposes"),
        ("pxld", {"category": "unclassified"}, "pxld: category"),
    ],
)
def test_what_only_mends_or_narrows_does_not_ask_again(
    name: str, changes: dict[str, Any], said: str
) -> None:
    """R-F2: a typo, less time, fewer purposes, or nothing to be set any more."""
    assert catalogues.diff(version(), with_entry(name, **changes)) == Diff(widens=(), other=(said,))
    fewer = version(entries=[e for e in deepcopy(FIRST["entries"]) if e["id"] != name])
    assert not catalogues.diff(version(), fewer).asks_again


def test_the_hash_is_of_what_is_shown_in_that_language() -> None:
    """R-F2: a change of the German text leaves the English proof as it was."""
    wording = deepcopy(FIRST["wording"])
    wording["de"]["title"] = "Anders"
    changed = version(wording=wording)
    assert changed.hash("de") != version().hash("de")
    assert changed.hash("en") == version().hash("en")

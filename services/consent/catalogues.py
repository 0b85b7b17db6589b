"""The consent catalogue: what consent covers, as versions of data beside this file (R-F1, R-F2).

A published version never changes: its hash per language stands in `catalogue/published.json`, so
that what was shown to a visitor can be shown again exactly.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.consent.domain import NECESSARY, Offer
from services.privacy import chain

FOLDER = Path(__file__).with_name("catalogue")
PUBLISHED = "published.json"
LANGUAGES = ("de", "en")


class CatalogueError(ValueError):
    """A catalogue cannot be used; the message says why in one sentence."""


class Category(StrEnum):
    """What an entry is for; consent can be given to three of them."""

    NECESSARY = "necessary"
    PREFERENCES = "preferences"
    STATISTICS = "statistics"
    MARKETING = "marketing"
    UNCLASSIFIED = "unclassified"


class Adequacy(StrEnum):
    """Of the country, as it was found; what holds today is the recipient register's to say."""

    EU = "eu"
    ADEQUATE = "adequate"
    NOT_ADEQUATE = "not_adequate"


class EntryType(StrEnum):
    """How an entry keeps or sends."""

    COOKIE = "cookie"
    PIXEL = "pixel"
    HTTP = "http"
    LOCAL_STORAGE = "local_storage"
    SERVER_RECORD = "server_record"


Text = Annotated[str, Field(min_length=1, max_length=1000)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.\-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$")]
Url = Annotated[str, Field(pattern=r"^https://[^\s?#]+$")]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Texts(_Data):
    """One text in each language."""

    de: Text
    en: Text


class Entry(_Data):
    """One cookie, store, pixel or request (R-F1).

    Attributes:
        name: None where the notice names none.
        expiry: `session`, `persistent` or an ISO 8601 duration of days.
        purposes: closed words; the text explains them, the words decide whether to ask again.
        recipient: who gets it, as the recipient register names them; None = nobody but us.
    """

    id: Word
    name: Text | None
    provider: Word
    type: EntryType
    expiry: Annotated[str, Field(pattern=r"^(session|persistent|P[1-9][0-9]{0,3}D)$")]
    purposes: Annotated[tuple[Word, ...], Field(min_length=1)]
    purpose: Texts
    first_found: Url
    initiator: Text
    source: Url
    recipient: Word | None
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
    adequacy: Adequacy
    category: Category
    blocked_until_accepted: bool

    @model_validator(mode="after")
    def _blocks_what_needs_consent(self) -> "Entry":
        if self.category is not Category.NECESSARY and not self.blocked_until_accepted:
            raise ValueError(f"{self.id} needs consent and must be blocked until accepted")
        if self.category is Category.NECESSARY and self.recipient is not None:
            raise ValueError(f"{self.id} is necessary and must have no recipient")
        return self


class Wording(_Data):
    """What is shown around the entries in one language."""

    version: Version
    title: Text
    text: Text
    accept: Text
    refuse: Text
    withdraw: Text
    categories: dict[Category, Text]

    @model_validator(mode="after")
    def _names_all_categories(self) -> "Wording":
        if set(self.categories) != set(Category):
            raise ValueError("the wording must name every category")
        return self


class Wordings(_Data):
    """The wording in each language."""

    de: Wording
    en: Wording


class Catalogue(_Data):
    """One version. In force from `valid_from` until `valid_until` (None = until further notice)."""

    version: Version
    valid_from: AwareDatetime
    valid_until: AwareDatetime | None
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]
    wording: Wordings

    @model_validator(mode="after")
    def _is_of_one_piece(self) -> "Catalogue":
        if len({entry.id for entry in self.entries}) < len(self.entries):
            raise ValueError("two entries have the same id")
        if self.valid_until is not None and self.valid_until <= self.valid_from:
            raise ValueError("the validity ends before it begins")
        return self

    def shown(self, language: str) -> dict[str, Any]:
        """Return exactly what a visitor is shown in a language.

        Raises:
            CatalogueError: there is no such language.
        """
        if language not in LANGUAGES:
            raise CatalogueError(f"the catalogue has no language {language!r}")
        wording: Wording = getattr(self.wording, language)
        return {
            "version": self.version,
            "language": language,
            "wording": wording.model_dump(mode="json"),
            "entries": [
                {**entry.model_dump(mode="json"), "purpose": getattr(entry.purpose, language)}
                for entry in self.entries
            ],
        }

    def hash(self, language: str) -> str:
        """Return the SHA-256 (hex) of what is shown in a language."""
        return hashlib.sha256(chain.canonical(self.shown(language))).hexdigest()

    def hashes(self) -> dict[str, str]:
        """Return the hash of each language."""
        return {language: self.hash(language) for language in LANGUAGES}

    @property
    def consentable(self) -> frozenset[str]:
        """Purposes (categories) that can be decided about: never what is unclassified."""
        return frozenset(self.recipients)

    @property
    def recipients(self) -> dict[str, frozenset[str]]:
        """Purpose -> ids (of the recipient register) of who gets something by it (R-F1)."""
        found: dict[str, set[str]] = {NECESSARY: set()}
        for entry in self.entries:
            if entry.category is not Category.UNCLASSIFIED:
                among = found.setdefault(entry.category.value, set())
                among.update({recipient_id(entry.recipient)} if entry.recipient else ())
        return {purpose: frozenset(among) for purpose, among in found.items()}

    @property
    def wordings(self) -> dict[str, str]:
        """Language -> version of its wording."""
        return {language: getattr(self.wording, language).version for language in LANGUAGES}

    def is_worded(self, wording_version: str | None, language: str | None) -> bool:
        """Whether a wording, in a language, is the one that was shown with this version."""
        return wording_version is not None and wording_version == self.wordings.get(language or "")


def recipient_id(name: str) -> str:
    """Return a provider's id in the recipient register."""
    return name.replace(".", "-")


def read(path: Path) -> Catalogue:
    """Read one version.

    Raises:
        CatalogueError: the file is none, or says another version than its name.
    """
    try:
        found = Catalogue.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise CatalogueError(f"there is no catalogue {path.stem}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "catalogue"
        raise CatalogueError(f"{path.stem}: {place}: {first['msg']}") from None
    if found.version != path.stem:
        raise CatalogueError(f"{path.stem}: the file says version {found.version}")
    return found


@dataclass(frozen=True, kw_only=True)
class Catalogues:
    """The published versions, by name."""

    by_version: Mapping[str, Catalogue]

    @cached_property
    def recipients(self) -> frozenset[tuple[str, str]]:
        """(purpose, id) of all recipients that any version names."""
        return frozenset(
            (purpose, recipient)
            for one in self.by_version.values()
            for purpose, among in one.recipients.items()
            for recipient in among
        )

    def asks_again(self, answered: Catalogue, now: datetime) -> bool:
        """Whether who answered to one version must be asked about the one in force (R-F2).

        Raises:
            CatalogueError: none is in force.
        """
        current = self.in_force(now)
        return current.version != answered.version and diff(answered, current).asks_again

    def offer(self, version: str | None) -> Offer | None:
        """Return what a version offers, and to whom; None = no such version."""
        return self._offers.get(version or "")

    @cached_property
    def _offers(self) -> dict[str, Offer]:
        return {
            version: Offer(recipients=one.recipients) for version, one in self.by_version.items()
        }

    def in_force(self, at: datetime) -> Catalogue:
        """Return the version in force at an instant; of several, the one that began last.

        Raises:
            CatalogueError: none was.
        """
        found = [
            catalogue
            for catalogue in self.by_version.values()
            if catalogue.valid_from <= at
            and (catalogue.valid_until is None or at < catalogue.valid_until)
        ]
        if not found:
            raise CatalogueError("no catalogue is in force")
        return max(found, key=lambda catalogue: (catalogue.valid_from, catalogue.version))


@cache
def known() -> Catalogues:
    """Return the published versions that this program came with, read once."""
    return load()


def published(folder: Path = FOLDER) -> dict[str, dict[str, str]]:
    """Return version -> language -> hash, as it was when published."""
    path = folder / PUBLISHED
    found: dict[str, dict[str, str]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def load(folder: Path = FOLDER) -> Catalogues:
    """Read every published version.

    Raises:
        CatalogueError: one is wrong, or is not what it was when it was published.
    """
    found = {}
    for version, hashes in published(folder).items():
        catalogue = read(folder / f"{version}.json")
        if catalogue.hashes() != hashes:
            raise CatalogueError(f"{version} was changed after it was published: make a new one")
        found[version] = catalogue
    return Catalogues(by_version=found)


def fix(version: str, folder: Path = FOLDER) -> dict[str, str]:
    """Fix a version for ever; return its hashes. Again: nothing changes.

    Raises:
        CatalogueError: it is wrong, or was published with another content.
    """
    load(folder)
    hashes = read(folder / f"{version}.json").hashes()
    text = json.dumps({**published(folder), version: hashes}, indent=2, sort_keys=True)
    (folder / PUBLISHED).write_text(f"{text}\n", encoding="utf-8")
    return hashes


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What a version changes, and whether those who decided before must be asked again."""

    widens: tuple[str, ...]
    other: tuple[str, ...]

    @property
    def asks_again(self) -> bool:
        """Whether anything was added that nobody was asked about."""
        return bool(self.widens)


def diff(old: Catalogue, new: Catalogue) -> Diff:
    """Compare two versions: a recipient, purpose or reach more asks again, words alone do not."""
    before = {entry.id: entry for entry in old.entries}
    after = {entry.id: entry for entry in new.entries}
    widens: list[str] = []
    other = [f"{name}: removed" for name in before if name not in after]
    for name, entry in after.items():
        earlier = before.get(name)
        if earlier is None:
            (widens if _can_be_set(entry) else other).append(f"{name}: added")
            continue
        wider = _wider(earlier, entry) if _can_be_set(entry) else []
        widens.extend(f"{name}: {field}" for field in wider)
        other.extend(f"{name}: {field}" for field in _changed(earlier, entry) if field not in wider)
    if old.wording != new.wording:
        other.append("wording")
    return Diff(widens=tuple(widens), other=tuple(other))


def _can_be_set(entry: Entry) -> bool:
    return entry.category is not Category.UNCLASSIFIED


def _changed(old: Entry, new: Entry) -> list[str]:
    return [name for name in Entry.model_fields if getattr(old, name) != getattr(new, name)]


def _wider(old: Entry, new: Entry) -> list[str]:
    """Name the fields by which an entry does more than it was agreed to do."""
    fixed = ("provider", "type", "source", "recipient", "country", "category")
    found = [name for name in _changed(old, new) if name in fixed]
    if not set(new.purposes) <= set(old.purposes):
        found.append("purposes")
    if _days(new.expiry) > _days(old.expiry):
        found.append("expiry")
    if new.adequacy is Adequacy.NOT_ADEQUATE and old.adequacy is not Adequacy.NOT_ADEQUATE:
        found.append("adequacy")
    return found


def _days(expiry: str) -> float:
    return {"session": 0.0, "persistent": float("inf")}.get(expiry) or (
        float(expiry[1:-1]) if expiry.startswith("P") else 0.0
    )

"""What goes over HTTP; apart from the events, so that either may change without the other."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, RootModel

from schemas.ad_view import AdEventKind
from schemas.consent import CHOICES_MAX, ConsentDecision, PagePath, Purpose
from schemas.transfer import RecipientId
from schemas.wire import Milliseconds

EVENTS_MAX = 50

Version = Annotated[str, Field(pattern=r"^[0-9a-z.\-]{1,32}$", examples=["2026-11.1"])]
TypedNumber = Annotated[
    str,
    Field(
        min_length=1,
        max_length=40,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="As typed; the number policy decides what it is.",
        examples=["+49 30 23125 011"],
    ),
]


class _Request(BaseModel):
    """A request's body: a field that we do not know is an error, not a silent loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class VisitAnswer(_Answer):
    """The visit is open; its pseudonym is in the cookie only."""

    expires_at: datetime


class AdAnswer(_Answer):
    """The ad to show."""

    ad_id: Annotated[str, Field(examples=["minutes-15s"])]
    title: str
    media_url: Annotated[str, Field(examples=["/v1/media/minutes-15s.wav"])]
    duration_ms: Annotated[int, Field(gt=0, examples=[15000])]


class PartnerAnswer(_Answer):
    """Leave to load the ad partner's tag, and what it may be told."""

    tag_url: Annotated[str, Field(examples=["https://s.vi-serve.com/tagLoader.js"])]
    personalised: Annotated[
        list[str],
        Field(description="Exchanges that may get personalised-ad data; nobody else may."),
    ]


class TicketAnswer(_Answer):
    """Leave to watch one ad once."""

    ticket: Annotated[str, Field(description="Signed; goes with each ad event as it is.")]
    ticket_id: UUID
    ad: AdAnswer
    expires_at: datetime
    partner: Annotated[
        PartnerAnswer | None,
        Field(description="Where it is null the page asks no third party, and shows `ad`."),
    ] = None


class AdEvent(_Request):
    """One step of a view."""

    ticket: Annotated[str, Field(min_length=16, max_length=1024)]
    kind: AdEventKind
    position_ms: Annotated[
        Milliseconds, Field(strict=True, description="Where the player is.", examples=[7500])
    ]
    client_at: Annotated[
        AwareDatetime | None, Field(description="The browser's clock: a claim, not trusted.")
    ] = None


class AdEvents(_Request):
    """A batch of steps, taken whole or not at all."""

    events: Annotated[list[AdEvent], Field(min_length=1, max_length=EVENTS_MAX)]


class Accepted(_Answer):
    """All events are in Kafka, on all replicas in sync."""

    accepted: Annotated[int, Field(ge=1, le=EVENTS_MAX)]


class PageMethod(StrEnum):
    """By what means a browser can tell a decision."""

    BANNER = "banner"
    PAGE = "page"
    SIGNAL = "signal"


class Choice(_Request):
    """One purpose and what was decided about it."""

    purpose: Purpose
    decision: ConsentDecision
    recipient: Annotated[
        RecipientId | None, Field(description="This one alone; left out: all that were named.")
    ] = None


class ConsentRequest(_Request):
    """What the visitor decided, on which catalogue and wording."""

    choices: Annotated[list[Choice], Field(min_length=1, max_length=CHOICES_MAX)]
    catalogue_version: Version
    wording_version: Version
    language: Annotated[str, Field(pattern=r"^[a-z]{2}$", examples=["de"])]
    method: PageMethod
    page: Annotated[
        PagePath | None, Field(description="Path of the page, without query and fragment.")
    ] = None


class Withdrawable(StrEnum):
    """What rests on consent; what is necessary does not."""

    PREFERENCES = "preferences"
    STATISTICS = "statistics"
    MARKETING = "marketing"


class WithdrawRequest(_Request):
    """What to end; all of it where nothing is named."""

    purposes: Annotated[list[Withdrawable], Field(min_length=1, max_length=len(Withdrawable))] = (
        list(Withdrawable)
    )
    page: PagePath | None = None


class ConsentAnswer(_Answer):
    """The decision is recorded in Kafka; `consent` comes over the WebSocket once in force."""

    decision_id: UUID


class CatalogueEntry(_Answer):
    """One cookie, store, pixel or request (R-F1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str | None
    provider: str
    type: str
    expiry: Annotated[str, Field(description="`session`, `persistent` or an ISO 8601 duration.")]
    purposes: list[str]
    purpose: Annotated[str, Field(description="In the language asked for.")]
    first_found: str
    initiator: str
    source: str
    recipient: str | None
    country: str
    adequacy: Annotated[str, Field(description="As it was found; the register says what holds.")]
    category: str
    blocked_until_accepted: bool


class CatalogueWording(_Answer):
    """What is shown around the entries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version
    title: str
    text: str
    accept: str
    refuse: str
    withdraw: str
    categories: dict[str, str]


class CatalogueAnswer(_Answer):
    """A version of the catalogue as it is shown in a language."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Version
    language: Literal["de", "en"]
    wording: CatalogueWording
    entries: list[CatalogueEntry]
    hash: Annotated[
        str,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            description="SHA-256 of the rest as canonical JSON: sorted keys, no spaces.",
        ),
    ]


class QuestionAnswer(_Answer):
    """Whether the page is to ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_to_be_asked: bool
    catalogue_version: Version


class ReceiptAnswer(_Answer):
    """A signed receipt (ISO/IEC TS 27560 in the W3C's DPV profile, JSON-LD)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: Annotated[dict[str, str], Field(alias="@context")]
    receipt: Annotated[
        dict[str, Any], Field(description="`dct:type`: decision, or termination on a withdrawal.")
    ]
    key_id: str
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$", description="Ed25519, hex.")]


class ReceiptKeysAnswer(RootModel[dict[str, str]]):
    """Key id -> Ed25519 public key, hex."""


class ConsentModeAnswer(RootModel[dict[str, Literal["granted", "denied"]]]):
    """Google Consent Mode v2's keys."""


class CallRequest(_Request):
    """Connect these two."""

    callback_number: TypedNumber
    destination_number: TypedNumber


class CallAccepted(_Answer):
    """The request is in Kafka; what becomes of it comes over the WebSocket."""

    call_id: UUID

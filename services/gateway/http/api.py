"""The routes: check at the door, write the events to Kafka, answer once they are there."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    Path,
    Request,
    Response,
    Security,
    WebSocket,
)
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyCookie
from starlette.exceptions import HTTPException

from schemas import topics, view_ticket
from schemas.ad_view import AdViewV1
from schemas.call import CallCommand, CallCommandV1, CallRequestV1
from schemas.consent import (
    ConsentChoice,
    ConsentDecision,
    ConsentMethod,
    ConsentStateV1,
    ConsentV1,
    Purpose,
)
from schemas.topics import Topic
from schemas.view_ticket import KeyRing, TicketError, ViewTicket
from schemas.wire import ServerId, WireModel
from services.chassis import errors
from services.chassis.clock import Clock
from services.chassis.ids import IdFactory
from services.gateway import domain
from services.gateway.ads import Media
from services.gateway.domain import Ad, Reason, Visit
from services.gateway.door import COOKIE, RateLimits, Visits
from services.gateway.http import models
from services.gateway.http.guard import BEACON_PATH, LIVE_PATH, MEDIA_PREFIX, Guard
from services.gateway.http.openapi import describe
from services.gateway.http.problems import (
    ProblemError,
    answered,
    documented,
    field_errors,
    respond,
)
from services.gateway.http.ranges import partial
from services.gateway.metrics import Metrics
from services.gateway.offers import Chosen, Offers, Shown
from services.gateway.partner import PartnerAds
from services.gateway.reads import AwayError, Balance, CallView, Reads
from services.gateway.settings import Settings
from services.gateway.threat import Threat


class Sender(Protocol):
    """The way to Kafka (services.chassis.produce.Producer)."""

    async def send_many(
        self,
        events: Sequence[tuple[Topic, WireModel, UUID]],
        *,
        time: datetime,
        traceparent: str | None = None,
    ) -> None:
        """Return when every event is acknowledged by all; raise errors.Transient if not in time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the routes stand on; `app.py` builds it."""

    settings: Settings
    clock: Clock
    ids: IdFactory
    sender: Sender
    reads: Reads
    threat: Threat
    offers: Offers
    visits: Visits
    tickets: KeyRing
    limits: RateLimits
    serve_live: Callable[[WebSocket], Awaitable[None]]
    metrics: Metrics
    ads: tuple[Ad, ...]
    media_by_name: dict[str, Media]
    partner: PartnerAds | None = None


_GUARDED = (
    Reason.ORIGIN_FOREIGN,
    Reason.RATE_EXCEEDED,
    Reason.INTERNAL_ERROR,
    Reason.TIME_EXCEEDED,
)
_WITH_VISIT = (*_GUARDED, Reason.VISIT_MISSING, Reason.VISIT_INVALID, Reason.VISIT_EXPIRED)
_WITH_BODY = (
    Reason.INVALID_REQUEST,
    Reason.BODY_TOO_LARGE,
    Reason.MEDIA_TYPE_UNSUPPORTED,
    Reason.REQUEST_TOO_SLOW,
    Reason.KAFKA_AWAY,
)
_NOT_OFFERED = (
    Reason.CATALOGUE_UNKNOWN,
    Reason.PURPOSE_NECESSARY,
    Reason.PURPOSE_NOT_OFFERED,
    Reason.RECIPIENT_NOT_OFFERED,
    Reason.RECIPIENT_UNKNOWN,
    Reason.SIGNAL_GIVES_NOTHING,
)
CallId = Annotated[ServerId, Path(description="As answered by POST /v1/calls.")]
_COOKIE = APIKeyCookie(
    name=COOKIE, auto_error=False, description="The visit, as POST /v1/visits sets it."
)
Cookie = Annotated[str | None, Security(_COOKIE)]


def build_http(parts: Parts) -> Guard:
    """Return the ASGI app: all routes behind the guard."""
    app = FastAPI(
        title="Minutes gateway",
        version="1.0.0",
        summary="Watch an ad, earn minutes, be connected.",
        # the built-in pages load from a CDN: no third party may learn of a visit (R-F4)
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    door = _Door(parts)
    for routes in (_visits, _ads, _balance, _consents, _calls):
        app.include_router(routes(parts, door))
    for reads in (_catalogues, _my_consents):
        app.include_router(reads(door))

    @app.websocket(LIVE_PATH)
    async def live(websocket: WebSocket) -> None:
        await parts.serve_live(websocket)

    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    # answers, and raises on: the guard logs and counts it
    app.add_exception_handler(Exception, _on_bug)
    describe(app)
    return Guard(
        app, settings=parts.settings, limits=parts.limits, clock=parts.clock, metrics=parts.metrics
    )


class LinkedData(Response):
    """JSON-LD, in the bytes that were signed."""

    media_type = "application/ld+json"


class _Door:
    """Lets a request with a valid visit in, at the visitor's rate; sends its events."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def visit(self, cookie: Cookie = None) -> Visit:
        """Return the visit of a request (a dependency)."""
        visit = self._parts.visits.read(cookie)
        if isinstance(visit, Reason):
            raise ProblemError(visit)
        wait_s = self._parts.limits.visitor.wait_s(str(visit.visitor_id))
        if wait_s > 0:
            raise ProblemError(Reason.RATE_EXCEEDED, headers={"Retry-After": str(int(wait_s) + 1)})
        return visit

    async def send(
        self, request: Request, topic: Topic, events: Sequence[WireModel], ids: Sequence[UUID]
    ) -> None:
        """Return once Kafka has all events, or answer that it has not."""
        metrics, clock = self._parts.metrics, self._parts.clock
        started_s = clock.monotonic()
        batch = [(topic, event, event_id) for event, event_id in zip(events, ids, strict=True)]
        try:
            await self._parts.sender.send_many(
                batch, time=clock.now(), traceparent=request.state.traceparent
            )
        except errors.Transient:
            metrics.produced.labels(topic.name, "refused").inc(len(batch))
            # some may have arrived: sending the same again is safe, natural keys absorb it
            raise ProblemError(Reason.KAFKA_AWAY) from None
        metrics.produced.labels(topic.name, "acknowledged").inc(len(batch))
        metrics.kafka_wait.observe(clock.monotonic() - started_s)

    async def read_consent(self, request: Request, path: str, **query: str) -> Response:
        """Return what consent answers, in its very bytes: receipts are signed over them."""
        try:
            found = await self._parts.reads.consent(path, query, request.state.traceparent)
        except AwayError:
            raise ProblemError(Reason.CONSENT_AWAY) from None
        if found is None:
            raise ProblemError(Reason.ROUTE_UNKNOWN)
        return Response(found, media_type="application/json")


# ---------------------------------------------------------------------- visits


def _visits(parts: Parts, door: _Door) -> APIRouter:
    router = APIRouter(tags=["visit"])
    settings = parts.settings

    @router.post(
        "/v1/visits",
        status_code=201,
        summary="Open a visit, or keep the one there is",
        responses={
            200: {"model": models.VisitAnswer, "description": "The visit goes on."},
            **documented(*_GUARDED, Reason.KAFKA_AWAY),
        },
    )
    async def open_visit(
        request: Request, response: Response, cookie: Cookie = None
    ) -> models.VisitAnswer:
        """Set the `visit` cookie: a random pseudonym, signed, kept for at most six days.

        A visit that is still valid is kept and never prolonged (R-D5). A browser that sends
        `Sec-GPC: 1` (Global Privacy Control) objects to marketing by it, unless the visitor has
        answered themselves.
        """
        found = parts.visits.read(cookie)
        visit, value = (found, None) if isinstance(found, Visit) else parts.visits.open()
        if request.headers.get("Sec-GPC") == "1":
            event = objection(visit.visitor_id, parts.ids.new())
            await door.send(request, topics.CONSENT, [event], [event.decision_id])
        if value is None:
            response.status_code = 200
            return models.VisitAnswer(expires_at=visit.expires_at(settings.visit_age_max_s))
        response.set_cookie(
            COOKIE,
            value,
            max_age=settings.visit_age_max_s,
            httponly=True,
            secure=settings.cookie_is_secure,
            samesite="lax",
            path="/",
        )
        return models.VisitAnswer(expires_at=visit.expires_at(settings.visit_age_max_s))

    return router


def objection(visitor_id: UUID, decision_id: UUID) -> ConsentV1:
    """Return what Global Privacy Control says for a visitor: nothing for marketing (R-G6)."""
    choice = ConsentChoice(purpose=Purpose.MARKETING, decision=ConsentDecision.OBJECTED)
    return ConsentV1(
        decision_id=decision_id,
        visitor_id=visitor_id,
        choices=(choice,),
        method=ConsentMethod.SIGNAL,
    )


# ---------------------------------------------------------------------- ads


def _ads(parts: Parts, door: _Door) -> APIRouter:
    router = APIRouter(tags=["ads"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type

    @router.post(
        "/v1/view-tickets",
        status_code=201,
        summary="Take a ticket for one ad",
        responses=documented(*_WITH_VISIT),
    )
    async def take_ticket(visit: InVisit, request: Request) -> models.TicketAnswer:
        """Hand out a signed, single-use leave to watch one ad; valid for an hour.

        With it comes whether the page may load the ad partner's tag, recorded before (R-E2).
        """
        now, ticket_id = parts.clock.now(), parts.ids.new()
        ad = domain.choose_ad(parts.ads, ticket_id)
        ticket = ViewTicket(
            ticket_id=ticket_id,
            visitor_id=visit.visitor_id,
            ad_id=ad.ad_id,
            duration_ms=ad.duration_ms,
            issued_at=now,
            expires_at=now + timedelta(seconds=view_ticket.TICKET_LIFE_S),
        )
        partner = await _ask_partner(parts.partner, visit, request.state.address, now)
        return models.TicketAnswer(
            ticket=view_ticket.issue(parts.tickets, ticket),
            ticket_id=ticket_id,
            ad=models.AdAnswer(
                ad_id=ad.ad_id,
                title=ad.title,
                media_url=MEDIA_PREFIX + ad.media,
                duration_ms=ad.duration_ms,
            ),
            expires_at=ticket.expires_at,
            partner=partner,
        )

    @router.post(
        BEACON_PATH,
        status_code=202,
        summary="Report what was done with an ad",
        responses=documented(
            *_WITH_VISIT,
            *_WITH_BODY,
            Reason.TICKET_EXPIRED,
            Reason.TICKET_FOREIGN,
            Reason.TICKET_MALFORMED,
            Reason.TICKET_SIGNATURE_INVALID,
        ),
    )
    async def report_ad_events(
        batch: models.AdEvents, visit: InVisit, request: Request
    ) -> models.Accepted:
        """Take 1 to 50 events, all or none; answered once Kafka has them on all replicas.

        `navigator.sendBeacon` may send it as text/plain. The instant of an event is ours. After a
        503 send the same again: an event counts once, however often it arrives.
        """
        now = parts.clock.now()
        address = parts.threat.kept(request.state.address)
        for index, event in enumerate(batch.events):
            _check_ticket(parts.tickets, event.ticket, index, visit=visit, now=now)
        events = [
            AdViewV1(
                visitor_id=visit.visitor_id,
                ticket=event.ticket,
                kind=event.kind,
                position_ms=event.position_ms,
                address=address,
                client_at=event.client_at,
            )
            for event in batch.events
        ]
        await door.send(request, topics.AD_VIEW, events, [parts.ids.new() for _ in events])
        return models.Accepted(accepted=len(events))

    @router.head(MEDIA_PREFIX + "{name}", include_in_schema=False)
    @router.get(
        MEDIA_PREFIX + "{name}",
        summary="Fetch an ad's media",
        response_class=Response,
        responses={
            200: {"description": "The file.", "content": {"audio/wav": {}}},
            206: {"description": "The part asked for by `Range`.", "content": {"audio/wav": {}}},
            304: {"description": "As `If-None-Match` has it."},
            **documented(*_GUARDED, Reason.MEDIA_UNKNOWN, Reason.RANGE_NOT_SATISFIABLE,
                         Reason.INVALID_REQUEST),
        },
    )  # fmt: skip
    async def fetch_media(
        request: Request, name: Annotated[str, Path(pattern=r"^[a-z0-9.\-]{1,64}$")]
    ) -> Response:
        """Serve a file of ours, whole or in part; no third party is asked (R-F4)."""
        media = parts.media_by_name.get(name)
        if media is None:
            raise ProblemError(Reason.MEDIA_UNKNOWN)
        return partial(request, media)

    return router


async def _ask_partner(
    partner: PartnerAds | None, visit: Visit, address: str, now: datetime
) -> models.PartnerAnswer | None:
    """Return what the page may ask of the ad partner; None = nothing."""
    if partner is None:
        return None
    leave = await partner.leave(visit.visitor_id, address, now)
    if leave is None:
        return None
    return models.PartnerAnswer(tag_url=leave.tag_url, personalised=list(leave.personalised))


def _check_ticket(keys: KeyRing, text: str, index: int, *, visit: Visit, now: datetime) -> None:
    """Refuse the batch for an event whose ticket is not ours, not theirs, or too old (L3)."""
    try:
        ticket = view_ticket.read(keys, text)
    except TicketError as error:
        raise ProblemError(Reason(f"ticket_{error}"), index=index) from None
    reason = domain.check_ticket(
        owner=ticket.visitor_id, visitor_id=visit.visitor_id, expires_at=ticket.expires_at, now=now
    )
    if reason is not None:
        raise ProblemError(reason, index=index)


# ---------------------------------------------------------------------- balance and consent


def _balance(parts: Parts, door: _Door) -> APIRouter:
    router = APIRouter(tags=["balance"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type

    @router.get(
        "/v1/balance",
        summary="Read the balance",
        responses=documented(*_WITH_VISIT, Reason.LEDGER_AWAY),
    )
    async def read_balance(visit: InVisit, request: Request) -> Balance:
        """Return the talk time in whole milliseconds: available, and reserved by a call."""
        try:
            return await parts.reads.balance(visit.visitor_id, request.state.traceparent)
        except AwayError:
            raise ProblemError(Reason.LEDGER_AWAY) from None

    return router


def _shown(body: models.ConsentRequest) -> Shown:
    return Shown(
        catalogue_version=body.catalogue_version,
        wording_version=body.wording_version,
        language=body.language,
        is_signal=body.method is models.PageMethod.SIGNAL,
    )


def _chosen(choice: models.Choice) -> Chosen:
    return Chosen(purpose=choice.purpose, decision=choice.decision, recipient=choice.recipient)


def _consents(parts: Parts, door: _Door) -> APIRouter:
    router = APIRouter(tags=["consent"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type

    @router.post(
        "/v1/consents",
        status_code=202,
        summary="Tell a decision about consent",
        responses=documented(*_WITH_VISIT, *_WITH_BODY, Reason.PURPOSE_TWICE, *_NOT_OFFERED),
    )
    async def decide_consent(
        body: models.ConsentRequest, visit: InVisit, request: Request
    ) -> models.ConsentAnswer:
        """Record what was given, refused, withdrawn or objected to; as easily one as the other.

        A choice without `recipient` is for all recipients that were named. `served` and `dismissed`
        say that the question was shown and left without an answer: they change nothing.

        A refusal, withdrawal or objection counts whatever was shown; an agreement counts to what a
        published version offers in that wording. An older version is taken too: who was shown it
        agreed to what it says, and to nobody whom a later one added.
        """
        chosen = [(choice.purpose, choice.recipient) for choice in body.choices]
        if len(set(chosen)) < len(chosen):
            raise ProblemError(Reason.PURPOSE_TWICE)
        refused = await parts.offers.refusal(_shown(body), map(_chosen, body.choices))
        if refused is not None:
            raise ProblemError(refused[0], index=refused[1])
        decision_id = parts.ids.new()
        event = ConsentV1(
            decision_id=decision_id,
            visitor_id=visit.visitor_id,
            choices=tuple(
                ConsentChoice(purpose=c.purpose, decision=c.decision, recipient=c.recipient)
                for c in body.choices
            ),
            catalogue_version=body.catalogue_version,
            wording_version=body.wording_version,
            language=body.language,
            method=ConsentMethod(body.method.value),
            page=body.page,
        )
        await door.send(request, topics.CONSENT, [event], [decision_id])
        return models.ConsentAnswer(decision_id=decision_id)

    @router.post(
        "/v1/consents/withdraw",
        status_code=202,
        summary="Withdraw, in one step",
        responses=documented(*_WITH_VISIT, *_WITH_BODY, Reason.PURPOSE_TWICE),
    )
    async def withdraw_consent(
        body: models.WithdrawRequest, visit: InVisit, request: Request
    ) -> models.ConsentAnswer:
        """End every consent, or those named, from now on (R-F3); `{}` is enough.

        Nobody has to say which version they once agreed to. What was never given is withdrawn too:
        that changes nothing.
        """
        if len(set(body.purposes)) < len(body.purposes):
            raise ProblemError(Reason.PURPOSE_TWICE)
        decision_id = parts.ids.new()
        event = ConsentV1(
            decision_id=decision_id,
            visitor_id=visit.visitor_id,
            choices=tuple(
                ConsentChoice(purpose=Purpose(purpose), decision=ConsentDecision.WITHDRAWN)
                for purpose in body.purposes
            ),
            method=ConsentMethod.PAGE,
            page=body.page,
        )
        await door.send(request, topics.CONSENT, [event], [decision_id])
        return models.ConsentAnswer(decision_id=decision_id)

    return router


def _catalogues(door: _Door) -> APIRouter:
    router = APIRouter(tags=["consent"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type
    away = documented(*_WITH_VISIT, Reason.CONSENT_AWAY)

    @router.get(
        "/v1/consents/catalogue",
        summary="Read the catalogue in force",
        responses=answered(models.CatalogueAnswer) | away | documented(Reason.INVALID_REQUEST),
    )
    async def read_catalogue(
        language: Literal["de", "en"], _visit: InVisit, request: Request
    ) -> Response:
        """Return the catalogue as it is shown in a language, with its hash (R-F1)."""
        return await door.read_consent(request, "/v1/catalogue", language=language)

    @router.get(
        "/v1/consents/catalogues/{version}",
        summary="Read a published catalogue",
        responses=answered(models.CatalogueAnswer)
        | away
        | documented(Reason.INVALID_REQUEST, Reason.ROUTE_UNKNOWN),
    )
    async def read_version(
        version: Annotated[models.Version, Path(description="As the receipt names it.")],
        language: Literal["de", "en"],
        _visit: InVisit,
        request: Request,
    ) -> Response:
        """Return a published version exactly as it was shown, whatever is in force now (R-F2)."""
        return await door.read_consent(request, f"/v1/catalogues/{version}", language=language)

    @router.get(
        "/v1/consents/receipt-keys",
        summary="Read the keys by which receipts verify",
        responses=answered(models.ReceiptKeysAnswer) | away,
    )
    async def read_receipt_keys(_visit: InVisit, request: Request) -> Response:
        """Return the public keys (Ed25519) by id; anybody can verify a receipt without our code.

        What is signed: the canonical JSON (sorted keys, no spaces, UTF-8) of
        `{"receipt": …, "type": "receipt"}`.
        """
        return await door.read_consent(request, "/v1/receipt-keys")

    return router


def _my_consents(door: _Door) -> APIRouter:
    router = APIRouter(tags=["consent"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type
    away = documented(*_WITH_VISIT, Reason.CONSENT_AWAY)

    @router.get(
        "/v1/consents",
        summary="Read what I agreed to",
        responses=answered(ConsentStateV1) | away,
    )
    async def read_consents(visit: InVisit, request: Request) -> Response:
        """Return what is in force for this visitor; nothing decided = nothing in force."""
        return await door.read_consent(request, f"/v1/visitors/{visit.visitor_id}/consent")

    @router.get(
        "/v1/consents/question",
        summary="Read whether to ask",
        responses=answered(models.QuestionAnswer) | away,
    )
    async def read_question(visit: InVisit, request: Request) -> Response:
        """Return whether the page is to show the consent question, and of which version."""
        return await door.read_consent(request, f"/v1/visitors/{visit.visitor_id}/question")

    @router.get(
        "/v1/consents/receipts",
        summary="Read my receipts",
        response_class=LinkedData,
        responses=answered(list[models.ReceiptAnswer]) | away,
    )
    async def read_receipts(visit: InVisit, request: Request) -> Response:
        """Return this visitor's signed receipts, in the very bytes that were signed.

        Each says under which id (`dpv:hasDataSubject`) it can be withdrawn when the visit is over.
        """
        found = await door.read_consent(request, f"/v1/visitors/{visit.visitor_id}/receipts")
        return LinkedData(found.body)

    @router.get(
        "/v1/consents/consent-mode",
        summary="Read the page's keys",
        responses=answered(models.ConsentModeAnswer) | away,
    )
    async def read_consent_mode(visit: InVisit, request: Request) -> Response:
        """Return Google Consent Mode v2's keys as this visitor's choices have them."""
        return await door.read_consent(request, f"/v1/visitors/{visit.visitor_id}/consent-mode")

    return router


# ---------------------------------------------------------------------- calls


def _calls(parts: Parts, door: _Door) -> APIRouter:
    router = APIRouter(tags=["calls"])
    InVisit = Annotated[Visit, Depends(door.visit)]  # noqa: N806 - a type

    @router.post(
        "/v1/calls",
        status_code=202,
        summary="Ask for a call",
        responses=documented(*_WITH_VISIT, *_WITH_BODY),
    )
    async def request_call(
        body: models.CallRequest, visit: InVisit, request: Request
    ) -> models.CallAccepted:
        """Ask to ring the callback number and then the destination, for the time earned.

        Whether the numbers are allowed and the credit is enough comes as the call's status, over
        the WebSocket and by GET. 110 and 112 are to be dialled directly.
        """
        call_id = parts.ids.new()
        event = CallRequestV1(
            call_id=call_id,
            visitor_id=visit.visitor_id,
            callback_number=body.callback_number,
            destination_number=body.destination_number,
            address=parts.threat.kept(request.state.address),
        )
        await door.send(request, topics.CALL_REQUEST, [event], [call_id])
        return models.CallAccepted(call_id=call_id)

    @router.get(
        "/v1/calls/{call_id}",
        summary="Read a call's status",
        responses=documented(
            *_WITH_VISIT, Reason.INVALID_REQUEST, Reason.CALL_UNKNOWN, Reason.CALL_CONTROL_AWAY
        ),
    )
    async def read_call(call_id: CallId, visit: InVisit, request: Request) -> CallView:
        """Return where a call of this visitor stands; 404 also in the moment after the request."""
        try:
            found = await parts.reads.call(call_id, visit.visitor_id, request.state.traceparent)
        except AwayError:
            raise ProblemError(Reason.CALL_CONTROL_AWAY) from None
        if found is None:
            raise ProblemError(Reason.CALL_UNKNOWN)
        return found

    @router.post(
        "/v1/calls/{call_id}/hang-up",
        status_code=202,
        summary="Hang up",
        responses=documented(*_WITH_VISIT, Reason.INVALID_REQUEST, Reason.KAFKA_AWAY),
    )
    async def hang_up(call_id: CallId, visit: InVisit, request: Request) -> models.CallAccepted:
        """Order a call of this visitor to end; an order about someone else's call does nothing."""
        event = CallCommandV1(
            call_id=call_id, visitor_id=visit.visitor_id, command=CallCommand.HANG_UP
        )
        await door.send(request, topics.CALL_COMMAND, [event], [parts.ids.new()])
        return models.CallAccepted(call_id=call_id)

    return router


# ---------------------------------------------------------------------- problems


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    request.state.reason = error.reason.value
    return respond(error.reason, detail=error.detail, index=error.index, headers=error.headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    request.state.reason = Reason.INVALID_REQUEST.value
    return respond(Reason.INVALID_REQUEST, errors=field_errors(error.errors()))


async def _on_bug(request: Request, _: Exception) -> Response:
    request.state.reason = Reason.INTERNAL_ERROR.value
    return respond(Reason.INTERNAL_ERROR)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Turn the framework's own errors into problems: no route, wrong method, unreadable JSON."""
    assert isinstance(error, HTTPException)
    reasons: dict[int, Reason] = {404: Reason.ROUTE_UNKNOWN, 405: Reason.METHOD_NOT_ALLOWED}
    reason = reasons.get(error.status_code, Reason.INVALID_REQUEST)
    request.state.reason = reason.value
    headers: dict[str, Any] = dict(error.headers or {})
    return respond(reason, headers=headers)

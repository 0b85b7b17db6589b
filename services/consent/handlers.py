"""Per topic: load, decide, save, enqueue."""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import cache
from uuid import UUID

from schemas import topics
from schemas.consent import ConsentV1
from services.chassis.context import Context
from services.chassis.errors import Poison
from services.chassis.received import Received
from services.consent import catalogues, domain
from services.consent.domain import Choice, Decision, Key, Novelty, Verdict
from services.consent.store import SIGNAL, Loaded, Proof, Store, Subject
from services.consent.wire import to_wire
from services.privacy import calendar, chain, recipients

Consents = Sequence[Received[ConsentV1]]


async def on_consents(ctx: Context[Store], batch: Consents) -> None:
    """Record a poll's decisions; publish the new state of each visitor for whom it changed."""
    loaded = await ctx.store.load(
        {received.event.visitor_id for received in batch},
        {received.event.decision_id for received in batch},
    )
    fold = _Fold(before=dict(loaded.subjects), loaded=loaded)
    for received in batch:
        _record(ctx, fold, received)
    await ctx.store.save(fold.proofs, loaded.subjects.values(), fold.before)
    for visitor_id, (cause, earlier) in fold.touched.items():
        decisions = loaded.decisions[loaded.subjects[visitor_id].proof_id].values()
        if (states := domain.states_of(decisions)) != earlier:
            ctx.outbox.add(topics.CONSENT_STATE, to_wire(visitor_id, states), cause=cause)


@dataclass(kw_only=True)
class _Fold:
    """What a poll has come to so far.

    Attributes:
        touched: visitor -> the last event about them, and what stood before the poll.
    """

    before: dict[UUID, Subject]
    loaded: Loaded
    proofs: list[Proof] = field(default_factory=list)
    touched: dict[UUID, tuple[Received[ConsentV1], tuple[domain.State, ...]]] = field(
        default_factory=dict
    )


def _record(ctx: Context[Store], fold: _Fold, received: Received[ConsentV1]) -> None:
    """Judge one event and take what is new in it into the fold."""
    event = received.event
    judged = domain.judge(
        event.decision_id,
        [
            Choice(
                purpose=choice.purpose.value,
                verdict=Verdict(choice.decision.value),
                recipient=choice.recipient,
            )
            for choice in event.choices
        ],
        decided_at=received.time,
        received_at=min(received.appended_at or ctx.now, ctx.now),
        now=ctx.now,
        offer=_offer(event),
        known_recipients=known_recipients(),
        is_signal=event.method.value == SIGNAL,
    )
    for refusal in judged.refusals:
        ctx.count(topics.CONSENT, f"refused_{refusal.value}")
    if event.decision_id not in fold.loaded.owners:  # else it was judged before, and is known
        for refusal in domain.UNTIMELY.intersection(judged.refusals):
            # accepted at the door: it can be sent again once the clock is mended
            ctx.dead_letter(received, refusal.value)
    if any(decision.is_as_of_receipt for decision in judged.decisions):
        ctx.count(topics.CONSENT, "taken_as_of_receipt")
    if not judged.decisions:
        return
    subject = _subject(ctx, fold, event.visitor_id, judged.decisions[0].decided_at)
    if fold.loaded.owners.setdefault(event.decision_id, subject.proof_id) != subject.proof_id:
        raise Poison("decision_of_another_visitor")
    known = fold.loaded.decisions.setdefault(subject.proof_id, {})
    earlier = domain.states_of(known.values())
    decisions = [domain.as_last_word(decision, known.values()) for decision in judged.decisions]
    fresh = [decision for decision in decisions if _is_new(known, decision)]
    known.update((decision.key, decision) for decision in fresh)
    fold.proofs.extend(_proof(event, decision, subject.proof_id) for decision in fresh)
    ctx.count(topics.CONSENT, "recorded" if fresh else "duplicate")
    first_seen = fold.touched.get(event.visitor_id, (received, earlier))[1]
    fold.touched[event.visitor_id] = (received, first_seen)


def _offer(event: ConsentV1) -> domain.Offer | None:
    """Return what the version and wording that were shown offered; None = nobody knows them."""
    known = catalogues.known()
    shown = known.by_version.get(event.catalogue_version or "")
    if shown is None or not shown.is_worded(event.wording_version, event.language):
        return None
    return known.offer(shown.version)


@cache
def known_recipients() -> frozenset[tuple[str, str]]:
    """Return, with the purpose, everybody about whom a choice can be made by name."""
    register = frozenset(
        (permission.consent.value, recipient.recipient_id)
        for entries in recipients.load().by_id.values()
        for recipient in entries
        for permission in recipient.permissions
        if permission.consent is not None
    )
    return catalogues.known().recipients | register


def _is_new(known: dict[Key, Decision], decision: Decision) -> bool:
    match domain.compare(known, decision):
        case Novelty.NEW:
            return True
        case Novelty.KNOWN:
            return False
        case Novelty.CONTRADICTS:
            raise Poison("decision_contradicts")


def _subject(ctx: Context[Store], fold: _Fold, visitor_id: UUID, decided_at: datetime) -> Subject:
    """Return the visitor's link, made or moved so that it lies in the first decision's day.

    One proof id per visitor; the row never follows later decisions, so that the link goes 7 x 24 h
    after the first of them (R-D5); a visit's life is shorter, so no visitor outlives the link.
    """
    day = calendar.utc_date(decided_at)
    subject = fold.loaded.subjects.get(visitor_id)
    if subject is None:
        subject = Subject(visitor_id=visitor_id, proof_id=ctx.ids.new(), day=day)
    elif day < subject.day:
        subject = replace(subject, day=day)
    fold.loaded.subjects[visitor_id] = subject
    return subject


def _proof(event: ConsentV1, decision: Decision, proof_id: UUID) -> Proof:
    return Proof(
        decision=decision,
        proof_id=proof_id,
        ends_on=calendar.berlin_date(decision.decided_at + domain.VISIT_LIFE),
        catalogue_version=event.catalogue_version,
        wording_version=event.wording_version,
        language=event.language,
        method=event.method.value,
        page=event.page,
        salt=secrets.token_bytes(chain.SALT_BYTES),
    )


async def forget_states(ctx: Context[Store], visitor_ids: Collection[UUID], _: date) -> None:
    """Publish that nothing is in force any more for visitors who are erased or restricted.

    Under the same key, so that compaction destroys what stood there; whoever sends refuses from
    then on (R-G3, R-G4).
    """
    loaded = await ctx.store.load(visitor_ids, ())
    for visitor_id in sorted(loaded.subjects):
        ctx.outbox.add(topics.CONSENT_STATE, to_wire(visitor_id, ()))

"""What the commands do; each writes what was asked to the journal before it does anything."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aiokafka.errors import KafkaError
from typing_extensions import override

from deploy.dead_letters.box import Box
from deploy.dead_letters.journal import Action, Identity, Journal, Outcome, Use
from deploy.dead_letters.letter import (
    WORD,
    DeadLetterError,
    Letter,
    NotReplayableError,
    Record,
    age_max,
    duration,
    redacted,
    resend,
)
from schemas.topics import BY_NAME, Topic
from services.chassis.clock import Clock
from services.chassis.settings import ServiceSettings

AT_ONCE_MAX: int = ServiceSettings.model_fields["poison_run_max"].default
"""More poison in a row stops a service: nobody replays so much without saying a number."""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What every command works with."""

    box: Box
    journal: Journal
    use: Use
    clock: Clock
    say: Callable[[str], None]

    def asked(self, detail: str = "") -> None:
        """Log the use itself; where that fails nothing else happens."""
        self.journal.note(self.use, Outcome.ASKED, self.clock.now(), detail=detail)


def topic_of(name: str) -> Topic:
    """Return a dead-letter topic by its name or its source's.

    Raises:
        DeadLetterError: there is none of that name.
    """
    found = BY_NAME.get(name if name.endswith("-dlq") else f"{name}-dlq")
    if found is None:
        known = ", ".join(t.name for t in BY_NAME.values() if t.is_dead_letter)
        raise DeadLetterError(f"There is no such dead-letter topic; there are: {known}.")
    return found


def place_of(letter_id: str) -> tuple[Topic, int, int]:
    """Return topic, partition and offset of an id as `list` prints it.

    Raises:
        DeadLetterError: it is no such id.
    """
    parts = letter_id.split("/")
    if len(parts) != 3 or not all(p.isascii() and p.isdigit() for p in parts[1:]):  # noqa: PLR2004
        raise DeadLetterError("An id is <topic>-dlq/<partition>/<offset>, as `list` prints it.")
    topic = topic_of(parts[0])
    return topic, int(parts[1]), int(parts[2])


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which letters: one by its id, or all open ones of a reason.

    Raises:
        DeadLetterError: it names what cannot exist.
    """

    letter_id: str | None = None
    reason: str | None = None
    topic: str | None = None
    at_most: int | None = None

    def __post_init__(self) -> None:
        # it goes into the log: nothing but names of ours may pass
        if self.letter_id is not None:
            place_of(self.letter_id)
        if self.topic is not None:
            topic_of(self.topic)
        if self.reason is not None and not WORD.fullmatch(self.reason):
            raise DeadLetterError("A reason is one word, as `list` prints it.")

    @override
    def __str__(self) -> str:
        parts = {"letter": self.letter_id, "reason": self.reason, "topic": self.topic}
        return ", ".join(f"{name} {text}" for name, text in parts.items() if text)


async def list_open(desk: Desk, *, topic: str | None, n_max: int) -> int:
    """Print what is open: per reason, then the letters, oldest first."""
    chosen = None if topic is None else topic_of(topic)
    desk.asked("" if chosen is None else f"topic {chosen.name}")
    settled, unconfirmed = desk.journal.settled(), desk.journal.unconfirmed()
    found = [
        # a listing needs no content, and a long one would hold much of it
        Letter(replace(letter.record, key=None, value=None))
        async for letter in desk.box.letters(chosen)
        if desk.journal.identity(letter) not in settled
    ]
    found.sort(key=_by_age)
    if not found:
        desk.say("no open dead letters")
        return 0
    now = desk.clock.now()
    oldest = duration(now - found[0].record.written_at)
    desk.say(f"{len(found)} open, the oldest for {oldest}")
    groups = Counter((letter.source.name, letter.reason, letter.service) for letter in found)
    rows = [(str(n), *group) for group, n in groups.most_common()]
    _say_table(desk, ("count", "topic", "reason", "service"), rows)
    desk.say("")
    _say_table(
        desk,
        ("id", "reason", "service", "origin", "age"),
        [
            (
                letter.id,
                letter.reason,
                letter.service,
                letter.origin_text,
                duration(now - letter.record.written_at)
                + _mark(desk.journal.identity(letter), unconfirmed),
            )
            for letter in found[:n_max]
        ],
    )
    if len(found) > n_max:
        desk.say(f"... and {len(found) - n_max} more (--limit)")
    return 0


def _mark(identity: Identity, unconfirmed: set[Identity]) -> str:
    return " (a replay was not confirmed)" if identity in unconfirmed else ""


def _by_age(letter: Letter) -> tuple[float, str, int]:
    return letter.record.written_at.timestamp(), letter.record.topic.name, letter.record.offset


def _say_table(desk: Desk, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        desk.say("  ".join(cells).rstrip())


async def show(desk: Desk, letter_id: str) -> int:
    """Print one letter without any value."""
    place = place_of(letter_id)
    desk.asked(f"letter {letter_id}")
    letter = await _existing(desk, *place)
    closed = desk.journal.settled().get(desk.journal.identity(letter))
    now = desk.clock.now()
    desk.say(f"{letter.id}  {closed or 'open'}")
    desk.say(f"reason   {letter.reason}")
    desk.say(f"service  {letter.service}")
    desk.say(f"origin   {letter.origin_text}")
    desk.say(f"age      {duration(now - letter.record.written_at)}")
    for line in redacted(letter):
        desk.say(line)
    desk.say(f"replay   {await _outlook(desk, letter)}")
    return 0


async def _outlook(desk: Desk, letter: Letter) -> str:
    try:
        resend(letter, await _original(desk, letter), desk.clock.now())
    except NotReplayableError as error:
        return f"impossible: {error}"
    limit = age_max(letter.source)
    return "possible" + ("" if limit is None else f" until the event is {duration(limit)} old")


async def replay(desk: Desk, selection: Selection) -> int:
    """Send the selected letters to their topics again, oldest first, one at a time.

    Every consumer of a topic gets the record again; natural keys absorb what they had done.
    """
    n_failed = 0
    with desk.journal.alone():
        desk.asked(str(selection))
        letters = await _selected(desk, selection)
        for letter in letters:
            try:
                row = resend(letter, await _original(desk, letter), desk.clock.now())
                desk.journal.note(desk.use, Outcome.BEGUN, desk.clock.now(), letter=letter)
                await desk.box.send(row)
            except (NotReplayableError, KafkaError) as error:
                n_failed += 1
                name = type(error).__name__
                desk.journal.note(
                    desk.use, Outcome.FAILED, desk.clock.now(), letter=letter, detail=name
                )
                words = str(error) if isinstance(error, NotReplayableError) else name
                desk.say(f"not replayed: {words}")
                continue
            desk.journal.note(desk.use, Outcome.DONE, desk.clock.now(), letter=letter)
            desk.say(f"replayed {letter.id} to {letter.source.name}")
    desk.say(f"{len(letters) - n_failed} replayed, {n_failed} not")
    return 1 if n_failed else 0


async def discard(desk: Desk, selection: Selection) -> int:
    """Take the selected letters off the list; the topic's retention deletes them."""
    with desk.journal.alone():
        desk.asked(str(selection))
        letters = await _selected(desk, selection)
        for letter in letters:
            desk.journal.note(desk.use, Outcome.DONE, desk.clock.now(), letter=letter)
            desk.say(f"discarded {letter.id}")
    desk.say(f"{len(letters)} discarded; their topics delete them by age")
    return 0


async def _original(desk: Desk, letter: Letter) -> Record | None:
    return None if letter.is_whole else await desk.box.original(letter)


async def _existing(desk: Desk, topic: Topic, partition: int, offset: int) -> Letter:
    letter = await desk.box.letter(topic, partition, offset)
    if letter is None:
        raise DeadLetterError(
            f"There is no letter {topic.name}/{partition}/{offset}: never, or deleted by age."
        )
    return letter


async def _selected(desk: Desk, selection: Selection) -> list[Letter]:
    settled = desk.journal.settled()
    if selection.letter_id is not None:
        letter = await _existing(desk, *place_of(selection.letter_id))
        if (closed := settled.get(desk.journal.identity(letter))) is not None:
            raise DeadLetterError(f"{letter.id} is not open any more: {closed}.")
        return [letter]
    chosen = None if selection.topic is None else topic_of(selection.topic)
    found = [
        letter
        async for letter in desk.box.letters(chosen)
        if letter.reason == selection.reason and desk.journal.identity(letter) not in settled
    ]
    if not found:
        raise DeadLetterError("No open letter has this reason: `list` shows what there is.")
    found.sort(key=_by_age)
    return _bounded(desk.use.action, found, selection.at_most)


def _bounded(action: Action, found: list[Letter], at_most: int | None) -> list[Letter]:
    if action is Action.REPLAY and at_most is None and len(found) > AT_ONCE_MAX:
        raise DeadLetterError(
            f"{len(found)} are open, and a service stops at {AT_ONCE_MAX} poison records in a row:"
            f" replay a few (--at-most 3), see that they do not come back, then --at-most"
            f" {len(found)}."
        )
    return found if at_most is None else found[:at_most]

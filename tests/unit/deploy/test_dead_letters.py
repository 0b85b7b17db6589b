"""What may be told of a dead letter, when it may be sent again, and its log (R-D5, D1)."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.dead_letters import __main__ as command_line
from deploy.dead_letters import commands
from deploy.dead_letters.commands import Selection
from deploy.dead_letters.journal import NAME, Action, Journal, Outcome, Use
from deploy.dead_letters.letter import (
    DeadLetterError,
    Letter,
    NotReplayableError,
    Record,
    age_max,
    duration,
    field_names,
    problems,
    redacted,
    resend,
    structure,
)
from schemas import topics
from schemas.topics import ALL_TOPICS, DAY_MS, REGISTRY

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
CANARY = "4930231250815"
ENVELOPE = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"019aabcd-1234-7abc-8def-0123456789ab"),
    ("ce_type", topics.CALL_END.type.encode()),
    ("ce_time", (NOW - timedelta(hours=2)).isoformat().encode()),
]
FACTS = {
    "topic": b"call-end",
    "partition": b"3",
    "offset": b"17",
    "reason": b"reservation_unknown",
    "service": b"ad_ledger",
}
USE = Use(author="a.person", why="issue 4", action=Action.REPLAY)


def marks(**over):
    return [(f"dead_letter_{name}", value) for name, value in {**FACTS, **over}.items()]


def a_letter(*, topic=topics.CALL_END, headers=(), value=b"{}", offset=5, written_at=NOW):
    return Letter(
        Record(
            topic=topic.dead_letter,
            partition=0,
            offset=offset,
            written_at=written_at,
            key=b"k",
            headers=[*headers, *marks()],
            value=value,
        )
    )


def a_record(headers, *, value=b"{}", key=b"original"):
    return Record(
        topic=topics.CALL_END,
        partition=3,
        offset=17,
        written_at=NOW,
        key=key,
        headers=headers,
        value=value,
    )


# ---------------------------------------------------------------------- what may be told


def test_a_letter_says_where_it_came_from_and_why() -> None:
    """The chassis's words are the last headers; what the record itself brought does not count."""
    letter = a_letter(headers=[("dead_letter_reason", b"forged"), ("dead_letter_offset", b"1")])
    assert (letter.id, letter.source) == ("call-end-dlq/0/5", topics.CALL_END)
    assert (letter.reason, letter.service) == ("reservation_unknown", "ad_ledger")
    assert (letter.origin, letter.origin_text) == ((3, 17), "call-end/3/17")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="null"),
        pytest.param(CANARY.encode(), id="a number"),
        pytest.param(b"call " + CANARY.encode(), id="text"),
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"\x1b[2J", id="terminal codes"),
    ],
)
def test_a_reason_that_is_no_word_is_not_shown(raw) -> None:
    """A header could hold anything: only closed words and small numbers get through."""
    letter = Letter(
        Record(
            topic=topics.CALL_END.dead_letter,
            partition=0,
            offset=1,
            written_at=NOW,
            key=None,
            headers=marks(reason=raw, offset=b"x"),
            value=None,
        )
    )
    assert letter.reason == "(unreadable)"
    assert letter.origin is None
    assert letter.origin_text == "call-end/(unreadable)"


def test_what_is_told_of_a_value_is_names_of_ours_and_types() -> None:
    """Values never, and no name that the contract does not know: it may be a number, too."""
    value = {
        "visitor_id": CANARY,
        "talk_ms": int(CANARY),
        CANARY: {"call_id": [CANARY, None, 1.5, True]},
        "reason": "",
    }
    letter = a_letter(
        headers=[*ENVELOPE, (CANARY, CANARY.encode())], value=json.dumps(value).encode()
    )
    told = redacted(letter)
    assert CANARY not in "\n".join(told)
    assert told == [
        "key      present",
        "headers  ce_id, ce_specversion, ce_time, ce_type, 1 unknown",
        "value",
        "  object",
        "    visitor_id: string",
        "    talk_ms: integer",
        "    (unknown name): object",
        "      call_id: array of 4",
        "        -: string",
        "        -: null",
        "        -: number",
        "        -: boolean",
        "    reason: string",
        "model",
        "  call_id: missing",
        "  visitor_id: uuid_parsing",
        "  ended_at: missing",
        "  reason: string_pattern_mismatch",
        "  talk_ms: less_than_equal",
        "  overrun_ms: missing",
    ]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        pytest.param(None, ["null"], id="null"),
        pytest.param(b"", ["not JSON"], id="empty"),
        pytest.param(b"\xff", ["not JSON"], id="no text"),
        pytest.param(CANARY.encode() + b"x", ["not JSON"], id="text"),
        pytest.param(b"9" * 5000, ["not JSON"], id="a number beyond Python's limit"),
        pytest.param(b"[" * 100_000, ["not JSON"], id="nested without end"),
        pytest.param(CANARY.encode(), ["integer"], id="a bare number"),
    ],
)
def test_anything_can_be_looked_at(value, told) -> None:
    """Poison may be anything; looking at it raises nothing and shows nothing."""
    assert structure(value, frozenset()) == told
    assert CANARY not in "".join(problems(topics.CALL_END, value))


def test_deep_and_wide_values_are_cut() -> None:
    """A screen, not a flood."""
    deep = json.loads("[" * 20 + "]" * 20)
    assert structure(json.dumps(deep).encode(), frozenset())[-1].strip() == "-: nested deeper"
    wide = structure(json.dumps(list(range(500))).encode(), frozenset())
    assert (len(wide), wide[-1]) == (201, "... and 301 more")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_view(value) -> None:
    """The view of any value is made of our own words."""
    for line in structure(value, frozenset()):
        assert all(word.isdigit() or word.strip("-:().") in WORDS for word in line.split()), line


WORDS = {
    *("null", "not", "JSON", "object", "array", "of", "unknown", "name", "string", "integer"),
    *("number", "boolean", "nested", "deeper", "and", "more", ""),
}


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_no_document_shows_a_text_of_its_own(document) -> None:
    """A property of every JSON document, names of fields included."""
    for line in structure(json.dumps(document).encode(), field_names(topics.AD_VIEW)):
        words = {word.strip("-:().") for word in line.split() if not word.isdigit()}
        assert words <= WORDS | field_names(topics.AD_VIEW)


# ---------------------------------------------------------------------- sending again


def test_a_whole_letter_is_sent_as_it_came() -> None:
    """Key, headers and value are the record's own; the chassis's marks stay behind."""
    extra = [("x-null", None), ("x-bytes", b"\xff")]
    row = resend(a_letter(headers=[*ENVELOPE, *extra], value=b"v"), None, NOW)
    assert (row.topic, row.key, row.payload) == ("call-end", b"k", b"v")
    assert row.headers == [*ENVELOPE, *extra]


def test_a_letter_of_a_handler_is_sent_from_its_origin() -> None:
    """It keeps id and trace only; the envelope is fetched while the source still has it."""
    headers = [("ce_id", dict(ENVELOPE)["ce_id"])]
    letter = a_letter(headers=headers, value=b"as read")
    row = resend(letter, a_record(ENVELOPE, value=b"as it came"), NOW)
    assert (row.key, row.headers, row.payload) == (b"original", ENVELOPE, b"as it came")


@pytest.mark.parametrize(
    ("headers", "original"),
    [
        pytest.param([("ce_id", b"a")], None, id="gone"),
        pytest.param([("ce_id", b"a")], a_record(ENVELOPE), id="another event is there"),
        pytest.param([], a_record([], value=b"other"), id="no id and another value"),
    ],
)
def test_a_letter_whose_envelope_is_lost_is_not_sent(headers, original) -> None:
    """An invented instant would be credited, billed or deleted wrongly."""
    with pytest.raises(NotReplayableError, match="can only be discarded"):
        resend(a_letter(headers=headers), original, NOW)


@pytest.mark.parametrize("topic", REGISTRY, ids=[t.name for t in REGISTRY])
def test_age_counts_through_a_replay(topic) -> None:
    """R-D5, D1: age now + a life on the topic + a life as dead letter stay within 7 x 24 h."""
    limit = age_max(topic)
    if not topic.personal:
        assert limit is None
        return
    assert limit is not None
    lives_ms = topic.personal_limit_ms + topic.dead_letter.age_max_ms
    assert limit / timedelta(milliseconds=1) + lives_ms == 7 * DAY_MS


@pytest.mark.parametrize(
    ("age", "is_sent"),
    [
        pytest.param(timedelta(hours=23, minutes=59), True, id="young"),
        pytest.param(timedelta(hours=24, minutes=1), False, id="old"),
    ],
)
def test_an_event_that_would_outlive_its_rule_is_not_sent(age, is_sent) -> None:
    """By the event's own instant, not by when it was buried."""
    headers = [*ENVELOPE[:3], ("ce_time", (NOW - age).isoformat().encode())]
    letter = a_letter(headers=headers)
    if is_sent:
        assert resend(letter, None, NOW).headers == headers
        return
    with pytest.raises(NotReplayableError, match="R-D5"):
        resend(letter, None, NOW)


@pytest.mark.parametrize("time", [b"yesterday", b"2026-11-22T10:00:00", b"\xff", None])
def test_an_event_of_unknown_age_is_not_sent(time) -> None:
    """No instant, no leave; a receipt has no personal data and may go."""
    headers = [*ENVELOPE[:3], ("ce_time", time)]
    with pytest.raises(NotReplayableError, match="how old"):
        resend(a_letter(headers=headers), None, NOW)
    receipt = a_letter(topic=topics.RETENTION_RECEIPT, headers=headers)
    assert resend(receipt, None, NOW).headers == headers


def test_a_clock_ahead_makes_no_letter_younger() -> None:
    """The event happened before it was buried."""
    headers = [*ENVELOPE[:3], ("ce_time", (NOW + timedelta(days=5)).isoformat().encode())]
    letter = a_letter(headers=headers, written_at=NOW - timedelta(days=2))
    with pytest.raises(NotReplayableError, match="2 d 0 h old"):
        resend(letter, None, NOW)


def test_ages_are_readable() -> None:
    """Minutes, hours, days; never negative."""
    assert duration(timedelta(seconds=-1)) == "0 h 00 min"
    assert duration(timedelta(hours=5, minutes=7)) == "5 h 07 min"
    assert duration(timedelta(days=2, hours=3, minutes=59)) == "2 d 3 h"


# ---------------------------------------------------------------------- the log


@pytest.mark.parametrize(
    ("author", "why"),
    [
        pytest.param("", "issue 4", id="nobody"),
        pytest.param("A Person", "issue 4", id="no account name"),
        pytest.param("a@example.com", "issue 4", id="an address"),
        pytest.param("ann", "", id="no reason"),
        pytest.param("ann", "x" * 201, id="long"),
        pytest.param("ann", "two\nlines", id="lines"),
        pytest.param("ann", "caller +49 30 23125-081", id="number"),
        pytest.param("ann", "caller (030) 23125081", id="number in brackets"),
        pytest.param("ann", "from 203.0.113.71", id="address"),
        pytest.param("ann", "from 2001:db8::1", id="address of version 6"),
        pytest.param("ann", "visitor 8f14e45f-ceea-467f-a9c3-2b1d7e5a6c01", id="pseudonym"),
        pytest.param("ann", "wrote to x@example.com", id="mail"),
    ],
)
def test_the_log_takes_no_use_without_author_and_reason_nor_with_data(author, why) -> None:
    """The log is kept longer than what it speaks of."""
    with pytest.raises(DeadLetterError, match=r"--author|--why"):
        Use(author=author, why=why, action=Action.LIST)


def test_ordinary_reasons_are_taken() -> None:
    """Dates, times, issues and versions are no personal data."""
    for why in ("issue 4711, deployed 2026-11-22 10:30:05", "faststream 0.7.8 mends it"):
        assert Use(author="ann.b-2", why=why, action=Action.LIST).why == why


def test_what_is_done_is_remembered_and_nothing_else(tmp_path) -> None:
    """Asked, begun and failed leave a letter open; a topic made anew has other letters."""
    journal = Journal(tmp_path / "stack", "p-")
    letter, other = a_letter(), a_letter(offset=6)
    assert journal.settled() == {}
    journal.note(USE, Outcome.ASKED, NOW, detail="letter call-end-dlq/0/5")
    journal.note(USE, Outcome.BEGUN, NOW, letter=letter)
    assert journal.settled() == {}
    assert journal.unconfirmed() == {journal.identity(letter)}
    journal.note(USE, Outcome.BEGUN, NOW, letter=other)
    journal.note(USE, Outcome.FAILED, NOW, letter=other, detail="KafkaError")
    journal.note(USE, Outcome.DONE, NOW, letter=letter)
    assert journal.unconfirmed() == set()
    assert journal.settled() == {
        journal.identity(letter): f"replay by a.person at {NOW.isoformat()}"
    }
    anew = a_letter(written_at=NOW + timedelta(seconds=1))
    assert journal.identity(anew) not in journal.settled()
    assert Journal(tmp_path / "stack", "q-").identity(letter) not in journal.settled()
    assert journal.path.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert {(e["author"], e["why"], e["action"]) for e in lines} == {
        ("a.person", "issue 4", "replay")
    }
    assert lines[1] == {
        "at": NOW.isoformat(),
        "author": "a.person",
        "why": "issue 4",
        "action": "replay",
        "outcome": "begun",
        "topic": "p-call-end-dlq",
        "partition": 0,
        "offset": 5,
        "written_at_ms": round(NOW.timestamp() * 1000),
        "reason": "reservation_unknown",
    }


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"outcome": "done", "offset": 1}',
        '{"outcome": "done", "offset": 1, "action": "replay", "author": "a", "at": "b"}',
    ],
)
def test_a_damaged_log_is_not_guessed_at(tmp_path, line) -> None:
    """Nothing is replayed twice because a line could not be read."""
    journal = Journal(tmp_path, "")
    journal.note(USE, Outcome.ASKED, NOW)
    with journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DeadLetterError, match="line 2"):
        journal.settled()


def test_without_its_log_nothing_is_done(tmp_path) -> None:
    """A folder that cannot be written is said before anything is shown."""
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file", "")
    with pytest.raises(DeadLetterError, match="no use without its log"):
        journal.note(USE, Outcome.ASKED, NOW)


def test_one_at_a_time_may_replay(tmp_path) -> None:
    """Two people would send the same letter twice."""
    with (
        Journal(tmp_path, "").alone(),
        pytest.raises(DeadLetterError, match="Somebody else"),
        Journal(tmp_path, "").alone(),
    ):
        pytest.fail("both were let in")
    with Journal(tmp_path, "").alone():
        assert (tmp_path / NAME).exists()


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param({"letter_id": "call-end-dlq/0"}, id="short"),
        pytest.param({"letter_id": "call-end-dlq/0/x"}, id="no number"),
        pytest.param({"letter_id": f"{CANARY}/0/1"}, id="no topic"),
        pytest.param({"reason": f"call {CANARY}"}, id="no word"),
        pytest.param({"reason": "a", "topic": CANARY}, id="unknown topic"),
    ],
)
def test_what_is_asked_for_is_checked_before_it_is_logged(selection) -> None:
    """A slip of the keyboard must not put a number into the log, nor back on the screen."""
    with pytest.raises(DeadLetterError) as caught:
        Selection(**selection)
    assert CANARY not in str(caught.value)


def test_topics_are_named_by_source_or_by_dead_letter() -> None:
    """Both words lead to the same topic; one that nobody reads has none."""
    assert commands.topic_of("call-end").name == commands.topic_of("call-end-dlq").name
    assert commands.place_of("call-end-dlq/0/12")[1:] == (0, 12)
    assert {commands.topic_of(t.name).name for t in REGISTRY} == {
        t.name for t in ALL_TOPICS if t.is_dead_letter
    }


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["list", "--why", "issue 4"], id="no author"),
        pytest.param(["list", "--author", "ann"], id="no reason"),
        pytest.param(["replay", "--author", "ann", "--why", "issue 4"], id="nothing chosen"),
        pytest.param(
            ["replay", "x/0/1", "--reason", "r", "--author", "ann", "--why", "issue 4"], id="both"
        ),
        pytest.param(
            ["list", "--limit", "0", "--author", "ann", "--why", "issue 4"], id="no limit"
        ),
    ],
)
def test_a_command_that_says_too_little_is_refused(arguments, capsys) -> None:
    """argparse's own exit status."""
    with pytest.raises(SystemExit) as caught:
        command_line.main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_stack_that_does_not_run_is_named(tmp_path, capsys) -> None:
    """A sentence and exit status 1."""
    use = ["--author", "ann", "--why", "issue 4", "--folder", str(tmp_path)]
    assert command_line.main(["list", *use]) == 1
    assert "No stack runs" in capsys.readouterr().err

"""The access log on real PostgreSQL: first the entry, then the data (R-C5, R-D10)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from schemas.retention import DataKind, RetentionAction, RetentionOrderV1
from services.chassis import db
from services.chassis.context import Context
from services.consent.classification import TABLES
from services.consent.store import Store
from services.privacy.access_log import Access, AccessLog, Act, NotCountedError, Reason
from services.privacy.executor import Executor
from services.privacy.keyed_hash import DayKeys, Subject
from services.retention import schedule
from services.retention.settings import DEFAULT_SCHEDULE
from tests.support.bench import IDS, Bench, open_bench
from tests.support.protected import carry_out
from tests.support.stack import World

WORLD_SERVICES = ("consent",)
NUMBER = "+493023125000"
ACCESS = Access(
    staff_id="staff-17",
    reason=Reason.PERSON_REQUEST,
    case_number="AUSK-2026-17",
    kind=DataKind.TRAFFIC_DATA,
    subject=Subject.NUMBER,
    looked_for=NUMBER,
)


class BenchClock:
    """The bench's instant."""

    def __init__(self, bench: Bench[Store]) -> None:
        self._bench = bench

    def now(self) -> datetime:
        return self._bench.now

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "consent", Store) as found:
        owner = await db.connect(world.owner_url("consent"))
        await owner.execute("TRUNCATE access_log")
        await owner.close()
        yield found


@pytest.fixture
def keys(bench: Bench[Store], tmp_path: Path) -> DayKeys:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    return DayKeys(folder, BenchClock(bench))


@pytest.fixture
def log(bench: Bench[Store], keys: DayKeys) -> AccessLog:
    return AccessLog(bench.transaction, keys)


async def entries(connection: "asyncpg.Connection[Any]") -> list[dict[str, Any]]:
    found = await connection.fetch("SELECT * FROM access_log ORDER BY accessed_at, step DESC")
    return [dict(row) for row in found]


async def test_an_access_is_recorded_before_it_may_read(world, bench, keys, log):
    """R-C5: who, why, what kind, whom as a hash, when; seen from another session by then."""
    other = await db.connect(world.database_url("consent"))
    try:
        async with log.accessing(ACCESS) as reading:
            (begun,) = await entries(other)
            reading.count(3)
            reading.count(0)
        begun_again, answered = await entries(other)
    finally:
        await other.close()
    assert begun == begun_again
    assert begun == {
        "accessed_on": bench.now.date(),
        "access_id": begun["access_id"],
        "step": "begun",
        "staff_id": "staff-17",
        "reason": "person_request",
        "case_number": "AUSK-2026-17",
        "kind": "traffic_data",
        "subject": "number",
        "subject_hash": keys.hash_at(Subject.NUMBER, NUMBER, bench.now),
        "protection_id": None,
        "act": "read",
        "means": None,
        "n_rows": None,
        "accessed_at": bench.now,
    }
    assert answered == {**begun, "step": "answered", "n_rows": 3}


async def test_the_number_itself_is_in_no_column(bench, log):
    """R-C5: only its hash, under a key that is not in the database."""
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    (text,) = await bench.fetch("SELECT string_agg(a::text, ' ') AS all FROM access_log a")
    assert NUMBER.removeprefix("+") not in text["all"]
    assert NUMBER not in repr(ACCESS)


async def test_an_access_that_cannot_be_recorded_reads_nothing(world, bench, log):
    """R-C5: here the log takes no rows; its error is the caller's."""
    owner = await db.connect(world.owner_url("consent"))
    role = world.databases["consent"].name
    try:
        await owner.execute(f'REVOKE INSERT ON access_log FROM "{role}"')
        has_read = False
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with log.accessing(ACCESS):
                has_read = True
        assert not has_read
    finally:
        await owner.execute(f'GRANT INSERT ON access_log TO "{role}"')
        await owner.close()
    assert await bench.fetch("SELECT FROM access_log") == []


async def test_an_answer_that_cannot_be_recorded_is_not_given(bench, keys):
    """R-C5: the second entry fails, and with it the reader; that it began stays on record."""
    n_transactions = 0

    @asynccontextmanager
    async def only_one() -> AsyncIterator[Context[Store]]:
        nonlocal n_transactions
        n_transactions += 1
        if n_transactions > 1:
            raise ConnectionError
        async with bench.transaction() as ctx:
            yield ctx

    async def read() -> str:
        async with AccessLog(only_one, keys).accessing(ACCESS) as reading:
            answer = "personal data"
            reading.count(1)
        return answer

    with pytest.raises(ConnectionError):
        await read()
    assert [row["step"] for row in await entries(bench.connection)] == ["begun"]


async def test_an_access_without_a_number_of_rows_is_not_answered(bench, log):
    """R-C5: how many rows is part of what is recorded."""
    with pytest.raises(NotCountedError):
        async with log.accessing(ACCESS):
            pass
    assert [row["step"] for row in await entries(bench.connection)] == ["begun"]


async def test_a_reader_that_fails_stays_on_record(bench, log):
    """R-C5: they may have seen something before they failed."""

    async def read() -> None:
        async with log.accessing(ACCESS) as reading:
            reading.count(1)
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await read()
    assert [row["step"] for row in await entries(bench.connection)] == ["begun"]


async def test_an_access_about_nobody_in_particular_has_no_hash(bench, log):
    """R-C5: a list of all that failed today, say."""
    access = Access(staff_id="staff-1", reason=Reason.FAULT, kind=DataKind.AD_USE)
    async with log.accessing(access) as reading:
        reading.count(0)
    (begun, answered) = await entries(bench.connection)
    assert (begun["subject"], begun["subject_hash"], begun["case_number"]) == (None, None, None)
    assert answered["n_rows"] == 0


async def test_what_is_no_number_is_not_looked_for(bench, log):
    """Bad input changes nothing, and its error does not quote it."""
    access = Access(
        staff_id="staff-1",
        reason=Reason.FAULT,
        kind=DataKind.AD_USE,
        subject=Subject.NUMBER,
        looked_for="somebody's name",
    )
    with pytest.raises(ValueError, match=r"E\.164") as error:
        async with log.accessing(access):
            pass
    assert "somebody" not in str(error.value)
    assert await bench.fetch("SELECT FROM access_log") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"staff_id": "jane.doe@example.com"},
        {"staff_id": "Jane Doe"},
        {"staff_id": "staff-1\n"},
        {"case_number": "+493023125000"},
        {"case_number": "TEL-030-23125000"},
        {"case_number": "AUSK-2026-23125000"},
        {"case_number": "Jane Doe"},
        {"case_number": "jane@example.com"},
        {"case_number": ""},
        {"subject": None},
        {"looked_for": None},
    ],
    ids=str,
)
def test_nothing_personal_fits_into_an_id_or_case_number(wrong):
    """R-C5: the log outlives what it is about by years."""
    good: dict[str, Any] = {name: getattr(ACCESS, name) for name in Access.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"staff-|case number|both") as error:
        Access(**{**good, **wrong})
    for value in wrong.values():
        assert not value or value not in str(error.value)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("staff_id", "Jane Doe"),
        ("case_number", "+493023125000"),
        ("reason", "curiosity"),
        ("subject_hash", b"+493023125000"),
        ("n_rows", 5),
    ],
)
async def test_the_database_takes_nothing_personal_either(bench, log, column, value):
    """R-C5: whoever writes past this package is stopped by the table."""
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    (row, _) = await entries(bench.connection)
    row["access_id"] = IDS.new()
    columns, places = ", ".join(row), ", ".join(f"${n}" for n in range(1, len(row) + 1))
    sql = f"INSERT INTO access_log ({columns}) VALUES ({places})"
    with pytest.raises(asyncpg.CheckViolationError):
        await bench.fetch(sql, *{**row, column: value}.values())
    await bench.fetch(sql, *row.values())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE access_log SET staff_id = 'staff-2'",
        "DELETE FROM access_log",
        "TRUNCATE access_log",
        "UPDATE {partition} SET staff_id = 'staff-2'",
        "DELETE FROM {partition}",
        "TRUNCATE {partition}",
        "DROP TABLE {partition}",
        "ALTER TABLE access_log DETACH PARTITION {partition}",
        "INSERT INTO {partition} SELECT * FROM access_log",
    ],
)
async def test_what_is_recorded_cannot_be_changed(bench, log, statement):
    """R-C5: not by the service's role, in the parent nor in a partition by its own name."""
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    before = await entries(bench.connection)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await bench.fetch(statement.format(partition=f"access_log_y{bench.now.year}"))
    assert await entries(bench.connection) == before


async def test_the_year_is_berlins_and_one_for_both_rows(bench, log):
    """R-D9, R-D10: an access at new year is of the year in which it began."""
    bench.now = datetime(bench.now.year, 12, 31, 22, 59, 59, tzinfo=UTC)
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
        bench.now += timedelta(seconds=2)
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    found = [(row["accessed_on"], row["step"]) for row in await entries(bench.connection)]
    old, new = date(bench.now.year, 12, 31), date(bench.now.year + 1, 1, 1)
    assert sorted(found) == [(old, "answered"), (old, "begun"), (new, "answered"), (new, "begun")]


async def test_a_wrong_clock_makes_no_partitions(bench, log):
    """A partition of a far year would be found by no order for as long."""
    bench.now += timedelta(days=3 * 366)
    with pytest.raises(asyncpg.RaiseError):
        async with log.accessing(ACCESS):
            pass
    assert await bench.fetch("SELECT FROM access_log") == []


async def test_the_log_goes_at_the_end_of_the_third_year_and_no_day_sooner(bench, log):
    """R-D10: by the schedule's own rule, through the executor."""
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    end = datetime(bench.now.year + 3, 12, 31, 23, 0, tzinfo=UTC)
    counts = [await _carry_out(bench, as_of) for as_of in (end - timedelta(microseconds=1), end)]
    assert counts == [0, 2]
    assert await bench.fetch("SELECT FROM access_log") == []
    # and the service goes on to record
    async with log.accessing(ACCESS) as reading:
        reading.count(1)
    assert len(await entries(bench.connection)) == 2


async def _carry_out(bench: Bench[Store], as_of: datetime) -> int:
    """Order what the schedule says is due at an instant, and return how many rows went."""
    rules = schedule.load(DEFAULT_SCHEDULE)
    (due,) = (found for found in rules.due(as_of) if found.kind is DataKind.ACCESS_LOG)
    order = RetentionOrderV1(
        order_id=IDS.new(),
        kind=due.kind,
        action=RetentionAction.DROP,
        before_day=due.before_day,
        as_of=as_of,
    )
    (receipt,) = await carry_out(bench, Executor(TABLES, simulation=True), order)
    return sum(count.n_rows for count in receipt.counts)


def test_nobody_reads_for_the_sake_of_accountability():
    """R-C5: that reason is for what staff takes over, not for a look."""
    with pytest.raises(ValueError, match="no reason to read"):
        replace(ACCESS, reason=Reason.ACCOUNTABILITY)


async def test_the_database_too_lets_nobody_read_for_that_reason(bench, log):
    """R-C5: whatever the code does."""
    acting = replace(ACCESS, reason=Reason.ACCOUNTABILITY, act=Act.IMPORT, means=("paper", "web"))
    async with log.accessing(acting) as reading:
        reading.count(1)
    assert {row["means"] for row in await entries(bench.connection)} == {"paper,web"}
    object.__setattr__(acting, "act", Act.READ)
    with pytest.raises(asyncpg.CheckViolationError, match="reason"):
        async with log.accessing(acting):
            pass

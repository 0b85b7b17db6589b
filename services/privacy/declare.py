"""What a service declares about its data: tables that age, and a class for every column (D5).

A column without an entry fails a test, and so does an entry without its column.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.retention import DataKind


@dataclass(frozen=True, kw_only=True)
class Via:
    """How the rows of a table without a visitor's id hang on those of one that has it.

    Attributes:
        columns: own column -> column of the other table.
    """

    table: str
    columns: Mapping[str, str]


class Returning(StrEnum):
    """How rows that a restriction set aside come back beside what was written since."""

    TOGETHER = "together"
    """A visitor's rows refer to each other: where a newer row has the key of one, none returns."""
    EACH = "each"
    """A row gives way to a newer one of its key; nothing else refers to it."""
    ONE = "one"
    """The table has one row per visitor: the first returns, and only where there is none."""


class PartitionOf(StrEnum):
    """What a partition holds."""

    DAY = "day"
    YEAR = "year"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of personal data whose partitions go by age.

    The database has the same facts (`privacy_table`, written by the service's migration), because
    only its owner may say which rows an order may touch; a test holds the two together.

    Attributes:
        kind: the rule that governs it; one kind per table.
        day_column: the partition key, a date.
        subject_column: the visitor's id; None where rows hang on another table's (`via`), or name
            no visitor at all.
        drop_function: (table name, first day that stays) -> a row per partition that it dropped.
    """

    name: str
    kind: DataKind
    day_column: str
    subject_column: str | None = None
    via: Via | None = None
    returning: Returning = Returning.TOGETHER
    partition_of: PartitionOf = PartitionOf.DAY
    drop_function: str = "privacy_day_drop"

    def __post_init__(self) -> None:
        assert self.subject_column is None or self.via is None

    @property
    def names_visitors(self) -> bool:
        """Whether an order by visitor reaches its rows."""
        return self.subject_column is not None or self.via is not None


class PeriodStart(StrEnum):
    """The instant from which a column's period counts."""

    EVENT = "event"
    USE_END = "use_end"
    CALL_END = "call_end"
    CONSENT_END = "consent_end"


@dataclass(frozen=True, kw_only=True)
class Column:
    """What a column is; `kind` and `start` are set exactly for personal ones."""

    personal: bool
    kind: DataKind | None = None
    start: PeriodStart | None = None

    def __post_init__(self) -> None:
        assert self.personal == (self.kind is not None)
        assert self.personal == (self.start is not None)


Columns = Mapping[str, Column]
Classification = Mapping[str, Columns]
"""Table name -> column name -> what it is."""


def personal(columns: str, *, kind: DataKind, start: PeriodStart) -> dict[str, Column]:
    """Classify the named columns (parted by spaces) as personal data of one kind."""
    return dict.fromkeys(columns.split(), Column(personal=True, kind=kind, start=start))


def plain(columns: str) -> dict[str, Column]:
    """Classify the named columns (parted by spaces) as no personal data."""
    return dict.fromkeys(columns.split(), Column(personal=False))


COLUMNS_SQL = """
SELECT c.relname AS "table", a.attname AS "column"
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'
ORDER BY 1, a.attnum
"""
"""Every column of every table of a database; a partition has its parent's columns."""


def gaps(actual: Iterable[tuple[str, str]], classification: Classification) -> list[str]:
    """Return, in words, each column that is not classified and each entry that is no column.

    Args:
        actual: (table, column) pairs of the database, as `COLUMNS_SQL` gives them.
        classification: the service's own, with `SHARED` of `services.privacy.classification`.
    """
    existing = set(actual)
    declared = {(table, column) for table, columns in classification.items() for column in columns}
    return [
        *(f"{table}.{column} is not classified" for table, column in sorted(existing - declared)),
        *(f"{table}.{column} does not exist" for table, column in sorted(declared - existing)),
    ]


def undeclared(classification: Classification, tables: Iterable[Table]) -> list[str]:
    """Return the tables with personal columns that no order would reach, by name."""
    reached = {table.name for table in tables}
    holding = {
        name
        for name, columns in classification.items()
        if any(column.personal for column in columns.values())
    }
    return sorted(holding - reached)

"""What a service declares about its data: tables that age, and a class for every column (D5).

A column without an entry fails a test, and so does an entry without its column.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from schemas.retention import DataKind

DAY_DROP_SQL = "SELECT partition, n_rows FROM chassis_day_drop($1, $2)"


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of personal data whose partitions go by age.

    Attributes:
        kind: the rule that governs it; one kind per table.
        day_column: the partition key, a date.
        drop_sql: (table name, first day that stays) -> rows (partition, n_rows); for a table
            whose partitions are no days, its own SECURITY DEFINER function.
    """

    name: str
    kind: DataKind
    day_column: str
    drop_sql: str = DAY_DROP_SQL


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

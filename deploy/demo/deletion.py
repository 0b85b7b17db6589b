"""Eight days later: the sweep with its receipts, and what each rule leaves standing.

No clock can be moved, neither Kafka's nor PostgreSQL's, so a simulation does otherwise: the sweep
is told an instant in the future and lowers the topics' retention; the maintenance of the outboxes,
whose partitions go by the hour without any order, is called as of the same instant.
"""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from deploy.demo.errors import DemoError
from deploy.local.stack import LocalStack
from services.chassis.declaration import Declaration
from services.privacy.classification import SHARED
from services.privacy.declare import Classification

LATER = timedelta(days=8)
SWEEP_WITHIN_S = 60

_UNSENT = "SELECT count(*) FROM outbox o, outbox_cursor c WHERE (o.txid, o.id) > (c.txid, c.id)"


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """A line of a receipt."""

    kind: str
    rule: str
    before_day: str
    service: str
    table: str
    n_partitions: int
    n_rows: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A table that is not empty after the deletion, and the rule by which it stays.

    `rule` is empty where there is none: then it is a leftover.
    """

    service: str
    table: str
    n_rows: int
    rule: str


STAYS: Mapping[str, str] = {
    "consent_record": "R-D10: proof of a choice, until the end of the third year;"
    " its link to the visitor is gone",
    "consent_transfer": "R-D10: proof of what was sent to whom, until the end of the third year;"
    " its link to the visitor is gone",
    "platform_account": "L1: the platform's sums per day; no person in them",
    "retention_sweep": "R-D9: what was ordered when",
    "retention_order": "R-D9: which rule, and when it fell due",
    "retention_sweep_order": "R-D9: which sweep made which order",
    "retention_receipt": "R-D9, D4: who did what; counts only",
    "retention_completion": "R-D9, D3: when all had answered",
    "retention_done": "R-D9, D4: the service's own receipt; counts only",
    "outbox": "events on their way, gone two hours after they left; receipts by now",
}


async def sweep(stack: LocalStack, as_of: datetime) -> list[Deleted]:
    """Order what is due at an instant, wait for every receipt, and return them line by line.

    Raises:
        StackError: the sweep was refused, or somebody did not answer.
        DemoError: it is not complete.
    """
    text = await stack.run(
        "retention", "sweep", "--as-of", as_of.isoformat(), "--wait", "--json",
        "--timeout-s", str(SWEEP_WITHIN_S), within_s=2.0 * SWEEP_WITHIN_S,
    )  # fmt: skip
    found = _read(text)
    if not found["is_complete"]:
        raise DemoError("The sweep is not complete: a service has not answered.")
    return [
        Deleted(
            kind=order["kind"],
            rule=order["requirement"],
            before_day=order["before_day"],
            service=receipt["service"],
            table=count["table"],
            n_partitions=count["n_partitions"],
            n_rows=count["n_rows"],
        )
        for order in found["orders"]
        for receipt in order["receipts"]
        for count in receipt["counts"]
    ]


def _read(text: str) -> dict[str, Any]:
    """Return the sweep among the lines that the command printed."""
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "sweep_id" in found:
            return found
    raise DemoError("The sweep printed no result.")


async def age_outboxes(stack: LocalStack, as_of: datetime) -> list[Deleted]:
    """Let each service's outbox maintenance run as of the sweep's instant.

    Each minute it does so as of now: an hour's partition goes two hours after it has been sent.

    Raises:
        DemoError: an outbox still holds unsent events.
    """
    deleted = []
    for declared in with_database(stack):
        connection = await asyncpg.connect(stack.admin_dsn(declared.name))
        try:
            async with connection.transaction():
                deleted.append(await _age_outbox(connection, declared.name, as_of))
        finally:
            await connection.close()
    return deleted


async def _age_outbox(connection: Any, service: str, as_of: datetime) -> Deleted:
    await connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
    if await connection.fetchval(_UNSENT):
        raise DemoError(f"The outbox of {service} still holds events that were not sent.")
    n_rows = await connection.fetchval("SELECT count(*) FROM outbox")
    n_partitions = await connection.fetchval("SELECT chassis_outbox_maintain($1)", as_of)
    return Deleted(
        kind="ad_use",
        rule="outbox, 2 h",
        before_day="",
        service=service,
        table="outbox",
        n_partitions=n_partitions,
        n_rows=n_rows - await connection.fetchval("SELECT count(*) FROM outbox"),
    )


async def turn_write_ahead_log(stack: LocalStack) -> None:
    """Begin a new file of the write-ahead log and let go of the old ones.

    Hours of traffic and the checkpoint timer do that by themselves (architecture.md, "Bytes").
    """
    connection = await asyncpg.connect(stack.admin_dsn())
    try:
        await connection.execute("SELECT pg_switch_wal()")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def standing(stack: LocalStack) -> list[Standing]:
    """Return every table that still holds rows, with the rule by which it stays."""
    found = []
    for declared in with_database(stack):
        classification = classification_of(declared.name)
        connection = await asyncpg.connect(stack.admin_dsn(declared.name))
        try:
            for table, columns in sorted(classification.items()):
                # a name from the service's own declaration, checked by a test against its database
                n_rows = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
                if n_rows:
                    is_personal = any(column.personal for column in columns.values())
                    rule = STAYS.get(table, "" if is_personal else "D5: no personal data in it")
                    found.append(
                        Standing(service=declared.name, table=table, n_rows=n_rows, rule=rule)
                    )
        finally:
            await connection.close()
    return found


def classification_of(service: str) -> Classification:
    """Return what each column of a service's database is (D5)."""
    module = importlib.import_module(f"services.{service}.classification")
    own: Classification = module.CLASSIFICATION
    return {**SHARED, **own}


def with_database(stack: LocalStack) -> list[Declaration]:
    """Return the services of the stack that keep data."""
    return [declared for declared in stack.declarations if declared.database]

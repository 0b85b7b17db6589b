"""`python -m services.<name> kept`: read what a hold or restriction keeps (R-D3, R-D6).

Rows that are blocked stand where the service itself cannot read them. The role of the legal duty
alone may, by a function of the database that hands out nothing unless the access log already says
who reads, and why. Its password is given to whoever bears the duty, to no process.
"""

import argparse
import json
import sys
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import asyncpg
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from schemas.retention import DataKind
from services.chassis import command, db
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.chassis.secret import Secret
from services.privacy.access_log import Access, AccessLog, Reason
from services.privacy.identify import add_staff, identify
from services.privacy.staff import Duty

EXIT_REFUSED = 2


class DutySettings(BaseSettings):
    """What the command needs; the service's own settings are not for whoever types it."""

    duty_database_url: SecretStr | None = None


async def kept(arguments: Sequence[str], *, service: str, kinds: Collection[DataKind]) -> int:
    """Print what a protection keeps of a kind of data, as JSON; 2 where it is refused.

    Args:
        kinds: of the service's tables.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service} kept")
    parser.add_argument("--protection", required=True, type=UUID, help="id of hold or restriction")
    parser.add_argument("--kind", required=True, choices=sorted(kind.value for kind in kinds))
    add_staff(parser)
    parser.add_argument("--reason", required=True, choices=[reason.value for reason in Reason])
    parser.add_argument("--case", required=True, help="number of the case file: AUSK-2026-17")
    found = parser.parse_args(arguments)
    prefix = f"{service.upper()}_"
    given = DutySettings(_env_prefix=prefix).duty_database_url
    if given is None:
        sys.stderr.write(f"{service}: set {prefix}DUTY_DATABASE_URL: the login of the legal duty\n")
        return EXIT_REFUSED
    url = Secret(given.get_secret_value())

    def transaction() -> AbstractAsyncContextManager[Context[db.Connection]]:
        return command.transaction(url, service, lambda connection: connection)

    try:
        who = identify(service, found, Duty.LEGAL_DUTY, SystemClock().now())
        access = Access(
            staff_id=who.staff_id,
            reason=Reason(found.reason),
            kind=DataKind(found.kind),
            case_number=found.case,
            protection_id=found.protection,
        )
        rows = await _read(AccessLog(transaction), access, found.protection, transaction)
    except (ValueError, asyncpg.InsufficientPrivilegeError) as error:
        sys.stderr.write(f"{service}: refused: {error}\n")
        return EXIT_REFUSED
    sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    return 0


async def _read(log: AccessLog, access: Access, protection_id: UUID, transaction: Any) -> Any:
    async with log.accessing(access) as reading:
        async with transaction() as ctx:
            found = await ctx.store.fetch(
                "SELECT * FROM privacy_kept_read($1, $2)", protection_id, reading.access_id
            )
        reading.count(len(found))
    return [
        {
            "table": row["source"],
            "day": row["row_day"].isoformat(),
            "row": row["content"],
        }
        for row in found
    ]

"""`python -m services.<name> find`: from a number or an address to visitors' ids (R-G3, R-G10).

What is looked for is one line of the standard input, never an argument, and the answer is one id a
line, so that it can be piped into an order. Each use is in the access log before anything is read.
"""

import argparse
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import UUID

from schemas.retention import DataKind
from services.chassis.clock import SystemClock
from services.chassis.context import Context
from services.privacy.access_log import Access, AccessLog, Reason
from services.privacy.identify import add_staff, identify
from services.privacy.keyed_hash import DayKeys, Subject, normalised
from services.privacy.staff import DUTY_OF

EXIT_REFUSED = 2
Look = Callable[[Context[Any], str], Awaitable[Collection[UUID]]]
"""Returns the visitors of a normalised number or address."""


async def find(
    arguments: Sequence[str],
    *,
    service: str,
    looks: Mapping[Subject, tuple[DataKind, Look]],
    keys_folder: Path | None,
    transaction: Callable[[], AbstractAsyncContextManager[Context[Any]]],
) -> int:
    """Find visitors; return the exit status: 0, also for none, or 2 where it is refused.

    Args:
        looks: what can be looked for, the kind of data that is read for it, and how.
        keys_folder: of the keys for the hash in the access log.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service} find")
    parser.add_argument("what", choices=[subject.value for subject in looks])
    add_staff(parser)
    parser.add_argument("--reason", required=True, choices=[reason.value for reason in Reason])
    parser.add_argument("--case", required=True, help="number of the case file: AUSK-2026-17")
    found = parser.parse_args(arguments)
    if keys_folder is None:
        sys.stderr.write(f"{service}: set {service.upper()}_HASH_KEYS_FOLDER\n")
        return EXIT_REFUSED
    subject = Subject(found.what)
    kind, look = looks[subject]
    try:
        who = identify(service, found, DUTY_OF[Reason(found.reason)], SystemClock().now())
        value = normalised(subject, sys.stdin.readline().strip())
        access = Access(
            staff_id=who.staff_id,
            reason=Reason(found.reason),
            kind=kind,
            case_number=found.case,
            subject=subject,
            looked_for=value,
        )
    except ValueError as error:
        sys.stderr.write(f"{service}: refused: {error}\n")
        return EXIT_REFUSED
    log = AccessLog(transaction, DayKeys(keys_folder, SystemClock()))
    async with log.accessing(access) as reading:
        async with transaction() as ctx:
            visitors = sorted(await look(ctx, value))
        reading.count(len(visitors))
    for visitor_id in visitors:
        sys.stdout.write(f"{visitor_id}\n")
    return 0

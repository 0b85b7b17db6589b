"""`python -m services.<name> accesses`: who of the staff looked, for the data-protection officer.

Of every service that keeps an access log, in the same form (R-C5).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from services.chassis import command
from services.chassis.secret import Secret
from services.privacy import access_log

EXIT_REFUSED = 2
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


async def accesses(arguments: Sequence[str], *, service: str, url: Secret) -> int:
    """Print the access log as JSON, newest first; return 0, or 2 for an instant without a zone.

    Args:
        url: of the service's database.
    """
    parser = argparse.ArgumentParser(prog=f"python -m services.{service} accesses")
    parser.add_argument(
        "--since", type=datetime.fromisoformat, default=_FIRST, help="2026-11-01T00:00:00Z"
    )
    since = parser.parse_args(arguments).since
    if since.tzinfo is None:
        sys.stderr.write(f"{service}: refused: say the zone of the instant: 2026-11-01T00:00:00Z\n")
        return EXIT_REFUSED
    async with command.transaction(url, service, lambda connection: connection) as ctx:
        found = await access_log.accesses(ctx.store, since)
    if len(found) == access_log.ACCESSES_MAX:
        sys.stderr.write(f"{service}: only the newest {len(found)}: ask for less with --since\n")
    sys.stdout.write(json.dumps(found, indent=2, default=_text, ensure_ascii=False) + "\n")
    return 0


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)

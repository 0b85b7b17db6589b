"""`python -m services.call_control statistics`: which networks called, nobody singly (R-C2)."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import date

from services.call_control.declaration import DECLARATION
from services.call_control.settings import Settings
from services.call_control.store import Store
from services.chassis import command


async def statistics(arguments: Sequence[str]) -> int:
    """Print, as JSON, the statistics of days whose addresses are gone; no network = all others."""
    parser = argparse.ArgumentParser(prog="python -m services.call_control statistics")
    parser.add_argument("--since", type=date.fromisoformat, default=date.min, help="2026-11-01")
    since: date = parser.parse_args(arguments).since
    url = Settings.load().secret("database_url")
    async with command.transaction(url, DECLARATION.name, Store) as ctx:
        found = await ctx.store.statistics(since)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0

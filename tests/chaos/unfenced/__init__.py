"""The platform with its two safeguards against doubles taken out: the negative control.

Only fault runs start these modules; nothing in `services/` knows of them. The offset fence lets
everything pass, and the ledger's natural key (ticket, kind) is neither asked for nor enforced.
"""

import asyncio
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg

from services.ad_ledger import domain
from services.chassis import consume

_CONDITION = "AND o.next_offset <= g.first_offset"
_WITHOUT_KEYS = """
ALTER TABLE ad_view DROP CONSTRAINT ad_view_pk;
ALTER TABLE posting DROP CONSTRAINT posting_grant_once_uq;
"""


def take_the_fence_out() -> None:
    """Let every poll pass, done before or not."""
    assert _CONDITION in consume._FENCE
    consume._FENCE = consume._FENCE.replace(_CONDITION, "")


def take_the_natural_key_out() -> None:
    """Let an event that was recorded before be recorded and credited again."""
    decide = domain.decide_view

    def decide_without_memory(
        state: domain.ViewState, event: domain.AdEvent, tariffs: Sequence[domain.Tariff]
    ) -> Any:
        decision = decide(state, event, tariffs)
        tariff = domain.tariff_at(tariffs, event.at)
        if not isinstance(decision, domain.Duplicate) or tariff is None:
            return decision
        earned_ms = domain.earned_ms(tariff, event.kind, event.ticket.duration_ms)
        return domain.Recorded(
            event=event,
            credit_ms=earned_ms,
            tariff_version=tariff.version,
            capped=False,
            watched_until=state.watch(event.ticket).watched_until,
        )

    domain.decide_view = decide_without_memory


async def drop_keys(owner_url: str) -> None:
    """Take the keys out of the ledger's tables, once they are made."""
    connection = await asyncpg.connect(owner_url)
    try:
        await connection.execute(_WITHOUT_KEYS)
    finally:
        await connection.close()


def main(service: str) -> None:
    """Run a service as `python -m services.<service>` does, without the safeguards."""
    take_the_fence_out()
    if service == "ad_ledger":
        take_the_natural_key_out()
    try:
        runpy.run_module(f"services.{service}", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if service == "ad_ledger" and sys.argv[1:] == ["migrate"] and not end.code:
            asyncio.run(drop_keys(os.environ["AD_LEDGER_MIGRATE_DATABASE_URL"]))
        raise

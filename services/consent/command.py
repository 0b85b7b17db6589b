"""`python -m services.consent verify`: what a person types."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from services.chassis.clock import SystemClock
from services.chassis.command import transaction
from services.consent import chain_store
from services.consent.chain_store import Part
from services.consent.declaration import DECLARATION
from services.consent.settings import Settings
from services.consent.store import Store
from services.privacy import chain
from services.privacy.chain import Finding, SigningKeys, VerifyKeys

EXIT_NOT_INTACT = 3


async def verify(arguments: Sequence[str]) -> int:
    """Verify all chains of records and print what was found; 0: intact, 3: not."""
    parser = argparse.ArgumentParser(prog="python -m services.consent verify")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    as_json: bool = parser.parse_args(arguments).json
    settings = Settings.load()
    keys = SigningKeys.from_json(settings.secret("anchor_keys").read()).verify_keys()
    results = []
    for part in range(chain_store.PARTS):
        async with transaction(
            settings.secret("database_url"), DECLARATION.name, Store, SystemClock()
        ) as ctx:
            results.append(judge(await ctx.store.chain_part(part), keys))
    sys.stdout.write(json.dumps(results, indent=2) + "\n" if as_json else _as_table(results))
    return 0 if all(result["intact"] for result in results) else EXIT_NOT_INTACT


def judge(part: Part, keys: VerifyKeys) -> dict[str, Any]:
    """Return what is to be said of one chain, in JSON's types."""
    findings = [
        *chain.verify(part.entries, anchors=part.anchors, keys=keys, head=part.head),
        *chain.verify_content(part.entries, part.contents),
    ]
    return {
        "chain": part.name,
        "intact": not findings,
        "entries": len(part.entries),
        # erased, or dropped with their year: what they said is gone, the chain is whole
        "without_record": len({e.seq for e in part.entries} - part.contents.keys()),
        "anchors": len(part.anchors),
        "findings": [_finding(finding) for finding in findings],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {"seq": finding.seq, "fault": finding.fault.value}


def _as_table(results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        said = ", ".join(f"{f['fault']} at {f['seq']}" for f in result["findings"]) or "intact"
        lines.append(
            f"{result['chain']}  {result['entries']} entries, {result['without_record']} without"
            f" record, {result['anchors']} anchors: {said}"
        )
    return "\n".join(lines) + "\n"

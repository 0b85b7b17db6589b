"""`python -m services.retention verify`, `anchors`, `anchor-keys`: what proves the evidence."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from services.chassis.command import transaction
from services.chassis.context import Context
from services.privacy import anchors as anchors_of
from services.privacy.chain import SigningKeys, VerifyKeys
from services.privacy.identify import register_of
from services.privacy.staff import StaffError
from services.retention import schedule
from services.retention.declaration import DECLARATION
from services.retention.evidence import CHAIN
from services.retention.settings import Settings
from services.retention.store import Store
from services.retention.wire import as_document, as_text

EXIT_INTACT, EXIT_BROKEN, EXIT_REFUSED = 0, 1, 2


async def verify(arguments: Sequence[str]) -> int:
    """Say whether the chain of evidence is intact; status 1 where it is not, 2: refused."""
    parser = argparse.ArgumentParser(prog="python -m services.retention verify")
    parser.add_argument("--json", action="store_true", help="print JSON, not text")
    parser.add_argument("--anchors", type=Path, help="anchors kept elsewhere: JSON lines")
    asked = parser.parse_args(arguments)
    settings = Settings.load()
    rules = schedule.load(settings.schedule_path)
    try:
        kept = None if asked.anchors is None else anchors_of.read(asked.anchors, [CHAIN])
        staff = register_of(DECLARATION.name)
    except (OSError, StaffError, ValueError) as error:
        sys.stderr.write(f"retention: refused: {error}\n")
        return EXIT_REFUSED
    async with _transaction(settings) as ctx:
        before = rules.evidence_before(ctx.now)
        keys = VerifyKeys(_keys(settings).public())
        found = await ctx.store.evidence.verify(keys, before, staff, kept)
    sys.stdout.write(f"{as_document(found) if asked.json else as_text(found)}\n")
    return EXIT_BROKEN if found.findings else EXIT_INTACT


async def anchors(arguments: Sequence[str]) -> int:
    """Print all anchors as JSON lines, to be kept where nobody who owns the database can write."""
    argparse.ArgumentParser(prog="python -m services.retention anchors").parse_args(arguments)
    async with _transaction(Settings.load()) as ctx:
        found = await ctx.store.evidence.anchors()
    sys.stdout.write(anchors_of.as_lines(found))
    return EXIT_INTACT


async def anchor_keys(arguments: Sequence[str]) -> int:
    """Print the public keys by which anchors verify, for who keeps anchors."""
    argparse.ArgumentParser(prog="python -m services.retention anchor-keys").parse_args(arguments)
    sys.stdout.write(anchors_of.keys_as_text(_keys(Settings.load())))
    return EXIT_INTACT


def _keys(settings: Settings) -> SigningKeys:
    return SigningKeys.from_json(settings.anchor_keys.get_secret_value())


def _transaction(settings: Settings) -> AbstractAsyncContextManager[Context[Store]]:
    return transaction(settings.secret("database_url"), DECLARATION.name, Store)

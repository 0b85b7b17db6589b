"""`python -m services.ad_ledger find`, `kept` and `accesses`."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from uuid import UUID

from schemas.retention import DataKind
from services.ad_ledger.classification import TABLES
from services.ad_ledger.declaration import DECLARATION
from services.ad_ledger.settings import Settings
from services.ad_ledger.store import Store
from services.chassis import command
from services.chassis.context import Context
from services.privacy.accesses import accesses as read_accesses
from services.privacy.find import find as find_visitors
from services.privacy.kept import kept as read_kept
from services.privacy.keyed_hash import Subject


async def find(arguments: Sequence[str]) -> int:
    """Print the ids of visitors; see `services/privacy/find.py`."""
    settings = Settings.load()

    def transaction() -> AbstractAsyncContextManager[Context[Store]]:
        return command.transaction(settings.secret("database_url"), DECLARATION.name, Store)

    return await find_visitors(
        arguments,
        service=DECLARATION.name,
        looks=LOOKS,
        keys_folder=settings.hash_keys_folder,
        transaction=transaction,
    )


async def accesses(arguments: Sequence[str]) -> int:
    """Print who of the staff looked; see `services/privacy/accesses.py`."""
    url = Settings.load().secret("database_url")
    return await read_accesses(arguments, service=DECLARATION.name, url=url)


async def kept(arguments: Sequence[str]) -> int:
    """Print what a hold or restriction keeps; see `services/privacy/kept.py`."""
    kinds = {table.kind for table in TABLES}
    return await read_kept(arguments, service=DECLARATION.name, kinds=kinds)


async def _of_address(ctx: Context[Store], address: str) -> list[UUID]:
    return await ctx.store.visitors_of_address(address)


LOOKS = {Subject.ADDRESS: (DataKind.IP_ADDRESS, _of_address)}

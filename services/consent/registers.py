"""Says what is in force: the recipient register and the catalogue, on the topic `register`.

Each change at once, and everything once a day, so that the topic's age limit never forgets it.
"""

import hashlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from schemas import topics
from schemas.register import RegisterName, RegisterV1
from services.chassis.context import Context
from services.consent import catalogues
from services.consent.catalogues import CatalogueError, Catalogues
from services.privacy import recipients

TOLD_AGAIN_AFTER = timedelta(days=1)


class Teller:
    """Enqueues what is in force where it has changed, or has not been told for a day."""

    def __init__(
        self,
        known: Catalogues,
        *,
        recipients_file: Path = recipients.FILE,
        catalogue_folder: Path = catalogues.FOLDER,
    ) -> None:
        """Take the published catalogues and the files."""
        self._known = known
        self._recipients_file = recipients_file
        self._catalogue_folder = catalogue_folder
        self._told: dict[RegisterName, tuple[str, datetime]] = {}

    def tell(self, ctx: Context[Any]) -> list[RegisterV1]:
        """Enqueue what there is to say; return it, for `has_told` once it is committed.

        Raises:
            RecipientsError: the recipient register is wrong; nothing is said.
        """
        due = [event for event in self._in_force(ctx.now) if self._is_due(event, ctx.now)]
        for event in due:
            ctx.outbox.add(topics.REGISTER, event)
        return due

    def has_told(self, events: Iterable[RegisterV1], at: datetime) -> None:
        """Note what has been committed."""
        self._told.update({event.name: (event.sha256, at) for event in events})

    def _is_due(self, event: RegisterV1, now: datetime) -> bool:
        sha256, at = self._told.get(event.name, ("", now))
        return sha256 != event.sha256 or now - at >= TOLD_AGAIN_AFTER

    def _in_force(self, now: datetime) -> list[RegisterV1]:
        content = self._recipients_file.read_bytes()
        version = recipients.parse(content).version.partition("+")[0]
        found = [_event(RegisterName.RECIPIENTS, version, content)]
        try:
            catalogue = self._known.in_force(now)
        except CatalogueError:  # then nobody can be asked, and nobody is
            return found
        content = (self._catalogue_folder / f"{catalogue.version}.json").read_bytes()
        return [*found, _event(RegisterName.CATALOGUE, catalogue.version, content)]


def _event(name: RegisterName, version: str, content: bytes) -> RegisterV1:
    return RegisterV1(
        name=name,
        version=version,
        document=content.decode(),
        sha256=hashlib.sha256(content).hexdigest(),
    )

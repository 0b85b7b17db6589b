"""A warm standby: of two processes with the same `instance` one works and the other waits.

Starting a process takes seconds (interpreter, imports, connections); whoever waits here has all
that behind it. The place is an advisory lock in the service's database, held by a session of its
own: it is free as soon as its holder is dead. It decides who begins, nothing else: what keeps two
processes from doing the same thing twice is the fence of `consume.py`.
"""

import asyncio
from typing import Any

import asyncpg

from services.chassis import db, errors, logs
from services.chassis.secret import Secret

_LOCK_SPACE = 7_411
_POLL_S = 0.1
_STEP_BACK_S = 2.0
_REFUSALS_MAX = 20
_TAKE = "SELECT pg_try_advisory_lock($1, hashtext($2))"


class Place:
    """The place of one instance of a service."""

    def __init__(self, url: Secret, instance: str) -> None:
        """Take the database and the instance's name."""
        self._url = url
        self._instance = instance
        self._connection: asyncpg.Connection[Any] | None = None
        self._lost = asyncio.Event()
        self.is_waited_for = False

    async def take(self) -> None:
        """Wait until nobody else holds the place.

        A poll, not a lock that waits: a waiting statement would hold back VACUUM for as long.

        Raises:
            Transient errors of asyncpg while the server is away; call again.
        """
        if self.is_waited_for:
            await asyncio.sleep(_STEP_BACK_S)
        while not await self._try():
            if not self.is_waited_for:
                logs.get().info("standing by")
            self.is_waited_for = True
            await asyncio.sleep(_POLL_S)
            if self._lost.is_set():
                # the server has ended the holder's session too: who works goes first
                await asyncio.sleep(_STEP_BACK_S)
        if self.is_waited_for:
            logs.get().info("taking over")
        self.is_waited_for = False

    async def hold(self) -> None:
        """Keep the place for ever; a session that broke is opened again.

        Raises:
            Fatal: another process has taken the place meanwhile.
        """
        while True:
            await self._lost.wait()
            await self._regain()

    async def close(self) -> None:
        """Give the place free."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _regain(self) -> None:
        """Take the place again, ahead of a standby that waits for the same server."""
        n_refused = 0
        while n_refused < _REFUSALS_MAX:
            try:
                if await self._try():
                    return
            except Exception as error:
                if not errors.is_transient(error):
                    raise
            else:
                # a session of ours that is not dead yet, or a standby that came first
                n_refused += 1
            await asyncio.sleep(_POLL_S)
        raise errors.Fatal(f"another process is instance {self._instance} now")

    async def _try(self) -> bool:
        if self._connection is None or self._connection.is_closed():
            self._connection = await db.connect(self._url.read())
            self._connection.add_termination_listener(lambda _: self._lost.set())
            self._lost.clear()
        return bool(await self._connection.fetchval(_TAKE, _LOCK_SPACE, self._instance))

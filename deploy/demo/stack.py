"""The demo's own stack: fresh data, marked as a simulation, and the telephones behind its trunk."""

import contextlib
import fcntl
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.errors import BusyError
from deploy.demo.people import Person, e164
from deploy.local.stack import LocalStack
from deploy.phones import Phone, PhoneExchange

REPORT = "report.json"
INVARIANTS_EVERY_S = 1.0
CALLBACK_RINGS_S = 1.0
DESTINATION_RINGS_S = 1.5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the story plays on."""

    stack: LocalStack
    exchange: PhoneExchange


@contextlib.asynccontextmanager
async def set_up(
    folder: Path, people: Sequence[Person], progress: Callable[[str], None]
) -> AsyncIterator[Stage]:
    """Start everything with fresh data; everything ends with the context, come what may.

    Args:
        folder: the demo's own; what an earlier run left there is removed.
        people: whose telephones are plugged in.
        progress: told in half a sentence what is being done.

    Raises:
        BusyError: a demo runs in that folder already.
        StackError: the stack does not start.
    """
    with _alone_in(folder):
        # an old report must not be taken for that of a run that was killed
        (folder / REPORT).unlink(missing_ok=True)
        place = folder / "stack"
        shutil.rmtree(place, ignore_errors=True)
        stack = LocalStack(place, simulation=True, overrides=_settings(), progress=progress)
        async with stack:
            exchange = PhoneExchange("127.0.0.1", stack.port("trunk"))
            exchange.plug(*_phones(people))
            await exchange.start()
            try:
                yield Stage(stack=stack, exchange=exchange)
            finally:
                await exchange.stop()


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two demos must not remove each other's data."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.lock").open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BusyError(f"A demo runs in {folder} already: wait for its end.") from None
        yield


def _settings() -> dict[str, str]:
    """Return what this stack does otherwise than `make up`."""
    return {
        # as behind a load balancer: each browser's address is the one it says
        "GATEWAY_TRUSTED_PROXIES": "127.0.0.0/8",
        **{
            f"{service}_INVARIANT_INTERVAL_S": str(INVARIANTS_EVERY_S)
            for service in ("AD_LEDGER", "CALL_CONTROL", "CONSENT", "RETENTION")
        },
    }


def _phones(people: Sequence[Person]) -> list[Phone]:
    phones = []
    for person in people:
        for typed, rings_s in (
            (person.callback_number, CALLBACK_RINGS_S),
            (person.destination_number, DESTINATION_RINGS_S),
        ):
            phones.append(Phone(number=e164(typed), answer_after_s=rings_s))
    return phones

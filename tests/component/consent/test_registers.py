"""What is in force is told to everybody: at once when it changes, and once a day (R-E1, R-F1)."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from schemas import topics
from schemas.register import RegisterName, RegisterV1
from services.consent import catalogues
from services.consent.registers import TOLD_AGAIN_AFTER, Teller
from services.consent.store import Store
from services.privacy import recipients
from services.privacy.recipients import RecipientsError
from tests.support.bench import Bench, open_bench
from tests.support.stack import World

WORLD_SERVICES = ("consent",)


@pytest.fixture
async def bench(world: World) -> AsyncIterator[Bench[Store]]:
    async with open_bench(world, "consent", Store, days_of=("consent_subject",)) as found:
        yield found


async def told(bench: Bench[Store], teller: Teller, after: timedelta = timedelta()) -> list[str]:
    """Let it tell, some time later; return the versions that went into the outbox."""
    async with bench.transaction() as ctx:
        ctx.now += after
        events = teller.tell(ctx)
        assert [row.topic for row in ctx.outbox.rows] == [topics.REGISTER.name] * len(events)
        assert [row.key for row in ctx.outbox.rows] == [e.name.value.encode() for e in events]
    teller.has_told(events, ctx.now)
    return [f"{event.name.value} {event.version}" for event in events]


async def test_what_is_in_force_is_told_once_and_again_each_day(bench: Bench[Store]) -> None:
    """R-E1, R-F1: whole, and what was told is what was shipped, byte for byte."""
    teller = Teller(catalogues.known())
    shipped = recipients.load().version.partition("+")[0]
    in_force = catalogues.known().in_force(bench.now).version
    everything = [f"recipients {shipped}", f"catalogue {in_force}"]
    assert await told(bench, teller) == everything
    assert await told(bench, teller) == []
    assert await told(bench, teller, TOLD_AGAIN_AFTER - timedelta(seconds=1)) == []
    assert await told(bench, teller, TOLD_AGAIN_AFTER) == everything
    events = {
        event.name: event
        for payload in await bench.fetch("SELECT payload FROM outbox")
        for event in [RegisterV1.model_validate_json(payload["payload"])]
    }
    assert recipients.parse(events[RegisterName.RECIPIENTS].document.encode()) == recipients.load()
    assert json.loads(events[RegisterName.CATALOGUE].document)["version"] == in_force


async def test_a_change_is_told_at_once_and_a_wrong_one_never(
    bench: Bench[Store], tmp_path: Path
) -> None:
    """R-E1: what nobody could read stands nowhere."""
    file = tmp_path / "recipients.json"
    file.write_bytes(recipients.FILE.read_bytes())
    teller = Teller(catalogues.known(), recipients_file=file)
    await told(bench, teller)
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "version": "2026-12.1"}))
    assert await told(bench, teller) == ["recipients 2026-12.1"]
    file.write_text(json.dumps({**data, "recipients": [{}]}))
    with pytest.raises(RecipientsError):
        await told(bench, teller)

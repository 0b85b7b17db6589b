"""The signal matrix of the chassis: every metric it declares is seen to move (style 3.7).

A service's own metrics join by `Signals(service.registry)` around a test that drives them.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace

import asyncpg
import pytest

from deploy.provision import Infrastructure
from schemas import topics
from services.chassis import errors
from services.chassis.standby import Place
from tests.support.counting import (
    SERVICE,
    Counting,
    Running,
    event,
    make_counting,
    row_of,
    rows_of,
    word_of,
)
from tests.support.eventually import eventually
from tests.support.running import get
from tests.support.signals import Signals
from tests.support.stack import finish

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]
YOUNG_S = 3.0
"""All windows of days are asked in eight rounds."""


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    made = make_counting()
    yield made
    finish(made.world.close())


def _broker_away(service, released: asyncio.Event) -> None:
    """Let the relay wait, as it does for a broker, until released."""
    send_rows = service.sink.send_rows

    async def wait_then_send(rows):
        await released.wait()
        await send_rows(rows)

    service.sink.send_rows = wait_then_send


async def seen_standing_by(run: Running, place: Place) -> Signals:
    """Look at a process that waits for a place, and give it the place."""

    async def is_standing_by() -> bool:
        return run.sample("standing_by") == 1

    await eventually(is_standing_by, within_s=20)
    signals = Signals(run.service.registry)
    signals.look()
    await place.close()
    return signals


async def test_every_metric_of_the_chassis_moves(counting, tmp_path):
    """Each family of the registry, none left out; a new one fails here until it is driven."""
    failed: list[bool] = []
    released = asyncio.Event()

    async def fail_once_then_wait(_, batch):
        if not failed:
            failed.append(True)
            raise errors.Transient("somebody is away")
        if word_of(batch[0]) == "hold":
            await released.wait()

    port = counting.world.ports["consent_admin"]
    secret = tmp_path / "consent_kafka_password"
    secret.write_text(counting.world.kafka_login("consent").password.read(), encoding="utf-8")

    def arrange(service) -> None:
        _broker_away(service, released)
        service.on_secret("kafka_password", lambda _: None)

    # another process has the place of the instance at first
    place = Place(counting.settings().secret("database_url"), "0")
    await place.take()
    async with counting.running(
        wait=False,
        before_save=fail_once_then_wait,
        arrange=arrange,
        secrets_folder=tmp_path,
        batch_records_max=1,
        stall_timeout_s=1.5,
        invariant_interval_s=0.5,
        admin_port=port,
    ) as run:
        signals = await seen_standing_by(run, place)
        poison = replace(row_of(event()), payload=b"{}")
        # a dead letter of it would outlive its rule
        long_ago = [(n, b"2026-01-01T00:00:00+00:00" if n == "ce_time" else v)
                    for n, v in poison.headers]  # fmt: skip
        old = replace(poison, headers=long_ago)
        await counting.send(*rows_of(3), row_of(event("odd")), poison, old, partition=0)
        await counting.has_seen(4)
        for tp in run.consumer.assignment():
            run.consumer.seek(tp, 0)
        await counting.send(row_of(event("hold")), *rows_of(3), partition=0)

        async def are_lag_and_age_seen() -> bool:
            waiting = {"consumer_lag_records", "consumer_lag_seconds", "outbox_age_seconds"}
            return not {f"{SERVICE}_{name}" for name in waiting} & signals.unmoved()

        await eventually(are_lag_and_age_seen, within_s=10)
        released.set()
        secret.write_text(f"{secret.read_text(encoding='utf-8')}\n", encoding="utf-8")
        await counting.records(topics.CONSENT_STATE, 8)

        async def have_all_moved() -> bool:
            return not signals.unmoved()

        with contextlib.suppress(AssertionError):  # the line below says which did not
            await eventually(have_all_moved, within_s=10)
        assert signals.unmoved() == set()
        # what moved in the registry is what the admin port serves
        response = await get(f"http://127.0.0.1:{port}/metrics")
        assert response is not None
        assert all(f"# TYPE {f.name}" in response.text for f in run.service.registry.collect())
        assert 'consent_invariant_violations{invariant="words_are_allowed"} 1.0' in response.text


async def test_invariants_that_nobody_can_ask_are_seen_by_their_age(counting):
    """D1: their last answer stands, and would say for ever that all is well."""
    owner = await asyncpg.connect(counting.world.owner_url(SERVICE))
    try:
        async with counting.running(invariant_interval_s=0.1) as run:

            async def is_young() -> bool:
                return 0 < run.sample("invariant_check_age_seconds") < YOUNG_S

            async def is_old() -> bool:
                return run.sample("invariant_check_age_seconds") > 2 * YOUNG_S

            await eventually(is_young, within_s=20)
            await owner.execute("BEGIN; LOCK TABLE seen IN ACCESS EXCLUSIVE MODE")
            await eventually(is_old, within_s=30)
            await owner.execute("ROLLBACK")
            assert run.sample("invariant_violations", invariant="words_are_allowed") == 0
    finally:
        await owner.close()

"""Every column of every service's database, and every label of its metrics, is classified (D5)."""

import importlib

import pytest

from schemas import topics
from services.chassis import db
from services.chassis.declaration import SERVICES, load
from services.privacy import access_log
from services.privacy.classification import SHARED
from services.privacy.declare import COLUMNS_SQL, gaps, undeclared
from tests.support.stack import make_world, new_prefix

WITH_DATABASE = [name for name in SERVICES if name != "gateway"]


@pytest.mark.parametrize("service", WITH_DATABASE)
async def test_every_column_is_classified_and_every_entry_is_a_column(infra, service):
    """D5, R-C1: an unclassified column fails here, and so does an entry without its column."""
    classification = importlib.import_module(f"services.{service}.classification")
    world = await make_world(new_prefix(), [service], topics=())
    try:
        connection = await db.connect(world.database_url(service))
        try:
            actual = [tuple(row) for row in await connection.fetch(COLUMNS_SQL)]
        finally:
            await connection.close()
    finally:
        await world.close()
    assert len(actual) > len(SHARED)
    assert gaps(actual, {**SHARED, **classification.CLASSIFICATION}) == []


@pytest.mark.parametrize("service", WITH_DATABASE)
def test_every_table_with_personal_data_is_reached_by_orders(service):
    """D1: what no order reaches outlives every rule."""
    module = importlib.import_module(f"services.{service}.classification")
    assert undeclared(module.CLASSIFICATION, getattr(module, "TABLES", ())) == []


@pytest.mark.parametrize(
    "service", [name for name in SERVICES if name in topics.RETENTION_ORDER.consumers]
)
def test_every_service_with_personal_data_has_orders_reach_its_access_log(service):
    """R-D10: a service that others cannot order has nothing that staff could read (retention)."""
    module = importlib.import_module(f"services.{service}.classification")
    assert access_log.TABLE in module.TABLES


def test_who_is_not_reached_by_orders_has_nothing_personal_of_its_own():
    """D1: else its access log would outlive its rule."""
    for service in set(WITH_DATABASE) - set(topics.RETENTION_ORDER.consumers):
        module = importlib.import_module(f"services.{service}.classification")
        assert undeclared(module.CLASSIFICATION, []) == []


def test_only_the_gateway_has_no_database():
    """D5: a service that gets one must be classified."""
    assert [name for name in SERVICES if not load(name).database] == ["gateway"]
